"""Zip archives: checked by their checksums while they are unpacked, and never outside the folder."""

import errno
import hashlib
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from backbones.errors import UserError
from engine.data.download import GO_ON, megabytes
from engine.files import make_folder


def unpack(
    archive: Path,
    folder: Path,
    *,
    only: Callable[[str], bool] = lambda name: True,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Unpack a zip archive's files below `folder`, and give their names.

    Each file is checked against its CRC-32, written beside its place and moved there when whole; one that is there with the
    archive's size is taken to be so. All names are looked at before any is written.

    Args:
        only: says of a name whether the file is wanted.
        on_progress: called with the bytes unpacked so far.

    Raises:
        UserError: the archive is broken, or names a place outside the folder; the disk is full.
    """
    broken = f"{archive} is broken. Delete it; the same command then fetches it again."
    try:
        with zipfile.ZipFile(archive) as content:
            entries = [entry for entry in content.infolist() if not entry.is_dir() and only(entry.filename)]
            places = [folder / inner_path(entry, archive) for entry in entries]
            missing = [
                (entry, place)
                for entry, place in zip(entries, places, strict=True)
                if not (place.is_file() and place.stat().st_size == entry.file_size)
            ]
            check_free_space(folder, sum(entry.file_size for entry, _ in missing), what=f"unpack {archive.name}")
            done = sum(entry.file_size for entry in entries) - sum(entry.file_size for entry, _ in missing)
            for parent in sorted({place.parent for _, place in missing}):
                make_folder(parent)
            for entry, place in missing:
                part = place.with_name(f"{place.name}.part")
                try:
                    with content.open(entry) as source, part.open("wb") as target:
                        shutil.copyfileobj(source, target, 1 << 20)
                    part.replace(place)
                finally:
                    part.unlink(missing_ok=True)
                done += entry.file_size
                on_progress(done)
            return [entry.filename for entry in entries]
    except FileNotFoundError:
        raise UserError(f"There is no archive {archive}.") from None
    # Garbage, a file cut short, a checksum that is not the content's, an encrypted or exotically compressed entry.
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{broken} ({' '.join(str(error).split()) or type(error).__name__})") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"The disk is full: {archive.name} cannot be unpacked. Make room. {GO_ON}") from None
        raise UserError(f"{archive} cannot be unpacked into {folder} ({error.strerror or error}).") from None


def unpacked_size(archive: Path) -> int:
    """Bytes that an archive's files take; 0 where it is broken, which `unpack` tells."""
    try:
        with zipfile.ZipFile(archive) as content:
            return sum(entry.file_size for entry in content.infolist())
    except (OSError, zipfile.BadZipFile):
        return 0


def inner_path(entry: zipfile.ZipInfo, archive: Path) -> PurePosixPath:
    """Where an entry goes, relative to the folder it is unpacked into.

    Raises:
        UserError: it would lie outside of it, or is a link or another thing that is no file.
    """
    path = PurePosixPath(entry.filename)
    mode = entry.external_attr >> 16  # a Unix file mode, where the archive has one
    outside = path.is_absolute() or ".." in path.parts or "\\" in entry.filename or ":" in entry.filename or not path.parts
    if outside or (stat.S_IFMT(mode) and not stat.S_ISREG(mode)):
        what = "is a link or no file" if not outside else "leads out of the folder"
        raise UserError(f"{archive} is refused: its entry {entry.filename!r} {what}. Nothing was unpacked.")
    return path


def check_free_space(folder: Path, needed: int, *, what: str) -> None:
    """Check that a disk has room before the work, not after hours of it.

    Raises:
        UserError: it has not; the message says how much is needed and how much there is.
    """
    make_folder(folder)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"To {what} takes {megabytes(needed)} on the disk of {folder}, where {megabytes(free)} are free. "
            "Make room, or name a folder on another disk."
        )


def check_sha256(path: Path, expected: str, *, on_progress: Callable[[int], None] = lambda done: None) -> None:
    """Check a file against its published SHA-256.

    Raises:
        UserError: it is another file.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        done = 0
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            done += len(chunk)
            on_progress(done)
    if digest.hexdigest() != expected:
        raise UserError(
            f"{path} is not the published file: its SHA-256 is {digest.hexdigest()}, published is {expected}. "
            "Delete it; the same command then fetches it again."
        )
