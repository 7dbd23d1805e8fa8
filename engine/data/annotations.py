"""A COCO annotation file, checked and turned into columns."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backbones.errors import UserError
from engine.data.keypoints import keypoint_names, keypoints_of, mirrored
from engine.data.masks import has_mask, mask_area, to_rle


@dataclass(frozen=True, slots=True)
class Category:
    """A class as the annotation file names it. Its label is its place among the categories sorted by id, from 1."""

    id: int
    name: str
    keypoints: tuple[str, ...] = ()  # names of the points that are marked on each object of the class


@dataclass(frozen=True)
class Annotations:
    """Images and instances of a COCO file. Rows of image i are `offsets[i]:offsets[i + 1]`."""

    path: Path
    categories: list[Category]
    image_ids: np.ndarray  # (I,) int64, in the file's order
    file_names: list[str]
    heights: np.ndarray  # (I,) int64, pixels
    widths: np.ndarray
    offsets: np.ndarray  # (I + 1,) int64
    boxes: np.ndarray  # (N, 4) float32, xyxy pixels, within the image
    labels: np.ndarray  # (N,) int64, from 1
    areas: np.ndarray  # (N,) float32, pixels
    iscrowd: np.ndarray  # (N,) int64
    annotation_ids: np.ndarray  # (N,) int64
    segmentations: list[Any]  # (N,), as in the file
    keypoints: np.ndarray  # (N, K, 3) float32: x, y in pixels, visibility (0: not labelled); K is the most any class has
    num_dropped: int  # annotations left out because their box has no width or height within the image

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def class_names(self) -> list[str]:
        """Names by label; label 0 is the background."""
        return ["background", *(category.name for category in self.categories)]

    @property
    def num_keypoints(self) -> int:
        """Keypoints of an object: the most that any class has."""
        return self.keypoints.shape[1]

    @property
    def mirrored_keypoints(self) -> np.ndarray:
        """(labels, K) int64: for each label and keypoint, the place of the one it becomes in a mirror."""
        table = np.tile(np.arange(self.num_keypoints), (len(self.categories) + 1, 1))
        for label, category in enumerate(self.categories, start=1):
            table[label, : len(category.keypoints)] = mirrored(category.keypoints)
        return table

    @property
    def has_masks(self) -> bool:
        """Whether any object has a segmentation."""
        return any(has_mask(segmentation) for segmentation in self.segmentations)


def read_coco_json(path: str | Path) -> dict[str, Any]:
    """The content of a COCO annotation file, with its lists and their entries' fields seen to be there.

    Raises:
        UserError: the file is missing, is no JSON, or lacks a list or a field; the message names the entry.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no annotation file at {path}.")
    try:
        content = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}, column {error.colno}: this is no JSON ({error.msg}).") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is no JSON: it is not text.") from None
    required: dict[str, tuple[str, ...]] = {
        "images": ("id", "file_name", "height", "width"),
        "annotations": ("id", "image_id", "category_id", "bbox"),
        "categories": ("id", "name"),
    }
    for name, fields in required.items():
        entries = content.get(name) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise UserError(f"{path} has no list {name!r}: a COCO instances file has images, annotations and categories.")
        for i, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise UserError(f"{path}: {name}[{i}] is no object with fields but {entry!r:.60}.")
            for field in fields:
                if field not in entry:
                    which = f"id {entry['id']}" if "id" in entry else f"number {i}"
                    raise UserError(f"{path}: {name}[{i}] ({which}) has no {field!r}.")
            for field in (f for f in fields if f.endswith("id") or f in ("height", "width")):
                if not isinstance(entry[field], int) or isinstance(entry[field], bool):
                    raise UserError(f"{path}: {name}[{i}] has {field} {entry[field]!r}, which is no whole number.")
    for name in required:
        seen: set[int] = set()
        for entry in content[name]:
            if entry["id"] in seen:
                raise UserError(f"{path}: two of {name} have the id {entry['id']}. Ids must be unique.")
            seen.add(entry["id"])
    if not content["images"]:
        raise UserError(f"{path} lists no images.")
    if not content["categories"]:
        raise UserError(f"{path} lists no categories: there is nothing to detect.")
    return content


def load_annotations(path: str | Path) -> Annotations:
    """Read and check a COCO annotation file.

    Boxes are clipped to their image; those left without width or height are dropped, and counted. A missing `iscrowd` is 0, a
    missing `area` that of the mask, or of the box where there is none.

    Raises:
        UserError: as `read_coco_json`; also ids that name nothing, and boxes and masks that are malformed.
    """
    content = read_coco_json(path)
    categories = [
        Category(c["id"], str(c["name"]), keypoint_names(c, str(path)))
        for c in sorted(content["categories"], key=lambda c: c["id"])
    ]
    num_keypoints = max(len(category.keypoints) for category in categories)
    label_of = {category.id: label for label, category in enumerate(categories, start=1)}
    images = content["images"]
    place_of = {image["id"]: place for place, image in enumerate(images)}
    for image in images:
        if image["height"] < 1 or image["width"] < 1:
            raise UserError(f"{path}: image {image['id']} is {image['width']} x {image['height']} pixels.")

    rows: list[list[tuple[Any, ...]]] = [[] for _ in images]
    num_dropped = 0
    for annotation in content["annotations"]:
        where = f"{path}: annotation {annotation['id']}"
        if annotation["image_id"] not in place_of:
            raise UserError(f"{where} is of image {annotation['image_id']}, which `images` does not list.")
        if annotation["category_id"] not in label_of:
            raise UserError(f"{where} is of category {annotation['category_id']}, which `categories` does not list.")
        place = place_of[annotation["image_id"]]
        height, width = images[place]["height"], images[place]["width"]
        x, y, w, h = check_box(annotation["bbox"], where)
        box = np.array([max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)], np.float32)
        if box[2] <= box[0] or box[3] <= box[1]:
            num_dropped += 1
            continue
        segmentation = annotation.get("segmentation") or []
        check_segmentation(segmentation, where)
        label, crowd = label_of[annotation["category_id"]], crowd_flag(annotation, where)
        area = object_area(annotation, height, width, where)
        points = keypoints_of(annotation, categories[label - 1].keypoints, num_keypoints, where)
        rows[place].append((box, label, area, crowd, annotation["id"], segmentation, points))

    flat = [row for image_rows in rows for row in image_rows]
    return Annotations(
        path=Path(path),
        categories=categories,
        image_ids=np.array([image["id"] for image in images], np.int64),
        file_names=[str(image["file_name"]) for image in images],
        heights=np.array([image["height"] for image in images], np.int64),
        widths=np.array([image["width"] for image in images], np.int64),
        offsets=np.cumsum([0, *(len(image_rows) for image_rows in rows)], dtype=np.int64),
        boxes=np.array([row[0] for row in flat], np.float32).reshape(-1, 4),
        labels=np.array([row[1] for row in flat], np.int64),
        areas=np.array([row[2] for row in flat], np.float32),
        iscrowd=np.array([row[3] for row in flat], np.int64),
        annotation_ids=np.array([row[4] for row in flat], np.int64),
        segmentations=[row[5] for row in flat],
        keypoints=np.array([row[6] for row in flat], np.float32).reshape(len(flat), num_keypoints, 3),
        num_dropped=num_dropped,
    )


def object_area(annotation: dict[str, Any], height: int, width: int, where: str) -> float:
    """An annotation's area in pixels: as stated, or the mask's, or that of the box within the image.

    Raises:
        UserError: the area stated is no number, or the mask is malformed; `where` names the annotation.
    """
    if annotation.get("area") is not None:
        if not isinstance(annotation["area"], int | float) or not math.isfinite(annotation["area"]):
            raise UserError(f"{where} has area {annotation['area']!r}, which is no number.")
        return float(annotation["area"])
    if annotation.get("segmentation"):
        try:
            rle = to_rle(annotation["segmentation"], height, width)
            if rle is not None:
                return float(mask_area(rle))
        except ValueError as error:
            raise UserError(f"{where}: {error}.") from None
    x, y, w, h = check_box(annotation["bbox"], where)
    return max(0.0, min(x + w, width) - max(x, 0.0)) * max(0.0, min(y + h, height) - max(y, 0.0))


def crowd_flag(annotation: dict[str, Any], where: str) -> int:
    """An annotation's `iscrowd`, 0 where it is missing.

    Raises:
        UserError: it is neither 0 nor 1.
    """
    flag = annotation.get("iscrowd") or 0
    if flag not in (0, 1):
        raise UserError(f"{where} has iscrowd {flag!r}, which must be 0 or 1.")
    return int(flag)


def check_box(box: Any, where: str) -> tuple[float, float, float, float]:
    """A COCO box as (x, y, width, height) in pixels.

    Raises:
        UserError: it is not four finite numbers.
    """
    numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) for v in box)
    if not numbers or not all(math.isfinite(v) for v in box):
        raise UserError(f"{where} has bbox {box!r:.80}: it must be [x, y, width, height] in pixels.")
    return float(box[0]), float(box[1]), float(box[2]), float(box[3])


def check_segmentation(segmentation: Any, where: str) -> None:
    """Check that a segmentation has the form of polygons or RLE.

    Raises:
        UserError: it has not.
    """
    if isinstance(segmentation, dict) and not {"counts", "size"} <= segmentation.keys():
        raise UserError(f"{where} has a segmentation with {sorted(segmentation)}: RLE needs `counts` and `size`.")
    if not isinstance(segmentation, dict | list):
        raise UserError(f"{where} has segmentation {segmentation!r:.60}: it must be polygons or RLE.")
