"""YOLO: a text file an image, an object a line: the class's number, then a box or an outline in shares of the image's sides."""

import os
from dataclasses import dataclass
from pathlib import Path, PurePath

from backbones.errors import UserError
from engine.data.converters.classes import Classes, names_in_yaml, read_classes, read_yaml
from engine.data.converters.coco_writer import CocoWriter, ImageEntry, finite
from engine.data.converters.files import ImageFinder, files_below
from engine.files import IMAGE_SUFFIXES

# Text files that lie beside labels and are none.
_OTHERS = {
    "classes.txt",
    "labels.txt",
    "train.txt",
    "val.txt",
    "test.txt",
    "readme.txt",
    "readme.roboflow.txt",
    "readme.dataset.txt",
}
_CLASS_FILES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names")
_SLACK = 1e-6  # what rounding to six digits may leave beyond 0 and 1


@dataclass(frozen=True)
class YoloImages:
    """Images, the folder their names are relative to, and their labels' folder where that is known."""

    root: Path
    paths: list[Path]
    labels: Path | None


def convert_yolo(
    images: Path,
    labels: Path | None = None,
    *,
    classes: Classes | None = None,
    split: str = "train",
    keep_unlabelled: bool = True,
) -> CocoWriter:
    """Read YOLO's label files and their images.

    A line is `class x y width height` (the box's centre), or `class x y x y x y ...`, an outline of three points or more.

    Args:
        images: folder of images; or the data set's YAML file, whose `split` is read.
        labels: folder of label files; None takes, as YOLO does, the path with `labels` in place of its last `images`, or where
            there is no such folder, the images' own.
        classes: None takes those of the YAML file, or of data.yaml, classes.txt or obj.names near the labels.
        keep_unlabelled: images without a label file have no objects, as in YOLO; else they are left out and counted.

    Raises:
        UserError: a file is missing or malformed, or a number out of range; the message names file and line.
    """
    if images.suffix.lower() in (".yaml", ".yml"):
        content = read_yaml(images)
        if "kpt_shape" in content:
            raise UserError(f"{images} is of a data set with keypoints (kpt_shape), which are not converted.")
        classes = classes or read_classes(names_in_yaml(content, images))
        found = _split_images(content, images, split, labels)
    else:
        folder = labels or _labels_folder(images)
        found = YoloImages(images, ImageFinder(images).paths, folder)
        classes = classes or _find_classes(images, folder)
        _check_orphans(images, folder)
    writer = CocoWriter(found.root, classes=classes)
    any_label = False
    for path in found.paths:
        file = _label_of(path, found)
        if not file.is_file():
            writer.note(
                f"images without a label file {'are images without objects' if keep_unlabelled else 'left out'}", str(path)
            )
            if keep_unlabelled:
                writer.add_image(path)
            continue
        any_label = True
        image = writer.add_image(path)
        _read_labels(writer, image, file, classes)
    if not any_label:
        raise UserError(
            f"None of the {len(found.paths)} images in {found.root} has a label file: looked for "
            f"{_label_of(found.paths[0], found)}. Name the folder of the label files."
        )
    return writer


def _read_labels(writer: CocoWriter, image: ImageEntry, file: Path, classes: Classes) -> None:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as text ({error}).") from None
    seen: set[tuple[str, ...]] = set()
    for number, line in enumerate(lines, start=1):
        fields = tuple(line.split())
        where = f"{file}, line {number}"
        if not fields:
            continue
        if fields in seen:  # YOLO drops them, too
            writer.note("objects left out, for the same line stands twice", where)
            continue
        seen.add(fields)
        if len(fields) != 5 and (len(fields) < 7 or len(fields) % 2 == 0):
            hint = " The sixth may be a detector's score: labels have none." if len(fields) == 6 else ""
            raise UserError(
                f"{where} has {len(fields)} fields. A box has 5 (class x y width height), an outline 7 or more "
                f"(class x y x y x y ...).{hint}"
            )
        name = _class_name(fields[0], classes, where)
        values = [_share(text, where) for text in fields[1:]]
        if len(values) == 4:
            x, y, width, height = values
            left, top = (x - width / 2) * image.width, (y - height / 2) * image.height
            box = (left, top, left + width * image.width, top + height * image.height)
            writer.add_box(image, name, box, where=where)
        else:
            sides = (image.width, image.height)
            writer.add_polygons(image, name, [[value * sides[i % 2] for i, value in enumerate(values)]], where=where)


def _class_name(text: str, classes: Classes, where: str) -> str:
    number = finite(text)
    if number is None or number != int(number):
        raise UserError(f"{where}: the class {text!r} is no whole number.")
    if not 0 <= number < len(classes.names):
        raise UserError(
            f"{where}: there is no class {int(number)}: the list ({classes.source}) numbers 0 to {len(classes.names) - 1}."
        )
    return classes.names[int(number)]


def _share(text: str, where: str) -> float:
    value = finite(text)
    if value is None:
        raise UserError(f"{where}: {text!r} is no number.")
    if not -_SLACK <= value <= 1 + _SLACK:
        raise UserError(
            f"{where}: {text} is not from 0 to 1. Coordinates must be shares of the image's width and height, not pixels."
        )
    return min(max(value, 0.0), 1.0)


def _label_of(image: Path, found: YoloImages) -> Path:
    """Where an image's label file is expected."""
    if found.labels is None:
        return _labels_folder(image.parent) / f"{image.stem}.txt"
    place = found.labels / image.relative_to(found.root).with_suffix(".txt")
    return place if place.is_file() else found.labels / f"{image.stem}.txt"


def _labels_folder(images: Path) -> Path:
    """The folder with `labels` in place of the last `images` in its path, where there is one; else the same folder."""
    parts = images.absolute().parts
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        swapped = Path(*parts[:last], "labels", *parts[last + 1 :])
        if swapped.is_dir():
            return swapped if images.is_absolute() else Path(os.path.relpath(swapped))
    return images


def _find_classes(images: Path, labels: Path) -> Classes:
    folders = [folder for start in (labels, images) for folder in (start, *start.absolute().parents[:3])]
    for folder in folders:
        for name in _CLASS_FILES:
            if (folder / name).is_file():
                return read_classes([str(folder / name)])
    raise UserError(
        f"The classes' names are not known: there is no {', '.join(_CLASS_FILES)} at {labels}. Give --classes FILE."
    )


def _check_orphans(images: Path, labels: Path) -> None:
    """Check that each label file has its image: a data set that is not whole should not pass for one."""
    finder = ImageFinder(images)
    for file in files_below(labels, [".txt"], what="label files"):
        if file.name.lower() not in _OTHERS:
            finder.of(file, labels)


def _split_images(content: dict[str, object], yaml_file: Path, split: str, labels: Path | None) -> YoloImages:
    """The images that a data set's YAML file names for a split: a folder, a list of them, or a text file of paths."""
    named = content.get(split)
    if not named:
        known = [key for key in ("train", "val", "test") if content.get(key)]
        raise UserError(f"{yaml_file} names no images for {split!r}. It has: {', '.join(known) or 'no split'}.")
    base = yaml_file.parent
    stated = content.get("path")
    if isinstance(stated, str) and (base / stated).is_dir():
        base = base / stated
    paths: list[Path] = []
    folders = []
    for item in named if isinstance(named, list) else [named]:
        place = _place(base, str(item))
        if place.is_dir():
            folders.append(place)
            paths += files_below(place, IMAGE_SUFFIXES, what="images")
        elif place.suffix == ".txt" and place.is_file():
            lines = [line.strip() for line in place.read_text(encoding="utf-8").splitlines()]
            paths += [_place(place.parent if line.startswith("./") else base, line) for line in lines if line]
        else:
            raise UserError(f"{yaml_file}: {split} names {item}, but there is neither a folder nor a list at {place}.")
    if not paths:
        raise UserError(f"{yaml_file}: {split} names no images.")
    paths = [path.absolute() for path in paths] if any(path.is_absolute() for path in paths) else paths
    paths = list(dict.fromkeys(paths))  # folders and lists may overlap
    one_folder = len(folders) == 1 and not isinstance(named, list)
    root = folders[0] if one_folder else Path(os.path.commonpath([path.parent for path in paths]))
    return YoloImages(root, paths, labels)


def _place(base: Path, named: str) -> Path:
    """A path that a YAML file or list names; some exports write `../train/images` for what lies beside the file."""
    path = base / PurePath(named)
    if not path.exists() and named.startswith("../") and (base / named[3:]).exists():
        return base / named[3:]
    return Path(os.path.normpath(path))
