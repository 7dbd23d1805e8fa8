"""Where label maps come from: PNG files beside the images, or COCO's instances, painted."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image

from backbones.errors import UserError
from engine.data.annotations import Annotations, Category
from engine.data.dataset import read_image
from engine.data.masks import decode_segmentation, mask_area, to_rle
from engine.segmentation.classes import LabelClasses
from engine.segmentation.label_maps import read_label_map
from heads.segmentation import ignored_label


class LabelSource(ABC):
    """Images and their label maps, by index.

    `path` is where the labels were read from, `notes` lines for a person on what was done with them.
    """

    categories: list[Category]
    path: Path
    image_paths: Sequence[Path]
    image_ids: list[int]
    notes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.image_paths)

    @property
    def ignored(self) -> int:
        """The label of pixels that are no example."""
        return ignored_label(len(self.categories))

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image `index` (H, W, 3) uint8 RGB and its labels (H, W) uint8, or uint16 where there are more than 255 classes.

        Raises:
            UserError: a file is missing or broken, the two are not of one size, or a label is none of a class.
        """
        image, labels = read_image(self.image_paths[index]), self.read_labels(index)
        if labels.shape != image.shape[:2]:
            raise UserError(
                f"{self.image_paths[index]} is {image.shape[1]} x {image.shape[0]} pixels, but {self.labels_of(index)} is "
                f"{labels.shape[1]} x {labels.shape[0]}. Its labels would be misplaced: put one of them right."
            )
        return image, labels

    @abstractmethod
    def read_labels(self, index: int) -> np.ndarray:
        """The labels of image `index`."""

    @abstractmethod
    def labels_of(self, index: int) -> str:
        """Where the labels of image `index` are, in words."""

    @abstractmethod
    def sizes(self) -> np.ndarray:
        """(N, 2) heights and widths, pixels."""


class LabelMapFiles(LabelSource):
    """Images with a label map each.

    Args:
        pairs: the paths of each image and of its label map.
        folder: of the label maps.
        classes: what their values are.
    """

    def __init__(
        self, pairs: Sequence[tuple[Path, Path]], *, folder: Path, classes: LabelClasses, notes: Sequence[str] = ()
    ) -> None:
        self.path = folder
        self.classes = classes
        self.categories = classes.categories
        self.image_paths = [image for image, _ in pairs]
        self.label_paths = [labels for _, labels in pairs]
        self.image_ids = list(range(1, len(pairs) + 1))
        self.notes = notes

    def read_labels(self, index: int) -> np.ndarray:
        """The labels of image `index`, from its label map."""
        values = read_label_map(self.label_paths[index], image=self.image_paths[index])
        return self.classes.to_labels(values, self.label_paths[index])

    def labels_of(self, index: int) -> str:
        """The label map's path."""
        return f"its label map {self.label_paths[index]}"

    def sizes(self) -> np.ndarray:
        """(N, 2) heights and widths from the images' headers."""
        found = []
        for path in self.image_paths:
            try:
                with Image.open(path) as image:
                    found.append((image.height, image.width))
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
                found.append((0, 0))  # reading it will say what is wrong
        return np.array(found, np.int64)


@dataclass(frozen=True)
class _ImagePaths(Sequence[Path]):
    """The images of annotations, each path made when it is asked for: no worker process has to copy them."""

    folder: Path
    annotations: Annotations

    def __len__(self) -> int:
        return len(self.annotations)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> list[Path]: ...
    def __getitem__(self, index: int | slice) -> Path | list[Path]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.folder / self.annotations.file_name(range(len(self))[index])


class PaintedInstances(LabelSource):
    """COCO's instances as label maps: label 0 is the background, then come the categories.

    Smaller objects lie on larger ones. What cannot be known is ignored: crowd regions, and the boxes of objects that have no
    mask, where no object with one is. Categories that are not kept are background, also where they hide what is kept.

    Args:
        images: the folder the file names are in.
        annotations: the instances.
        keep: the categories that are classes, in the order of their labels; None for all.
    """

    def __init__(self, images: Path, annotations: Annotations, *, keep: Sequence[Category] | None = None) -> None:
        self.path = annotations.path
        self.annotations = annotations
        kept = list(annotations.categories if keep is None else keep)
        background = 0 if all(category.id != 0 for category in annotations.categories) else self._free_id()
        self.categories = [Category(background, "background"), *(Category(category.id, category.name) for category in kept)]
        label_of = {category.id: label for label, category in enumerate(self.categories)}
        # From the annotations' labels, which begin with 1, to ours; 0 for categories that are not kept.
        self._labels = [0, *(label_of[c.id] if c in kept else 0 for c in annotations.categories)]
        self.image_paths = _ImagePaths(images, annotations)
        self.image_ids = annotations.image_ids.tolist()
        left = len(annotations.categories) - len(kept)
        self.notes = [f"{left} of {len(annotations.categories)} categories are background"] if left else []
        if background:
            self.notes.append(f"the background has the id {background}: {annotations.path} has a category 0")

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """As any source; what is painted is of the image's size, not of whatever the file states."""
        image = read_image(self.image_paths[index])
        height, width = self.sizes()[index].tolist()
        if image.shape[:2] != (height, width):
            raise UserError(
                f"{self.image_paths[index]} is {image.shape[1]} x {image.shape[0]} pixels, but {self.labels_of(index)} is "
                f"{width} x {height}. Its labels would be misplaced: put one of them right."
            )
        return image, self.read_labels(index)

    def read_labels(self, index: int) -> np.ndarray:
        """The labels of image `index`, painted."""
        table = self.annotations
        height, width = int(table.heights[index]), int(table.widths[index])
        dtype = np.uint8 if self.ignored == 255 else np.uint16
        painted = np.zeros((height, width), dtype)
        objects: list[tuple[int, int, int, Any]] = []
        for row in range(table.offsets[index], table.offsets[index + 1]):
            label = self._labels[table.labels[row]]
            with self._naming(row):
                rle = to_rle(table.segmentation(row), height, width)
                if rle is not None and not table.iscrowd[row]:
                    objects.append((mask_area(rle), label, row, rle))
                elif rle is not None and label:
                    painted[decode_segmentation(rle, height, width) != 0] = self.ignored
                elif label:
                    left, top, right, bottom = table.boxes[row]
                    painted[int(top) : math.ceil(bottom), int(left) : math.ceil(right)] = self.ignored
        for _, label, row, rle in sorted(objects, key=lambda one: -one[0]):
            with self._naming(row):
                painted[decode_segmentation(rle, height, width) != 0] = label
        return painted

    def labels_of(self, index: int) -> str:
        """The annotation file and the image's id in it."""
        return f"image {self.image_ids[index]} in {self.path}"

    def sizes(self) -> np.ndarray:
        """(N, 2) heights and widths as the annotations state them."""
        return np.stack([self.annotations.heights, self.annotations.widths], axis=1)

    @contextmanager
    def _naming(self, row: int) -> Iterator[None]:
        """What is wrong with a mask within is an error that names its annotation."""
        try:
            yield
        except ValueError as error:
            raise UserError(f"{self.path}: annotation {self.annotations.annotation_ids[row]}: {error}.") from None

    def _free_id(self) -> int:
        return max(category.id for category in self.annotations.categories) + 1
