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
from engine.data.keypoints import keypoint_names, keypoints_of
from engine.data.masks import has_mask
from engine.scores import Score

IouType = Literal["bbox", "segm", "keypoints"]
Backend = Literal["hotcoco", "pycocotools"]

_BOX_STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
# How exactly annotators place a person's 17 keypoints, as a share of the person's size: https://cocodataset.org/#keypoints-eval
_PERSON_SIGMAS = tuple(
    value / 10
    for value in (0.26, 0.25, 0.25, 0.35, 0.35, 0.79, 0.79, 0.72, 0.72, 0.62, 0.62, 1.07, 1.07, 0.87, 0.87, 0.89, 0.89)
)
_USUAL_SIGMA = 0.05
_KEYPOINT_STATS = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
# What each number is taken over: average precision or recall, IoU, area, detections an image.
_AREAS = {"s": "small", "m": "medium", "l": "large"}


@dataclass(frozen=True)
class CocoScore(Score):
    """COCO's summary numbers of one kind of result, and the AP of each class; -1 where there is nothing to find."""

    kind: IouType

    def lines(self) -> list[str]:
        """The numbers as COCO's tools print them."""
        return [_summary_line(name, value, self.kind) for name, value in self.stats.items()]


def load_ground_truth(path: str | Path) -> dict[str, Any]:
    """A COCO annotation file with the fields the scorers read filled in: `iscrowd`, `area`, `segmentation`.

    Raises:
        UserError: as `engine.data.annotations.read_coco_json`.
    """
    content = read_coco_json(path)
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    names = {category["id"]: keypoint_names(category, str(path)) for category in content["categories"]}
    for annotation in content["annotations"]:
        where = f"{path}: annotation {annotation['id']}"
        if annotation["image_id"] not in sizes:
            raise UserError(f"{where} is of image {annotation['image_id']}, which `images` does not list.")
        if annotation["category_id"] not in names:
            raise UserError(f"{where} is of category {annotation['category_id']}, which `categories` does not list.")
        height, width = sizes[annotation["image_id"]]
        check_box(annotation["bbox"], where)
        check_segmentation(annotation.get("segmentation") or [], where)
        annotation["iscrowd"] = crowd_flag(annotation, where)
        annotation["area"] = object_area(annotation, height, width, where)
        points = keypoints_of(annotation, names[annotation["category_id"]], len(names[annotation["category_id"]]), where)
        if len(points):
            annotation["keypoints"] = [float(number) for number in points.ravel()]
            annotation["num_keypoints"] = int((points[:, 2] > 0).sum())
        if not has_mask(annotation.get("segmentation")):  # pycocotools fails on an empty list
            annotation["segmentation"] = {"size": [height, width], "counts": [height * width]}
    return content


def score_results(
    ground_truth: dict[str, Any],
    results: Sequence[dict[str, Any]],
    *,
    iou_type: IouType,
    backend: Backend = "hotcoco",
    keypoint_sigmas: Sequence[float] | None = None,
) -> CocoScore:
    """Score COCO results against the ground truth.

    Args:
        ground_truth: as `load_ground_truth` gives it.
        results: rows of image_id, category_id, score, and bbox (xywh pixels), segmentation (RLE) or keypoints. For masks leave
            `bbox` out: COCO's tools would sort objects into sizes by their boxes.
        iou_type: bbox, segm or keypoints.
        backend: hotcoco, or pycocotools, the reference, slower by a factor of a hundred.
        keypoint_sigmas: how exactly each keypoint can be placed, as a share of the object's size. Left out: COCO's for a
            person's 17, else 0.05 for each.

    Raises:
        UserError: another number of sigmas is given than there are keypoints, or classes differ in their number of keypoints.
    """
    sigmas = None
    if iou_type == "keypoints":
        ground_truth = _with_keypoints(ground_truth)
        sigmas = _sigmas(ground_truth, keypoint_sigmas)
    run = _run_hotcoco if backend == "hotcoco" else _run_pycocotools
    precision, stats = run(ground_truth, results, iou_type, sigmas)
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
    named = dict(zip(names, (float(value) for value in stats), strict=True))
    return CocoScore(kind=iou_type, measure="AP", stats=named, per_class=per_class)


def _with_keypoints(truth: dict[str, Any]) -> dict[str, Any]:
    """The ground truth of the classes that have keypoints: the scorers need them on every object."""
    kept = [category for category in truth["categories"] if category.get("keypoints")] or truth["categories"]
    ids = {category["id"] for category in kept}
    return {**truth, "categories": kept, "annotations": [a for a in truth["annotations"] if a["category_id"] in ids]}


def _sigmas(truth: dict[str, Any], given: Sequence[float] | None) -> np.ndarray:
    counts = {len(annotation["keypoints"]) // 3 for annotation in truth["annotations"] if annotation.get("keypoints")}
    if len(counts) > 1:
        raise UserError(
            f"Classes have {', '.join(map(str, sorted(counts)))} keypoints: COCO scores those of one number together."
        )
    count = next(iter(counts), len(_PERSON_SIGMAS))
    if given is not None and len(given) != count:
        raise UserError(f"keypoint_sigmas has {len(given)} numbers, but an object has {count} keypoints: give one for each.")
    return np.array(given or (_PERSON_SIGMAS if count == len(_PERSON_SIGMAS) else [_USUAL_SIGMA] * count))


def _run_hotcoco(
    truth: dict[str, Any], results: Sequence[dict[str, Any]], iou_type: IouType, sigmas: np.ndarray | None
) -> tuple[np.ndarray, Any]:
    import hotcoco

    with _hush_pycocotools():
        ground_truth = hotcoco.COCO(truth)
        evaluator = hotcoco.COCOeval(ground_truth, ground_truth.load_res(list(results)), iou_type)
        if sigmas is not None:
            evaluator.params.kpt_oks_sigmas = sigmas.tolist()
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summary_lines()  # computes the stats
    accumulated = evaluator.eval
    assert accumulated is not None
    return accumulated["precision"], evaluator.stats


def _run_pycocotools(
    truth: dict[str, Any], results: Sequence[dict[str, Any]], iou_type: IouType, sigmas: np.ndarray | None
) -> tuple[np.ndarray, Any]:
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
        if sigmas is not None:
            evaluator.params.kpt_oks_sigmas = sigmas
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
