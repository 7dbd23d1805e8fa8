"""The checks of a COCO file's content, against entries whose faults are known, and against the loader."""

import copy
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones.errors import UserError
from engine.data.annotations import load_annotations
from engine.data.doctor.annotation_checks import check_content, read_content
from engine.data.doctor.findings import KINDS
from engine.data.doctor.fix import clean, usable

SQUARE = [[10, 10, 30, 10, 30, 30, 10, 30]]


def content_with(**changes):
    annotation = {
        "id": 7, "image_id": 1, "category_id": 3, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0, "segmentation": SQUARE,
    }  # fmt: skip
    return {
        "images": [{"id": 1, "file_name": "a.png", "height": 50, "width": 60}],
        "categories": [{"id": 3, "name": "cat", "keypoints": ["nose"]}],
        "annotations": [annotation | changes, annotation | {"id": 8, "bbox": [11, 10, 20, 20]}],
    }


def kinds_of(content):
    return {finding.kind: finding for finding in check_content(content, split="train", path="a.json")}


def test_sound_entries_have_no_finding():
    assert kinds_of(content_with()) == {}
    runs = {"size": [50, 60], "counts": [560, 20, 2420]}
    assert kinds_of(content_with(keypoints=[1, 2, 2], segmentation=runs, bbox=[11, 10, 1, 20], area=20)) == {}


CASES = {
    "a box of text": ({"bbox": ["1", 2, 3, 4]}, "malformed_box"),
    "no list": ({"bbox": None}, "malformed_box"),
    "infinite": ({"bbox": [0, 0, math.inf, 4]}, "not_a_finite_number"),
    "not a number": ({"bbox": [0, 0, 3, math.nan]}, "not_a_finite_number"),
    "too large for a float": ({"bbox": [0, 0, 10**400, 4]}, "not_a_finite_number"),
    "no width": ({"bbox": [10, 10, 0, 20]}, "degenerate_box"),
    "negative": ({"bbox": [30, 30, -20, -20]}, "degenerate_box"),
    "left of it": ({"bbox": [-30, 10, 20, 20]}, "box_outside_image"),
    "below it": ({"bbox": [10, 50, 20, 20]}, "box_outside_image"),
    "over the border": ({"bbox": [10, 10, 55, 20], "segmentation": []}, "box_beyond_border"),
    "thin": ({"bbox": [10, 10, 0.5, 20], "segmentation": []}, "tiny_box"),
    "another place": ({"bbox": [35, 10, 20, 20]}, "box_and_mask_disagree"),
    "too large": ({"bbox": [5, 5, 25, 25]}, "box_and_mask_differ"),
    "odd": ({"segmentation": [[1, 2, 3]]}, "malformed_mask"),
    "numbers for polygons": ({"segmentation": [1, 2, 3, 4, 5, 6]}, "malformed_mask"),
    "text": ({"segmentation": "x"}, "malformed_mask"),
    "NaN in a polygon": ({"segmentation": [[1, 2, 3, 4, 5, math.nan]]}, "malformed_mask"),
    "far away": ({"segmentation": [[1, 2, 3, 4, 5, 1e12]]}, "malformed_mask"),
    "another size": ({"segmentation": {"size": [60, 50], "counts": [3000]}}, "malformed_mask"),
    "too few counts": ({"segmentation": {"size": [50, 60], "counts": [300]}}, "malformed_mask"),
    "garbled": ({"segmentation": {"size": [50, 60], "counts": "!!"}}, "malformed_mask"),
    "cut": ({"segmentation": {"size": [50, 60], "counts": "`?"}}, "malformed_mask"),
    "a list of sizes": ({"segmentation": {"size": 50, "counts": "a"}}, "malformed_mask"),
    "a line": ({"segmentation": [[10, 10, 30, 30]]}, "empty_mask"),
    "RLE of nothing": ({"segmentation": {"size": [50, 60], "counts": [3000]}}, "empty_mask"),
    "without": ({"segmentation": []}, "no_mask"),
    "negative area": ({"area": -1}, "malformed_area"),
    "no area": ({"area": math.nan}, "malformed_area"),
    "another area": ({"area": 4000}, "area_and_mask_differ"),
    "crowd": ({"iscrowd": "yes"}, "malformed_crowd_flag"),
    "two keypoints": ({"keypoints": [1, 2, 2, 1, 2, 2]}, "malformed_keypoints"),
    "category": ({"category_id": 4}, "unknown_category_id"),
    "image": ({"image_id": 4}, "unknown_image_id"),
    "id of another": ({"id": 8}, "duplicate_annotation_id"),
    "id as text": ({"id": "7"}, "malformed_entry"),
    "image as a list": ({"image_id": [1]}, "malformed_entry"),
    "the same again": ({"bbox": [11, 10, 20, 20]}, "same_object_twice"),
}


@pytest.mark.parametrize("case", CASES)
def test_each_fault_is_of_its_kind(case):
    changes, kind = CASES[case]
    found = kinds_of(content_with(**changes))
    assert kind in found
    assert found[kind].file == ("" if kind in ("unknown_image_id",) or case == "image as a list" else "a.png")
    assert set(found) <= {kind, "no_mask", "area_and_mask_differ"}


@pytest.mark.parametrize("case", CASES)
def test_what_is_usable_loads_and_the_rest_of_the_file_stays(case, tmp_path):
    content = content_with(**CASES[case][0])
    before = copy.deepcopy(content)
    cleaned, faults, changes = usable(content, split="train", path="a.json")
    assert repr(content) == repr(before)  # equal but for NaN, which is not equal to itself
    (tmp_path / "a.json").write_text(json.dumps(cleaned))
    table = load_annotations(tmp_path / "a.json")
    assert len(table.boxes) == len(cleaned["annotations"])
    assert 8 in table.annotation_ids
    assert bool(faults) == bool(changes.lines())
    (tmp_path / "broken.json").write_text(json.dumps(content))
    try:
        whole = load_annotations(tmp_path / "broken.json")
    except (UserError, OverflowError):
        assert faults  # what the loader refuses is left out
    else:
        assert len(whole.boxes) >= len(table.boxes)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 70) | st.just(10**30) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["size", "counts", "id"]), inner, max_size=2),
    max_leaves=6,
)
FIELDS = [("images", f) for f in ("id", "file_name", "height", "width")] + [
    ("annotations", f) for f in ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "keypoints")
]


@given(st.lists(st.tuples(st.sampled_from(FIELDS), JUNK), min_size=1, max_size=3), JUNK)
@settings(max_examples=300)
def test_whatever_is_in_a_file_it_is_read_to_the_end_and_cleaned(tmp_path_factory, changes, entry):
    content = content_with()
    content["images"].append({"id": 2, "file_name": "b.png", "height": 50, "width": 60})
    for (name, field), value in changes:
        content[name][0][field] = value
    content["annotations"].append(entry)
    findings = check_content(content, split="train", path="a.json")
    assert any(f.place == ("annotations", 2) for f in findings)
    cleaned, _ = clean(content, findings)
    left = check_content(cleaned, split="train", path="a.json")
    assert [f for f in left if f.severity == "error"] == []
    path = tmp_path_factory.mktemp("junk") / "a.json"
    path.write_text(json.dumps(cleaned))
    load_annotations(path)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (b"{", "unreadable_annotations"),
        (b"\xff\xfe", "unreadable_annotations"),
        (b"[" * 100_000, "unreadable_annotations"),
        (b"[]", "unreadable_annotations"),
        (b'{"images": [], "annotations": []}', "missing_list"),
        (b'{"images": [], "annotations": [], "categories": []}', "missing_list"),
        (b'{"images": {}, "annotations": [], "categories": []}', "missing_list"),
    ],
)
def test_a_file_that_is_none_is_a_finding(tmp_path, text, kind):
    (tmp_path / "a.json").write_bytes(text)
    content, (finding,) = read_content(tmp_path / "a.json", split="val")
    assert (content, finding.kind, finding.file) == (None, kind, str(tmp_path / "a.json"))


def test_categories_are_for_the_user_to_mend():
    content = content_with()
    content["categories"] += [{"id": 3, "name": "dog"}, {"name": "cow"}, "x", {"id": 5, "name": "cat"}]
    findings = check_content(content, split="train", path="a.json")
    kinds = [finding.kind for finding in findings]
    assert kinds == ["duplicate_category_id", "malformed_category", "malformed_category", "duplicate_category_name"]
    _, changes = clean(content, findings)
    assert sum(changes.left.values()) == 3
    assert all(KINDS[kind].remedy is None for kind in kinds)
