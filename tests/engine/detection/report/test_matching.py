"""Which detection is right, against COCO's matching written out; what is left, against a search over all pairs."""

from typing import Any

import numpy as np
import pytest

from engine.detection.coco_eval import ScoreOptions
from engine.detection.report.matching import Matched, as_rle, overlap
from tests.engine.detection.report.cases import iou, matches, random_boxes

SEEDS = range(6)


def matched(truth: dict[str, Any], rows: list[dict[str, Any]], **options: Any) -> Matched:
    return Matched(truth, rows, iou_type="bbox", options=ScoreOptions(**options))


@pytest.mark.parametrize("seed", SEEDS)
def test_right_false_and_uncounted_detections_are_those_of_cocos_matching(seed: int) -> None:
    truth, rows = random_boxes(seed)
    found, ignored = matches(truth, rows)
    expected = [1 if i in found else -1 if i in ignored else 0 for i in range(len(rows))]
    result = matched(truth, rows)
    assert result.is_right.tolist() == expected
    ids = [annotation["id"] for annotation in truth["annotations"]]
    assert {ids.index(key): row for key, row in result.row_of_object.items()} == {j: i for i, j in found.items()}


@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.9])
@pytest.mark.parametrize("seed", SEEDS)
def test_every_object_and_every_counted_detection_has_one_outcome(seed: int, threshold: float) -> None:
    truth, rows = random_boxes(seed)
    result = matched(truth, rows)
    outcomes = result.outcomes(threshold)
    assert [outcome.image["id"] for outcome in outcomes] == [image["id"] for image in truth["images"]]
    for outcome in outcomes:
        assert outcome.objects == len(outcome.correct) + len(outcome.missed) + len(outcome.confused)
    objects = [a for o in outcomes for a in (*o.correct, *o.missed, *(pair[0] for pair in o.confused))]
    assert sorted(a["id"] for a in objects) == sorted(a["id"] for a in truth["annotations"] if not a["iscrowd"])
    counted = [i for i, row in enumerate(rows) if row["score"] >= threshold and result.is_right[i] >= 0]
    assert sum(len(o.correct) + len(o.false) + len(o.confused) for o in outcomes) == len(counted)


def test_a_threshold_gives_what_matching_the_rows_above_it_gives() -> None:
    truth, rows = random_boxes(2)
    some = matched(truth, rows).outcomes(0.5)
    alone = matched(truth, [row for row in rows if row["score"] >= 0.5]).outcomes(0.0)
    for first, second in zip(some, alone, strict=True):
        for name in ("correct", "missed", "false"):
            assert sorted(map(repr, getattr(first, name))) == sorted(map(repr, getattr(second, name)))


@pytest.mark.parametrize("seed", SEEDS)
def test_objects_taken_for_another_class_are_those_a_search_over_all_pairs_finds(seed: int) -> None:
    truth, rows = random_boxes(seed)
    result = matched(truth, rows)
    for outcome in result.outcomes(0.3):
        mine = outcome.image["id"]
        correct = {a["id"] for a in outcome.correct}
        objects = [a for a in truth["annotations"] if a["image_id"] == mine and not a["iscrowd"] and a["id"] not in correct]
        false = [rows[i] for i in np.flatnonzero(result.is_right == 0) if rows[i]["image_id"] == mine]
        pairs, taken = [], set()
        for row in sorted((row for row in false if row["score"] >= 0.3), key=lambda row: -row["score"]):
            others = [a for a in objects if a["id"] not in taken and a["category_id"] != row["category_id"]]
            best = max(others, key=lambda a: iou(row["bbox"], a["bbox"]), default=None)
            if best is not None and iou(row["bbox"], best["bbox"]) >= 0.5:
                taken.add(best["id"])
                pairs.append((best, row))
        assert outcome.confused == pairs


def test_the_right_class_keeps_its_object_though_a_wrong_one_scores_more() -> None:
    box = [10.0, 10, 50, 50]
    truth = {
        "images": [{"id": 1, "file_name": "1.png", "height": 100, "width": 100}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": box, "area": 2500, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    rows = [{"image_id": 1, "category_id": c, "bbox": box, "score": s} for c, s in ((2, 0.9), (1, 0.6))]
    (outcome,) = matched(truth, rows).outcomes(0.5)
    assert (len(outcome.correct), len(outcome.missed), outcome.false, outcome.confused) == (1, 0, [rows[0]], [])
    (outcome,) = matched(truth, rows).outcomes(0.7)  # the right one is below the threshold: the other takes its place
    assert (outcome.correct, outcome.missed, outcome.false) == ([], [], [])
    assert outcome.confused == [(truth["annotations"][0], rows[0])]


def test_numbers_follow_the_options_and_matching_stays_at_an_iou_of_a_half() -> None:
    truth, rows = random_boxes(3)
    strict = matched(truth, rows, iou_thresholds=(0.8,))
    assert strict.score.stats["AP"] < matched(truth, rows).score.stats["AP"]
    assert strict.is_right.tolist() == matched(truth, rows).is_right.tolist()


def test_boxes_and_masks_overlap_alike_and_polygons_are_masks() -> None:
    rows = [{"bbox": [0, 0, 10, 10], "segmentation": [[0, 0, 10, 0, 10, 10, 0, 10]]}]
    objects = [{"bbox": [5, 0, 10, 10], "segmentation": [[5, 0, 15, 0, 15, 10, 5, 10]]}]
    boxes = overlap(rows, objects, iou_type="bbox", size=(20, 20))
    masks = overlap(rows, objects, iou_type="segm", size=(20, 20))
    assert boxes.shape == masks.shape == (1, 1)
    assert boxes[0, 0] == pytest.approx(1 / 3) == masks[0, 0]
    flat = np.zeros((20, 20), int)
    flat[:10, :10] = 1
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat.T.ravel(), [0]])))
    counts = np.diff([0, *edges.tolist(), 400]).tolist()
    uncompressed = {"size": [20, 20], "counts": counts}
    assert as_rle(uncompressed, (20, 20)) == as_rle(rows[0]["segmentation"], (20, 20))
