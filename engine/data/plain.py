"""The usual augmentations, flips, changes of colour and the resize, without albumentations' machinery around them.

Everything is drawn, and comes out, as albumentations' Compose would have it, but boxes to a rounding; and masks stay cropped
all the way.
"""

import random
from collections.abc import Sequence
from typing import Any

import albumentations as A
import cv2
import numpy as np

from engine.data.instances import box_areas, has_sides
from engine.data.mask_crops import MaskCrops
from engine.data.resize import ResizeShorterSide

_FLIPS = {A.HorizontalFlip: 1, A.VerticalFlip: 0}  # and the axis that each mirrors


class PlainTransforms:
    """Runs transforms of the plain kinds on a sample; use `are_plain` first."""

    def __init__(self, transforms: Sequence[A.BasicTransform]) -> None:
        self._transforms = list(transforms)

    @staticmethod
    def are_plain(transforms: Sequence[Any]) -> bool:
        """Whether all are flips, resizes to the shorter side, or change nothing but the image's colours."""
        return all(
            type(transform) in _FLIPS or isinstance(transform, ResizeShorterSide | A.ImageOnlyTransform)
            for transform in transforms
        )

    def __call__(self, image: np.ndarray, instances: dict[str, Any], *, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        """A sample -> the same augmented; `masks`, where there are any, are `MaskCrops`. No keypoints."""
        generator, py_random = np.random.default_rng(seed), random.Random(seed)
        py_random.random()  # Compose draws whether to do anything at all
        masks: MaskCrops | None = instances.get("masks")
        height, width = image.shape[:2]
        boxes = instances["boxes"].astype(np.float64).clip(0, [width, height] * 2)
        for transform in self._transforms:
            transform.set_random_state(generator, py_random)
            axis = _FLIPS.get(type(transform))
            if axis is not None:
                if transform.should_apply():
                    image = cv2.flip(image, axis)
                    low, high = 1 - axis, 3 - axis  # x, or y
                    boxes[:, [low, high]] = image.shape[axis] - boxes[:, [high, low]]
                    masks = None if masks is None else masks.mirrored(axis=axis)
            elif isinstance(transform, ResizeShorterSide):
                height, width = image.shape[:2]
                shape = transform.drawn_shape(height, width)
                image = cv2.resize(image, shape[::-1], interpolation=cv2.INTER_LINEAR)
                boxes *= np.tile([shape[1] / width, shape[0] / height], 2)
                masks = None if masks is None else masks.resized(shape)
            else:
                image = transform(image=image)["image"]
        return image, _realigned(instances, boxes.astype(np.float32), masks)


def _realigned(instances: dict[str, Any], boxes: np.ndarray, masks: MaskCrops | None) -> dict[str, Any]:
    """The columns of the rows whose moved box, and mask, is still an object."""
    kept = has_sides(boxes)
    columns: dict[str, Any] = {}
    if masks is not None:
        areas = masks.areas()
        kept &= areas > 0
        columns["masks"] = masks if kept.all() else masks[kept]
    columns |= {key: column[kept] for key, column in instances.items() if key not in ("boxes", "masks")}
    columns["boxes"] = boxes[kept]
    if "area" in instances:
        before = np.maximum(box_areas(instances["boxes"][kept]), 1e-6)
        columns["area"] = areas[kept] if masks is not None else columns["area"] * box_areas(boxes[kept]) / before
    return columns
