"""engine/data/coco_text.py reads what the careful reader reads, or nothing; whatever the white space, order and pieces."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data import coco_text
from engine.data.coco_json import read_carefully
from engine.data.coco_text import parse

numbers = st.integers(0, 700) | st.integers(0, 70_000).map(lambda n: n / 100)
polygons = st.lists(st.lists(numbers | st.floats(-10, 700), min_size=1, max_size=8), max_size=3)
rle = st.builds(
    lambda size, counts: {"size": size, "counts": counts},
    st.lists(st.integers(0, 500), min_size=2, max_size=2),
    st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=9) | st.lists(st.integers(0, 9999), max_size=5),
)
optional = {
    "area": st.floats(0, 1e6) | st.integers(0, 10**6),
    "iscrowd": st.sampled_from([0, 1, None, False]),
    "segmentation": polygons | rle | st.none(),
    "keypoints": st.lists(st.integers(0, 50) | st.floats(-5, 50), min_size=6, max_size=6) | st.sampled_from([None, []]),
    "attributes": st.just([{"text": '}, {"id": 5}, {'}, {"annotations": [{}, {}]}]),
    "caption": st.sampled_from(["],[", "&!", "Möwe 鷗", '"annotations": [', "\\", "\x00"]),
}
boxes = st.lists(st.integers(0, 9) | st.floats(0, 9), min_size=4, max_size=4).map(
    lambda box: [*box[:2], box[2] + 1, box[3] + 1]
)
annotations = st.lists(
    st.fixed_dictionaries(
        {"image_id": st.sampled_from([4, 7]), "category_id": st.sampled_from([3, 90]), "bbox": boxes}, optional=optional
    ),
    max_size=8,
)


def content(rows):
    return {
        "info": {"description": 'of {"annotations": [] }'},
        "images": [{"id": i, "file_name": f"{i}ü.png", "height": 10, "width": 20, "license": 1} for i in (7, 4)],
        "annotations": [row | {"id": number} for number, row in enumerate(rows)],
        "categories": [{"id": 3, "name": "a"}, {"id": 90, "name": "b", "keypoints": ["left", "right"]}],
    }


def same(found, expected):
    """Whether two readings agree; of keypoints only what a category has."""
    for name in ("image_ids", "heights", "widths"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.file_names == expected.file_names
    assert found.categories == expected.categories
    ours, theirs = found.rows, expected.rows
    for name in ("ids", "image_ids", "category_ids", "boxes", "iscrowd"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    for row in range(len(ours.ids)):
        assert ours.segmentations[row] == theirs.segmentations[row]
        if not np.isnan(ours.areas[row]):  # the careful reader has filled it in
            assert ours.areas[row] == theirs.areas[row]
        if len(ours.keypoints[row]) and ours.category_ids[row] == 90:
            np.testing.assert_array_equal(ours.keypoints[row].astype(np.float32), theirs.keypoints[row])


@given(
    annotations,
    st.sampled_from([None, 1, "\t"]),
    st.sampled_from([(", ", ": "), (",", ":"), (",", " : "), (" ,\r\n", ":")]),
    st.permutations(["info", "images", "annotations", "categories"]),
    st.booleans(),
    st.integers(1, 400),
)
def test_all_that_is_in_order_is_read(rows, indent, separators, order, ascii_only, size):
    for row in rows:  # the area of a mask that is malformed would be refused
        if row.get("segmentation"):
            row.setdefault("area", 1.0)
    named = content(rows)
    text = json.dumps({k: named[k] for k in order}, indent=indent, separators=separators, ensure_ascii=ascii_only).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coco_text, "CHUNK", size)
        found = parse(text)
    assert found is not None
    same(found, read_carefully(Path("a.json"), text)[0])


def plain(**changes):
    rows = [
        {"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4], "segmentation": [[1, 2, 3.5, 4, 5, 6.25]]} for _ in range(3)
    ]
    return content(rows) | changes


def test_the_last_of_doubled_keys_counts():
    text = json.dumps(plain())
    doubled = text[:-1] + ', "images": [{"id": 1, "file_name": "x", "height": 2, "width": 3}]}'
    assert parse(doubled.encode()).image_ids.tolist() == [1]
    doubled = '{"categories": [{"id": 1, "name": "other"}], "images": 5,' + text[1:]
    assert parse(doubled.encode()) is None  # 5 is no list; the careful reader knows that it does not count
    doubled = '{"categories": [{"id": 1, "name": "other"}],' + text[1:]
    assert [category["id"] for category in parse(doubled.encode()).categories] == [3, 90]
    twice = text.replace('"bbox": [1, 2, 3, 4]', '"bbox": [5, 6, 7, 8], "bbox": [1, 2, 3, 4]')
    assert parse(twice.encode()).rows.boxes.tolist() == [[1, 2, 3, 4]] * 3


@pytest.mark.parametrize("key", ["annotations", "\\u0061nnotations", "the last annotations"])
def test_a_second_list_of_annotations_is_left_to_the_careful_reader(key):
    assert parse((json.dumps(plain())[:-1] + f', "{key}": []}}').encode()) is None


UNFORESEEN = """
    5  "&"  [12,34]
     [[1,2],33]  [[1,2],[]]  [[],[1,2]]  [[]]  [[[1,2]]]  [["1","2"]]  [["1 2"]]  [[1,2],{}]  [[1,null]]  [[1,[2]],[3]]
    [[true,1]]  [[-0.0,1e2]]  [[1.5E+1,2]]  {"counts":"ab"}  {"size":[2,3],"counts":"ab","id":1}  {"size":[-2,3],"counts":"ab"}
    {"size":[2,3],"counts":"a\\"b"}  {"size":[2,3],"counts":[1,2.0]}  {"size":[2,3],"counts":[1,-2]}
    {"size":[2,3],"counts":[true]}
"""


@pytest.mark.parametrize("segmentation", re.split(r"\s\s+", UNFORESEEN.strip()))
def test_unforeseen_segmentations_stay_what_they_are(segmentation):
    text = json.dumps(plain()).replace("[[1, 2, 3.5, 4, 5, 6.25]]", segmentation, 1)
    back = parse(text.encode()).rows.segmentations
    assert back[0] == json.loads(segmentation)
    if "true" in segmentation or "2.0" in segmentation:  # equal to 1 and 2, and yet refused where a mask is made
        assert json.dumps(back[0]) == json.dumps(json.loads(segmentation))
    assert back[2] == [[1, 2, 3.5, 4, 5, 6.25]]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"id": 0', '"id": "0"'),
        ('"id": 0', '"id": 0.0'),
        ('"id": 0', '"id": true'),
        ('"id": 0', f'"id": {2**64}'),
        ("[1, 2, 3, 4]", "[1, 2, 3]"),
        ("[1, 2, 3, 4]", "[1, 2, 3, NaN]"),
        ("[1, 2, 3, 4]", "[1, 2, 3, 1e999]"),
        ('"category_id": 3', '"category_id": 3, "iscrowd": 2'),
        ('"category_id": 3', '"category_id": 3, "iscrowd": "1"'),
        ('"category_id": 3', '"category_id": 3, "area": "1"'),
        ('"category_id": 3', '"category_id": 3, "keypoints": ["a"]'),
        ('"category_id": 3', '"category_id": 3, "keypoints": {"a": 1}'),
        ('"category_id": 3, ', ""),
        ('"categories"', '"classes"'),
        ('"annotations"', '"notes"'),
        ('"images": [', '"images": [5, '),
        ('"bbox"', '"bbox'),
        ("]}", "]"),
        ('"of {', '"\x01of {'),
        ('"of {', '"\\ud800 {'),
    ],
)
def test_what_is_wrong_is_left_to_the_careful_reader(old, new):
    text = json.dumps(plain())
    assert old in text
    assert parse(text.encode()) is not None
    assert parse(text.replace(old, new, 1).encode()) is None


def test_text_in_another_encoding_is_left_to_the_careful_reader():
    text = json.dumps(plain(info="Möwe"), ensure_ascii=False)
    assert parse(text.encode()) is not None
    assert parse(text.encode("latin-1")) is None
    assert parse(text.encode("utf-8-sig")) is None
    assert parse(text.encode("utf-16")) is None
