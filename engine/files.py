"""Folders to write into, names that do not collide, and endings of image files."""

from collections.abc import Sequence
from pathlib import Path

from backbones.errors import UserError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm"}


def make_folder(folder: str | Path) -> Path:
    """A folder that can be written to, made with its parents if it is not there.

    Raises:
        UserError: it cannot be made, or not be written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process or thread may probe at the same time
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be written to ({error.strerror}). Name another.") from None
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
