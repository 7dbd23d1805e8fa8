"""The checks of a mask, and of box and mask against each other."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from hotcoco import mask as mask_api

from engine.data.doctor.findings import Finding
from engine.data.masks import check_segmentation, mask_area, to_rle
from engine.data.outside_values import is_finite

_FAR = 10  # image sides: a polygon that far outside is a fault, and would take memory without bound
_DISAGREE, _DIFFER = 0.5, 0.85  # IoU of the box and the mask's own
_SLACK = 3.0  # pixels that a box's sides may be from the mask's whatever the IoU; polygons cover a pixel more or less
_SMALL = 100.0  # pixels: areas of masks below depend on how their pixels are counted


class MakeFinding(Protocol):
    """Makes a finding of the annotation that is looked at."""

    def __call__(self, kind: str, message: str) -> Finding: ...


def check_mask(
    finding: MakeFinding, annotation: dict[str, Any], height: int, width: int, *, expected: bool
) -> Iterator[Finding]:
    """What is wrong with an annotation's mask; its box is well-formed.

    Args:
        expected: whether the other objects of the file have masks.
    """
    segmentation = annotation.get("segmentation")
    if not segmentation:
        if expected:
            yield finding("no_mask", "it has a box alone, other objects have masks")
        return
    problem = problem_of_mask(segmentation, height, width)
    if problem is not None:
        yield finding("malformed_mask", problem)
        return
    rle = to_rle(segmentation, height, width)
    area = 0 if rle is None else mask_area(rle)
    if rle is None or area == 0:
        yield finding("empty_mask", "its mask covers no pixel" if rle else "no polygon of its mask has three points")
        return
    box = np.array(annotation["bbox"], np.float64)
    yield from _compare_boxes(finding, box, _box_of(rle), height, width)
    stated = annotation.get("area")
    if not is_finite(stated) or stated < 0:
        return  # missing, or reported
    if max(stated, area) > _SMALL and not 0.5 <= stated / area <= 2:
        yield finding("area_and_mask_differ", f"its area is {stated:g} pixels, its mask covers {area}")


def problem_of_mask(segmentation: Any, height: int, width: int) -> str | None:
    """What keeps a segmentation from being a mask of an image of this size; None where it is one, or empty."""
    if isinstance(segmentation, list):
        numbers = [value for polygon in segmentation if isinstance(polygon, list) for value in polygon]
        far = _FAR * max(height, width)
        if any(isinstance(value, int | float) and abs(value) > far for value in numbers):
            return f"its polygons reach {_FAR} image sides outside of the image"
        try:
            to_rle(segmentation, height, width)
        except ValueError as error:
            return str(error)
        return None
    try:
        check_segmentation(segmentation, height, width)
    except (ValueError, TypeError, OverflowError) as error:
        return str(error)
    return None


def _box_of(rle: dict[str, Any]) -> np.ndarray:
    """(x, y, width, height) of a mask that is not empty."""
    return np.asarray(mask_api.toBbox(rle), np.float64).reshape(4)


def _compare_boxes(finding: MakeFinding, box: np.ndarray, of_mask: np.ndarray, height: int, width: int) -> Iterator[Finding]:
    """Compare the box, within the image, and the mask's."""
    limits = np.array([width, height], np.float64)
    low, high = np.clip(box[:2], 0, limits), np.clip(box[:2] + box[2:], 0, limits)
    mask_low, mask_high = of_mask[:2], of_mask[:2] + of_mask[2:]
    shared = np.clip(np.minimum(high, mask_high) - np.maximum(low, mask_low), 0, None).prod()
    union = (high - low).prod() + of_mask[2:].prod() - shared
    iou = float(shared / union) if union > 0 else 0.0
    apart = max(np.abs(low - mask_low).max(), np.abs(high - mask_high).max())
    if apart <= _SLACK or iou >= _DIFFER:
        return
    kind = "box_and_mask_disagree" if iou < _DISAGREE else "box_and_mask_differ"
    yield finding(kind, f"its box is {box.tolist()}, its mask's {of_mask.round(2).tolist()}: their IoU is {iou:.2f}")
