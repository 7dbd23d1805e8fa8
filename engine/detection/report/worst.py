"""The images with the most errors, drawn: the truth, what is predicted, and what went wrong."""

import base64
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hotcoco import mask as mask_api
from PIL import Image

from backbones.errors import UserError
from engine.data.dataset import read_image
from engine.detection.coco_eval import IouType
from engine.detection.encoded_masks import EncodedMasks
from engine.detection.report.matching import Matched, Outcome, Rows, as_rle, classes_of
from engine.draw import contact_sheet, draw_instances, save_picture
from engine.files import picture_names

PANELS = ("truth", "prediction", "errors")
# The labels that errors are drawn with: their colours are far apart for any eye.
ERRORS = ("missed", "false", "wrong class")
_PICTURE_SIDE = 800


@dataclass(frozen=True, slots=True)
class WorstImage:
    """An image with many errors; its panels are JPEGs as data URLs, none where the image could not be read."""

    outcome: Outcome
    panels: tuple[str, ...]
    problem: str = ""


def draw_worst(
    matched: Matched, outcomes: Sequence[Outcome], *, threshold: float, images: Path | None, folder: Path, count: int
) -> list[WorstImage]:
    """The first `count` images that have errors; drawn, and written as `folder/<image>.png`, where there is an images folder.

    Args:
        outcomes: as `Matched.outcomes` gives them for `threshold`, the most errors first.
        threshold: predictions that score less are not drawn.
    """
    chosen = [outcome for outcome in outcomes[:count] if outcome.errors]
    if images is None:
        return [WorstImage(outcome, (), "") for outcome in chosen]
    ids = {outcome.image["id"] for outcome in chosen}
    truth, predicted = defaultdict(list), defaultdict(list)
    for annotation in matched.truth["annotations"]:
        if annotation["image_id"] in ids:
            truth[annotation["image_id"]].append(annotation)
    for row in matched.rows:
        if row["image_id"] in ids and row["score"] >= threshold:
            predicted[row["image_id"]].append(row)
    names = ["background", *matched.class_names]
    worst = []
    files = picture_names([outcome.image["file_name"] for outcome in chosen])
    for outcome, file in zip(chosen, files, strict=True):
        image_id, size = outcome.image["id"], (outcome.image["height"], outcome.image["width"])
        try:
            image = read_image(images / outcome.image["file_name"])
            if image.shape[:2] != size:
                raise UserError(
                    f"the image is {image.shape[1]} x {image.shape[0]} pixels, its annotations say {size[1]} x {size[0]}"
                )
        except UserError as error:
            worst.append(WorstImage(outcome, (), str(error)))
            continue
        entries = {"truth": truth[image_id], "prediction": predicted[image_id]}
        panels = [
            _draw(image, entries[name], classes_of(entries[name], matched.categories) + 1, names, matched.iou_type)
            for name in ("truth", "prediction")
        ]
        panels.append(_draw_errors(image, outcome, matched.iou_type))
        save_picture(contact_sheet(panels, columns=3, cell=640, captions=PANELS), folder / f"{file}.png")
        worst.append(WorstImage(outcome, tuple(_data_url(panel) for panel in panels)))
    return worst


def _draw(image: np.ndarray, entries: Rows, labels: np.ndarray, names: Sequence[str], iou_type: IouType) -> np.ndarray:
    instances = to_instances(entries, labels, size=(image.shape[0], image.shape[1]), iou_type=iou_type)
    return draw_instances(image, instances, class_names=names, score_threshold=-np.inf, max_side=_PICTURE_SIDE)


def _draw_errors(image: np.ndarray, outcome: Outcome, iou_type: IouType) -> np.ndarray:
    false = [{key: value for key, value in row.items() if key != "score"} for row in outcome.false]
    entries = [*outcome.missed, *false, *(annotation for annotation, _ in outcome.confused)]
    counts = [len(outcome.missed), len(outcome.false), len(outcome.confused)]
    return _draw(image, entries, np.repeat([1, 2, 3], counts), ["background", *ERRORS], iou_type)


def to_instances(entries: Rows, labels: np.ndarray, *, size: tuple[int, int], iou_type: IouType) -> dict[str, Any]:
    """Annotations or results of an image of `size` (H, W) as `engine.draw` takes them. Those of masks need no boxes."""
    rles = [as_rle(entry["segmentation"], size) for entry in entries] if iou_type == "segm" else []
    boxes = []
    for i, entry in enumerate(entries):
        if iou_type == "segm":
            boxes.append(np.asarray(mask_api.toBbox(rles[i]), np.float64))
        elif iou_type == "keypoints" and "bbox" not in entry:
            points = np.array(entry["keypoints"], np.float64).reshape(-1, 3)[:, :2]
            boxes.append(np.concatenate([points.min(axis=0), np.ptp(points, axis=0)]))
        else:
            boxes.append(np.array(entry["bbox"], np.float64))
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    instances: dict[str, Any] = {
        "boxes": torch.from_numpy(corners),
        "labels": torch.from_numpy(labels.astype(np.int64)),
        "iscrowd": torch.tensor([entry.get("iscrowd", 0) for entry in entries], dtype=torch.int64),
    }
    if entries and all("score" in entry for entry in entries):
        instances["scores"] = torch.tensor([entry["score"] for entry in entries], dtype=torch.float32)
    if iou_type == "segm" and entries:
        instances["masks"] = EncodedMasks(rles, size)
    if iou_type == "keypoints" and entries:
        count = max(len(entry.get("keypoints") or ()) for entry in entries)
        points = np.zeros((len(entries), count))
        for row, entry in zip(points, entries, strict=True):
            given = entry.get("keypoints") or ()
            row[: len(given)] = given
        instances["keypoints"] = torch.from_numpy(points.reshape(len(entries), -1, 3))
    return instances


def _data_url(picture: np.ndarray) -> str:
    """A picture within the page: as JPEG, a tenth of what PNG takes of a photograph."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
