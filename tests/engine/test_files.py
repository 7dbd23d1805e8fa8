"""Files that are written whole, and what is said of those that cannot be."""

import errno
from contextlib import nullcontext
from pathlib import Path

import pytest

from backbones.errors import UserError
from engine.files import FolderError, WriteErrors, make_folder, replacing, sync_folder, write_whole


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


def test_a_file_that_is_replaced_has_its_place_all_the_time_and_the_old_one_is_kept(tmp_path, monkeypatch):
    path, previous = tmp_path / "last.pt", tmp_path / "last.previous.pt"
    path.write_bytes(b"one")
    for content, failing in ((b"two", True), (b"three", False), (b"four", False)):
        with monkeypatch.context() as patch:
            if failing:
                patch.setattr(Path, "replace", _replace_but_the_last)
            with pytest.raises(OSError) if failing else nullcontext(), replacing(path, previous=previous) as file:
                assert path.exists()
                file.write(content)
    assert (path.read_bytes(), previous.read_bytes()) == (b"four", b"three")
    assert sorted(left.name for left in tmp_path.iterdir()) == ["last.previous.pt", "last.pt"]


def test_where_there_are_no_links_the_old_one_is_moved(tmp_path, monkeypatch):
    path, previous = tmp_path / "last.pt", tmp_path / "last.previous.pt"
    path.write_bytes(b"one")
    monkeypatch.setattr(Path, "hardlink_to", lambda *_: _fail())
    with replacing(path, previous=previous) as file:
        file.write(b"two")
    assert (path.read_bytes(), previous.read_bytes()) == (b"two", b"one")


def _replace_but_the_last(part: Path, place: Path, replace=Path.replace) -> None:
    """Fails after the old file has its second name."""
    if part.name == "last.pt.part":
        _fail()
    replace(part, place)


def _fail() -> None:
    raise OSError(errno.EPERM, "Operation not permitted")
