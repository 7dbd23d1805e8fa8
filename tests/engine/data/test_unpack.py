"""engine/data/unpack.py: archives, broken ones, and ones that want out of their folder."""

import errno
import hashlib
import io
import shutil
import stat
import zipfile
from types import SimpleNamespace

import pytest

from backbones.errors import UserError
from engine.data.unpack import check_free_space, check_sha256, unpack

FILES = {"val2017/1.jpg": b"one" * 1000, "val2017/2.jpg": b"two" * 1000, "annotations/a.json": b"{}"}


@pytest.fixture
def archive(tmp_path):
    """A function that writes a zip of files, or of entries with a Unix mode."""

    def write(files=FILES, *, mode=None):
        path = tmp_path / "a.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as content:
            for name, body in files.items():
                entry = zipfile.ZipInfo(name)
                if mode is not None:
                    entry.external_attr = mode << 16
                content.writestr(entry, body)
        return path

    return write


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_files_are_written_and_named(archive, tmp_path):
    progress = []
    assert unpack(archive(), tmp_path / "out", on_progress=progress.append) == list(FILES)
    assert tree(tmp_path / "out") == FILES
    assert progress[-1] == sum(map(len, FILES.values()))


def test_only_what_is_wanted_is_written(archive, tmp_path):
    assert unpack(archive(), tmp_path / "out", only="annotations/a.json".__eq__) == ["annotations/a.json"]
    assert tree(tmp_path / "out") == {"annotations/a.json": b"{}"}


def test_what_is_there_is_left_and_what_is_cut_short_is_written_again(archive, tmp_path):
    unpack(archive(), tmp_path / "out")
    kept, cut = tmp_path / "out/val2017/1.jpg", tmp_path / "out/val2017/2.jpg"
    before = kept.stat().st_mtime_ns
    cut.write_bytes(b"two")
    unpack(archive(), tmp_path / "out")
    assert tree(tmp_path / "out") == FILES
    assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../out.txt", "a/../../out.txt", "a\\..\\..\\out.txt", "C:/out.txt", "..", "a/b/../../../../x"]
)
def test_an_entry_that_leads_out_of_the_folder_stops_all(archive, tmp_path, name):
    path = archive({"good.txt": b"good", name: b"evil"})
    with pytest.raises(UserError, match=r"leads out of the folder\. Nothing was unpacked"):
        unpack(path, tmp_path / "deep" / "out")
    assert tree(tmp_path) == {"a.zip": path.read_bytes()}


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_are_refused(archive, tmp_path, kind):
    with pytest.raises(UserError, match="is a link or no file"):
        unpack(archive({"link": b"/etc/passwd"}, mode=kind | 0o644), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_plain_file_with_a_mode_is_a_file(archive, tmp_path):
    unpack(archive({"a/b.txt": b"good"}, mode=stat.S_IFREG | 0o644), tmp_path / "out")
    assert tree(tmp_path / "out") == {"a/b.txt": b"good"}


def test_a_flipped_byte_is_found_and_its_file_not_written(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as content:
        content.writestr("1.jpg", b"first")
        content.writestr("2.jpg", b"marker and more")
    path.write_bytes(path.read_bytes().replace(b"marker", b"narker"))
    with pytest.raises(UserError, match=r"a\.zip is broken\. Delete it; the same command .*CRC-32.*2\.jpg"):
        unpack(path, tmp_path / "out")
    assert tree(tmp_path / "out") == {"1.jpg": b"first"}


def test_an_archive_cut_short_or_of_something_else_is_broken(archive, tmp_path):
    path = archive()
    for body in (path.read_bytes()[:-30], b"<html>not found</html>", b""):
        path.write_bytes(body)
        with pytest.raises(UserError, match="is broken"):
            unpack(path, tmp_path / "out")
    with pytest.raises(UserError, match="There is no archive"):
        unpack(tmp_path / "none.zip", tmp_path / "out")


def test_an_encrypted_archive_is_said(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as content:
        content.writestr("1.jpg", b"secret")
    raw = bytearray(buffer.getvalue())
    raw[6] |= 1  # the flag "encrypted" in the entry's own header, and in the directory's
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(raw)
    with pytest.raises(UserError, match=r"is broken.*encrypted"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


def test_a_disk_without_room_is_said_before_anything_is_written(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5000))
    with pytest.raises(UserError, match=r"To unpack a\.zip takes 0\.0 MB on the disk .* 0\.0 MB are free\. Make room"):
        unpack(archive(), tmp_path / "out")
    assert tree(tmp_path / "out") == {}
    check_free_space(tmp_path, 5000, what="do nothing")


def test_a_disk_that_fills_up_is_said(archive, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(UserError, match=r"The disk is full: a\.zip cannot be unpacked.* same command"):
        unpack(archive(), tmp_path / "out")
    assert tree(tmp_path / "out") == {}


def test_a_file_is_checked_against_its_published_sha256(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"content" * 300_000)
    check_sha256(path, hashlib.sha256(b"content" * 300_000).hexdigest())
    with pytest.raises(UserError, match=r"is not the published file: its SHA-256 is .* Delete it"):
        check_sha256(path, hashlib.sha256(b"other").hexdigest())
