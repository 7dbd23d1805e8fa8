"""engine/scores.py: what runs are compared by, and how it is printed."""

import pytest

from engine.scores import Score


def test_runs_are_compared_by_the_measure():
    score = Score("pixels", "mIoU", {"pixel accuracy": 0.9, "mIoU": 0.4, "mean accuracy": 0.6}, {"sky": 0.4})
    assert score.value == 0.4


def test_a_measure_that_is_not_among_the_numbers_is_our_mistake():
    with pytest.raises(KeyError):
        _ = Score("pixels", "mIoU", {"pixel accuracy": 0.9}, {}).value


def test_numbers_are_printed_one_below_the_other():
    score = Score("labels", "top1", {"top1": 0.75, "mean per class": 2 / 3, "ECE": 0.0}, {})
    assert score.lines() == [
        " top1           0.7500",
        " mean per class 0.6667",
        " ECE            0.0000",
    ]


def test_a_number_that_cannot_be_measured_is_a_dash():
    assert Score("labels", "top1", {"top1": -1.0, "top5": 1.0}, {}).lines() == [" top1 –", " top5 1.0000"]


def test_scores_of_the_same_numbers_are_equal_and_cannot_be_changed():
    first, second = (Score("labels", "top1", {"top1": 0.5}, {"cat": 0.5}) for _ in range(2))
    assert first == second
    with pytest.raises(AttributeError):
        first.kind = "other"
