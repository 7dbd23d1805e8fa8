"""engine/data/outside_values.py, and what a fuzzer found in the readers that use it: each was a traceback, or worse, once."""

import json

import numpy as np
import pytest

from backbones.errors import UserError
from engine.config_file import load_config
from engine.data.annotations import load_annotations
from engine.data.masks import check_segmentation
from engine.data.outside_values import is_finite, parse_json
from engine.detection.coco_eval import load_ground_truth, score_results


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"1" * 5000, "thousands of digits"),
        (b"[" * 200_000, "nested too deep"),
        (b"\xff\xfe\xfa", "not text"),
        (b"{", r"line 1, column 2"),
    ],
)
def test_what_is_no_json_is_said_in_a_line(text, message):
    with pytest.raises(UserError, match=message) as caught:
        parse_json(text, "a.json")
    assert str(caught.value).startswith("a.json")


@pytest.mark.parametrize("value", [10**400, -(10**400), float("nan"), float("inf"), 1e300, "1", None, [1]])
def test_what_no_float_holds_is_no_number(value):
    assert not is_finite(value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bbox", [10**400, 1, 2, 3]),
        ("area", 10**400),
        ("area", 1e300),
        ("segmentation", [[10**400, 1, 5, 5, 1, 5]]),
        ("keypoints", [1e300, 1, 2]),
    ],
)
def test_numbers_beyond_a_float_are_refused_by_annotation(minimal, write_json, field, value):
    minimal["categories"][0]["keypoints"] = ["nose"]
    minimal["annotations"][0][field] = value
    path = write_json(minimal)
    for read in (load_annotations, load_ground_truth):
        with pytest.raises(UserError, match="annotation 1"):
            read(path)


def test_an_image_larger_than_masks_count_is_refused_and_none_is_allocated(minimal, write_json):
    minimal["images"][0] |= {"height": 10**9, "width": 10**9}
    with pytest.raises(UserError, match="image 7 is 1000000000 x 1000000000 pixels, more than"):
        load_annotations(write_json(minimal))


def test_a_mask_is_checked_without_the_memory_of_its_image():
    with pytest.raises(ValueError, match="add up to"):
        check_segmentation({"size": [60_000, 60_000], "counts": "00"}, 60_000, 60_000)


def test_fields_that_no_scorer_reads_may_have_any_form(minimal, write_json):
    minimal["images"][0]["license"] = {"x": "\ud800"}
    minimal["categories"][0] |= {"name": 5, "skeleton": [[1]], "supercategory": 3}
    truth = load_ground_truth(write_json(minimal))
    row = {"image_id": 7, "category_id": 3, "bbox": minimal["annotations"][0]["bbox"], "score": 1.0}
    assert np.isclose(score_results(truth, [row], iou_type="bbox").stats["AP"], 1)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{c}: &{c} [{', '.join(['*' + p] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)),
        "a: " + "[" * 5000,
        "seed: 2026-02-30",
        "seed: " + "1" * 5000,
    ],
    ids=["aliases of aliases", "deep", "no date", "digits"],
)
def test_a_config_that_is_no_config_is_said(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match=r"a\.yaml"):
        load_config(tmp_path / "a.yaml")


def test_a_config_asks_for_no_million_processes(tmp_path):
    (tmp_path / "a.yaml").write_text(json.dumps({"data": {"train": "shapes", "val": "shapes", "num_workers": 10**6}}))
    with pytest.raises(UserError, match="num_workers"):
        load_config(tmp_path / "a.yaml")
