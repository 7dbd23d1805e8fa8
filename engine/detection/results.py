"""A detector's predictions as rows of COCO's results format, and back from a results file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from backbones.errors import UserError
from engine.data.annotations import Category
from engine.data.masks import encode_mask, encode_part
from engine.data.outside_values import is_finite, parse_json
from heads.mask_paste import UnpastedMasks, mask_parts


@dataclass(frozen=True, slots=True)
class Detections:
    """What a detector says of an image, in little memory: masks are run lengths."""

    boxes: np.ndarray  # (N, 4) float32, xyxy pixels
    labels: np.ndarray  # (N,) int64, from 1
    scores: np.ndarray  # (N,) float32
    masks: list[dict[str, Any]] | None = None  # (N,) compressed RLE
    keypoints: np.ndarray | None = None  # (N, K, 3) float32

    def rows(self, image_id: int, categories: Sequence[Category]) -> list[dict[str, Any]]:
        """A row of COCO's results format for each object, with the data set's own category ids."""
        boxes = self.boxes.astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]  # xyxy -> xywh
        rows: list[dict[str, Any]] = [
            {"image_id": image_id, "category_id": categories[label - 1].id, "bbox": box, "score": score}
            for box, label, score in zip(boxes.tolist(), self.labels.tolist(), self.scores.tolist(), strict=True)
        ]
        for row, mask in zip(rows, self.masks or (), strict=False):
            row["segmentation"] = mask
        if self.keypoints is not None:
            for row, points, label in zip(rows, self.keypoints.tolist(), self.labels.tolist(), strict=True):
                count = len(categories[label - 1].keypoints)
                row["keypoints"] = [number for point in points[:count] for number in point]
        return rows


def to_detections(prediction: dict[str, Any]) -> Detections:
    """A prediction of torchvision's kind in little memory.

    Takes boxes (N, 4) xyxy pixels, labels (N,), scores (N,), and perhaps keypoints (N, K, 3) and masks of probabilities, cut at
    0.5: (N, 1, H, W), or `UnpastedMasks`, which are never pasted.
    """
    columns = {key: value.detach().cpu() if isinstance(value, Tensor) else value.cpu() for key, value in prediction.items()}
    masks = None
    if isinstance(small := columns.get("masks"), UnpastedMasks):
        parts = mask_parts(small.masks.float(), small.boxes, small.size)
        masks = [encode_part((part > 0.5).numpy(), top, left, small.size) for top, left, part in parts]
    elif "masks" in columns:
        masks = [encode_mask((mask[0] > 0.5).byte().numpy()) for mask in columns["masks"]]
    return Detections(
        boxes=columns["boxes"].float().numpy(),
        labels=columns["labels"].numpy(),
        scores=columns["scores"].float().numpy(),
        masks=masks,
        keypoints=columns["keypoints"].float().numpy() if "keypoints" in columns else None,
    )


def to_rows(image_id: int, prediction: dict[str, Any], categories: Sequence[Category]) -> list[dict[str, Any]]:
    """A prediction as `to_detections` takes it -> a row of COCO's results format for each object."""
    return to_detections(prediction).rows(image_id, categories)


FIELDS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}  # what a row of each type holds


def rows_of_type(rows: Sequence[dict[str, Any]], iou_type: str) -> list[dict[str, Any]]:
    """The rows as COCO's format has them for boxes, masks or keypoints: with only the one of them; rows without it left out."""
    unwanted = set(FIELDS.values()) - {FIELDS[iou_type]}
    return [{key: value for key, value in row.items() if key not in unwanted} for row in rows if row.get(FIELDS[iou_type])]


def read_results(path: str | Path, *, iou_type: str) -> list[dict[str, Any]]:
    """Read a COCO results file: a list of rows.

    Raises:
        UserError: it is missing, is no JSON, or a row lacks a field; the message names the row.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no results file at {path}.")
    rows = parse_json(path.read_bytes(), path)
    if not isinstance(rows, list):
        raise UserError(f"{path} must hold a list of results, one for each detected object, not a {type(rows).__name__}.")
    field = FIELDS[iou_type]
    for i, row in enumerate(rows):
        for name in ("image_id", "category_id", "score", field):
            if not isinstance(row, dict) or name not in row:
                raise UserError(f"{path}: result {i} has no {name!r}, which is needed to score {iou_type}.")
        if not is_finite(row["score"]):
            raise UserError(f"{path}: result {i} has score {row['score']!r:.60}, which is no number.")
        if not _is_well_formed(row[field], iou_type):
            raise UserError(f"{path}: result {i} has {field} {row[field]!r:.80}. It must be {_FORMS[iou_type]}.")
    return rows


_FORMS = {
    "bbox": "[x, y, width, height] in pixels",
    "segm": "RLE with size and counts, or polygons",
    "keypoints": "[x, y, visibility, ...], three numbers for each keypoint",
}


def _is_well_formed(value: Any, iou_type: str) -> bool:
    if iou_type == "segm" and isinstance(value, dict):
        return {"size", "counts"} <= value.keys()
    if iou_type == "segm":
        return isinstance(value, list) and all(isinstance(polygon, list) for polygon in value)
    if not isinstance(value, list) or not all(map(is_finite, value)):
        return False
    return len(value) == 4 if iou_type == "bbox" else len(value) > 0 and len(value) % 3 == 0


def check_results(rows: Sequence[dict[str, Any]], ground_truth: dict[str, Any], *, source: str) -> None:
    """Check that results are of images and categories that the ground truth lists.

    Raises:
        UserError: one is not; the message names it.
    """
    images = {image["id"] for image in ground_truth["images"]}
    categories = {category["id"] for category in ground_truth["categories"]}
    for i, row in enumerate(rows):
        if not isinstance(row["image_id"], int) or row["image_id"] not in images:
            raise UserError(f"{source}: result {i} is of image {row['image_id']!r}, which the annotations do not list.")
        if not isinstance(row["category_id"], int) or row["category_id"] not in categories:
            raise UserError(f"{source}: result {i} is of category {row['category_id']!r}, which the annotations do not list.")
