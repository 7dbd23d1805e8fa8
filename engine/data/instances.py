"""What happens to the rows of a sample when its image is scaled, moved and cut: boxes, masks, keypoints and areas in step."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

# Columns of N rows: boxes (N, 4) float32 xyxy pixels, labels (N,), perhaps area, iscrowd (N,), masks (N, H, W) uint8, or in
# the usual augmentations MaskCrops, and keypoints (N, K, 3) float32.
Instances = dict[str, Any]
Sample = tuple[np.ndarray, Instances]  # the image (H, W, 3) uint8, and what is in it

MEAN_COLOUR = (124, 116, 104)  # ImageNet's, which the model's normalisation turns into nothing


def take(instances: Instances, rows: np.ndarray) -> Instances:
    """Some rows, by number or by a (N,) bool."""
    return {key: column[rows] for key, column in instances.items()}


def join(parts: Sequence[Instances]) -> Instances:
    """The rows of several samples in one; all have the same columns, and masks of one size."""
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def crowds(instances: Instances) -> np.ndarray:
    """(N,) bool: which rows are crowd regions."""
    return instances["iscrowd"] > 0 if "iscrowd" in instances else np.zeros(len(instances["boxes"]), bool)


def mask_areas(masks: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Pixels of each mask, (N,) float32; masks are (H, W) uint8."""
    return np.array([cv2.countNonZero(mask) if mask.size else 0 for mask in masks], np.float32)


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """Pixels of each box, (N,)."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def has_sides(boxes: np.ndarray) -> np.ndarray:
    """(N,) bool: which boxes are a pixel wide and high, but for the rounding of float32."""
    return (boxes[:, 2:] - boxes[:, :2] >= 0.999).all(axis=1)


def mask_boxes(masks: np.ndarray) -> np.ndarray:
    """The extent of each mask, (N, 4) float32 xyxy pixels; zeros where it is empty."""
    boxes = np.array([cv2.boundingRect(mask) for mask in masks], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def tight_boxes(instances: Instances) -> np.ndarray:
    """The boxes, their sides moved to the mask's extent where they are over a pixel off; finer than a mask's otherwise.

    A box that was cut at the image's border, or under another object, is no longer as wide as what is left of its object.
    """
    boxes, extents = instances["boxes"], mask_boxes(instances["masks"])
    tight = np.where(np.abs(boxes - extents) <= 1, boxes, extents)
    return np.where(has_sides(tight)[:, None], tight, extents)


def transfer(
    sample: Sample,
    canvas: np.ndarray,
    *,
    to_size: tuple[int, int] | None = None,
    shift: tuple[int, int] = (0, 0),
    window: tuple[int, int, int, int] | None = None,
    min_visible: float = 0.0,
) -> Instances:
    """Scale a sample, draw it into a window of another image, and give its rows as they are there.

    Args:
        sample: what is drawn.
        canvas: (H, W, 3) uint8, the image that is drawn into.
        to_size: (height, width) in pixels that the sample is scaled to; None keeps its own.
        shift: (right, down), where its corner comes to lie in the canvas, pixels; may be outside.
        window: (left, top, right, bottom) in pixels of the canvas: nothing is drawn outside. None is the whole canvas.
        min_visible: rows of whose box a smaller share is left are dropped. Crowd regions stay while a pixel is left.

    Returns:
        The rows of which something is left: boxes clipped, masks of the canvas's size, keypoints outside the window set to 0
        (not labelled), `area` that of the mask, or else scaled and cut as the box.
    """
    image, instances = sample
    height, width = image.shape[:2]
    to_size = to_size or (height, width)
    window = window or (0, 0, canvas.shape[1], canvas.shape[0])
    _draw(canvas, _resized(image, to_size, cv2.INTER_LINEAR), shift, window)
    factors = np.array([to_size[1] / width, to_size[0] / height], np.float32)

    whole = instances["boxes"] * np.tile(factors, 2) + np.tile(np.array(shift, np.float32), 2)
    boxes = whole.clip(window[:2] * 2, window[2:] * 2).astype(np.float32)
    share = box_areas(boxes) / np.maximum(box_areas(whole), 1e-6)
    kept = has_sides(boxes) & ((share >= min_visible - 1e-6) | crowds(instances))
    rows = take(instances, kept) | {"boxes": boxes[kept]}
    if "area" in rows:
        rows["area"] = (rows["area"] * share[kept] * factors.prod()).astype(np.float32)
    if "keypoints" in rows:
        rows["keypoints"] = rows["keypoints"].copy()
        rows["keypoints"][..., :2] = rows["keypoints"][..., :2] * factors + np.array(shift, np.float32)
        places, (left, top, right, bottom) = rows["keypoints"], window
        inside = (places[..., 0] >= left) & (places[..., 0] < right) & (places[..., 1] >= top) & (places[..., 1] < bottom)
        rows["keypoints"] *= (inside & (places[..., 2] > 0))[..., None]
    if "masks" in rows:
        masks = np.zeros((len(rows["masks"]), *canvas.shape[:2]), np.uint8)
        for after, before in zip(masks, rows["masks"], strict=True):
            _draw(after, _resized(before, to_size, cv2.INTER_NEAREST_EXACT), shift, window)
        rows["masks"] = masks
        rows = refreshed(rows)
    return rows


def refreshed(instances: Instances) -> Instances:
    """Boxes and areas made to fit masks that have lost pixels; rows whose mask is empty are gone."""
    areas = mask_areas(instances["masks"])
    visible = areas > 0
    rows = dict(instances) if visible.all() else take(instances, visible)  # masks are large: copied only where one goes
    rows["boxes"] = tight_boxes(rows)
    if "area" in rows:
        rows["area"] = areas[visible]
    return rows


def _resized(pixels: np.ndarray, to_size: tuple[int, int], interpolation: int) -> np.ndarray:
    return pixels if pixels.shape[:2] == to_size else cv2.resize(pixels, to_size[::-1], interpolation=interpolation)


def _draw(canvas: np.ndarray, picture: np.ndarray, shift: tuple[int, int], window: tuple[int, int, int, int]) -> None:
    left, top = max(window[0], shift[0]), max(window[1], shift[1])
    right, bottom = min(window[2], shift[0] + picture.shape[1]), min(window[3], shift[1] + picture.shape[0])
    if left < right and top < bottom:
        canvas[top:bottom, left:right] = picture[top - shift[1] : bottom - shift[1], left - shift[0] : right - shift[0]]
