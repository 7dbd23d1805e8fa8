"""The difference of two results, and its bootstrap interval, against drawing the images anew with numpy."""

from typing import Any

import numpy as np
import pytest

from engine.detection.coco_eval import ScoreOptions, score_results
from engine.detection.report.comparison import compare
from engine.detection.report.matching import Matched
from tests.engine.detection.report.cases import random_boxes


def worse(rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """The same detections, a third of them lost, the others less exact."""
    rng = np.random.default_rng(seed)
    kept = [row for row in rows if rng.random() > 0.33]
    return [{**row, "bbox": [v + float(rng.normal(0, 2)) for v in row["bbox"][:2]] + row["bbox"][2:]} for row in kept]


def matched(truth: dict[str, Any], rows: list[dict[str, Any]]) -> Matched:
    return Matched(truth, rows, iou_type="bbox", options=ScoreOptions())


def test_the_difference_is_that_of_the_scores() -> None:
    truth, rows = random_boxes(0, images=20)
    others = worse(rows, 1)
    found = compare(matched(truth, rows), matched(truth, others), resamples=20)
    this, other = (score_results(truth, r, iou_type="bbox", backend="pycocotools") for r in (rows, others))
    assert [d.name for d in found.differences] == list(this.stats)
    for difference in found.differences:
        assert difference.this == pytest.approx(this.stats[difference.name])
        assert difference.other == pytest.approx(other.stats[difference.name])
        assert difference.value == pytest.approx(difference.this - difference.other)
    assert [name for name, _, _ in found.classes] == sorted(
        (name for name, ap in this.per_class.items() if ap > -1), key=lambda name: other.per_class[name] - this.per_class[name]
    )


def test_the_interval_is_that_of_images_drawn_anew() -> None:
    truth, rows = random_boxes(3, images=30)
    others = worse(rows, 2)
    found = compare(matched(truth, rows), matched(truth, others), resamples=400).differences[0]
    rng = np.random.default_rng(5)
    drawn = [rng.choice(len(truth["images"]), len(truth["images"])) for _ in range(200)]
    values = [ap(*resampled(truth, rows, d)) - ap(*resampled(truth, others, d)) for d in drawn]
    low, high = np.quantile(values, [0.025, 0.975])
    width = high - low
    assert found.low == pytest.approx(low, abs=width / 4)
    assert found.high == pytest.approx(high, abs=width / 4)
    assert found.low < found.value < found.high


def ap(truth: dict[str, Any], rows: list[dict[str, Any]]) -> float:
    return score_results(truth, rows, iou_type="bbox").stats["AP"]


def resampled(
    truth: dict[str, Any], rows: list[dict[str, Any]], places: np.ndarray
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Images by their places, each under a new id with its annotations and detections."""
    images, annotations, detections = [], [], []
    for new, place in enumerate(places.tolist(), start=1):
        old = truth["images"][place]["id"]
        images.append({**truth["images"][place], "id": new})
        mine = [{**a, "image_id": new} for a in truth["annotations"] if a["image_id"] == old]
        annotations += [{**a, "id": len(annotations) + i} for i, a in enumerate(mine, start=1)]
        detections += [{**row, "image_id": new} for row in rows if row["image_id"] == old]
    return {"images": images, "annotations": annotations, "categories": truth["categories"]}, detections


def test_a_result_does_not_differ_from_itself_and_the_seed_decides_the_rest() -> None:
    truth, rows = random_boxes(1)
    this, other = matched(truth, rows), matched(truth, worse(rows, 3))
    same = compare(this, this, resamples=10).differences
    assert all((d.value, d.low, d.high, d.is_clear) == (0, 0, 0, False) for d in same)
    first, again, another = (compare(this, other, resamples=50, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != another


def test_a_clear_difference_has_zero_outside_its_interval() -> None:
    truth, rows = random_boxes(2, images=30)
    this = matched(truth, rows)
    nothing = matched(truth, [])
    ahead, behind = compare(this, nothing, resamples=50), compare(nothing, this, resamples=50)
    assert ahead.differences[0].is_clear
    assert ahead.differences[0].low > 0 > behind.differences[0].high
    assert behind.differences[0].is_clear


def test_a_number_without_objects_is_left_out() -> None:
    truth, rows = random_boxes(0)
    small = [a for a in truth["annotations"] if a["area"] < 32**2]
    some = {**truth, "annotations": [a for a in truth["annotations"] if a not in small]}
    names = {d.name for d in compare(matched(some, rows), matched(some, rows), resamples=5).differences}
    assert {"APs", "ARs"}.isdisjoint(names)
    assert {"AP", "APm"} <= names


def test_numbers_of_lvis_are_compared_by_their_names() -> None:
    truth, rows = random_boxes(1, images=20)
    for category, frequency in zip(truth["categories"], "rcfr", strict=True):
        category["frequency"] = frequency
    for image in truth["images"]:
        image |= {"neg_category_ids": [7, 31], "not_exhaustive_category_ids": [50]}
    this, other = (Matched(truth, r, iou_type="bbox", options=ScoreOptions(style="lvis")) for r in (rows, rows[::2]))
    found = compare(this, other, resamples=5).differences
    assert [d.name for d in found] == list(this.score.stats)
    assert [d.value for d in found] == pytest.approx([this.score.stats[d.name] - other.score.stats[d.name] for d in found])


def test_what_hotcoco_cannot_name_under_other_options_is_left_out() -> None:
    truth, rows = random_boxes(1, images=20)
    options = ScoreOptions(max_dets=(1, 5), iou_thresholds=(0.3, 0.5), area_ranges={"tiny": (0, 900)})
    this, other = (Matched(truth, r, iou_type="bbox", options=options) for r in (rows, rows[::2]))
    found = compare(this, other, resamples=5).differences
    assert {"AP", "AP50"} <= {d.name for d in found}
    for d in found:
        assert (d.this, d.other) == pytest.approx((this.score.stats[d.name], other.score.stats[d.name]))
