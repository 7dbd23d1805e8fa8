"""CIFAR-10 and CIFAR-100, in the files for Python that are published, as torchvision knows and fetches them."""

from pathlib import Path
from typing import Any

import numpy as np

from backbones.errors import UserError
from backbones.pickled_arrays import load_pickled_arrays
from engine.classification.downloads import download

HOME = "https://www.cs.toronto.edu/~kriz/cifar.html"
SHAPE = (3, 32, 32)


def load_cifar(name: str, *, root: str, split: str) -> tuple[Path, list[str], np.ndarray, np.ndarray]:
    """CIFAR10 or CIFAR100: found in its folder below `root`, or in `root` itself, else downloaded by the main process.

    The files are pickles; of what they say, only arrays, numbers and text are read.

    Returns:
        The folder, the names of the classes, labels (N,) int64, images (N, 32, 32, 3) uint8.

    Raises:
        UserError: files that are not there and cannot be downloaded; the message names them, their folder and their home.
            Files that are malformed.
    """
    import torchvision

    published = getattr(torchvision.datasets, name)
    own = Path(root).expanduser() / published.base_folder
    files = [file for file, _ in (published.train_list if split == "train" else published.test_list)]
    wanted = [published.meta["filename"], *files]
    folders = (own, Path(root).expanduser())
    folder = next((folder for folder in folders if all((folder / file).is_file() for file in wanted)), None)
    if folder is None:
        every = [published.meta["filename"], *(file for file, _ in [*published.train_list, *published.test_list])]
        download(published, own, within=published.base_folder, address=published.url, files=every, split=split, home=HOME)
        folder = own
    meta = load_pickled_arrays(folder / published.meta["filename"])
    names = meta.get(published.meta["key"]) if isinstance(meta, dict) else None
    if not isinstance(names, list):
        raise UserError(f"{folder / published.meta['filename']} has no names of classes. Fetch it again from {HOME}.")
    class_names = [str(class_name) for class_name in names]
    parts = [_read_batch(folder / file, num_classes=len(class_names)) for file in files]
    labels = np.concatenate([labels for labels, _ in parts])
    images = np.concatenate([images for _, images in parts])
    return folder, class_names, labels, images


def _read_batch(path: Path, *, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    content: Any = load_pickled_arrays(path)
    content = content if isinstance(content, dict) else {}
    try:
        labels = np.array(content.get("labels", content.get("fine_labels")), dtype=np.int64)
        images = content["data"].numpy().reshape(len(labels), *SHAPE).transpose(0, 2, 3, 1)
        if images.dtype != np.uint8 or labels.min() < 0 or labels.max() >= num_classes:
            raise ValueError
    except (KeyError, AttributeError, TypeError, ValueError):
        raise UserError(f"{path} is no batch of CIFAR's images and their labels. Fetch it again from {HOME}.") from None
    return labels, images
