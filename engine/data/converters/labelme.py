"""LabelMe: a JSON file an image, with outlines, rectangles and circles drawn in its editor."""

import math
from pathlib import Path
from typing import Any

from backbones.errors import UserError
from engine.data.converters.classes import Classes
from engine.data.converters.coco_writer import CocoWriter
from engine.data.converters.files import ImageFinder, check_size, files_below
from engine.data.outside_values import is_finite, parse_json

_CIRCLE_ERROR = 0.1  # pixels that a circle's outline may stay within it


def convert_labelme(
    images: Path,
    labels: Path | None = None,
    *,
    classes: Classes | None = None,
    output: Path | None = None,
    keep_unlabelled: bool = False,
) -> CocoWriter:
    """Read LabelMe's JSON files and their images.

    Polygons, rectangles and circles become outlines, as in LabelMe's own export. Shapes of one label and one `group_id` are one
    object in pieces. Points, lines and other shapes are left out and counted.

    Args:
        images: folder of images.
        labels: folder of JSON files; None takes the images' own.
        classes: their order; None takes the labels that occur, sorted.
        output: where the COCO file will be written: it is no label file if it lies among them.
        keep_unlabelled: list images without a JSON file as images without objects; else they are left out and counted.

    Raises:
        UserError: a file is missing or malformed, or a class not in the list; the message names file and shape.
    """
    labels = labels or images
    files = files_below(labels, [".json"], what="JSON files")
    files = [file for file in files if output is None or file.resolve() != output.resolve()]
    finder = ImageFinder(images)
    writer = CocoWriter(images, classes=classes)
    seen: dict[Path, Path] = {}
    for file in files:
        content = _read(file)
        path = finder.of(file, labels, stated=str(content.get("imagePath") or ""))
        if path in seen:
            raise UserError(f"{file} and {seen[path]} are both of the image {path}. Take one out.")
        seen[path] = file
        image = writer.add_image(path)
        stated = (content.get("imageWidth"), content.get("imageHeight"))
        if isinstance(stated[0], int) and isinstance(stated[1], int):
            check_size((stated[0], stated[1]), (image.width, image.height), where=str(file), image=path)
        for (label, _), (polygons, where) in _objects(writer, content["shapes"], file).items():
            writer.add_polygons(image, label, polygons, where=where)
    for path in finder.paths:
        if path not in seen and keep_unlabelled:
            writer.add_image(path)
        elif path not in seen:
            writer.note("images left out, for they have no JSON file", str(path))
    return writer


def _read(file: Path) -> dict[str, Any]:
    try:
        content = parse_json(file.read_bytes(), file)
    except OSError as error:
        raise UserError(f"{file} cannot be read as JSON ({error}).") from None
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise UserError(f"{file} is no LabelMe file: it has no list `shapes`. Take it out of the folder.")
    return content


def _objects(writer: CocoWriter, shapes: list[Any], file: Path) -> dict[tuple[str, Any], tuple[list[list[float]], str]]:
    """(label, group) -> the outlines of an object, and which shape is its first; a shape in no group is a group of its own."""
    objects: dict[tuple[str, Any], tuple[list[list[float]], str]] = {}
    for number, shape in enumerate(shapes):
        where = f"{file}: shapes[{number}]"
        if not isinstance(shape, dict):
            raise UserError(f"{where} is no shape but {shape!r:.60}.")
        label = shape.get("label")
        if not isinstance(label, str) or not label.strip():
            raise UserError(f"{where} has no label.")
        outline = _outline(writer, shape, where)
        if outline is not None:
            group = shape.get("group_id")
            key = (label.strip(), ("alone", number) if group is None else ("group", str(group)))
            objects.setdefault(key, ([], where))[0].append(outline)
    return objects


def _outline(writer: CocoWriter, shape: dict[str, Any], where: str) -> list[float] | None:
    """A shape's outline as x, y, x, y, ...; None where the shape has no inside."""
    kind = shape.get("shape_type") or "polygon"  # LabelMe's first versions drew nothing else, and did not say so
    if kind not in ("polygon", "rectangle", "circle"):
        writer.note(f"shapes of the type {kind!r} left out", where)
        return None
    points = _points(shape, where)
    if kind == "polygon":
        if len(points) < 3:
            writer.note("left out, for their polygon has fewer than three points", where)
            return None
        return [value for point in points for value in point]
    if kind == "rectangle" and len(points) == 4:  # newer versions write all corners
        return [value for point in points for value in point]
    if len(points) != 2:
        raise UserError(f"{where} is a {kind} of {len(points)} points; it should have 2.")
    (x1, y1), (x2, y2) = points
    if kind == "rectangle":
        return [x1, y1, x2, y1, x2, y2, x1, y2]
    return _circle(x1, y1, math.dist((x1, y1), (x2, y2)))


def _circle(x: float, y: float, radius: float) -> list[float]:
    """A circle as a polygon with corners on it, whose sides stay within a tenth of a pixel of it."""
    half_angle = math.acos(1 - min(_CIRCLE_ERROR / radius, 1)) if radius > 0 else math.pi
    count = max(12, math.ceil(math.pi / half_angle))
    angles = [2 * math.pi * i / count for i in range(count)]
    return [value for angle in angles for value in (x + radius * math.cos(angle), y + radius * math.sin(angle))]


def _points(shape: dict[str, Any], where: str) -> list[tuple[float, float]]:
    points = shape.get("points")
    good = isinstance(points, list) and all(
        isinstance(point, list) and len(point) == 2 and all(is_finite(value) for value in point) for point in points
    )
    if not isinstance(points, list) or not good:
        raise UserError(f"{where}: its points must be pairs of numbers, not {points!r:.60}.")
    return [(float(x), float(y)) for x, y in points]
