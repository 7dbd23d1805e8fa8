"""The report's figures against pycocotools, TIDE written out, and numpy."""

import contextlib
import io
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from engine.detection.coco_eval import ScoreOptions
from engine.detection.report.figures import Figures, calibration_figures, figures_of, threshold_figures
from engine.detection.report.matching import Matched
from tests.engine.detection.report.cases import CLASS_IDS, NEVER, average_precision, iou, matches, random_boxes

SEEDS = range(8)


def figures(truth: dict[str, Any], rows: list[dict[str, Any]], **options: Any) -> Figures:
    return figures_of(Matched(truth, rows, iou_type="bbox", options=ScoreOptions()), **options)


def reference(truth: dict[str, Any], rows: list[dict[str, Any]]) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = {**truth, "annotations": [dict(annotation) for annotation in truth["annotations"]]}
        ground_truth.createIndex()
        evaluator = COCOeval(ground_truth, ground_truth.loadRes([dict(row) for row in rows]), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


@pytest.mark.parametrize("seed", SEEDS)
def test_numbers_curves_classes_and_sizes_are_those_of_pycocotools(seed: int) -> None:
    truth, rows = random_boxes(seed, images=14)
    found, evaluator = figures(truth, rows), reference(truth, rows)
    assert list(found.stats.values()) == pytest.approx(evaluator.stats.tolist(), abs=1e-12)
    precision, recall = evaluator.eval["precision"][..., -1], evaluator.eval["recall"][..., -1]
    occurs = precision[0, 0, :, 0] > -1
    assert list(found.curves) == pytest.approx(evaluator.params.iouThrs.tolist())
    for i, curve in enumerate(found.curves.values()):
        np.testing.assert_allclose(curve, precision[i][:, occurs, 0].mean(axis=1), atol=1e-12)
    for k, category in enumerate(evaluator.params.catIds):
        (mine,) = [c for c in found.classes if c.name == f"class {category}"]
        np.testing.assert_allclose(mine.curve, precision[0, :, k, 0])
        expected = [precision[:, :, k, 0], precision[0, :, k, 0], precision[5, :, k, 0], recall[:, k, 0]]
        values = [mine.ap, mine.ap50, mine.ap75, mine.recall]
        assert values == pytest.approx([v.mean() if occurs[k] else -1 for v in expected])
        objects = [a for a in truth["annotations"] if a["category_id"] == category and not a["iscrowd"]]
        assert (mine.objects, mine.images) == (len(objects), len({a["image_id"] for a in objects}))
        assert mine.detections == sum(row["category_id"] == category for row in rows)
    for i, size in enumerate(found.sizes, start=1):
        of_size = precision[:, :, :, i]
        assert size.name == evaluator.params.areaRngLbl[i]
        assert size.ap == pytest.approx(of_size[of_size > -1].mean() if (of_size > -1).any() else -1)
        low, high = evaluator.params.areaRng[i]
        assert size.objects == sum(low <= a["area"] <= high and not a["iscrowd"] for a in truth["annotations"])


def test_classes_come_with_the_best_first_and_those_without_objects_last() -> None:
    found = figures(*random_boxes(1)).classes
    aps = [c.ap for c in found]
    assert aps == sorted(aps, reverse=True)
    assert (found[-1].name, found[-1].objects, found[-1].ap) == (f"class {NEVER}", 0, -1)
    assert found[-1].detections > 0


def tide(truth: dict[str, Any], rows: list[dict[str, Any]]) -> tuple[Counter[str], dict[str, float], float]:
    """TIDE's counts and gains, and AP50, as its paper has them: crowd regions and what lies on them are left out."""
    found, ignored = matches(truth, rows)
    objects = truth["annotations"]
    used = set(found.values())
    kinds: dict[int, str] = {}
    target: dict[int, int] = {}
    for i, row in enumerate(rows):
        if i in found or i in ignored:
            continue
        here = [j for j, a in enumerate(objects) if a["image_id"] == row["image_id"] and not a["iscrowd"]]
        overlaps = [(iou(row["bbox"], objects[j]["bbox"]), j) for j in here]
        same = max(((v, j) for v, j in overlaps if objects[j]["category_id"] == row["category_id"]), default=(0, -1))
        other = max(((v, j) for v, j in overlaps if objects[j]["category_id"] != row["category_id"]), default=(0, -1))
        if 0.1 <= same[0] < 0.5:
            kinds[i], target[i] = "Loc", same[1]
        elif other[0] >= 0.5:
            kinds[i], target[i] = "Cls", other[1]
        elif same[0] >= 0.5:
            kinds[i] = "Dupe"
        else:
            kinds[i] = "Bkg" if max(same[0], other[0]) < 0.1 else "Both"
    missed = {j for j, a in enumerate(objects) if not a["iscrowd"] and j not in used}
    untouched = missed - set(target.values())

    def ap(*, drop: set[int] = frozenset(), right: set[int] = frozenset(), gone: set[int] = frozenset()) -> float:  # type: ignore[assignment]
        values = []
        for category in (*CLASS_IDS, NEVER):
            own = [j for j, a in enumerate(objects) if a["category_id"] == category and not a["iscrowd"]]
            named = {i: objects[target[i]]["category_id"] if i in right else row["category_id"] for i, row in enumerate(rows)}
            kept = [i for i in named if named[i] == category and i not in drop and i not in ignored]
            left = len(own) - len(gone & set(own))
            if own and (left or kept):
                scores = [rows[i]["score"] for i in kept]
                hits = [i in found or i in right for i in kept]
                values.append(average_precision(scores, hits, left) if kept and left else 0.0)
        return float(np.mean(values))

    base = ap()
    best = {j: max((i for i in target if target[i] == j), key=lambda i: rows[i]["score"]) for j in target.values()}
    gains = {}
    for kind in ("Cls", "Loc", "Both", "Dupe", "Bkg"):
        own = {i for i in kinds if kinds[i] == kind}
        right = {i for i in own & target.keys() if target[i] not in used and best[target[i]] == i}
        gains[kind] = ap(drop=own - right, right=right) - base
    gains |= {"Miss": ap(gone=untouched) - base, "FP": ap(drop=set(kinds)) - base, "FN": ap(gone=missed) - base}
    return Counter(kinds.values()) + Counter(Miss=len(untouched)), gains, base


@pytest.mark.parametrize("crowds", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_errors_are_split_as_tides_paper_has_it(seed: int, crowds: bool) -> None:
    truth, rows = random_boxes(seed, crowds=crowds)
    counts, gains, base = tide(truth, rows)
    errors = figures(truth, rows).errors
    assert errors is not None
    assert {kind: n for kind, n in errors.counts.items() if n} == dict(counts)
    assert errors.ap50 == pytest.approx(base)
    expected = {kind: gains[kind] for kind in errors.gains}
    assert errors.gains == pytest.approx(expected, abs=1e-9)
    assert errors.false_positives == pytest.approx(gains["FP"], abs=1e-9)
    assert errors.false_negatives == pytest.approx(gains["FN"], abs=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_confusion_matrix_counts_each_object_and_detection_once(seed: int) -> None:
    truth, rows = random_boxes(seed, images=30)
    for row in rows[::2]:
        row["category_id"] = CLASS_IDS[seed % 3]
    found = figures(truth, rows, threshold=0.4)
    ids = sorted(category["id"] for category in truth["categories"])
    place = {category: i for i, category in enumerate(ids)}
    expected = np.zeros((5, 5), int)
    matched, ignored = matches(truth, rows)
    right = {j: i for i, j in matched.items() if rows[i]["score"] >= 0.4}
    left = {j: a for j, a in enumerate(truth["annotations"]) if not a["iscrowd"] and j not in right}
    for j in right:
        k = place[truth["annotations"][j]["category_id"]]
        expected[k, k] += 1
    false = [i for i, row in enumerate(rows) if i not in matched and i not in ignored and row["score"] >= 0.4]
    for i in sorted(false, key=lambda i: -rows[i]["score"]):
        near = [
            (iou(rows[i]["bbox"], a["bbox"]), j)
            for j, a in left.items()
            if a["image_id"] == rows[i]["image_id"] and a["category_id"] != rows[i]["category_id"]
        ]
        value, j = max(near, default=(0.0, -1))
        row = place[left.pop(j)["category_id"]] if value >= 0.5 else 4
        expected[row, place[rows[i]["category_id"]]] += 1
    for a in left.values():
        expected[place[a["category_id"]], 4] += 1
    assert found.confusion is not None
    np.testing.assert_array_equal(found.confusion, expected)
    assert expected[:4, :4].sum() > expected[:4, :4].trace()  # some are confused


def test_without_crowds_and_doubles_the_confusion_matrix_is_hotcocos() -> None:
    truth, rows = random_boxes(5, crowds=False)
    seen, single = set(), []
    for row in rows:  # one detection an object: then no wrong class can take an object from the right one
        key = (row["image_id"], round(row["bbox"][0] / 40), round(row["bbox"][1] / 40))
        if key not in seen:
            seen.add(key)
            single.append(row)
    matched = Matched(truth, single, iou_type="bbox", options=ScoreOptions())
    theirs = matched.evaluator.confusion_matrix(iou_thr=0.5, min_score=0.2)["matrix"]
    ours = figures_of(matched, threshold=0.2).confusion
    np.testing.assert_array_equal(ours, theirs)


scored = st.lists(st.tuples(st.integers(0, 20), st.integers(-1, 1)), max_size=40)


@given(scored, st.integers(1, 30))
def test_precision_recall_and_f1_are_those_of_the_rows_kept(drawn: list[tuple[int, int]], missed: int) -> None:
    scores = np.array([s / 20 for s, _ in drawn], np.float64)
    right = np.array([r for _, r in drawn], np.int8)
    objects = missed + int((right == 1).sum())
    found = threshold_figures(scores, right, objects=objects)
    for threshold, precision, recall, f1 in zip(found.thresholds, found.precision, found.recall, found.f1, strict=True):
        kept = (scores >= threshold) & (right >= 0)
        correct = int((right[kept] == 1).sum())
        assert precision == (correct / kept.sum() if kept.any() else 1)
        assert recall == correct / objects
        assert f1 == pytest.approx(2 * correct / (kept.sum() + objects))
    at_best = found.f1[found.thresholds == found.best]
    assert at_best.tolist() == ([found.f1.max()] if found.f1.any() else at_best.tolist())


def test_thresholds_of_scores_that_are_no_probabilities_are_among_the_scores() -> None:
    found = threshold_figures(np.array([-3.0, 2.0, 7.0]), np.array([0, 1, 1], np.int8), objects=2)
    assert (found.thresholds[0], found.thresholds[-1]) == (-3, 7)
    assert -3 < found.best <= 2


@given(st.lists(st.tuples(st.integers(0, 100), st.booleans()), min_size=1, max_size=60))
def test_calibration_is_the_share_that_is_right_in_each_tenth(drawn: list[tuple[int, bool]]) -> None:
    scores, right = np.array([s / 100 for s, _ in drawn]), np.array([r for _, r in drawn])
    found = calibration_figures(scores, right)
    assert found is not None
    error = 0.0
    for i in range(10):
        own = np.array([min(int(score * 10), 9) == i for score in scores])
        assert found.counts[i] == own.sum()
        if own.any():
            assert found.confidence[i] == pytest.approx(scores[own].mean())
            assert found.accuracy[i] == pytest.approx(right[own].mean())
            error += own.mean() * abs(scores[own].mean() - right[own].mean())
        else:
            assert np.isnan([found.confidence[i], found.accuracy[i]]).all()
    assert found.error == pytest.approx(error)


@pytest.mark.parametrize("seed", SEEDS)
def test_calibration_is_hotcocos(seed: int) -> None:
    truth, rows = random_boxes(seed)
    matched = Matched(truth, rows, iou_type="bbox", options=ScoreOptions())
    theirs, ours = matched.evaluator.calibration(n_bins=10), figures_of(matched).calibration
    assert ours is not None
    assert ours.error == pytest.approx(theirs["ece"])
    assert ours.counts.tolist() == [b["count"] for b in theirs["bins"]]


def test_scores_that_are_no_probabilities_have_no_calibration() -> None:
    assert calibration_figures(np.array([0.5, 1.5]), np.array([True, False])) is None
    assert calibration_figures(np.array([]), np.array([], bool)) is None


def test_images_come_with_the_most_errors_first() -> None:
    errors = [outcome.errors for outcome in figures(*random_boxes(4)).outcomes]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > errors[-1]


def test_no_detections_give_zeros_and_no_calibration() -> None:
    truth, _ = random_boxes(0)
    found = figures(truth, [])
    assert (found.stats["AP"], found.detections, found.calibration) == (0, 0, None)
    assert found.errors is not None
    assert found.errors.counts["Miss"] == found.objects
    assert sum(len(outcome.missed) for outcome in found.outcomes) == found.objects
