"""Results matched with the truth: what of an image is found, missed, false, or taken for another class."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import hotcoco
import numpy as np
from hotcoco import mask as mask_api

from engine.detection.coco_eval import CocoScore, IouType, ScoreOptions, keypoint_truth, scores_of, sigmas_of

Rows = list[dict[str, Any]]
MATCH_IOU = 0.5


class Matched:
    """COCO results and the truth, scored and matched.

    Args:
        truth: as `engine.detection.coco_eval.load_ground_truth` gives it.
        rows: as `engine.detection.results.rows_of_type` gives them.
        iou_type: bbox, segm or keypoints.
        options: what is scored. All that is not a score is matched at COCO's IoU thresholds.

    Raises:
        UserError: the options do not fit the annotations.
    """

    def __init__(self, truth: dict[str, Any], rows: Rows, *, iou_type: IouType, options: ScoreOptions) -> None:
        self.iou_type = iou_type
        self.sigmas = None
        if iou_type == "keypoints":
            truth = keypoint_truth(truth)
            self.sigmas = sigmas_of(truth, options.keypoint_sigmas)
        self.categories = sorted(truth["categories"], key=lambda category: category["id"])
        scored = {category["id"] for category in self.categories}
        self.truth = truth
        self.rows = [row for row in rows if row["category_id"] in scored]
        self.evaluator = self._evaluate(options)
        accumulated = self.evaluator.eval
        assert accumulated is not None
        self.score: CocoScore = scores_of(
            accumulated["precision"],
            accumulated["recall"],
            np.asarray(self.evaluator.stats),
            categories=self.categories,
            iou_type=iou_type,
            options=options,
        )
        self.class_names = list(self.score.per_class)
        self._usual = replace(options, iou_thresholds=None)
        # Of the axes of eval["precision"]: IoUs, recalls, classes, areas, numbers of detections.
        self.diagnoser = self.evaluator if options.iou_thresholds is None else self._evaluate(self._usual)

    def _evaluate(self, options: ScoreOptions, *, without_crowds: bool = False) -> Any:
        content, rows = self.truth, self.rows
        if without_crowds:
            content = {**content, "annotations": [a for a in content["annotations"] if not a["iscrowd"]]}
            rows = [rows[i] for i in np.flatnonzero(self.is_right >= 0)]
        truth = hotcoco.COCO(content)
        detections = truth.load_res(rows)
        if options.style == "lvis":
            evaluator = hotcoco.LVISeval(truth, detections, self.iou_type)
        else:
            evaluator = hotcoco.COCOeval(truth, detections, self.iou_type)
        options.set_hotcoco(evaluator.params, self.sigmas)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summary_lines()  # computes the stats
        return evaluator

    @cached_property
    def objects(self) -> Rows:
        """The annotations that count: no crowd regions, and for keypoints only objects that have some."""
        kept = (annotation for annotation in self.truth["annotations"] if not annotation["iscrowd"])
        return [a for a in kept if self.iou_type != "keypoints" or a.get("num_keypoints")]

    @cached_property
    def scores(self) -> np.ndarray:
        """(rows,) each row's score."""
        return np.array([row["score"] for row in self.rows], np.float64)

    @cached_property
    def _diagnosis(self) -> dict[str, Any]:
        return self.diagnoser.image_diagnostics(iou_thr=MATCH_IOU)

    @cached_property
    def is_right(self) -> np.ndarray:
        """(rows,) int8: 1 for a row matched at IoU 0.5, 0 for a false one, -1 where COCO does not count it."""
        status = self._diagnosis["dt_status"]
        value = {"tp": 1, "fp": 0}
        return np.array([value.get(status.get(i, ""), -1) for i in range(1, len(self.rows) + 1)], np.int8)

    @cached_property
    def row_of_object(self) -> dict[int, int]:
        """The row that an annotation is matched with at IoU 0.5, by the annotation's id."""
        return {annotation: row - 1 for annotation, row in self._diagnosis["gt_match"].items()}

    def tide_errors(self) -> dict[str, Any]:
        """hotcoco's, of what counts alone: it would take a detection near a crowd region for one that is placed badly."""
        crowded = any(annotation["iscrowd"] for annotation in self.truth["annotations"])
        evaluator = self._evaluate(self._usual, without_crowds=True) if crowded else self.diagnoser
        return evaluator.tide_errors(pos_thr=MATCH_IOU, bg_thr=0.1)

    def outcomes(self, threshold: float) -> list["Outcome"]:
        """What became of each image's objects and of its detections that score `threshold` or more, in the images' order.

        Matching is greedy from the best score down, so that rows below a threshold change nothing above it.
        """
        objects, false = defaultdict(list), defaultdict(list)
        counts: dict[int, int] = defaultdict(int)
        correct: dict[int, Rows] = defaultdict(list)
        for annotation in self.objects:
            image_id = annotation["image_id"]
            counts[image_id] += 1
            row = self.row_of_object.get(annotation["id"])
            if row is not None and self.scores[row] >= threshold:
                correct[image_id].append(annotation)
            else:
                objects[image_id].append(annotation)
        for i in np.flatnonzero((self.is_right == 0) & (self.scores >= threshold)).tolist():
            false[self.rows[i]["image_id"]].append(self.rows[i])
        found = []
        for image in self.truth["images"]:
            missed, left_over = objects[image["id"]], false[image["id"]]
            pairs = self._other_class_pairs(missed, left_over, (image["height"], image["width"]))
            taken_objects, taken_rows = {i for i, _ in pairs}, {j for _, j in pairs}
            found.append(
                Outcome(
                    image=image,
                    objects=counts[image["id"]],
                    correct=correct[image["id"]],
                    missed=[annotation for i, annotation in enumerate(missed) if i not in taken_objects],
                    false=[row for j, row in enumerate(left_over) if j not in taken_rows],
                    confused=[(missed[i], left_over[j]) for i, j in pairs],
                )
            )
        return found

    def _other_class_pairs(self, objects: Rows, rows: Rows, size: tuple[int, int]) -> list[tuple[int, int]]:
        """(object, row) of other classes that lie on each other, the best score first, each once."""
        if not objects or not rows or self.iou_type == "keypoints" or len(self.categories) < 2:
            return []
        overlaps = np.array(overlap(rows, objects, iou_type=self.iou_type, size=size))
        same = np.array([[row["category_id"] == a["category_id"] for a in objects] for row in rows])
        overlaps[same] = 0
        pairs = []
        for j in sorted(range(len(rows)), key=lambda j: -rows[j]["score"]):
            i = int(overlaps[j].argmax())
            if overlaps[j, i] >= MATCH_IOU:
                pairs.append((i, j))
                overlaps[:, i] = 0
        return pairs


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an image's objects. An object is correct, missed or confused; a detection correct, false or confused."""

    image: dict[str, Any]
    objects: int
    correct: Rows  # annotations
    missed: Rows  # annotations
    false: Rows  # results
    confused: list[tuple[dict[str, Any], dict[str, Any]]]  # an annotation, and the result that takes it for another class

    @property
    def errors(self) -> int:
        return len(self.missed) + len(self.false) + len(self.confused)


def overlap(rows: Rows, annotations: Rows, *, iou_type: IouType, size: tuple[int, int]) -> np.ndarray:
    """(rows, annotations): the IoU of boxes, or of masks in an image of `size` (H, W)."""
    if iou_type == "bbox":
        of_rows, of_annotations = (
            np.array([entry["bbox"] for entry in entries], np.float64) for entries in (rows, annotations)
        )
        return mask_api.iou(of_rows, of_annotations, [0] * len(annotations))
    predicted, true = ([as_rle(entry["segmentation"], size) for entry in entries] for entries in (rows, annotations))
    return mask_api.iou(predicted, true, [0] * len(annotations))


def as_rle(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Polygons or RLE as compressed RLE of an image of `size` (H, W), as the scorers read them."""
    if isinstance(segmentation, list):
        return mask_api.merge(mask_api.frPyObjects(segmentation, *size))
    if isinstance(segmentation["counts"], list):
        return mask_api.frPyObjects(segmentation, *size)
    return segmentation


def classes_of(entries: Sequence[dict[str, Any]], categories: Sequence[dict[str, Any]]) -> np.ndarray:
    """(entries,) the place of each entry's class in `categories`."""
    places = {category["id"]: place for place, category in enumerate(categories)}
    return np.array([places[entry["category_id"]] for entry in entries], np.int64)
