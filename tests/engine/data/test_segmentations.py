"""engine/data/segmentations.py: what went in comes back, equal in the eyes of `json`."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data.masks import has_mask
from engine.data.segmentations import FLOATS, HUNDREDTHS, JSON, NONE, RLE, RUNS, Segmentations, segmentations_of

numbers = (
    st.integers(-5, 700) | st.integers(0, 70_000).map(lambda n: n / 100) | st.floats(allow_nan=False, allow_infinity=False)
)
polygons = st.lists(st.lists(numbers, max_size=10), max_size=3)
sizes = st.lists(st.integers(0, 5000), min_size=2, max_size=2)
texts = st.text(max_size=8) | st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=20)
rle = st.builds(
    lambda size, counts: {"size": size, "counts": counts}, sizes, texts | st.lists(st.integers(0, 2**33), max_size=6)
)
odd = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["size", "counts", "more"]), inner),
    max_leaves=6,
)
segmentations = st.lists(polygons | rle | odd, max_size=12)


def kind_of(segmentation):
    return int(segmentations_of([segmentation]).kinds[0])


@given(segmentations)
def test_all_forms_come_back(given_ones):
    table = segmentations_of(given_ones)
    assert len(table) == len(given_ones)
    assert [table[row] for row in range(len(table))] == [one or [] for one in given_ones]
    assert table.has_masks() == any(has_mask(one or []) for one in given_ones)


@given(st.lists(segmentations, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_joined_taken_and_named_columns_hold_the_same(parts, random):
    table = Segmentations.join([segmentations_of(part) for part in parts])
    order = random.sample(range(len(table)), k=len(table) // 2)
    table = Segmentations.from_columns(table.take(np.array(order, np.int64)).columns())
    everything = [one or [] for part in parts for one in part]
    assert [table[row] for row in range(len(table))] == [everything[row] for row in order]


@pytest.mark.parametrize(
    ("segmentation", "kind"),
    [
        ([], NONE),
        (None, NONE),
        ([[1, 2.5, 3.25, 4, 5, 6]], HUNDREDTHS),
        ([[]], HUNDREDTHS),
        ([[1, 2.125]], FLOATS),
        ([[-1, 2]], FLOATS),
        ([[math.inf, 2]], FLOATS),
        ({"size": [4, 5], "counts": "abc"}, RLE),
        ({"size": [4, 5], "counts": [1, 19]}, RUNS),
        ({"size": [4, 5], "counts": [1.0, 19]}, JSON),
        ({"size": [4, 5], "counts": [True, 19]}, JSON),
        ({"size": [4, 5], "counts": [-1, 21]}, JSON),
        ({"size": [4, 5], "counts": "ä"}, JSON),
        ({"size": [4.0, 5], "counts": "abc"}, JSON),
        ({"size": [4, 5, 6], "counts": "abc"}, JSON),
        ({"size": [4, 5], "counts": "abc", "more": 1}, JSON),
        ([1, 2, 3], JSON),
        ([["1"]], JSON),
        ([[True, 1]], JSON),
        ([[2**60 + 1, 1]], JSON),
        ("text", JSON),
    ],
)
def test_each_form_has_its_column_and_odd_ones_are_kept_as_they_are(segmentation, kind):
    assert kind_of(segmentation) == kind
    back = segmentations_of([segmentation])[0]
    assert back == (segmentation or [])
    if kind == JSON:  # 1 == 1.0 == True, and what reads them knows one from another
        assert json.dumps(back) == json.dumps(segmentation)


def test_not_a_number_stays_one():
    assert math.isnan(segmentations_of([[[math.nan, 1.0]]])[0][0][0])


@pytest.mark.parametrize(("largest", "dtype"), [(655.35, np.uint16), (655.36, np.int32), (21_000_000, np.int32)])
def test_polygons_take_a_quarter_of_the_memory_where_they_can(largest, dtype):
    table = segmentations_of([[[0, 0.01, largest]]])
    assert table.hundredths.values.dtype == dtype
    assert table[0] == [[0, 0.01, largest]]


def test_one_odd_polygon_does_not_make_the_others_larger():
    table = segmentations_of([[[1, 2.5]], [[1 / 3, 2]], [[3, 4], [5.75, 6]]])
    assert table.kinds.tolist() == [HUNDREDTHS, FLOATS, HUNDREDTHS]
    assert (len(table.hundredths.values), len(table.floats.values)) == (6, 2)
