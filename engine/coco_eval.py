"""COCO's scores of a list of results, by hotcoco or by pycocotools; both give the same numbers."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from backbones.errors import UserError
from engine.data.annotations import check_box, check_segmentation, crowd_flag, object_area, read_coco_json
from engine.data.masks import has_mask

IouType = Literal["bbox", "segm", "keypoints"]
Backend = Literal["hotcoco", "pycocotools"]

_BOX_STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
_KEYPOINT_STATS = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
# What each number is taken over: average precision or recall, IoU, area, detections an image.
_AREAS = {"s": "small", "m": "medium", "l": "large"}


@dataclass(frozen=True, slots=True)
class Score:
    """The summary numbers of one kind of result, and the AP of each class; -1 where there is nothing to find, as in COCO."""

    iou_type: IouType
    stats: dict[str, float]
    per_class: dict[str, float]

    def lines(self) -> list[str]:
        """The numbers as COCO's tools print them."""
        return [_summary_line(name, value, self.iou_type) for name, value in self.stats.items()]


def load_ground_truth(path: str | Path) -> dict[str, Any]:
    """A COCO annotation file with the fields the scorers read filled in: `iscrowd`, `area`, `segmentation`.

    Raises:
        UserError: as `engine.data.annotations.read_coco_json`.
    """
    content = read_coco_json(path)
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    for annotation in content["annotations"]:
        where = f"{path}: annotation {annotation['id']}"
        if annotation["image_id"] not in sizes:
            raise UserError(f"{where} is of image {annotation['image_id']}, which `images` does not list.")
        if annotation["category_id"] not in categories:
            raise UserError(f"{where} is of category {annotation['category_id']}, which `categories` does not list.")
        height, width = sizes[annotation["image_id"]]
        check_box(annotation["bbox"], where)
        check_segmentation(annotation.get("segmentation") or [], where)
        annotation["iscrowd"] = crowd_flag(annotation, where)
        annotation["area"] = object_area(annotation, height, width, where)
        if not has_mask(annotation.get("segmentation")):  # pycocotools fails on an empty list
            annotation["segmentation"] = {"size": [height, width], "counts": [height * width]}
    return content


def score_results(
    ground_truth: dict[str, Any], results: Sequence[dict[str, Any]], *, iou_type: IouType, backend: Backend = "hotcoco"
) -> Score:
    """Score COCO results against the ground truth.

    Args:
        ground_truth: as `load_ground_truth` gives it.
        results: rows of image_id, category_id, score, and bbox (xywh pixels), segmentation (RLE) or keypoints. For masks leave
            `bbox` out: COCO's tools would sort objects into sizes by their boxes.
        iou_type: bbox, segm or keypoints.
        backend: hotcoco, or pycocotools, the reference, slower by a factor of a hundred.
    """
    if backend == "hotcoco":
        precision, stats = _run_hotcoco(ground_truth, results, iou_type)
    else:
        precision, stats = _run_pycocotools(ground_truth, results, iou_type)
    # precision: (IoU thresholds, recall points, classes, areas, numbers of detections), -1 for a class that does not occur.
    per_class = {}
    for k, category in enumerate(sorted(ground_truth["categories"], key=lambda c: c["id"])):
        values = precision[:, :, k, 0, -1]
        values = values[values > -1]
        name = str(category["name"])
        per_class[name if name not in per_class else f"{name} (id {category['id']})"] = (
            float(values.mean()) if values.size else -1.0
        )
    names = _KEYPOINT_STATS if iou_type == "keypoints" else _BOX_STATS
    return Score(iou_type, dict(zip(names, (float(value) for value in stats), strict=True)), per_class)


def _run_hotcoco(truth: dict[str, Any], results: Sequence[dict[str, Any]], iou_type: IouType) -> tuple[np.ndarray, Any]:
    import hotcoco

    with _hush_pycocotools():
        ground_truth = hotcoco.COCO(truth)
        evaluator = hotcoco.COCOeval(ground_truth, ground_truth.load_res(list(results)), iou_type)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summary_lines()  # computes the stats
    accumulated = evaluator.eval
    assert accumulated is not None
    return accumulated["precision"], evaluator.stats


def _run_pycocotools(truth: dict[str, Any], results: Sequence[dict[str, Any]], iou_type: IouType) -> tuple[np.ndarray, Any]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with _hush_pycocotools():
        ground_truth = COCO()
        # It writes into the annotations it is given.
        ground_truth.dataset = {**truth, "annotations": [dict(annotation) for annotation in truth["annotations"]]}
        ground_truth.createIndex()
        if results:
            detections = ground_truth.loadRes([dict(row) for row in results])
        else:  # loadRes fails on an empty list
            detections = COCO()
            detections.dataset = {**truth, "annotations": []}
            detections.createIndex()
        evaluator = COCOeval(ground_truth, detections, iou_type)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.eval["precision"], evaluator.stats


@contextlib.contextmanager
def _hush_pycocotools() -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _summary_line(name: str, value: float, iou_type: IouType) -> str:
    kind, measure = ("Average Precision", "(AP)") if name.startswith("AP") else ("Average Recall", "(AR)")
    detail = name[2:]
    iou = f"0.{detail}" if detail in ("50", "75") else "0.50:0.95"
    most = 20 if iou_type == "keypoints" else int(detail) if name in ("AR1", "AR10", "AR100") else 100
    area = _AREAS.get(detail, "all")
    return f" {kind:<18} {measure} @[ IoU={iou:<9} | area={area:>6} | maxDets={most:>3} ] = {value:0.3f}"
