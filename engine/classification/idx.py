"""MNIST and sets in its format (IDX files, raw or gzipped), as torchvision knows and fetches them."""

import gzip
import zlib
from pathlib import Path

import numpy as np

from backbones.errors import UserError
from engine.classification.downloads import download

FILE_NAMES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "val": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def load_published(name: str, *, root: str, split: str, home: str) -> tuple[Path, list[str], np.ndarray, np.ndarray]:
    """One of torchvision's sets of IDX files: found below `root`, else downloaded there by the main process.

    The files may lie in torchvision's place, `root`/NAME/raw, or in `root` itself.

    Args:
        name: torchvision's class: MNIST, FashionMNIST or KMNIST.
        home: the page where the files are to be had, for the message.

    Returns:
        The folder, the names of the classes, labels (N,) uint8, images (N, H, W) uint8.

    Raises:
        UserError: files that are not there and cannot be downloaded; the message names them, their folder and their home.
            Files that are malformed.
    """
    import torchvision

    published = getattr(torchvision.datasets, name)
    raw = Path(root).expanduser() / name / "raw"
    folders = (raw, Path(root).expanduser())
    found = _find(folders, split)
    if found is None:
        download(
            published,
            raw,
            within=f"{name}/raw",
            address=published.mirrors[0],
            files=[f"{file}.gz (or without .gz)" for files in FILE_NAMES.values() for file in files],
            split=split,
            home=home,
        )
        found = _find(folders, split)
        assert found is not None, f"torchvision has put the files elsewhere than {raw}"
    images, labels = (read_idx(path) for path in found)
    class_names = [str(class_name) for class_name in published.classes]
    for path, array, num_axes in ((found[0], images, 3), (found[1], labels, 1)):
        if array.ndim != num_axes:
            raise UserError(f"{path} has {array.ndim} axes, not {num_axes}: it is not the file of that name of {home}.")
    if len(images) != len(labels):
        raise UserError(
            f"{found[0]} has {len(images)} images, but {found[1]} {len(labels)} labels: they do not belong together."
        )
    if len(labels) and labels.max() >= len(class_names):
        raise UserError(f"{found[1]} has the label {labels.max()}, but {name} has {len(class_names)} classes, from 0.")
    return found[0].parent, class_names, labels, images


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of bytes, gzipped if its name ends in .gz, as an array of its shape.

    Raises:
        UserError: it is none, or cut short.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}. Fetch it again.") from None
    num_axes = content[3] if len(content) > 3 else 0
    start = 4 + 4 * num_axes
    if content[:3] != b"\x00\x00\x08" or len(content) < start:  # 8 stands for unsigned bytes
        raise UserError(f"{path} is no IDX file of bytes. Fetch it again.")
    shape = tuple(np.frombuffer(content, ">u4", num_axes, 4).tolist())
    size = int(np.prod(shape, dtype=np.int64))
    if len(content) != start + size:
        sizes = " x ".join(map(str, shape))
        raise UserError(f"{path} says it holds {sizes} bytes, and has {len(content) - start}. Fetch it again.")
    return np.frombuffer(content, np.uint8, size, start).reshape(shape)


def _find(folders: tuple[Path, ...], split: str) -> tuple[Path, Path] | None:
    """The image file and the label file of a split, both in one folder, raw or gzipped."""
    for folder in folders:
        paths = [
            next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
            for name in FILE_NAMES[split]
        ]
        if paths[0] is not None and paths[1] is not None:
            return paths[0], paths[1]
    return None
