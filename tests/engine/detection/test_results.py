"""Predictions as COCO results rows, and results files as users bring them."""

import json
import math

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_api

from backbones.errors import UserError
from engine.data.annotations import Category
from engine.detection.pictures import to_instances
from engine.detection.results import check_results, read_results, rows_of_type, to_rows

CATEGORIES = [Category(3, "bar"), Category(44, "square"), Category(90, "never")]
ROW = {"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}
TRUTH = {"images": [{"id": 1}, {"id": 9}], "categories": [{"id": 3}, {"id": 44}]}


def prediction(*, with_masks: bool = False) -> dict[str, torch.Tensor]:
    boxes = torch.tensor([[1.5, 2.25, 11.5, 22.25], [0.0, 0.0, 30.0, 20.0]])
    made = {"boxes": boxes, "labels": torch.tensor([2, 1]), "scores": torch.tensor([0.875, 0.25])}
    if with_masks:
        masks = torch.zeros(2, 1, 20, 30)
        masks[0, 0, 3:9, 2:11] = 0.75
        masks[0, 0, 9:12] = 0.5  # not above the threshold
        made["masks"] = masks
    return made


def test_rows_have_the_original_category_ids_and_boxes_as_corner_and_size():
    assert to_rows(7, prediction(), CATEGORIES) == [
        {"image_id": 7, "category_id": 44, "bbox": [1.5, 2.25, 10, 20], "score": 0.875},
        {"image_id": 7, "category_id": 3, "bbox": [0, 0, 30, 20], "score": 0.25},
    ]


def test_making_rows_leaves_the_prediction_as_it_was():
    given = prediction(with_masks=True)
    to_rows(7, given, CATEGORIES)
    assert all(torch.equal(given[key], value) for key, value in prediction(with_masks=True).items())


def test_mask_probabilities_above_a_half_become_the_rle_of_pycocotools():
    rows = to_rows(7, prediction(with_masks=True), CATEGORIES)
    expected = np.zeros((20, 30), np.uint8, order="F")
    expected[3:9, 2:11] = 1
    assert rows[0]["segmentation"] == {"size": [20, 30], "counts": mask_api.encode(expected)["counts"].decode()}
    assert mask_api.area(rows[1]["segmentation"]) == 0


def test_rows_survive_json_unchanged():
    rows = to_rows(7, prediction(with_masks=True), CATEGORIES)
    assert json.loads(json.dumps(rows)) == rows


def test_rows_turn_back_into_the_prediction():
    given = prediction(with_masks=True)
    back = to_instances(to_rows(7, given, CATEGORIES), CATEGORIES)
    for key in ("boxes", "labels", "scores"):
        assert torch.equal(back[key], given[key]), key
    assert torch.equal(torch.stack(list(back["masks"])).bool(), given["masks"][:, 0] > 0.5)


def test_no_prediction_gives_no_row():
    nothing = {key: value[:0] for key, value in prediction(with_masks=True).items()}
    assert to_rows(7, nothing, CATEGORIES) == []


def test_results_of_a_type_hold_boxes_or_masks_alone():
    rows = to_rows(7, prediction(with_masks=True), CATEGORIES)
    assert all("segmentation" not in row and "bbox" in row for row in rows_of_type(rows, "bbox"))
    assert all("segmentation" in row and "bbox" not in row for row in rows_of_type(rows, "segm"))
    assert all("segmentation" in row and "bbox" in row for row in rows)


def test_a_results_file_is_read_as_it_was_written(tmp_path):
    rows = to_rows(1, prediction(with_masks=True), CATEGORIES)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(rows))
    assert read_results(path, iou_type="segm") == rows
    check_results(rows, {"images": [{"id": 1}], "categories": [{"id": 3}, {"id": 44}]}, source="here")


@pytest.mark.parametrize(
    ("iou_type", "text", "message"),
    [
        ("bbox", "[{,", "is no JSON"),
        ("bbox", '{"image_id": 1}', "must hold a list of results"),
        ("bbox", [ROW, 5], "result 1 has no 'image_id'"),
        ("bbox", [{key: value for key, value in ROW.items() if key != "category_id"}], "result 0 has no 'category_id'"),
        ("segm", [ROW], "result 0 has no 'segmentation', which is needed to score segm"),
        ("keypoints", [ROW], "result 0 has no 'keypoints'"),
        ("bbox", [ROW, ROW | {"score": None}], "result 1 has score None"),
        ("bbox", [ROW | {"score": math.nan}], "result 0 has score nan"),
        ("bbox", [ROW, ROW | {"bbox": [1, 2, 3]}], "result 1 has bbox"),
        ("bbox", [ROW, ROW | {"bbox": None}], "result 1 has bbox"),
        ("bbox", [ROW | {"bbox": [1, 2, "3", 4]}], "result 0 has bbox"),
        ("segm", [ROW | {"segmentation": 5}], "result 0 has segmentation"),
        ("segm", [ROW | {"segmentation": {"counts": "abc"}}], "result 0 has segmentation"),
        ("keypoints", [ROW | {"keypoints": [1, 2]}], "result 0 has keypoints"),
    ],
)
def test_a_malformed_results_file_is_refused_and_the_row_named(tmp_path, iou_type, text, message):
    path = tmp_path / "results.json"
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    with pytest.raises(UserError, match=message) as caught:
        read_results(path, iou_type=iou_type)
    assert str(path) in str(caught.value)


def test_a_results_file_that_is_not_there_or_not_text_is_refused(tmp_path):
    with pytest.raises(UserError, match="no results file at"):
        read_results(tmp_path / "none.json", iou_type="bbox")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00[]")
    with pytest.raises(UserError, match="is no JSON"):
        read_results(tmp_path / "binary.json", iou_type="bbox")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 2}, "here: result 1 is of image 2, which the annotations do not list"),
        ({"image_id": "9"}, "here: result 1 is of image '9'"),
        ({"image_id": [9]}, r"here: result 1 is of image \[9\]"),
        ({"category_id": 2}, "here: result 1 is of category 2, which the annotations do not list"),
        ({"category_id": {}}, "here: result 1 is of category {}"),
    ],
)
def test_results_of_images_and_categories_that_are_not_listed_are_named(change, message):
    with pytest.raises(UserError, match=message):
        check_results([ROW, {**ROW, **change}], TRUTH, source="here")
