"""The augmentation of an image and its label map, still aligned: configured transforms, a resize, a crop."""

import os
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

# albumentations asks a server for its newest version on import, unless told not to.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
from albumentations.augmentations.crops.transforms import CropSizeError

from backbones.errors import UserError
from engine.data.augmentations import RESIZING, build_transforms
from engine.segmentation.batch import scaled_shape
from engine.segmentation.config import SegmentationDataConfig

cv2.setNumThreads(0)  # a loader has a process a core; threads within them only get in each other's way

MEAN_COLOUR = (124, 116, 104)  # ImageNet's, which the model's normalisation turns into nothing
_CROP_DRAWS = 10


class LabelledAugmentation:
    """Runs albumentations transforms on an image and its label map, drawing from the sample's own seed.

    Args:
        transforms: applied in order.
        ignored: the label of pixels that are no example.
    """

    def __init__(self, transforms: Sequence[A.BasicTransform], *, ignored: int) -> None:
        self.ignored = ignored
        self._compose = A.Compose(list(transforms))

    def __call__(self, image: np.ndarray, labels: np.ndarray, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) uint8 and labels (H, W) uint8 or uint16 -> the same, (H', W', 3) and (H', W').

        Raises:
            UserError: a transform refuses the image, gives one that is not uint8, or labels that were not in the map.
        """
        # One generator for all transforms: set_random_seed would give each the same one, and so the same draws.
        self._compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        try:
            out = self._compose(image=image, mask=labels)
        except (ValueError, CropSizeError) as error:
            raise UserError(f"an augmentation cannot take it: {error}") from error
        new_image, new_labels = out["image"], out["mask"]
        if new_image.dtype != np.uint8:
            raise UserError("an augmentation gives other than uint8 images. The model normalises them itself: leave that out.")
        if new_labels.shape != new_image.shape[:2]:
            raise UserError("an augmentation changes the image's size and not its label map's: leave it out.")
        known = np.bincount(labels.ravel(), minlength=65536) > 0
        known[self.ignored] = True
        if new_labels.dtype != labels.dtype or not known[new_labels].all():
            raise UserError(
                "an augmentation gives labels that were not in the map: it blends or draws over label maps. "
                "Give it `mask_interpolation: 0`, or leave it out."
            )
        return new_image, new_labels


def build_augmentation(config: SegmentationDataConfig, *, ignored: int) -> LabelledAugmentation:
    """The augmentation of a config's training set.

    Raises:
        UserError: unknown names or options, or values albumentations refuses.
    """
    transforms: list[A.BasicTransform] = []
    for step in config.augmentations:
        made = build_transforms(step.name, step.options())
        for transform in made:
            # What a turn or a shift uncovers has no class. albumentations would make it class 0.
            if getattr(transform, "fill_mask", None) is not None and "fill_mask" not in step.options():
                transform.fill_mask = ignored
        transforms += made
    if not any(step.name in RESIZING for step in config.augmentations):
        sizes = config.min_size if isinstance(config.min_size, list) else [config.min_size]
        low, high = config.scale or (1.0, 1.0)
        transforms.append(ScaledResize(sizes, config.max_size, low=low, high=high))
    if config.crop_size is not None:
        transforms.append(RandomCrop(config.crop_size, max_share=config.crop_max_share, ignored=ignored))
    return LabelledAugmentation(transforms, ignored=ignored)


class ScaledResize(A.DualTransform):
    """Resize to a shorter side drawn from `min_sizes`, in pixels, times a factor drawn from `low` to `high`.

    The longer side is kept within `max_size` times the factor. None among the sizes is the image's own.
    """

    def __init__(self, min_sizes: Sequence[int | None], max_size: int, *, low: float, high: float) -> None:
        super().__init__(p=1)
        self.min_sizes = list(min_sizes)
        self.max_size = max_size
        self.low = low
        self.high = high

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        height, width = params["shape"][:2]
        factor = self.py_random.uniform(self.low, self.high)
        min_size = self.py_random.choice(self.min_sizes)
        return {"to_shape": scaled_shape(height, width, min_size=min_size, max_size=self.max_size, factor=factor)}

    def apply(self, img: np.ndarray, to_shape: tuple[int, int], **params: Any) -> np.ndarray:
        return cv2.resize(img, to_shape[::-1], interpolation=cv2.INTER_LINEAR)

    def apply_to_mask(self, mask: np.ndarray, to_shape: tuple[int, int], **params: Any) -> np.ndarray:
        # INTER_NEAREST takes the pixel at a cell's corner, half a pixel off what the image is interpolated at.
        return cv2.resize(mask, to_shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


class RandomCrop(A.DualTransform):
    """Cut out a square of `size` pixels; an image that is smaller is padded, on the right and below.

    A place where one class has more than `max_share` of the pixels that have a class is drawn again, up to ten times.
    """

    def __init__(self, size: int, *, max_share: float, ignored: int) -> None:
        super().__init__(p=1)
        self.size = size
        self.max_share = max_share
        self.ignored = ignored

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        height, width = params["shape"][:2]
        for _ in range(_CROP_DRAWS):
            top = self.py_random.randint(0, max(0, height - self.size))
            left = self.py_random.randint(0, max(0, width - self.size))
            if self.max_share >= 1 or self._is_mixed(data["mask"][top : top + self.size, left : left + self.size]):
                break
        return {"top": top, "left": left}

    def _is_mixed(self, labels: np.ndarray) -> bool:
        counts = np.bincount(labels[labels != self.ignored])
        return bool(counts.size) and counts.max() <= self.max_share * counts.sum()

    def apply(self, img: np.ndarray, top: int, left: int, **params: Any) -> np.ndarray:
        return self._cut(img, top, left, MEAN_COLOUR)

    def apply_to_mask(self, mask: np.ndarray, top: int, left: int, **params: Any) -> np.ndarray:
        return self._cut(mask, top, left, self.ignored)

    def _cut(self, pixels: np.ndarray, top: int, left: int, fill: Any) -> np.ndarray:
        cut = pixels[top : top + self.size, left : left + self.size]
        whole = np.empty((self.size, self.size, *pixels.shape[2:]), pixels.dtype)
        whole[:] = fill
        whole[: cut.shape[0], : cut.shape[1]] = cut
        return whole
