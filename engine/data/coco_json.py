"""A COCO file read with Python's `json`, entry by entry: slower than `engine.data.coco_text`, and able to say what is wrong."""

from pathlib import Path
from typing import Any

import numpy as np

from backbones.errors import UserError
from engine.data.coco_text import CocoText, Rows
from engine.data.keypoints import keypoint_names, keypoints_of
from engine.data.masks import mask_area, to_rle
from engine.data.outside_values import is_finite, is_text, parse_json, problem_of_name
from engine.data.ragged import Ragged
from engine.data.segmentations import segmentations_of

MOST_PIXELS = 2**32 - 1  # of an image: run lengths are 32-bit
REQUIRED: dict[str, tuple[str, ...]] = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}


def read_coco_json(path: str | Path) -> dict[str, Any]:
    """The content of a COCO annotation file, with its lists and their entries' fields seen to be there.

    Raises:
        UserError: the file is missing, is no JSON, or lacks a list (but for `annotations`, which a test set may not have) or a
            field; the message names the entry.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no annotation file at {path}.")
    return _checked_json(path, path.read_bytes())


def _checked_json(path: Path, text: bytes) -> dict[str, Any]:
    content = parse_json(text, path)
    if isinstance(content, dict) and {"images", "categories"} <= content.keys():
        content.setdefault("annotations", [])  # a test set whose labels are not published
    for name in REQUIRED:
        check_entries(path, name, content.get(name) if isinstance(content, dict) else None)
    for name in REQUIRED:
        seen: set[int] = set()
        for entry in content[name]:
            if entry["id"] in seen:
                raise UserError(f"{path}: two of {name} have the id {entry['id']}. Ids must be unique.")
            seen.add(entry["id"])
    if not content["images"]:
        raise UserError(f"{path} lists no images.")
    if not content["categories"]:
        raise UserError(f"{path} lists no categories: there is nothing to detect.")
    for image in content["images"]:
        check_image(path, image)
    return content


def check_image(path: Path, image: dict[str, Any]) -> None:
    """Check an image's size, and that its file name is one within the images folder.

    Raises:
        UserError: they cannot be an image's, or the name leads elsewhere.
    """
    if image["height"] < 1 or image["width"] < 1:
        raise UserError(f"{path}: image {image['id']} is {image['width']} x {image['height']} pixels.")
    if image["height"] * image["width"] > MOST_PIXELS:
        raise UserError(
            f"{path}: image {image['id']} is {image['width']} x {image['height']} pixels, more than {MOST_PIXELS}, which masks "
            "can count. Put its size right, or cut it into tiles."
        )
    problem = problem_of_name(str(image["file_name"]))
    if problem is not None:
        raise UserError(
            f"{path}: image {image['id']} has the file_name {image['file_name']!r:.200}, which {problem}. A name is a path "
            "below the images folder: put it right, and name a folder that holds all images, or link them into it."
        )


def check_entries(path: Path, name: str, entries: Any) -> None:
    """Check that one of a COCO file's lists is one, and that each entry has its fields, ids and sizes as whole numbers.

    Raises:
        UserError: it is none, or one has not.
    """
    if not isinstance(entries, list):
        raise UserError(f"{path} has no list {name!r}: a COCO instances file has images, annotations and categories.")
    fields = REQUIRED[name]
    whole = [field for field in fields if field.endswith("id") or field in ("height", "width")]
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise UserError(f"{path}: {name}[{i}] is no object with fields but {entry!r:.60}.")
        for field in fields:
            if field not in entry:
                which = f"id {entry['id']}" if "id" in entry else f"number {i}"
                raise UserError(f"{path}: {name}[{i}] ({which}) has no {field!r}.")
        for field in whole:
            if not isinstance(entry[field], int) or isinstance(entry[field], bool):
                raise UserError(f"{path}: {name}[{i}] has {field} {entry[field]!r}, which is no whole number.")
            if not -(2**63) <= entry[field] < 2**63:
                raise UserError(f"{path}: {name}[{i}] has {field} {entry[field]!r:.60}, which is too large.")
        if name == "categories" and not is_text(str(entry["name"])):
            raise UserError(f"{path}: {name}[{i}] has name {entry['name']!r:.60}, which is no text that can be written.")


def read_carefully(path: Path, text: bytes) -> tuple[CocoText, int]:
    """The lists of a COCO file, all checked, without the annotations whose box leaves nothing in the image; and their number.

    Args:
        path: the file, for messages.
        text: its content.

    Raises:
        UserError: as `read_coco_json`; also ids that name nothing, and boxes, masks, areas and keypoints that are malformed.
    """
    content = _checked_json(path, text)
    images, annotations = content["images"], content["annotations"]
    names = {category["id"]: keypoint_names(category, str(path)) for category in content["categories"]}
    sizes = {image["id"]: (image["height"], image["width"]) for image in images}
    boxes = np.zeros((len(annotations), 4), np.float64)
    for number, annotation in enumerate(annotations):
        where = f"{path}: annotation {annotation['id']}"
        if annotation["image_id"] not in sizes:
            raise UserError(f"{where} is of image {annotation['image_id']}, which `images` does not list.")
        if annotation["category_id"] not in names:
            raise UserError(f"{where} is of category {annotation['category_id']}, which `categories` does not list.")
        boxes[number] = check_box(annotation["bbox"], where)
    limits = np.array([sizes[annotation["image_id"]] for annotation in annotations], np.int64).reshape(-1, 2)
    kept = np.flatnonzero(has_extent(clip_boxes(boxes, *limits.T)))

    areas, crowds, points, segmentations = [], [], [], []
    for annotation in (annotations[number] for number in kept):
        where = f"{path}: annotation {annotation['id']}"
        segmentations.append(annotation.get("segmentation") or [])
        check_segmentation(segmentations[-1], where)
        crowds.append(crowd_flag(annotation, where))
        areas.append(object_area(annotation, *sizes[annotation["image_id"]], where))
        of_category = names[annotation["category_id"]]
        points.append(keypoints_of(annotation, of_category, len(of_category), where).ravel())

    def column(field: str) -> np.ndarray:
        return np.array([annotations[number][field] for number in kept], np.int64)

    rows = Rows(
        ids=column("id"),
        image_ids=column("image_id"),
        category_ids=column("category_id"),
        boxes=boxes[kept],
        areas=np.array(areas, np.float64),
        iscrowd=np.array(crowds, np.int64),
        keypoints=Ragged.of_lengths(np.concatenate([np.zeros(0), *points]), [len(row) for row in points]),
        segmentations=segmentations_of(segmentations),
    )
    found = CocoText(
        image_ids=np.array([image["id"] for image in images], np.int64),
        file_names=[str(image["file_name"]) for image in images],
        heights=np.array([image["height"] for image in images], np.int64),
        widths=np.array([image["width"] for image in images], np.int64),
        categories=content["categories"],
        rows=rows,
    )
    return found, len(annotations) - len(kept)


def clip_boxes(boxes: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """COCO's boxes (N, 4) float64, x, y, width, height, within images of these sizes (N,), as (N, 4) float32 xyxy."""
    left, top, width, height = boxes.T
    low = [np.clip(left, 0, widths), np.clip(top, 0, heights)]
    high = [np.clip(left + width, 0, widths), np.clip(top + height, 0, heights)]
    return np.stack([*low, *high], axis=1).astype(np.float32)


def has_extent(boxes: np.ndarray) -> np.ndarray:
    """(N,) bool: whether xyxy boxes have a width and a height."""
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def object_area(annotation: dict[str, Any], height: int, width: int, where: str) -> float:
    """An annotation's area in pixels: as stated, or the mask's, or that of the box within the image.

    Raises:
        UserError: the area stated is no number, or the mask is malformed; `where` names the annotation.
    """
    if annotation.get("area") is not None:
        if not is_finite(annotation["area"]):
            raise UserError(f"{where} has area {annotation['area']!r:.60}, which is no number.")
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
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_finite, box)):
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
