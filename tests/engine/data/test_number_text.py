"""engine/data/number_text.py against `json`, digit by digit."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data.number_text import read_numbers


def read(numbers, marks=None):
    """The values in pixels, and whether they were hundredths."""
    marks = marks or "," * (len(numbers) - 1)
    found = read_numbers("".join(n + m for n, m in zip(numbers, [*marks, ""], strict=True)).encode())
    if found is None:
        return None
    values, after = found
    assert bytes(after) == (marks + "&").encode()
    return (values if values.dtype == np.float64 else values / 100).tolist(), values.dtype != np.float64


@pytest.mark.parametrize("decimals", [0, 1, 2])
def test_every_number_of_two_decimals_is_read_as_json_reads_it(decimals):
    whole = [*range(1200), 9999, 12345, *((99999, 123456, 999999) if decimals < 2 else ())]
    digits = [f".{i:0{decimals}d}" for i in range(10**decimals)] if decimals else [""]
    numbers = [f"{number}{fraction}" for number in whole for fraction in digits]
    assert read(numbers) == (json.loads(f"[{','.join(numbers)}]"), True)


exact = st.decimals(0, 99999, places=2).map(str) | st.integers(0, 21_000_000).map(str) | st.sampled_from(["0", "0.0", "0.5"])


@given(st.lists(exact, min_size=1, max_size=40), st.data())
def test_hundredths_come_with_the_marks_after_them(numbers, data):
    marks = "".join(data.draw(st.lists(st.sampled_from(",!&"), min_size=len(numbers) - 1, max_size=len(numbers) - 1)))
    assert read(numbers, marks) == ([float(number) for number in numbers], True)


@given(
    st.lists(st.floats(-1e9, 1e9).map(repr) | exact | st.integers(-(2**53) + 1, 2**53 - 1).map(str), min_size=1, max_size=20)
)
def test_other_numbers_are_floats(numbers):
    values, hundredths = read(numbers)
    assert values == [float(number) for number in numbers]
    assert hundredths or any("." in n[:-3] or "e" in n or "-" in n or len(n) > 8 for n in numbers)


@pytest.mark.parametrize("number", ["-1", "0.125", "1e2", "1.5E+1", "123456.78", "100000000", "22000000", "-0.0"])
def test_one_number_that_is_no_small_hundredth_makes_all_floats(number):
    assert read(["1.5", number, "2"]) == ([1.5, float(number), 2.0], False)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"1,,2",
        b",1",
        b"1,",
        b"1&&2",
        b"1]",
        b"[1",
        b"1,a",
        b'"1"',
        b'1,"2",3',
        b"null",
        b"1.2.3",
        b"1..2",
    ],
)
def test_what_is_no_number_is_none(text):
    assert read_numbers(text) is None


@pytest.mark.parametrize("number", ["9007199254740992", "-9007199254740993", "1e300", "1e999", "1" * 400])
def test_numbers_that_a_float_may_not_hold_are_none(number):
    assert read(["1", number]) is None
