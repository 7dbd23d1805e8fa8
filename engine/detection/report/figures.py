"""All numbers of the report, from results matched with the truth."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.detection.coco_eval import IouType
from engine.detection.report.matching import Matched, Outcome, classes_of

RECALLS = np.linspace(0, 1, 101)
USUAL_THRESHOLD = 0.5
# TIDE's six kinds of error (Bolya et al. 2020, https://arxiv.org/abs/2008.08115), in hotcoco's names.
ERROR_KINDS = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """A class: how much of it there is, and how well it is found. Scores are -1 where there is nothing to find."""

    name: str
    objects: int
    images: int
    detections: int
    ap: float
    ap50: float
    ap75: float
    recall: float
    threshold: float  # of the best F1, IoU 0.5
    f1: float  # at that threshold
    found: float  # share of the objects that is found there
    found_at_common: float  # and at the threshold of all classes
    curve: np.ndarray  # (101,) precision at RECALLS, IoU 0.5


@dataclass(frozen=True, slots=True)
class SizeFigures:
    """The objects of one range of areas, pixels: how many, and how well they are found."""

    name: str
    low: float
    high: float
    objects: int
    ap: float
    recall: float


@dataclass(frozen=True, slots=True)
class ThresholdFigures:
    """Precision, recall and F1 of all classes together at each score threshold, IoU 0.5; and the threshold of the best F1."""

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    best: float


@dataclass(frozen=True, slots=True)
class ErrorFigures:
    """TIDE's split of the errors: how many of a kind there are, and the AP50 gained were that kind alone put right."""

    counts: dict[str, int]
    gains: dict[str, float]
    false_positives: float  # the gain were all false detections left out
    false_negatives: float  # the gain were all missed objects found
    ap50: float


@dataclass(frozen=True, slots=True)
class CalibrationFigures:
    """How often detections of a score are right, IoU 0.5: a bin each, NaN where it holds none."""

    edges: np.ndarray  # (bins + 1,)
    counts: np.ndarray  # (bins,)
    confidence: np.ndarray  # (bins,) mean score
    accuracy: np.ndarray  # (bins,) share that is right
    error: float  # the mean of |confidence - accuracy| over detections (ECE)


@dataclass(frozen=True)
class Figures:
    """What the report says of one kind of result. What does not apply to it is None."""

    kind: IouType
    stats: dict[str, float]
    objects: int
    crowds: int
    detections: int
    classes: list[ClassFigures]  # the best AP first, those with nothing to find last
    curves: dict[float, np.ndarray]  # IoU -> (101,) precision at RECALLS, the mean over classes
    sizes: list[SizeFigures]
    thresholds: ThresholdFigures
    threshold: float  # above which detections are drawn and counted as errors
    errors: ErrorFigures | None
    confusion: np.ndarray | None  # (classes + 1, classes + 1) true by predicted, the last: nothing
    class_names: list[str]  # in the order of the confusion matrix
    class_ids: list[int]
    calibration: CalibrationFigures | None
    outcomes: list[Outcome]  # the most errors first


def figures_of(matched: Matched, *, threshold: float | None = None) -> Figures:
    """All figures of matched results.

    Args:
        threshold: the score from which detections count as errors; None for that of the best F1.
    """
    by_threshold = threshold_figures(matched.scores, matched.is_right, objects=len(matched.objects))
    chosen = by_threshold.best if threshold is None else threshold
    outcomes = matched.outcomes(chosen)
    precision = matched.diagnoser.eval["precision"]
    has_regions = matched.iou_type != "keypoints"
    return Figures(
        kind=matched.iou_type,
        stats=dict(matched.score.stats),
        objects=len(matched.objects),
        crowds=sum(annotation["iscrowd"] for annotation in matched.truth["annotations"]),
        detections=len(matched.rows),
        classes=_class_figures(matched, chosen),
        curves={round(iou, 2): _mean_curve(precision[i]) for i, iou in enumerate(matched.diagnoser.params.iou_thrs)},
        sizes=_size_figures(matched),
        thresholds=by_threshold,
        threshold=chosen,
        errors=_error_figures(matched) if has_regions else None,
        confusion=confusion_matrix(outcomes, matched.categories) if has_regions else None,
        class_names=matched.class_names,
        class_ids=[category["id"] for category in matched.categories],
        calibration=calibration_figures(matched.scores[matched.is_right >= 0], matched.is_right[matched.is_right >= 0] == 1),
        outcomes=sorted(outcomes, key=lambda outcome: (-outcome.errors, len(outcome.correct))),
    )


def threshold_figures(scores: np.ndarray, is_right: np.ndarray, *, objects: int) -> ThresholdFigures:
    """Precision, recall and F1 over thresholds: 0, 0.01, ... 1; where scores go beyond, a hundred of their quantiles.

    Args:
        scores: (N,) of the detections.
        is_right: (N,) 1 for a right one, 0 for a false one, -1 for one that does not count.
        objects: how many there are to find.
    """
    scores, right = scores[is_right >= 0], is_right[is_right >= 0] == 1
    if scores.size and (scores.min() < 0 or scores.max() > 1):
        grid = np.unique(np.quantile(scores, RECALLS))
    else:
        grid = np.round(RECALLS, 2)
    order = np.argsort(-scores, kind="stable")
    kept = np.searchsorted(-scores[order], -grid, side="right")  # how many score so much or more
    correct = np.concatenate([[0], np.cumsum(right[order])])[kept]
    precision = np.divide(correct, kept, out=np.ones(len(grid)), where=kept > 0)
    recall = correct / max(objects, 1)
    f1 = 2 * correct / np.maximum(kept + objects, 1)
    best = float(grid[f1.argmax()]) if f1.any() else USUAL_THRESHOLD
    return ThresholdFigures(grid, precision, recall, f1, best)


def calibration_figures(scores: np.ndarray, right: np.ndarray, *, bins: int = 10) -> CalibrationFigures | None:
    """How often detections are right, by their score; None where there are none, or scores are no probabilities.

    Args:
        scores: (N,) of the detections that count.
        right: (N,) bool.
    """
    if not scores.size or scores.min() < 0 or scores.max() > 1:
        return None
    edges = np.linspace(0, 1, bins + 1)
    place = np.minimum((scores * bins).astype(int), bins - 1)
    counts = np.bincount(place, minlength=bins)
    full = np.maximum(counts, 1)
    confidence = np.where(counts > 0, np.bincount(place, scores, bins) / full, np.nan)
    accuracy = np.where(counts > 0, np.bincount(place, right, bins) / full, np.nan)
    error = float(np.nansum(counts * np.abs(confidence - accuracy)) / len(scores))
    return CalibrationFigures(edges, counts, confidence, accuracy, error)


def confusion_matrix(outcomes: list[Outcome], categories: list[dict[str, Any]]) -> np.ndarray:
    """(classes + 1, classes + 1): how many objects of a row's class were taken for a column's.

    The last column counts objects that were missed, the last row detections where there is no object. hotcoco's own matrix
    counts detections of crowd regions as false, and may give an object to a wrong class though the right one is there too.
    """
    size = len(categories) + 1
    matrix = np.zeros((size, size), np.int64)
    for outcome in outcomes:
        correct = classes_of(outcome.correct, categories)
        np.add.at(matrix, (correct, correct), 1)
        matrix[:-1, -1] += np.bincount(classes_of(outcome.missed, categories), minlength=size - 1)
        matrix[-1, :-1] += np.bincount(classes_of(outcome.false, categories), minlength=size - 1)
        true = classes_of([annotation for annotation, _ in outcome.confused], categories)
        np.add.at(matrix, (true, classes_of([row for _, row in outcome.confused], categories)), 1)
    return matrix


def _class_figures(matched: Matched, common: float) -> list[ClassFigures]:
    precision, recall = matched.diagnoser.eval["precision"], matched.diagnoser.eval["recall"]
    ious = [round(iou, 2) for iou in matched.diagnoser.params.iou_thrs]
    count = len(matched.categories)
    objects = np.bincount(classes_of(matched.objects, matched.categories), minlength=count)
    of_row = classes_of(matched.rows, matched.categories)
    detections = np.bincount(of_row, minlength=count)
    places = classes_of(matched.objects, matched.categories).tolist()
    pairs = {(place, a["image_id"]) for place, a in zip(places, matched.objects, strict=True)}
    images = np.bincount(np.array([place for place, _ in pairs], np.int64), minlength=count)
    figures = []
    for k, name in enumerate(matched.class_names):
        curve = precision[ious.index(0.5), :, k, 0, -1]
        own = of_row == k
        by = threshold_figures(matched.scores[own], matched.is_right[own], objects=int(objects[k]))
        best = int(by.f1.argmax())
        right_at_common = ((matched.is_right == 1) & own & (matched.scores >= common)).sum()
        figures.append(
            ClassFigures(
                name=name,
                objects=int(objects[k]),
                images=int(images[k]),
                detections=int(detections[k]),
                ap=matched.score.per_class[name],
                ap50=_mean(curve),
                ap75=_mean(precision[ious.index(0.75), :, k, 0, -1]),
                recall=_mean(recall[:, k, 0, -1]),
                threshold=by.best,
                f1=float(by.f1[best]),
                found=float(by.recall[best]),
                found_at_common=float(right_at_common / max(objects[k], 1)),
                curve=curve,
            )
        )
    return sorted(figures, key=lambda figure: (-figure.ap, figure.name))


def _size_figures(matched: Matched) -> list[SizeFigures]:
    precision, recall = matched.diagnoser.eval["precision"], matched.diagnoser.eval["recall"]
    params = matched.diagnoser.params
    areas = np.array([annotation["area"] for annotation in matched.objects])
    figures = []
    for i, (name, (low, high)) in enumerate(zip(params.area_rng_lbl, params.area_rng, strict=True)):
        if name != "all":
            objects = int(((areas >= low) & (areas <= high)).sum())
            ap, found = _mean(precision[:, :, :, i, -1]), _mean(recall[:, :, i, -1])
            figures.append(SizeFigures(name, low, high, objects, ap, found))
    return figures


def _error_figures(matched: Matched) -> ErrorFigures:
    found = matched.tide_errors()
    gains = found["delta_ap"]
    return ErrorFigures(
        counts={kind: int(found["counts"][kind]) for kind in ERROR_KINDS},
        gains={kind: float(gains[kind]) for kind in ERROR_KINDS},
        false_positives=float(gains["FP"]),
        false_negatives=float(gains["FN"]),
        ap50=float(found["ap_base"]),
    )


def _mean_curve(precision: np.ndarray) -> np.ndarray:
    """(101, classes, areas, numbers) -> (101,): the mean over the classes that occur."""
    of_class = precision[:, :, 0, -1]
    occurs = of_class[0] > -1
    return of_class[:, occurs].mean(axis=1) if occurs.any() else np.zeros(len(of_class))


def _mean(values: np.ndarray) -> float:
    values = values[values > -1]
    return float(values.mean()) if values.size else -1.0
