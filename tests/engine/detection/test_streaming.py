"""Scores that are made image by image: those of all at once, to the last bit, on any number of processes."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from backbones.errors import UserError
from engine.detection.coco_eval import ScoreOptions, load_ground_truth, score_results
from engine.detection.config import DetectionEvalConfig
from engine.detection.results import to_detections
from engine.detection.streaming import GroundTruth, StreamingScorer
from heads.mask_paste import UnpastedMasks, paste_masks
from tests.engine.detection.coco_cases import keypoint_case, only, random_case

CASES = {"bbox": random_case, "segm": random_case, "keypoints": keypoint_case}
FIELDS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}


@pytest.fixture
def case(tmp_path):
    def make(iou_type, seed):
        truth, rows = CASES[iou_type](seed)
        if iou_type == "keypoints":
            truth["categories"][0]["keypoints"] = [f"point {i}" for i in range(17)]
        path = tmp_path / f"{iou_type}{seed}.json"
        path.write_text(json.dumps(truth))
        return path, only(rows, FIELDS[iou_type])

    return make


def streamed(path, rows, iou_type, *, processes=1, options=None):
    """The score over so many processes, of which the last has no image where there are several; each starts anew."""
    truth = GroundTruth(path)
    image_ids = [image["id"] for image in truth.content["images"]]
    busy = max(1, processes - 1)
    scorers = [
        StreamingScorer(GroundTruth(path), iou_type=iou_type, options=options or ScoreOptions()) for _ in range(processes)
    ]
    for place, image_id in enumerate(image_ids):
        scorers[place % busy].add(image_id, [row for row in rows if row["image_id"] == image_id])
    states = [scorer.state() for scorer in scorers]
    assert all(isinstance(state, bytes) for state in states)
    scorers[0].merge(states)
    return scorers[0].score()


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("iou_type", CASES)
def test_the_score_is_pycocotools_to_the_last_bit_on_any_number_of_processes(case, iou_type, processes):
    for seed in range(3):
        path, rows = case(iou_type, seed)
        found = streamed(path, rows, iou_type, processes=processes)
        expected = score_results(load_ground_truth(path), rows, iou_type=iou_type, backend="pycocotools")
        assert found.stats == expected.stats
        assert found.per_class == pytest.approx(expected.per_class, abs=1e-12)
        assert 0 < found.stats["AP"] < 1


def test_nothing_detected_is_a_score_of_zero(case):
    path, _ = case("bbox", 0)
    assert streamed(path, [], "bbox", processes=2).stats["AP"] == 0


CUSTOM = ScoreOptions(max_dets=(5, 2), iou_thresholds=(0.75, 0.4), area_ranges={"tiny": (0, 900), "rest": (900, 1e10)})


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_other_detections_ious_and_areas_are_pycocotools(case, iou_type):
    path, rows = case(iou_type, 1)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        evaluator = COCOeval(truth, truth.loadRes([dict(row) for row in rows]), iou_type)
        evaluator.params.maxDets, evaluator.params.iouThrs = [2, 5], np.array([0.4, 0.75])
        evaluator.params.areaRng, evaluator.params.areaRngLbl = [[0, 1e10], [0, 900], [900, 1e10]], ["all", "tiny", "rest"]
        evaluator.evaluate()
        evaluator.accumulate()
    precision, recall = evaluator.eval["precision"], evaluator.eval["recall"]

    def mean(values):
        return values[values > -1].mean()

    expected = {
        "AP": mean(precision[..., 0, -1]),
        "AP40": mean(precision[0, ..., 0, -1]),
        "AP75": mean(precision[1, ..., 0, -1]),
        "AP_tiny": mean(precision[..., 1, -1]),
        "AP_rest": mean(precision[..., 2, -1]),
        "AR2": mean(recall[..., 0, 0]),
        "AR5": mean(recall[..., 0, 1]),
        "AR_tiny": mean(recall[..., 1, -1]),
        "AR_rest": mean(recall[..., 2, -1]),
    }
    scores = [streamed(path, rows, iou_type, processes=3, options=CUSTOM)]
    truth = load_ground_truth(path)
    scores += [score_results(truth, rows, iou_type=iou_type, backend=b, options=CUSTOM) for b in ("hotcoco", "pycocotools")]
    for score in scores:
        assert score.stats == pytest.approx(expected, abs=1e-12)
        assert list(score.stats) == list(expected)
        assert score.value == score.stats["AP"]
        assert score.lines()[0] == f" AP           {expected['AP']:.3f}"


def lvis_case(case):
    path, rows = case("bbox", 2)
    truth = json.loads(path.read_text())
    ids = [category["id"] for category in truth["categories"]]
    for category, frequency in zip(truth["categories"], "frcf", strict=True):
        category["frequency"] = frequency
    for image in truth["images"]:
        there = {a["category_id"] for a in truth["annotations"] if a["image_id"] == image["id"]}
        image["neg_category_ids"] = [i for i in ids if i not in there][:1]
        image["not_exhaustive_category_ids"] = sorted(there)[:1]
    truth["annotations"] = [annotation for annotation in truth["annotations"] if not annotation["iscrowd"]]
    path.write_text(json.dumps(truth))
    return path, rows


def test_lvis_counts_only_classes_an_image_was_checked_for(case):
    path, rows = lvis_case(case)
    options = ScoreOptions(style="lvis")
    found = streamed(path, rows, "bbox", processes=3, options=options)
    assert {"APr", "APc", "APf", "AR300"} <= set(found.stats)
    coco = streamed(path, rows, "bbox")
    assert found.stats["AP"] > coco.stats["AP"]  # false detections of classes nobody looked for do not count
    assert found.stats == score_results(load_ground_truth(path), rows, iou_type="bbox", options=options).stats
    by_frequency = {"f": [], "r": [], "c": []}
    for category in json.loads(path.read_text())["categories"]:
        by_frequency[category["frequency"]].append(found.per_class[category["name"]])
    for letter, values in by_frequency.items():
        there = [value for value in values if value > -1]
        assert found.stats[f"AP{letter}"] == pytest.approx(np.mean(there) if there else -1, abs=1e-9)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_lvis_is_what_its_own_package_says(case, monkeypatch):
    lvis = pytest.importorskip("lvis", reason="lvis asks for opencv-python, which would overwrite the headless one")
    path, rows = lvis_case(case)
    monkeypatch.setattr(np, "float", float, raising=False)  # it was written for a NumPy that had it
    truth = lvis.LVIS(str(path))
    evaluator = lvis.LVISEval(truth, lvis.LVISResults(truth, [dict(row) for row in rows]), "bbox")
    evaluator.run()
    found = streamed(path, rows, "bbox", processes=2, options=ScoreOptions(style="lvis")).stats
    for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"):
        assert found[name] == pytest.approx(evaluator.results[name], abs=1e-9), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"style": "lvis", "backend": "pycocotools"}, "pycocotools does not score LVIS"),
        ({"area_ranges": {"tiny": [9, 3]}}, "from must be below to"),
        ({"area_ranges": {"all": [0, 3]}}, "`all` is always there"),
        ({"max_dets": []}, "at least 1"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DetectionEvalConfig.model_validate(options)


def test_pycocotools_is_not_asked_for_lvis(case):
    path, rows = case("bbox", 0)
    with pytest.raises(UserError, match="does not score LVIS"):
        score_results(load_ground_truth(path), rows, iou_type="bbox", backend="pycocotools", options=ScoreOptions(style="lvis"))


def test_masks_that_are_never_pasted_have_the_run_lengths_of_those_that_are():
    generator = torch.Generator().manual_seed(0)
    size = (61, 83)
    corners = torch.rand(40, 2, generator=generator) * torch.tensor([90.0, 70.0]) - 10
    boxes = torch.cat([corners, corners + torch.rand(40, 2, generator=generator) * 60], dim=1)
    boxes[0] = torch.tensor([0.0, 0, 83, 61])  # all of the image
    boxes[1] = torch.tensor([200.0, 200, 210, 220])  # none of it
    masks = torch.rand(40, 1, 28, 28, generator=generator)
    masks[:3] = 1
    prediction = {"boxes": boxes, "labels": torch.ones(40, dtype=torch.int64), "scores": torch.rand(40), "masks": masks}
    small = to_detections(prediction | {"masks": UnpastedMasks(masks, boxes, size)})
    dense = to_detections(prediction | {"masks": paste_masks(masks, boxes, size)})
    assert small.masks == dense.masks
    assert len({mask["counts"] for mask in small.masks}) > 30
