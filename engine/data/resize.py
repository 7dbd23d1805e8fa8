"""Resizing as albumentations transforms: torchvision's shorter-side rule, and large-scale jitter's."""

from collections.abc import Sequence
from typing import Any

import albumentations as A
import cv2
import numpy as np


def resized_shape(height: int, width: int, *, min_size: int, max_size: int) -> tuple[int, int]:
    """(height, width) whose shorter side is min_size, or less where the longer would pass max_size; torchvision's rule."""
    scale = min(min_size / min(height, width), max_size / max(height, width))
    return max(1, int(height * scale)), max(1, int(width * scale))


def resize_masks(masks: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Masks (N, H, W) uint8 -> (N, *shape), each pixel its nearest's, as OpenCV has it; only where there is something."""
    resized = np.zeros((len(masks), *shape), np.uint8)
    rows, columns = (nearest(old, new) for old, new in zip(masks.shape[1:], shape, strict=True))
    for mask, target in zip(masks, resized, strict=True):
        left, top, width, height = cv2.boundingRect(mask)
        if width and height:
            first, last = np.searchsorted(rows, (top, top + height))
            begin, end = np.searchsorted(columns, (left, left + width))
            down, across = rows[first:last], columns[begin:end]
            target[first:last, begin:end] = (
                mask[down[0] : down[-1] + 1].take(across, axis=1)[down - down[0]] if len(down) else 0
            )
    return resized


def nearest(old: int, new: int) -> np.ndarray:
    """For each of `new` pixels of a side the one of `old` it shows."""
    return np.minimum(np.floor(np.arange(new) * (1 / (new / old))).astype(np.int64), old - 1)


class _Resize(A.DualTransform):
    """Bilinear for images, nearest for masks. Boxes are relative to the image inside albumentations: nothing to do."""

    def __init__(self) -> None:
        super().__init__(p=1)

    def apply(self, img: np.ndarray, shape: tuple[int, int], **params: Any) -> np.ndarray:
        return cv2.resize(img, shape[::-1], interpolation=cv2.INTER_LINEAR)

    def apply_to_mask(self, mask: np.ndarray, shape: tuple[int, int], **params: Any) -> np.ndarray:
        return cv2.resize(mask, shape[::-1], interpolation=cv2.INTER_NEAREST)

    def apply_to_masks(self, masks: np.ndarray, shape: tuple[int, int], **params: Any) -> np.ndarray:
        return resize_masks(np.asarray(masks), shape)

    def apply_to_bboxes(self, bboxes: np.ndarray, **params: Any) -> np.ndarray:
        return bboxes

    def apply_to_keypoints(self, keypoints: np.ndarray, factors: tuple[float, float], **params: Any) -> np.ndarray:
        moved = keypoints.copy()
        moved[:, :2] *= factors
        return moved

    @staticmethod
    def _to(new: tuple[int, int], old: tuple[int, int]) -> dict[str, Any]:
        """The parameters of a resize from one (height, width) to another; keypoints are scaled as torchvision does."""
        return {"shape": new, "factors": (new[1] / old[1], new[0] / old[0])}


class ResizeShorterSide(_Resize):
    """Resize to a shorter side drawn from `min_sizes`, in pixels, the longer side kept within `max_size`."""

    def __init__(self, min_sizes: Sequence[int], max_size: int) -> None:
        super().__init__()
        self.min_sizes = list(min_sizes)
        self.max_size = max_size

    def drawn_shape(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) that an image of this size gets, drawn from the transform's own random numbers."""
        return resized_shape(height, width, min_size=self.py_random.choice(self.min_sizes), max_size=self.max_size)

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        height, width = params["shape"][:2]
        return self._to(self.drawn_shape(height, width), (height, width))


class ScaleJitter(_Resize):
    """Resize to fit a square of `size` pixels times a factor drawn evenly from min_scale to max_scale."""

    def __init__(self, size: int, min_scale: float, max_scale: float) -> None:
        super().__init__()
        self.size = size
        self.min_scale = min_scale
        self.max_scale = max_scale

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        height, width = params["shape"][:2]
        scale = self.py_random.uniform(self.min_scale, self.max_scale) * self.size / max(height, width)
        return self._to((max(1, round(height * scale)), max(1, round(width * scale))), (height, width))
