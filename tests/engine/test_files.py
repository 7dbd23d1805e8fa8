"""Files that are written whole, and what is said of those that cannot be."""

import errno

import pytest

from backbones.errors import UserError
from engine.files import FolderError, WriteErrors, make_folder, sync_folder, write_whole


def test_a_file_that_cannot_be_written_whole_stays_as_it_was(tmp_path):
    path = tmp_path / "config.yaml"
    write_whole(path, b"old")
    (tmp_path / "config.yaml.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["config.yaml"]
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_folder_is_synced_or_nothing_happens(tmp_path):
    sync_folder(tmp_path)
    sync_folder(tmp_path / "not there")


def test_a_folder_that_cannot_be_made_is_a_users_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FolderError, match="cannot be written to") as caught:
        make_folder(tmp_path / "file" / "folder")
    assert isinstance(caught.value, UserError)


def test_each_failure_counts_and_each_file_is_told_of_once_until_it_is_written():
    lines: list[str] = []
    errors = WriteErrors(lines.append)
    full = OSError(errno.ENOSPC, "No space left on device")
    errors.succeeded("last.pt")
    for name in ("last.pt", "last.pt", "eval/"):
        errors.failed(name, full)
    errors.succeeded("last.pt")
    errors.failed("last.pt", FolderError("The folder is gone"), then="that is that")
    assert errors.count == 4
    said = "could not be written (No space left on device). Training goes on; it is tried again at the next save."
    assert lines == [
        f"warning 1: last.pt {said}",
        f"warning 3: eval/ {said}",
        "last.pt could be written again",
        "warning 4: last.pt could not be written (The folder is gone). Training goes on; that is that.",
    ]
    assert errors.unwritten == {"last.pt": "The folder is gone", "eval/": "No space left on device"}
