"""The checks of a COCO file's content, entry by entry. A fault ends the checks of its entry at most: the rest is read on."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backbones.errors import UserError
from engine.data.coco_json import MOST_PIXELS, REQUIRED, check_box, crowd_flag
from engine.data.doctor.findings import Finding
from engine.data.doctor.mask_checks import check_mask
from engine.data.keypoints import keypoint_names, keypoints_of
from engine.data.outside_values import is_finite, is_text, parse_json, problem_of_name

_ROUNDING = 1.0  # pixels that a box may be beyond the border: annotators count corners differently


def read_content(path: Path, *, split: str) -> tuple[dict[str, Any] | None, list[Finding]]:
    """The content of an annotation file with its three lists, None where it has not got them; and why."""

    def unreadable(message: str, kind: str = "unreadable_annotations") -> tuple[None, list[Finding]]:
        return None, [Finding(split, kind, message, file=str(path))]

    try:
        content = parse_json(path.read_bytes(), path)
    except UserError as error:
        return unreadable(str(error).removeprefix(str(path)).lstrip(", ").rstrip("."))
    except OSError as error:
        return unreadable(f"it cannot be read: {error}")
    if not isinstance(content, dict):
        return unreadable("it holds no object with images, annotations and categories")
    missing = [name for name in REQUIRED if not isinstance(content.get(name), list)]
    if missing:
        return unreadable(f"it has no list {', '.join(map(repr, missing))}", "missing_list")
    empty = [name for name in ("images", "categories") if not content[name]]
    if empty:
        return unreadable(f"its list of {' and of '.join(empty)} is empty", "missing_list")
    return content, []


def check_content(content: dict[str, Any], *, split: str, path: Path, masks: bool = True) -> list[Finding]:
    """All that is wrong with a file's lists, as `read_content` gives them.

    Args:
        masks: whether to look into masks, which takes most of the time.
    """
    found = list(_check_categories(content["categories"], split, str(path)))
    found += _check_images(content["images"], split)
    found += _check_annotations(content, split, masks=masks)
    return found


# ---- Categories and images ----


def _check_categories(categories: list[Any], split: str, file: str) -> Iterator[Finding]:
    seen: set[int] = set()
    names: set[str] = set()
    for index, category in enumerate(categories):
        problem = _problem_of_entry("categories", category)
        if problem is None:
            try:
                keypoint_names(category, file)
            except UserError as error:
                problem = str(error)
        if problem is not None:
            # Without it a class would be gone, and the labels of those after it others: that is for the user to decide.
            yield Finding(split, "malformed_category", f"categories[{index}] {problem}", file=file)
            continue
        number, name = category["id"], str(category["name"])
        if number in seen:
            yield Finding(split, "duplicate_category_id", f"two categories have the id {number}", file=file)
        if name in names:
            yield Finding(split, "duplicate_category_name", f"two categories are called {name!r}", file=file)
        seen.add(number)
        names.add(name)


def _check_images(images: list[Any], split: str) -> Iterator[Finding]:
    by_id: dict[int, list[int]] = {}
    by_name: dict[str, int] = {}
    for index, image in enumerate(images):
        problem = _problem_of_entry("images", image)
        if problem is not None:
            yield _of_image(split, "malformed_entry", f"images[{index}] {problem}", image, index)
            continue
        by_id.setdefault(image["id"], []).append(index)
    for number, places in by_id.items():
        first = images[places[0]]
        same = [images[place]["file_name"] == first["file_name"] for place in places]
        for place in places[1:] if all(same) else places if len(places) > 1 else ():
            kind = "repeated_image_entry" if all(same) else "duplicate_image_id"
            names = ", ".join(sorted({str(images[other]["file_name"]) for other in places}))
            what = (
                "is listed twice" if all(same) else "is the id of several images, so its objects belong to nobody knows which"
            )
            yield _of_image(split, kind, f"{number} {what}: {names}", images[place], place)
        if all(same):
            other = by_name.setdefault(str(first["file_name"]), places[0])
            if other != places[0]:
                message = f"the same file as image {images[other]['id']}: each is labelled with a part of its objects at best"
                yield _of_image(split, "same_file_twice", message, first, places[0])


def _problem_of_entry(name: str, entry: Any) -> str | None:
    """What keeps an entry of a list from being read at all; boxes are looked at later."""
    if not isinstance(entry, dict):
        return f"is no object with fields but {entry!r:.60}"
    for field in REQUIRED[name]:
        if field not in entry:
            return f"has no {field!r}"
        value = entry[field]
        if field.endswith("id") and (not isinstance(value, int) or isinstance(value, bool) or not -(2**63) <= value < 2**63):
            return f"has {field} {value!r:.60}, which is no whole number"
        if field in ("height", "width") and (not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31):
            return f"has {field} {value!r:.60}, which is no number of pixels"
        if field == "file_name" and (not isinstance(value, str) or problem_of_name(value)):
            return f"has file_name {value!r:.60}, which {problem_of_name(value) if isinstance(value, str) else 'is no name'}"
        if name == "categories" and field == "name" and not is_text(str(value)):
            return f"has name {value!r:.60}, which is no text"
    if name == "images" and entry["height"] * entry["width"] > MOST_PIXELS:
        return f"is {entry['width']} x {entry['height']} pixels, more than masks can count"
    return None


def _of_image(split: str, kind: str, message: str, image: Any, index: int) -> Finding:
    entry = image if isinstance(image, dict) else {}
    name = str(entry.get("file_name", ""))
    return Finding(split, kind, message, file=name, image_id=entry.get("id", f"[{index}]"), place=("images", index))


# ---- Annotations ----


def _check_annotations(content: dict[str, Any], split: str, *, masks: bool) -> Iterator[Finding]:
    well_formed = [image for image in content["images"] if _problem_of_entry("images", image) is None]
    images = {image["id"]: image for image in well_formed}
    ambiguous = {image["id"] for image in well_formed if image["file_name"] != images[image["id"]]["file_name"]}
    # A malformed image entry is reported as such, once, not again with each of its objects.
    broken = {image.get("id") for image in content["images"] if isinstance(image, dict) and _is_hashable(image.get("id"))}
    categories = {
        category["id"]: category for category in content["categories"] if not _problem_of_entry("categories", category)
    }
    annotations: list[Any] = content["annotations"]
    with_masks = any(isinstance(entry, dict) and entry.get("segmentation") for entry in annotations)
    seen: dict[int, Any] = {}
    objects: Counter[tuple[Any, ...]] = Counter()
    for index, annotation in enumerate(annotations):
        check = _Entry(split, annotation, index, images)
        problem = _problem_of_entry("annotations", annotation)
        if problem is not None:
            yield check.finding("malformed_entry", f"annotations[{index}] {problem}")
            continue
        number = annotation["id"]
        if number in seen:
            if seen[number] == annotation:
                yield check.finding("repeated_annotation", "it is listed twice")
                continue
            yield check.finding("duplicate_annotation_id", "another annotation has the same id")
        seen.setdefault(number, annotation)
        unknown = False
        if annotation["image_id"] not in images:
            unknown = True
            if annotation["image_id"] not in broken:
                yield check.finding(
                    "unknown_image_id", f"it is of image {annotation['image_id']}, which `images` does not list"
                )
        if annotation["category_id"] not in categories:
            unknown = True
            message = f"it is of category {annotation['category_id']}, which `categories` does not list"
            yield check.finding("unknown_category_id", message)
        if unknown or annotation["image_id"] in ambiguous:  # of the latter it is not known in which image it is
            continue
        image = images[annotation["image_id"]]
        found = list(_check_object(check, annotation, image, categories[annotation["category_id"]]))
        if not any(finding.remedy == "drop_annotation" for finding in found):
            key = (annotation["image_id"], annotation["category_id"], *annotation["bbox"])
            objects[key] += 1
            if objects[key] == 2:
                found.append(
                    check.finding("same_object_twice", f"its image has another one of its class at {annotation['bbox']}")
                )
            if masks:
                found += check_mask(check.finding, annotation, image["height"], image["width"], expected=with_masks)
        yield from found


class _Entry:
    """Makes the findings of one annotation."""

    def __init__(self, split: str, annotation: Any, index: int, images: dict[int, Any]) -> None:
        entry = annotation if isinstance(annotation, dict) else {}
        self.split, self.index = split, index
        self.annotation_id = entry.get("id", f"[{index}]")
        self.image_id = entry.get("image_id")
        self.file = str(images[self.image_id]["file_name"]) if _is_hashable(self.image_id) and self.image_id in images else ""

    def finding(self, kind: str, message: str, *, field: str = "") -> Finding:
        place = ("annotations", self.index)
        return Finding(self.split, kind, message, self.file, self.image_id, self.annotation_id, place, field)


def _check_object(
    check: _Entry, annotation: dict[str, Any], image: dict[str, Any], category: dict[str, Any]
) -> Iterator[Finding]:
    """The box, area, crowd flag and keypoints of an annotation whose ids are known."""
    box, height, width = annotation["bbox"], image["height"], image["width"]
    try:
        x, y, w, h = check_box(box, "it")
    except (UserError, OverflowError) as error:
        numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(value, int | float) for value in box)
        yield check.finding("not_a_finite_number" if numbers else "malformed_box", str(error))
        return
    size = f"the image is {width} x {height}"
    if w <= 0 or h <= 0:
        yield check.finding("degenerate_box", f"its box {box} has no width or height")
    elif min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
        yield check.finding("box_outside_image", f"its box {box} is outside: {size}")
    elif min(x, y) < -_ROUNDING or x + w > width + _ROUNDING or y + h > height + _ROUNDING:
        yield check.finding("box_beyond_border", f"its box {box} is cut at the border: {size}")
    elif min(w, h) < 1:
        yield check.finding("tiny_box", f"its box {box} is less than a pixel wide or high")
    area = annotation.get("area")
    if area is not None and (not is_finite(area) or isinstance(area, bool) or area < 0):
        yield check.finding("malformed_area", f"its area is {area!r:.60}", field="area")
    try:
        crowd_flag(annotation, "it")
    except UserError as error:
        yield check.finding("malformed_crowd_flag", str(error))
    try:
        names = keypoint_names(category, "")
        keypoints_of(annotation, names, len(names), "it")
    except UserError as error:
        yield check.finding("malformed_keypoints", str(error), field="keypoints")


def _is_hashable(value: Any) -> bool:
    return value is None or isinstance(value, int | float | str)
