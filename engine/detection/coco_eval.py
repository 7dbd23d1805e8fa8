"""COCO's scores of a list of results, by hotcoco or by pycocotools; both give the same numbers."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from backbones.errors import UserError
from engine.data.coco_json import check_box, crowd_flag, object_area, read_coco_json
from engine.data.keypoints import keypoint_names, keypoints_of
from engine.data.masks import has_mask, to_rle
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
_LVIS_STATS = (*_BOX_STATS[:6], "APr", "APc", "APf", "AR300", "ARs300", "ARm300", "ARl300")
# What each number is taken over: average precision or recall, IoU, area, detections an image.
_AREAS = {"s": "small", "m": "medium", "l": "large"}


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """What is scored, where it is not what COCO scores.

    Args:
        style: coco, or lvis (https://arxiv.org/abs/1908.03195): 300 detections an image, images checked for some classes alone
            (`neg_category_ids`, `not_exhaustive_category_ids`), and AP of rare, common and frequent classes (`frequency`).
        max_dets: how many of an image's detections count; COCO's are 1, 10, 100 (keypoints: 20).
        iou_thresholds: of a match; COCO's are 0.5, 0.55, ..., 0.95.
        area_ranges: from and to, pixels, by a name; COCO's are small, medium and large. "all" is always there.
        keypoint_sigmas: how exactly each keypoint can be placed, as a share of the object's size. Left out: COCO's for a
            person's 17, else 0.05 for each.
    """

    style: Literal["coco", "lvis"] = "coco"
    max_dets: tuple[int, ...] | None = None
    iou_thresholds: tuple[float, ...] | None = None
    area_ranges: Mapping[str, tuple[float, float]] | None = None
    keypoint_sigmas: tuple[float, ...] | None = None

    @property
    def is_standard(self) -> bool:
        """Whether the numbers are those everyone publishes."""
        return self.max_dets is None and self.iou_thresholds is None and self.area_ranges is None

    def set_hotcoco(self, params: Any, sigmas: np.ndarray | None) -> None:
        """Put them into hotcoco's parameters."""
        if self.max_dets is not None:
            params.max_dets = sorted(self.max_dets)
        if self.iou_thresholds is not None:
            params.iou_thrs = sorted(self.iou_thresholds)
        if self.area_ranges is not None:
            params.area_rng, params.area_rng_lbl = self._areas()
        if sigmas is not None:
            params.kpt_oks_sigmas = sigmas.tolist()

    def set_pycocotools(self, params: Any, sigmas: np.ndarray | None) -> None:
        """Put them into pycocotools' parameters."""
        if self.max_dets is not None:
            params.maxDets = sorted(self.max_dets)
        if self.iou_thresholds is not None:
            params.iouThrs = np.array(sorted(self.iou_thresholds))
        if self.area_ranges is not None:
            params.areaRng, params.areaRngLbl = self._areas()
        if sigmas is not None:
            params.kpt_oks_sigmas = sigmas

    def _areas(self) -> tuple[list[list[float]], list[str]]:
        ranges = self.area_ranges or {}
        return [[0, 1e10], *(list(limits) for limits in ranges.values())], ["all", *ranges]


@dataclass(frozen=True)
class CocoScore(Score):
    """COCO's summary numbers of one kind of result, and the AP of each class; -1 where there is nothing to find."""

    kind: IouType

    def lines(self) -> list[str]:
        """The numbers as COCO's tools print them."""
        if not set(self.stats) <= {*_BOX_STATS, *_KEYPOINT_STATS}:  # LVIS's, or over other IoUs and areas
            return [f" {name:<12} {value:0.3f}" for name, value in self.stats.items()]
        return [_summary_line(name, value, self.kind) for name, value in self.stats.items()]


def load_ground_truth(path: str | Path) -> dict[str, Any]:
    """A COCO annotation file with the fields the scorers read filled in: `iscrowd`, `area`, `segmentation`.

    Raises:
        UserError: as `engine.data.coco_json.read_coco_json`.
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
        annotation["iscrowd"] = crowd_flag(annotation, where)
        annotation["area"] = object_area(annotation, height, width, where)
        points = keypoints_of(annotation, names[annotation["category_id"]], len(names[annotation["category_id"]]), where)
        if len(points):
            annotation["keypoints"] = [float(number) for number in points.ravel()]
            annotation["num_keypoints"] = int((points[:, 2] > 0).sum())
        annotation["segmentation"] = _scored_mask(annotation.get("segmentation") or [], height, width, where)
    return {name: [_scored_fields(entry, name, str(path)) for entry in content[name]] for name in _SCORED}


# What the scorers read of each entry: what else a file has may have any form, and is not shown to them.
_SCORED = {
    "images": ("id", "file_name", "height", "width", "neg_category_ids", "not_exhaustive_category_ids"),
    "annotations": (
        *("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "keypoints", "num_keypoints", "ignore"),
    ),
    "categories": ("id", "name", "keypoints", "frequency"),
}


def _scored_fields(entry: dict[str, Any], name: str, path: str) -> dict[str, Any]:
    found = {field: entry[field] for field in _SCORED[name] if entry.get(field) is not None}
    for field in ("neg_category_ids", "not_exhaustive_category_ids") if name == "images" else ():
        ids = found.get(field, [])
        if not isinstance(ids, list) or not all(type(number) is int and abs(number) < 2**63 for number in ids):
            raise UserError(f"{path}: image {entry['id']} has {field} {ids!r:.60}, which must be a list of categories' ids.")
    if name == "categories":
        found["name"] = str(entry["name"])
        if found.get("frequency", "f") not in ("r", "c", "f"):
            raise UserError(f"{path}: category {entry['id']} has frequency {entry['frequency']!r:.60}: it is r, c or f.")
    if name == "annotations":
        found["bbox"] = [float(number) for number in entry["bbox"]]
        if "ignore" in found:
            found["ignore"] = int(bool(found["ignore"]))
        if not isinstance(found.get("keypoints", []), list) or "num_keypoints" not in found or not found.get("keypoints"):
            found.pop("keypoints", None)
    return found


def _scored_mask(segmentation: Any, height: int, width: int, where: str) -> Any:
    """A segmentation as both scorers take it."""
    try:
        to_rle(segmentation, height, width)
    except ValueError as error:
        raise UserError(f"{where}: {error}.") from None
    if not has_mask(segmentation):  # pycocotools fails on an empty list
        return {"size": [height, width], "counts": [height * width]}
    if isinstance(segmentation, list):
        return [polygon for polygon in segmentation if len(polygon) >= 6]
    return {"size": [height, width], "counts": segmentation["counts"]}


def score_results(
    ground_truth: dict[str, Any],
    results: Sequence[dict[str, Any]],
    *,
    iou_type: IouType,
    backend: Backend = "hotcoco",
    options: ScoreOptions | None = None,
) -> CocoScore:
    """Score COCO results against the ground truth.

    Args:
        ground_truth: as `load_ground_truth` gives it.
        results: rows of image_id, category_id, score, and bbox (xywh pixels), segmentation (RLE) or keypoints. For masks leave
            `bbox` out: COCO's tools would sort objects into sizes by their boxes.
        iou_type: bbox, segm or keypoints.
        backend: hotcoco, or pycocotools, the reference, slower by a factor of a hundred.
        options: what is scored, where it is not what COCO scores.

    Raises:
        UserError: the options do not fit the annotations or the backend, or classes differ in their number of keypoints.
    """
    options = options or ScoreOptions()
    sigmas = None
    if iou_type == "keypoints":
        ground_truth = keypoint_truth(ground_truth)
        sigmas = sigmas_of(ground_truth, options.keypoint_sigmas)
    if backend == "pycocotools" and options.style == "lvis":
        raise UserError("pycocotools does not score LVIS: use eval.backend=hotcoco.")
    run = _run_hotcoco if backend == "hotcoco" else _run_pycocotools
    precision, recall, stats = run(ground_truth, results, iou_type, options, sigmas)
    return scores_of(precision, recall, stats, categories=ground_truth["categories"], iou_type=iou_type, options=options)


def scores_of(
    precision: np.ndarray,
    recall: np.ndarray,
    stats: np.ndarray,
    *,
    categories: Sequence[dict[str, Any]],
    iou_type: IouType,
    options: ScoreOptions,
) -> CocoScore:
    """The score of what a scorer has accumulated.

    Args:
        precision: (IoU thresholds, recall points, classes, areas, numbers of detections), -1 for a class that does not occur.
        recall: (IoU thresholds, classes, areas, numbers of detections).
        stats: the scorer's own summary, which is taken where COCO's numbers are asked for.
    """
    per_class = {}
    for k, category in enumerate(sorted(categories, key=lambda c: c["id"])):
        name = str(category["name"])
        name = name if name not in per_class else f"{name} (id {category['id']})"
        per_class[name] = _mean(precision[:, :, k, 0, -1])
    if options.is_standard:
        names = _LVIS_STATS if options.style == "lvis" else _KEYPOINT_STATS if iou_type == "keypoints" else _BOX_STATS
        named = dict(zip(names, (float(value) for value in stats), strict=True))
    else:
        named = _custom_stats(precision, recall, iou_type, options)
    return CocoScore(kind=iou_type, measure="AP", stats=named, per_class=per_class)


def _custom_stats(precision: np.ndarray, recall: np.ndarray, iou_type: IouType, options: ScoreOptions) -> dict[str, float]:
    """AP over all and over each area and at each IoU that was asked for, AR for each number of detections and each area."""
    usual_areas = ("medium", "large") if iou_type == "keypoints" else ("small", "medium", "large")
    areas = list(options.area_ranges or usual_areas)
    usual_most = (300,) if options.style == "lvis" else (20,) if iou_type == "keypoints" else (1, 10, 100)
    most = sorted(options.max_dets or usual_most)
    thresholds = sorted(options.iou_thresholds or np.linspace(0.5, 0.95, 10).tolist())
    stats = {"AP": _mean(precision[:, :, :, 0, -1])}
    at = thresholds if options.iou_thresholds else [t for t in thresholds if round(t, 2) in (0.5, 0.75)]
    stats |= {f"AP{round(t * 100, 1):g}": _mean(precision[thresholds.index(t), :, :, 0, -1]) for t in at}
    stats |= {f"AP_{name}": _mean(precision[:, :, :, i, -1]) for i, name in enumerate(areas, start=1)}
    stats |= {f"AR{count}": _mean(recall[:, :, 0, i]) for i, count in enumerate(most)}
    return stats | {f"AR_{name}": _mean(recall[:, :, i, -1]) for i, name in enumerate(areas, start=1)}


def _mean(values: np.ndarray) -> float:
    """The mean of what is there, -1 for nothing, as COCO's tools have it."""
    values = values[values > -1]
    return float(values.mean()) if values.size else -1.0


def keypoint_truth(truth: dict[str, Any]) -> dict[str, Any]:
    """The ground truth of the classes that have keypoints: the scorers need them on every object."""
    kept = [category for category in truth["categories"] if category.get("keypoints")] or truth["categories"]
    ids = {category["id"] for category in kept}
    return {**truth, "categories": kept, "annotations": [a for a in truth["annotations"] if a["category_id"] in ids]}


def sigmas_of(truth: dict[str, Any], given: Sequence[float] | None) -> np.ndarray:
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
    truth: dict[str, Any],
    results: Sequence[dict[str, Any]],
    iou_type: IouType,
    options: ScoreOptions,
    sigmas: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, Any]:
    import hotcoco

    with _hush_pycocotools():
        ground_truth = hotcoco.COCO(truth)
        detections = ground_truth.load_res(list(results))
        evaluator = (
            hotcoco.LVISeval(ground_truth, detections, iou_type)
            if options.style == "lvis"
            else hotcoco.COCOeval(ground_truth, detections, iou_type)
        )
        options.set_hotcoco(evaluator.params, sigmas)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summary_lines()  # computes the stats
    accumulated = evaluator.eval
    assert accumulated is not None
    return accumulated["precision"], accumulated["recall"], evaluator.stats


def _run_pycocotools(
    truth: dict[str, Any],
    results: Sequence[dict[str, Any]],
    iou_type: IouType,
    options: ScoreOptions,
    sigmas: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, Any]:
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
        options.set_pycocotools(evaluator.params, sigmas)
        evaluator.evaluate()
        evaluator.accumulate()
        if options.is_standard:  # it cannot sum up anything else
            evaluator.summarize()
    return evaluator.eval["precision"], evaluator.eval["recall"], evaluator.stats


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
