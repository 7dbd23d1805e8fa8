"""engine/data/masks.py against pycocotools, and against masks known beforehand."""

import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

from engine.data.masks import decode_segmentation, encode_mask, mask_area, to_rle

# pycocotools' decode is not yet ready for NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

HEIGHT, WIDTH = 20, 30
TRIANGLE = [2.5, 3.0, 25.25, 6.0, 9.0, 17.75]

masks = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 1))
coordinates = st.floats(-5, 35, width=32)
polygons = st.integers(3, 7).flatmap(lambda points: st.lists(coordinates, min_size=2 * points, max_size=2 * points))


def reference() -> COCO:
    coco = COCO()
    coco.imgs = {1: {"height": HEIGHT, "width": WIDTH}}
    return coco


def runs(mask: np.ndarray) -> list[int]:
    """Lengths of the runs of equal pixels, column by column, the first of zeros."""
    pixels = mask.ravel(order="F").tolist()
    lengths = [len(list(run)) for _, run in itertools.groupby(pixels)]
    return [0, *lengths] if pixels[0] else lengths


@given(masks)
def test_a_mask_survives_the_way_through_json_and_back(mask):
    rle = json.loads(json.dumps(encode_mask(mask)))
    np.testing.assert_array_equal(decode_segmentation(rle, *mask.shape), mask)
    assert mask_area(to_rle(rle, *mask.shape)) == mask.sum()


@given(masks)
def test_encoding_is_pycocotools_own(mask):
    expected = mask_api.encode(np.asfortranarray(mask))
    assert encode_mask(mask) == {"size": expected["size"], "counts": expected["counts"].decode()}


@pytest.mark.parametrize("dtype", [bool, np.int64, np.float32])
def test_any_type_of_mask_is_encoded(dtype):
    mask = np.zeros((4, 6))
    mask[1:3, 2:5] = 1
    np.testing.assert_array_equal(decode_segmentation(encode_mask(mask.astype(dtype)), 4, 6), mask)


@given(masks)
def test_uncompressed_rle_counts_down_the_columns(mask):
    segmentation = {"size": list(mask.shape), "counts": runs(mask)}
    np.testing.assert_array_equal(decode_segmentation(segmentation, *mask.shape), mask)


@given(masks, st.sampled_from([str, bytes]))
def test_compressed_rle_of_pycocotools_is_read_as_str_and_as_bytes(mask, kind):
    rle = mask_api.encode(np.asfortranarray(mask))
    segmentation = {"size": rle["size"], "counts": rle["counts"].decode() if kind is str else rle["counts"]}
    decoded = decode_segmentation(segmentation, *mask.shape)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, mask)


@given(st.lists(polygons, min_size=1, max_size=3))
def test_polygons_also_overlapping_and_beyond_the_image_are_filled_as_pycocotools_fills_them(segmentation):
    annotation = {"image_id": 1, "segmentation": segmentation}
    decoded = decode_segmentation(segmentation, HEIGHT, WIDTH)
    np.testing.assert_array_equal(decoded, reference().annToMask(annotation))
    rle = to_rle(segmentation, HEIGHT, WIDTH)
    assert rle is not None
    assert rle["counts"] == reference().annToRLE(annotation)["counts"]
    assert mask_area(rle) == decoded.sum()


@given(st.integers(0, WIDTH - 1), st.integers(0, HEIGHT - 1), st.integers(1, WIDTH), st.integers(1, HEIGHT))
def test_a_rectangle_fills_its_pixels_exactly(left, top, width, height):
    right, bottom = min(left + width, WIDTH), min(top + height, HEIGHT)
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[top:bottom, left:right] = 1
    rectangle = [left, top, right, top, right, bottom, left, bottom]
    np.testing.assert_array_equal(decode_segmentation([rectangle], HEIGHT, WIDTH), expected)


@pytest.mark.parametrize("segmentation", [[], [[]], [[1, 2]], [[1, 2, 9, 9]], [[], [1, 2, 9, 9]]])
def test_fewer_than_three_points_cover_nothing(segmentation):
    assert to_rle(segmentation, HEIGHT, WIDTH) is None
    decoded = decode_segmentation(segmentation, HEIGHT, WIDTH)
    assert decoded.shape == (HEIGHT, WIDTH)
    assert decoded.dtype == np.uint8
    assert not decoded.any()


@pytest.mark.parametrize("degenerate", [[], [1, 2], [1, 2, 29, 19]])
def test_a_degenerate_polygon_leaves_the_others_as_they_are(degenerate):
    alone = decode_segmentation([TRIANGLE], HEIGHT, WIDTH)
    assert alone.any()
    np.testing.assert_array_equal(decode_segmentation([degenerate, TRIANGLE], HEIGHT, WIDTH), alone)
    np.testing.assert_array_equal(decode_segmentation([TRIANGLE, degenerate], HEIGHT, WIDTH), alone)


def test_a_polygon_without_area_covers_what_it_covers_in_pycocotools():
    line = [[3.0, 3.0, 20.0, 3.0, 3.0, 3.0]]
    expected = reference().annToMask({"image_id": 1, "segmentation": line})
    np.testing.assert_array_equal(decode_segmentation(line, HEIGHT, WIDTH), expected)


MALFORMED: dict[str, Any] = {
    "nothing": None,
    "a number": 5,
    "a text": "abc",
    "points without a polygon around them": TRIANGLE,
    "an odd number of coordinates": [[1, 2, 3, 4, 5, 6, 7]],
    "pairs of coordinates": [[[1, 2], [3, 4], [5, 6]]],
    "coordinates that are texts": [["1", "2", "3", "4", "5", "6"]],
    "coordinates that are missing": [[None] * 6],
    "coordinates that are not finite": [[float("nan"), 2, 3, 4, 5, 6]],
    "RLE without size": {"counts": [600]},
    "RLE without counts": {"size": [HEIGHT, WIDTH]},
    "RLE whose size is nothing": {"size": None, "counts": [600]},
    "RLE of another size": {"size": [WIDTH, HEIGHT], "counts": [600]},
    "RLE of three sides": {"size": [HEIGHT, WIDTH, 1], "counts": [600]},
    "compressed RLE of another size": encode_mask(np.ones((WIDTH, HEIGHT))),
    "counts that are too few": {"size": [HEIGHT, WIDTH], "counts": [300, 299]},
    "counts that are too many": {"size": [HEIGHT, WIDTH], "counts": [300, 301]},
    "counts below nought": {"size": [HEIGHT, WIDTH], "counts": [-10, 610]},
    "counts that are fractions": {"size": [HEIGHT, WIDTH], "counts": [299.5, 300.5]},
    "counts that are texts": {"size": [HEIGHT, WIDTH], "counts": ["600"]},
    "counts that are missing": {"size": [HEIGHT, WIDTH], "counts": None},
    "counts that are a number": {"size": [HEIGHT, WIDTH], "counts": 600},
    "compressed counts that are garbage": {"size": [HEIGHT, WIDTH], "counts": "not a mask"},
    "compressed counts that never end": {"size": [HEIGHT, WIDTH], "counts": "P" * 20},
    "compressed counts that are too few": {"size": [HEIGHT, WIDTH], "counts": "5"},
    "compressed counts beyond ASCII": {"size": [HEIGHT, WIDTH], "counts": "é€"},
}


@pytest.mark.parametrize("segmentation", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_malformed_is_a_value_error(segmentation):
    with pytest.raises(ValueError):
        decode_segmentation(segmentation, HEIGHT, WIDTH)
