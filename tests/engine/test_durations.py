"""Durations as a person reads them."""

import pytest

from engine.durations import clock, in_words


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00:00"), (59.6, "0:01:00"), (3661, "1:01:01"), (360000, "100:00:00")])
def test_a_clock_shows_hours_minutes_and_seconds(seconds, text):
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.54, "0.54 s"),
        (0.5, "0.5 s"),
        (12, "12 s"),
        (59.4, "59 s"),
        (59.9, "1 minute"),
        (90, "1.5 minutes"),
        (180, "3 minutes"),
        (1620, "27 minutes"),
        (7200, "120 minutes"),
        (6e7, "1000000 minutes"),
        (1e-9, "less than 0.01 s"),
    ],
)
def test_a_wait_is_told_in_a_unit_that_fits(seconds, text):
    assert in_words(seconds) == text
