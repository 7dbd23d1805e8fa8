"""What the report says: of each number, of small and large counts, and of a difference."""

import numpy as np
import pytest

from engine.detection.report.comparison import Comparison, Difference
from engine.detection.report.figures import CalibrationFigures, ErrorFigures
from engine.detection.report.wording import count, lean, main_error, meaning, number, signed, verdict


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("AP", "bbox", "mean precision, IoU 0.50 to 0.95"),
        ("AP75", "segm", "mean precision, mask IoU 0.75"),
        ("APs", "bbox", "mean precision, small objects"),
        ("AR1", "bbox", "share of objects found with 1 detection an image"),
        ("AR100", "bbox", "share of objects found with 100 detections an image"),
        ("AR", "keypoints", "share of objects found, OKS 0.50 to 0.95"),
        ("AR50", "keypoints", "share of objects found, OKS 0.50"),
        ("APr", "bbox", "mean precision, rare classes"),
        ("ARs300", "bbox", "share of objects found, small objects"),
        ("AP_tiny", "bbox", "mean precision, tiny objects"),
    ],
)
def test_every_number_has_its_meaning(name: str, kind: str, words: str) -> None:
    assert meaning(name, kind) == words


def test_numbers_are_written_alike() -> None:
    assert [number(0.5), number(-1), number(float("nan")), signed(-0.0123), signed(0.1)] == [
        "0.500",
        "–",
        "–",
        "−0.012",
        "+0.100",
    ]
    assert [count(1, "class", "classes"), count(1137, "object"), count(0, "object")] == [
        "1 class",
        "1,137 objects",
        "0 objects",
    ]


@pytest.mark.parametrize(
    ("low", "value", "high", "words"),
    [
        (0.01, 0.05, 0.09, "AP is higher than that of other by 0.050 (95% interval +0.010 to +0.090)"),
        (-0.09, -0.05, -0.01, "AP is lower than that of other by 0.050 (95% interval −0.090 to −0.010)"),
        (-0.02, 0.01, 0.04, "could be the choice of images"),
        (0.0, 0.0, 0.0, "AP is the same as that of other."),
    ],
)
def test_a_difference_is_called_one_only_where_its_interval_leaves_out_zero(
    low: float, value: float, high: float, words: str
) -> None:
    difference = Difference("AP", 0.5, 0.5 + value, value, low, high)
    assert words in verdict(Comparison([difference], [], 100, 0.95), "other")


def test_the_error_that_costs_most_is_named_with_what_helps() -> None:
    gains = {"Cls": 0.01, "Loc": 0.02, "Both": 0.0, "Dupe": 0.3, "Bkg": 0.1, "Miss": 0.0}
    counts = dict.fromkeys(gains, 5)
    text = main_error(ErrorFigures(counts, gains, 0.1, 0.1, 0.6))
    assert "(0.300) to objects that are found more than once. Lower the head's NMS threshold" in text
    none = dict.fromkeys(gains, 0.0)
    assert "No kind of error costs" in main_error(ErrorFigures(counts, none, 0.0, 0.0, 1.0))
    assert "only curing several of them helps" in main_error(ErrorFigures(counts, none, 0.0, 0.0, 0.0))


@pytest.mark.parametrize(
    ("accuracy", "words"), [(0.2, "too high by 0.30"), (0.9, "too low by 0.40"), (0.5, "right on average")]
)
def test_scores_are_said_to_be_too_high_or_too_low(accuracy: float, words: str) -> None:
    nan = float("nan")
    bins = CalibrationFigures(
        np.array([0, 0.5, 1]), np.array([10, 0]), np.array([0.5, nan]), np.array([accuracy, nan]), abs(0.5 - accuracy)
    )
    assert words in lean(bins)
