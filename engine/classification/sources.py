"""Where labelled images are: in a folder of class folders, or in a set by its name. A new set is one function."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from backbones.errors import UserError
from backbones.registry import ModuleRegistry
from engine.data.dataset import read_image
from engine.files import IMAGE_SUFFIXES

Split = Literal["train", "val"]


class LabelledImages(ABC):
    """Images and the class of each, as they are stored.

    Args:
        path: the file or folder they come from, for messages.
        class_names: the classes that the labels count, from 0.
        labels: (N,) whole numbers.
    """

    def __init__(self, path: Path, class_names: Sequence[str], labels: np.ndarray) -> None:
        assert labels.ndim == 1, labels.shape
        self.path = path
        self.class_names = list(class_names)
        self.labels = labels.astype(np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, index: int) -> np.ndarray:
        """Image `index` as (H, W, 3) uint8 RGB.

        Raises:
            UserError: it cannot be read; the message names it.
        """

    @abstractmethod
    def name_of(self, index: int) -> str:
        """The name of image `index`, for results: its file's, where it has one."""


class ImageFiles(LabelledImages):
    """Images in files: `files` are their names within the folder `path`."""

    def __init__(self, path: Path, class_names: Sequence[str], labels: np.ndarray, files: Sequence[str]) -> None:
        assert len(files) == len(labels), (len(files), len(labels))
        super().__init__(path, class_names, labels)
        # One array and not a million strings, which each loader process would copy as it touches them.
        self._files = np.array([os.fsencode(name) for name in files], dtype=bytes)

    def read(self, index: int) -> np.ndarray:
        """Image `index` as (H, W, 3) uint8 RGB."""
        return read_image(Path(self.name_of(index)), listed_in="the folder")

    def name_of(self, index: int) -> str:
        """The path of its file."""
        return str(self.path / os.fsdecode(bytes(self._files[index])))


class ImageArray(LabelledImages):
    """Images in memory: `pixels` (N, H, W) or (N, H, W, 3) uint8."""

    def __init__(self, path: Path, class_names: Sequence[str], labels: np.ndarray, pixels: np.ndarray) -> None:
        assert pixels.dtype == np.uint8, pixels.dtype
        assert len(pixels) == len(labels), (pixels.shape, labels.shape)
        super().__init__(path, class_names, labels)
        self._pixels = pixels

    def read(self, index: int) -> np.ndarray:
        """Image `index` as (H, W, 3) uint8 RGB."""
        pixels = self._pixels[index]
        return pixels.copy() if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)

    def name_of(self, index: int) -> str:
        """Its number."""
        return f"{index:05}"


# An image set: "train" or "val", and its options as keywords -> its images. One that is kept apart for tests is "val".
IMAGE_SETS: ModuleRegistry[Callable[..., LabelledImages]] = ModuleRegistry("image set", decorator="register_image_set")
register_image_set = IMAGE_SETS.register


FOLDER_LAYOUT = """
A folder of images has a folder for each class:
  {images}/cat/0001.jpg ...
  {images}/dog/0001.jpg ...
Name yours: data.{split}.images=FOLDER. configs/cls_digits.yaml needs no images at all."""


@register_image_set("image_folder")
def image_folder(split: Split, *, images: str) -> ImageFiles:
    """A folder with a folder for each class, in which its images lie, also in folders below.

    Raises:
        UserError: there is no such folder, it holds other things than class folders, or one of these has no image.
    """
    folder = Path(images)
    if not folder.is_dir():
        raise UserError(f"data.{split}.images: there is no folder {images}" + FOLDER_LAYOUT.format(images=images, split=split))
    try:
        entries = sorted((entry for entry in folder.iterdir() if not entry.name.startswith(".")), key=lambda entry: entry.name)
        for entry in entries:
            if not entry.is_dir():
                raise UserError(
                    f"data.{split}.images: {entry} lies among the class folders: move it into the folder of its class, or away."
                    + FOLDER_LAYOUT.format(images=images, split=split)
                )
        if not entries:
            raise UserError(f"data.{split}.images: {images} is empty." + FOLDER_LAYOUT.format(images=images, split=split))
        files: list[str] = []
        labels: list[int] = []
        for label, entry in enumerate(entries):
            found = _image_files(entry)
            if not found:
                endings = ", ".join(sorted(IMAGE_SUFFIXES))
                raise UserError(
                    f"data.{split}.images: the class folder {entry} has no images ({endings}): put some in, or take it away."
                )
            files += [f"{entry.name}/{name}" for name in found]
            labels += [label] * len(found)
    except OSError as error:
        raise UserError(f"data.{split}.images: {images} cannot be read: {error}.") from None
    return ImageFiles(folder, [entry.name for entry in entries], np.array(labels, np.int64), files)


def _image_files(folder: Path) -> list[str]:
    """The images below a folder, by their names within it, sorted."""

    def fail(error: OSError) -> None:
        raise error

    found = []
    for below, _, names in os.walk(folder, followlinks=True, onerror=fail):
        within = "" if below == str(folder) else f"{Path(below).relative_to(folder)}/"
        images = [name for name in names if f".{name.rpartition('.')[2].lower()}" in IMAGE_SUFFIXES]
        found += [within + name for name in images if not name.startswith(".")]
    return sorted(found)


@register_image_set("digits")
def digits(split: Split) -> ImageArray:
    """scikit-learn's 1797 handwritten digits of 8 x 8 pixels; the last fifth is for validation.

    Alpaydin and Kaynak, https://archive.ics.uci.edu/dataset/80

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError(
            "The image set digits comes with scikit-learn, which is not installed: pip install scikit-learn"
        ) from None
    found = load_digits()
    pixels = np.round(found.images * (255 / 16)).astype(np.uint8)  # 17 greys
    place = slice(0, 1437) if split == "train" else slice(1437, None)
    return ImageArray(Path("scikit-learn's digits"), [str(digit) for digit in range(10)], found.target[place], pixels[place])


@register_image_set("mnist")
def mnist(split: Split, *, root: str = "data") -> ImageArray:
    """Handwritten digits, 60,000 and 10,000 of 28 x 28 pixels; its test set is for validation."""
    return _published("MNIST", "http://yann.lecun.com/exdb/mnist/", root, split)


@register_image_set("fashion_mnist")
def fashion_mnist(split: Split, *, root: str = "data") -> ImageArray:
    """Articles of clothing, 60,000 and 10,000 of 28 x 28 pixels; its test set is for validation.

    Xiao et al., Fashion-MNIST, https://arxiv.org/abs/1708.07747
    """
    return _published("FashionMNIST", "https://github.com/zalandoresearch/fashion-mnist", root, split)


@register_image_set("kmnist")
def kmnist(split: Split, *, root: str = "data") -> ImageArray:
    """Cursive Japanese characters, 60,000 and 10,000 of 28 x 28 pixels; its test set is for validation.

    Clanuwat et al., Deep Learning for Classical Japanese Literature, https://arxiv.org/abs/1812.01718
    """
    return _published("KMNIST", "https://github.com/rois-codh/kmnist", root, split)


@register_image_set("cifar10")
def cifar10(split: Split, *, root: str = "data") -> ImageArray:
    """Small photographs of ten kinds of things, 50,000 and 10,000 of 32 x 32 pixels; its test set is for validation.

    Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009
    """
    return _cifar("CIFAR10", root, split)


@register_image_set("cifar100")
def cifar100(split: Split, *, root: str = "data") -> ImageArray:
    """As cifar10, of a hundred kinds of things."""
    return _cifar("CIFAR100", root, split)


# torchvision takes a while to import: not before a set of its is asked for.


def _published(name: str, home: str, root: str, split: Split) -> ImageArray:
    from engine.classification.idx import load_published

    return ImageArray(*load_published(name, root=root, split=split, home=home))


def _cifar(name: str, root: str, split: Split) -> ImageArray:
    from engine.classification.cifar import load_cifar

    return ImageArray(*load_cifar(name, root=root, split=split))
