"""Keypoints in COCO's format: their names, their rows, and which of them change places in a mirror."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from backbones.errors import UserError
from engine.data.outside_values import is_finite


def keypoint_names(category: dict[str, Any], where: str) -> tuple[str, ...]:
    """The names of a category's keypoints, none where it has none.

    Raises:
        UserError: they are no list of names.
    """
    names = category.get("keypoints") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{where}: category {category['id']} has keypoints {names!r:.60}, which must be a list of names.")
    return tuple(names)


def keypoints_of(annotation: dict[str, Any], names: tuple[str, ...], count: int, where: str) -> np.ndarray:
    """An annotation's keypoints (count, 3), x, y and visibility; those it does not have are 0, not labelled.

    Raises:
        UserError: they are not three finite numbers for each of the category's keypoints.
    """
    points = np.zeros((count, 3), np.float32)
    given = annotation.get("keypoints")
    if not given or not names:
        return points
    numbers = isinstance(given, list) and all(map(is_finite, given))
    if not numbers or len(given) != 3 * len(names):
        raise UserError(
            f"{where} has keypoints {given!r:.60}: they must be x, y and visibility for each of its category's {len(names)}."
        )
    points[: len(names)] = np.array(given, np.float32).reshape(-1, 3)
    return points


def mirrored(names: Sequence[str]) -> list[int]:
    """For each keypoint the place of the one it becomes in a mirror: left_ear that of right_ear, nose its own."""
    places = {name.lower(): place for place, name in enumerate(names)}
    return [places.get(_in_a_mirror(name.lower()), place) for place, name in enumerate(names)]


def _in_a_mirror(name: str) -> str:
    """`left_ear` -> `right_ear`; a name without a side stays."""
    other = {"left": "right", "right": "left"}
    return re.sub(r"(?<![a-z])(left|right)(?![a-z])", lambda side: other[side[1]], name)
