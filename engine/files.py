"""Folders to write into, files written whole, names that do not collide, and endings of image files."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from backbones.errors import UserError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm"}


class FolderError(UserError):
    """A folder that cannot be written to."""


def make_folder(folder: str | Path) -> Path:
    """A folder that can be written to, made with its parents if it is not there.

    Raises:
        FolderError: it cannot be made, or not be written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process or thread may probe at the same time
    except OSError as error:
        raise FolderError(f"The folder {folder} cannot be written to ({error.strerror}). Name another.") from None
    return folder


def picture_names(paths: Sequence[str | Path], *, taken: Sequence[str] = ()) -> list[str]:
    """A name without ending for the picture of each image: the image's own, numbered where names meet or are `taken`."""
    used = set(taken)
    names = []
    for path in paths:
        name, number = Path(path).stem, 1
        while name in used:
            number += 1
            name = f"{Path(path).stem}_{number}"
        used.add(name)
        names.append(name)
    return names


def write_whole(path: Path, data: bytes) -> None:
    """Write a file beside its place, then move it there: a reader sees the old one or the new one, never half of one.

    Raises:
        OSError: it cannot be written; the old one is as it was.
    """
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: Path, *, previous: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write that is flushed to the disk, and then moved to `path`: a reader sees the old one or the new one.

    Args:
        path: its place.
        previous: where the file that was at `path` goes; None to write over it.

    Raises:
        OSError: it cannot be written; what was at `path` is as it was, and nothing is left beside it.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            _keep(path, previous)
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink(missing_ok=True)  # of a full disk it would keep what others need
        raise
    sync_folder(path.parent)


def _keep(path: Path, previous: Path) -> None:
    """Give a file another name, too, in the place of what has it."""
    if previous.exists() and previous.samefile(path):
        return  # a write before this one came so far, and no further
    link = previous.with_name(f"{previous.name}.part")
    link.unlink(missing_ok=True)
    try:
        link.hardlink_to(path)  # so that there is a file at `path` all the time
    except OSError:
        path.replace(previous)  # not every file system has links
    else:
        link.replace(previous)


def is_gone(path: Path) -> bool:
    """Whether a file or folder has no name any more; what cannot be looked at is not gone."""
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def sync_folder(folder: Path) -> None:
    """Have a folder's names on the disk: without it a renamed file may be back under its old name after a loss of power."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # not every system opens a folder
        return
    try:
        os.fsync(handle)
    except OSError:
        pass  # nor does every file system sync one
    finally:
        os.close(handle)


class WriteErrors:
    """Files that cannot be written while a run goes on, for the disk is full, say: counted, and told once until they can be.

    Args:
        tell: prints a line.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell
        self.count = 0
        self.unwritten: dict[str, str] = {}  # what cannot be written now, and why

    def failed(self, what: str, error: OSError | FolderError, *, then: str = "it is tried again at the next save") -> None:
        """A file could not be written."""
        self.count += 1
        cause = error.__context__ if isinstance(error, FolderError) else error  # its own advice is for a beginning
        why = (isinstance(cause, OSError) and cause.strerror) or str(error)
        if what not in self.unwritten:
            self.tell(f"warning {self.count}: {what} could not be written ({why}). Training goes on; {then}.")
        self.unwritten[what] = why

    def succeeded(self, what: str) -> None:
        """A file has been written."""
        if self.unwritten.pop(what, None) is not None:
            self.tell(f"{what} could be written again")
