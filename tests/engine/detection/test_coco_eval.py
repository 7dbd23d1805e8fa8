"""COCO's numbers: both backends against pycocotools itself, and against the figures COCO's authors published."""

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from backbones.errors import UserError
from engine.detection.coco_eval import CocoScore, ScoreOptions, load_ground_truth, score_results
from engine.detection.evaluate import evaluate_results
from tests.engine.detection.coco_cases import keypoint_case, only, random_box, random_case

BACKENDS = ["hotcoco", "pycocotools"]


def reference(
    truth: dict[str, Any], rows: list[dict[str, Any]], iou_type: str
) -> tuple[list[float], list[str], dict[str, float]]:
    """What pycocotools itself says: the numbers, the lines it prints of them, the AP of each class scored on its own."""
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = json.loads(json.dumps(truth))
        ground_truth.createIndex()
        evaluator = COCOeval(ground_truth, ground_truth.loadRes(json.loads(json.dumps(rows))), iou_type)
        evaluator.evaluate()
        evaluator.accumulate()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        evaluator.summarize()
    stats = evaluator.stats.tolist()
    per_class = {}
    for category in truth["categories"] if iou_type != "keypoints" else []:
        evaluator.params.catIds = [category["id"]]
        with contextlib.redirect_stdout(io.StringIO()):
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
        per_class[category["name"]] = float(evaluator.stats[0])
    return stats, printed.getvalue().splitlines(), per_class


@pytest.mark.parametrize(("field", "iou_type"), [("bbox", "bbox"), ("segmentation", "segm")])
@pytest.mark.parametrize("seed", range(4))
def test_both_backends_give_the_numbers_and_lines_of_pycocotools(seed, field, iou_type):
    truth, rows = random_case(seed)
    rows = only(rows, field)
    stats, lines, per_class = reference(truth, rows, iou_type)
    assert stats[0] > 0
    for backend in BACKENDS:
        score = score_results(truth, rows, iou_type=iou_type, backend=backend)
        assert list(score.stats.values()) == stats, backend
        assert score.per_class == pytest.approx(per_class, abs=1e-12), backend
        assert score.lines() == lines


def test_both_backends_give_the_keypoint_numbers_and_lines_of_pycocotools():
    truth, rows = keypoint_case(0)
    stats, lines, _ = reference(truth, rows, "keypoints")
    assert max(stats) > 0.3
    for backend in BACKENDS:
        score = score_results(truth, rows, iou_type="keypoints", backend=backend)
        assert list(score.stats.values()) == pytest.approx(stats, abs=1e-12), backend
        assert score.lines() == lines


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_numbers_carry_the_names_of_what_they_measure(backend):
    """Two objects, of 20 x 20 and of 200 x 200 pixels; the small one is found with an IoU of 0.6, the other exactly."""
    image = {"id": 1, "file_name": "x", "height": 300, "width": 300}
    boxes = [[0, 0, 20, 20], [50, 50, 200, 200]]
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for i, box in enumerate(boxes, start=1)
    ]
    truth = {"images": [image], "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}
    found = [([0, 0, 20, 12], 0.8), (boxes[1], 0.9)]
    rows = [{"image_id": 1, "category_id": 1, "bbox": box, "score": score} for box, score in found]
    stats = score_results(truth, rows, iou_type="bbox", backend=backend).stats
    assert stats["AP50"] == pytest.approx(1)
    assert stats["AP75"] == pytest.approx(51 / 101)
    assert (stats["APs"], stats["APm"], stats["APl"]) == pytest.approx((0.3, -1, 1))  # 0.50, 0.55, 0.60 of ten
    assert (stats["ARs"], stats["ARm"], stats["ARl"]) == pytest.approx((0.3, -1, 1))
    assert (stats["AR1"], stats["AR10"], stats["AR100"]) == pytest.approx((0.5, 0.65, 0.65))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_no_results_at_all_score_zero_where_there_is_something_to_find(backend, iou_type):
    truth, _ = random_case(0)
    score = score_results(truth, [], iou_type=iou_type, backend=backend)
    assert set(score.stats.values()) == {0.0}
    assert score.per_class == {"class 50": 0, "class 7": 0, "class 31": 0, "class 19": -1}


@pytest.mark.parametrize("backend", BACKENDS)
def test_where_there_is_nothing_to_find_every_number_is_minus_one(backend):
    truth, rows = random_case(0)
    truth["annotations"] = []
    score = score_results(truth, only(rows, "bbox"), iou_type="bbox", backend=backend)
    assert set(score.stats.values()) == set(score.per_class.values()) == {-1.0}
    assert score.lines()[0].endswith("= -1.000")


@pytest.mark.parametrize("backend", BACKENDS)
def test_scoring_leaves_truth_and_results_as_they_were(backend):
    truth, rows = random_case(1)
    before = json.dumps([truth, rows])
    score_results(truth, rows, iou_type="bbox", backend=backend)
    assert json.dumps([truth, rows]) == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_classes_of_one_name_are_all_reported(backend):
    truth, rows = random_case(0)
    for category in truth["categories"]:
        category["name"] = "thing"
    score = score_results(truth, only(rows, "bbox"), iou_type="bbox", backend=backend)
    assert len(score.per_class) == len(truth["categories"])


# ---- Ground truth files ----


def write(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content))
    return str(path)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_missing_areas_and_crowd_flags_are_filled_in(tmp_path, iou_type, backend):
    truth, rows = random_case(2)
    for annotation in truth["annotations"]:
        annotation["iscrowd"] = 0
    whole = score_results(truth, rows, iou_type=iou_type)
    for annotation in truth["annotations"]:
        del annotation["iscrowd"], annotation["area"]
    bare = load_ground_truth(write(tmp_path / "bare.json", truth))
    assert score_results(bare, rows, iou_type=iou_type, backend=backend) == whole


def test_a_missing_area_is_the_masks_and_only_without_one_the_boxes(tmp_path):
    truth, _ = random_case(0)
    first, second, third = truth["annotations"][:3]
    triangle = [[10, 10, 30, 10, 10, 30]]
    first |= {"bbox": [10, 10, 20, 20], "segmentation": triangle, "area": None}
    second |= {"bbox": [10, 10, 20, 20], "segmentation": [], "area": None}
    third |= {"area": 12.5}
    areas = [a["area"] for a in load_ground_truth(write(tmp_path / "t.json", truth))["annotations"][:3]]
    assert areas[0] == pytest.approx(200, abs=20)
    assert areas[1:] == [400, 12.5]


@pytest.mark.parametrize("backend", BACKENDS)
def test_objects_without_a_mask_do_not_stop_the_scoring_of_masks(tmp_path, backend):
    truth, rows = random_case(0)
    del truth["annotations"][0]["segmentation"]
    truth["annotations"][1]["segmentation"] = []
    bare = load_ground_truth(write(tmp_path / "t.json", truth))
    score = score_results(bare, only(rows, "segmentation"), iou_type="segm", backend=backend)
    assert 0 < score.stats["AP"] < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 4}, "annotation 2 is of image 4, which `images` does not list"),
        ({"category_id": 4}, "annotation 2 is of category 4, which `categories` does not list"),
        ({"bbox": [1, 2, 3], "area": None, "segmentation": []}, r"annotation 2 has bbox \[1, 2, 3\]"),
        ({"bbox": "none"}, "annotation 2 has bbox 'none'"),
        ({"segmentation": {"size": [1, 1]}, "area": None}, "annotation 2"),
        ({"segmentation": 5}, "annotation 2"),
    ],
)
def test_a_malformed_annotation_is_named(tmp_path, change, message):
    truth, _ = random_case(0)
    truth["annotations"][1] |= change
    with pytest.raises(UserError, match=message):
        load_ground_truth(write(tmp_path / "truth.json", truth))


# ---- From files ----


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_results_file_is_scored_and_the_numbers_are_printed(tmp_path, capsys, backend):
    truth, rows = random_case(0)
    results = write(tmp_path / "results.json", only(rows, "bbox"))
    score = evaluate_results(results, write(tmp_path / "truth.json", truth), iou_type="bbox", backend=backend)
    stats, lines, _ = reference(truth, only(rows, "bbox"), "bbox")
    assert list(score.stats.values()) == stats
    assert capsys.readouterr().out.splitlines() == ["bbox:", *lines]


def published(text: str, iou_type: str) -> list[float]:
    section = text.split(f"type={iou_type}\n")[1].split("type=")[0]
    return [float(value) for value in re.findall(r"\] = (\S+)", section)]


@pytest.mark.shared_data
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_the_figures_published_with_the_coco_api_come_out(shared, iou_type, backend):
    folder = shared / "data" / "evalcheck_coco2014"
    expected = published((folder / "val2014_fake_eval_res.txt").read_text(), iou_type)
    results = folder / f"instances_val2014_fake{iou_type}100_results.json"
    score = evaluate_results(str(results), str(folder / "instances_val2014_100.json"), iou_type=iou_type, backend=backend)
    assert len(expected) == 12
    assert [round(value, 3) for value in score.stats.values()] == expected


@pytest.mark.shared_data
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_both_backends_agree_on_every_class_of_the_published_results(shared, iou_type):
    folder = shared / "data" / "evalcheck_coco2014"
    truth = load_ground_truth(folder / "instances_val2014_100.json")
    rows = json.loads((folder / f"instances_val2014_fake{iou_type}100_results.json").read_text())
    first, second = (score_results(truth, rows, iou_type=iou_type, backend=backend) for backend in BACKENDS)
    assert first.per_class == pytest.approx(second.per_class, abs=1e-12)
    assert first.stats == pytest.approx(second.stats, abs=1e-12)
    assert len(first.per_class) == 80


def test_a_score_prints_a_missing_number_as_cocos_tools_do():
    score = CocoScore("bbox", "AP", {"APs": -1.0}, {})
    assert score.lines() == [" Average Precision  (AP) @[ IoU=0.50:0.95 | area= small | maxDets=100 ] = -1.000"]


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
@pytest.mark.parametrize("sigmas", [None, [0.1, 0.02, 0.3, 0.05]])
def test_keypoints_of_other_things_are_scored_as_pycocotools_does_with_their_sigmas(backend, sigmas, tmp_path):
    rng = np.random.default_rng(3)
    names = ["top", "right", "bottom", "left"]
    truth = {
        "images": [{"id": 1, "file_name": "x.jpg", "height": 300, "width": 300}],
        "categories": [{"id": 4, "name": "kite", "keypoints": names}, {"id": 2, "name": "stone"}],
        "annotations": [{"id": 99, "image_id": 1, "category_id": 2, "bbox": [0, 0, 9, 9]}],
    }
    rows = []
    for i in range(12):
        x, y, w, h = random_box(rng, 300, 300)
        points = np.stack([rng.uniform(x, x + w, 4), rng.uniform(y, y + h, 4), [2, 2, 1, 0]], axis=1)
        truth["annotations"].append(
            {"id": i + 1, "image_id": 1, "category_id": 4, "bbox": [x, y, w, h], "keypoints": points.ravel().tolist()}
        )
        points[:, :2] += rng.normal(0, 0.04 * (w * h) ** 0.5, (4, 2))
        rows.append({"image_id": 1, "category_id": 4, "score": float(rng.random()), "keypoints": points.ravel().tolist()})
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    filled = load_ground_truth(tmp_path / "truth.json")
    score = score_results(filled, rows, iou_type="keypoints", backend=backend, options=ScoreOptions(keypoint_sigmas=sigmas))
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = {**filled, "annotations": [dict(a) for a in filled["annotations"] if a["category_id"] == 4]}
        ground_truth.createIndex()
        evaluator = COCOeval(ground_truth, ground_truth.loadRes([dict(row) for row in rows]), "keypoints")
        evaluator.params.kpt_oks_sigmas = np.array(sigmas or [0.05] * 4)
        evaluator.params.catIds = [4]
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    assert 0.05 < evaluator.stats[0] < 0.95
    assert list(score.stats.values()) == pytest.approx(evaluator.stats.tolist(), abs=1e-12)
    assert list(score.per_class) == ["kite"]
    with pytest.raises(UserError, match="keypoint_sigmas has 3 numbers, but an object has 4 keypoints"):
        score_results(filled, rows, iou_type="keypoints", backend=backend, options=ScoreOptions(keypoint_sigmas=(0.1,) * 3))
