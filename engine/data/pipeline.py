"""The augmentation of one sample: image and instances in, the same out, still aligned, at the training size."""

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
from engine.data.resize import ResizeShorterSide

cv2.setNumThreads(0)  # a loader has a process a core; threads within them only get in each other's way


# Three points whose turn, after a transform, says whether it mirrors: right of the origin, and below it.
_FRAME = np.array([[0, 0], [1, 0], [0, 1]], np.float32)


class Augmentation:
    """Runs albumentations transforms on a sample, drawing from the sample's own seed.

    Args:
        transforms: applied in order.
        min_sizes: shorter sides to draw from, pixels; None where the transforms bring images to size themselves.
        max_size: bound on the longer side, pixels.
        mirrored_keypoints: (labels, K), for each label and keypoint the place of the one it becomes in a mirror (a left hand
            the right one); None where samples have no keypoints.
    """

    def __init__(
        self,
        transforms: Sequence[A.BasicTransform],
        *,
        min_sizes: Sequence[int] | None,
        max_size: int,
        mirrored_keypoints: np.ndarray | None = None,
    ) -> None:
        steps = list(transforms)
        if min_sizes is not None:
            steps.append(ResizeShorterSide(min_sizes, max_size))
        boxes = A.BboxParams(format="pascal_voc", label_fields=["rows"], clip=True, filter_invalid_bboxes=True)
        self._mirrored = mirrored_keypoints
        # Points are kept wherever they go, so that they stay in order; those outside the image are dealt with here.
        points = None if self._mirrored is None else A.KeypointParams(format="xy", remove_invisible=False)
        self._compose = A.Compose(steps, bbox_params=boxes, keypoint_params=points)

    def __call__(
        self, image: np.ndarray, instances: dict[str, np.ndarray], *, seed: int
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Augment one sample.

        Args:
            image: (H, W, 3) uint8.
            instances: columns of N rows: `boxes` (N, 4) float32 xyxy pixels, others (N, ...), perhaps `masks` (N, H, W) uint8
                and `keypoints` (N, K, 3) float32.
            seed: all that the random choices depend on.

        Returns:
            The image (H', W', 3) and the columns of the rows that are still in it. `area` follows the scale of the box or mask.
        """
        # One generator for all transforms: set_random_seed would give each the same one, and so the same draws.
        self._compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        boxes = instances["boxes"]
        fields: dict[str, Any] = {"image": image, "bboxes": boxes, "rows": np.arange(len(boxes))}
        has_masks = "masks" in instances
        if has_masks and len(boxes):
            fields["masks"] = instances["masks"]
        if self._mirrored is not None:
            fields["keypoints"] = np.concatenate([_FRAME, instances["keypoints"][..., :2].reshape(-1, 2)])
        try:
            out = self._compose(**fields)
        except (ValueError, CropSizeError) as error:
            raise UserError(f"an augmentation cannot take it: {error}") from error
        if out["image"].dtype != np.uint8:
            raise UserError("an augmentation gives other than uint8 images. The model normalises them itself: leave that out.")

        # Boxes that fell out are gone from `bboxes`, masks never are: the row numbers say whose box is left.
        rows = np.asarray(out["rows"], dtype=np.int64)
        new_boxes = np.asarray(out["bboxes"], dtype=np.float32).reshape(-1, 4)
        height, width = out["image"].shape[:2]
        # What is left of a box stays an object while it is a pixel wide and high, but for albumentations' float32 fractions.
        kept = (new_boxes[:, 2:] - new_boxes[:, :2] >= 0.999).all(axis=1)
        rows, new_boxes = rows[kept], new_boxes[kept]
        if has_masks:
            masks = np.asarray(out["masks"])[rows] if len(rows) else np.zeros((0, height, width), np.uint8)
            visible = masks.any(axis=(1, 2))
            rows, new_boxes, masks = rows[visible], new_boxes[visible], masks[visible]
        columns = {key: value[rows] for key, value in instances.items() if key not in ("boxes", "masks")}
        if self._mirrored is not None:
            moved = np.asarray(out["keypoints"], np.float32).reshape(-1, 2)
            columns["keypoints"] = self._keypoints(moved, instances, height, width)[rows]
        columns["boxes"] = new_boxes
        if has_masks:
            columns["masks"] = masks
        if "area" in columns:
            columns["area"] = self._areas(columns, boxes[rows])
        return out["image"], columns

    def _keypoints(self, moved: np.ndarray, instances: dict[str, np.ndarray], height: int, width: int) -> np.ndarray:
        """Keypoints (N, K, 3) from where the frame and they went to (3 + N * K, 2): mirrored ones change names."""
        assert self._mirrored is not None
        origin, right, down = moved[:3]
        before = instances["keypoints"]
        keypoints = np.concatenate([moved[3:].reshape(*before.shape[:2], 2), before[..., 2:]], axis=2)
        if np.linalg.det(np.stack([right - origin, down - origin])) < 0:
            keypoints = np.take_along_axis(keypoints, self._mirrored[instances["labels"]][..., None], axis=1)
        x, y, visibility = keypoints[..., 0], keypoints[..., 1], keypoints[..., 2]
        inside = (visibility > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
        return keypoints * inside[..., None]

    @staticmethod
    def _areas(columns: dict[str, np.ndarray], boxes_before: np.ndarray) -> np.ndarray:
        if "masks" in columns:
            return columns["masks"].sum(axis=(1, 2), dtype=np.int64).astype(np.float32)
        return columns["area"] * _box_areas(columns["boxes"]) / np.maximum(_box_areas(boxes_before), 1e-6)


def _box_areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
