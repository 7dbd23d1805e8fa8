"""Checks of the numbers that heads take. torchvision takes any of them, and fails, or learns nothing, in mid-run."""

import math
from collections.abc import Mapping, Sequence

from backbones import UserError
from backbones.registry import check_whole_number

MOST_LAYERS = 100  # one after the other: more is a slip of the keyboard, and takes minutes to build


def check_counts(counts: Mapping[str, int]) -> None:
    """Check that options are whole numbers of at least 1.

    Raises:
        UserError: one is not; the message names it.
    """
    for option, value in counts.items():
        check_whole_number(option, value)


def check_layers(option: str, value: int) -> None:
    """Check that a number of layers is one that can be built.

    Raises:
        UserError: it is not from 1 to 100.
    """
    check_whole_number(option, value)
    if value > MOST_LAYERS:
        raise UserError(f"{option} is {value}: give at most {MOST_LAYERS}.")


def check_shares(shares: Mapping[str, float]) -> None:
    """Check that options are numbers from 0 to 1, as scores, IoUs and fractions are.

    Raises:
        UserError: one is not; the message names it.
    """
    for option, value in shares.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise UserError(f"{option} is {value!r}: give a number from 0 to 1.")


def check_matching(prefix: str, *, fg_iou_thresh: float, bg_iou_thresh: float) -> None:
    """Check the IoUs from which a box is an example of an object, and up to which one of the background.

    Args:
        prefix: of the options' names.

    Raises:
        UserError: they are no shares, or the background's is above the object's.
    """
    check_shares({f"{prefix}fg_iou_thresh": fg_iou_thresh, f"{prefix}bg_iou_thresh": bg_iou_thresh})
    if bg_iou_thresh > fg_iou_thresh:
        raise UserError(
            f"{prefix}bg_iou_thresh is {bg_iou_thresh}, above {prefix}fg_iou_thresh={fg_iou_thresh}: a box cannot be of the "
            "background and of an object. Give at most as much."
        )


def check_positive(option: str, values: Sequence[float] | float) -> None:
    """Check that an option is a finite number above 0, or a list of such that is not empty.

    Raises:
        UserError: it is not; the message names it.
    """
    numbers = values if isinstance(values, Sequence) else [values]
    if not numbers or not all(0 < number < math.inf for number in numbers):
        kind = "numbers above 0, one at least" if isinstance(values, Sequence) else "a number above 0"
        raise UserError(f"{option} is {values!r}: give {kind}.")
