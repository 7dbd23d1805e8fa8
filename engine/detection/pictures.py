"""Validation images with their truth and predictions."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.data.annotations import Category
from engine.data.dataset import CocoDataset
from engine.detection.encoded_masks import EncodedMasks
from engine.draw import draw_instances, save_picture, side_by_side
from engine.files import picture_names


def draw_predictions(
    dataset: CocoDataset, rows: list[dict[str, Any]], folder: Path, *, count: int, score_threshold: float
) -> list[Path]:
    """Draw `count` images, spread over the data set, with the truth on the left and COCO results rows on the right."""
    of_image = defaultdict(list)
    for row in rows:
        of_image[row["image_id"]].append(row)
    table = dataset.annotations
    paths = []
    indices = np.unique(np.linspace(0, len(dataset) - 1, num=min(count, len(dataset)), dtype=int)).tolist()
    pictures = picture_names([table.file_name(index) for index in indices])
    for index, picture in zip(indices, pictures, strict=True):
        image = dataset.read_image(index)
        truth = _truth(dataset, index, with_keypoints=any("keypoints" in row for row in rows))
        predicted = to_instances(of_image[int(table.image_ids[index])], table.categories)
        names = table.class_names
        left = draw_instances(image, truth, class_names=names)
        right = draw_instances(image, predicted, class_names=names, score_threshold=score_threshold)
        paths.append(folder / f"{picture}.png")
        save_picture(side_by_side(left, right), paths[-1])
    return paths


def to_instances(rows: list[dict[str, Any]], categories: list[Category]) -> dict[str, Any]:
    """COCO results rows of one image -> torchvision's dict: boxes (N, 4) xyxy pixels, labels, scores, keypoints; and masks, as
    `EncodedMasks`."""
    label_of = {category.id: label for label, category in enumerate(categories, start=1)}
    boxes = torch.tensor([row["bbox"] for row in rows], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    instances: dict[str, Any] = {
        "boxes": boxes,
        "labels": torch.tensor([label_of[row["category_id"]] for row in rows], dtype=torch.int64),
        "scores": torch.tensor([row["score"] for row in rows], dtype=torch.float32),
    }
    if rows and "segmentation" in rows[0]:
        height, width = rows[0]["segmentation"]["size"]
        instances["masks"] = EncodedMasks([row["segmentation"] for row in rows], (height, width))
    if rows and "keypoints" in rows[0]:
        most = max(len(row["keypoints"]) for row in rows)
        padded = [row["keypoints"] + [0.0] * (most - len(row["keypoints"])) for row in rows]
        instances["keypoints"] = torch.tensor(padded, dtype=torch.float32).reshape(len(rows), -1, 3)
    return instances


def _truth(dataset: CocoDataset, index: int, *, with_keypoints: bool) -> dict[str, Any]:
    """An image's objects as `draw_instances` takes them, with their masks where there are any."""
    table = dataset.annotations
    rows = slice(int(table.offsets[index]), int(table.offsets[index + 1]))
    columns = {"boxes": table.boxes, "labels": table.labels, "iscrowd": table.iscrowd}
    if with_keypoints and table.num_keypoints:
        columns["keypoints"] = table.keypoints
    truth: dict[str, Any] = {key: torch.from_numpy(np.array(column[rows])) for key, column in columns.items()}
    segmentations = [table.segmentation(row) for row in range(rows.start, rows.stop)]
    if any(segmentations):
        truth["masks"] = EncodedMasks(segmentations, (int(table.heights[index]), int(table.widths[index])))
    return truth
