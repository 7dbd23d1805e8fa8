"""PASCAL VOC: an XML file an image, with boxes; what LabelImg, CVAT and others write, too.

Everingham et al., The PASCAL Visual Object Classes Challenge (IJCV 2010).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from backbones.errors import UserError
from engine.data.converters.classes import Classes
from engine.data.converters.coco_writer import CocoWriter, ImageEntry, finite
from engine.data.converters.files import ImageFinder, check_size, files_below
from engine.data.converters.safe_xml import Element, read_xml

Difficult = Literal["crowd", "keep", "drop"]


def convert_voc(
    images: Path,
    labels: Path,
    *,
    classes: Classes | None = None,
    listed: Path | None = None,
    difficult: Difficult = "crowd",
    zero_based: bool = False,
    keep_unlabelled: bool = False,
) -> CocoWriter:
    """Read VOC's XML files and their images.

    VOC counts pixels from 1 and names a box's first and last: xmin 1 and xmax 10 are the ten pixels from 0 to 10 in COCO's
    measure. So 1 is taken from xmin and ymin, and nothing from xmax and ymax. Tools that write coordinates from 0 in VOC's
    form (LabelImg) need `zero_based`.

    Args:
        images: folder of images.
        labels: folder of XML files.
        classes: their order; None takes the names that occur, sorted.
        listed: a file of names, as VOC's `ImageSets/Main/train.txt`: only these are read.
        difficult: what becomes of objects marked so. "crowd" gives them `iscrowd` 1: detectors here neither learn them as
            background nor as objects, and finding or missing them does not count; that is nearest to VOC's own scoring.
            "keep" makes them objects as any, "drop" leaves them out, so that finding them counts as wrong.
        zero_based: coordinates count from 0, and xmax - xmin is the width.
        keep_unlabelled: list images without an XML file as images without objects; else they are left out and counted.

    Raises:
        UserError: a file is missing or malformed, or a class not in the list; the message names file and line.
    """
    files = files_below(labels, [".xml"], what="XML files")
    if listed is not None:
        files = _listed(files, listed)
    finder = ImageFinder(images)
    writer = CocoWriter(images, classes=classes)
    seen: dict[Path, Path] = {}
    for file in files:
        root = read_xml(file)
        if root.tag != "annotation":
            raise UserError(f"{file}, line {root.line}: this is no VOC file: it holds <{root.tag}>, not <annotation>.")
        stated = root.first("filename")
        path = finder.of(file, labels, stated=stated.text if stated else None)
        if path in seen:
            raise UserError(f"{file} and {seen[path]} are both of the image {path}. Take one out.")
        seen[path] = file
        image = writer.add_image(path)
        _check_stated_size(root, image, file, path)
        for element in root.all("object"):
            _add_object(writer, image, element, file, difficult=difficult, zero_based=zero_based)
    for path in finder.paths if listed is None else ():
        if path not in seen and keep_unlabelled:
            writer.add_image(path)
        elif path not in seen:
            writer.note("images left out, for they have no XML file", str(path))
    return writer


def _add_object(
    writer: CocoWriter, image: ImageEntry, element: Element, file: Path, *, difficult: Difficult, zero_based: bool
) -> None:
    where = f"{file}, line {element.line}"
    name = element.first("name")
    if name is None or not name.text:
        raise UserError(f"{where}: this object has no <name>.")
    box = element.first("bndbox")
    if box is None:
        raise UserError(f"{where}: this object has no <bndbox>.")
    x1, y1, x2, y2 = (_number(box, tag, file) for tag in ("xmin", "ymin", "xmax", "ymax"))
    iscrowd = 0
    if _flag(element, "difficult", file):
        if difficult == "drop":
            writer.note("difficult objects left out", where)
            return
        iscrowd = int(difficult == "crowd")
        writer.note("difficult objects written with iscrowd 1" if iscrowd else "difficult objects kept as any", where)
    if not zero_based:
        if min(x1, y1) < 1:
            writer.note(
                "begin before pixel 1, which VOC counts from: if a tool counted from 0 (LabelImg), convert with --zero-based",
                where,
            )
        x1, y1 = x1 - 1, y1 - 1
    writer.add_box(image, name.text, (x1, y1, x2, y2), where=where, iscrowd=iscrowd)


def _check_stated_size(root: Element, image: ImageEntry, file: Path, path: Path) -> None:
    size = root.first("size")
    if size is None:
        return
    width, height = (_number(size, tag, file) for tag in ("width", "height"))
    if (width, height) != (0, 0):  # some tools write 0 where they do not know
        actual = (image.width, image.height)
        check_size((int(width), int(height)), actual, where=f"{file}, line {size.line}", image=path)


def _number(parent: Element, tag: str, file: Path) -> float:
    element = parent.first(tag)
    if element is None:
        raise UserError(f"{file}, line {parent.line}: <{parent.tag}> has no <{tag}>.")
    value = finite(element.text)
    if value is None:
        raise UserError(f"{file}, line {element.line}: <{tag}> is {element.text!r}, which is no number.")
    return value


def _flag(parent: Element, tag: str, file: Path) -> bool:
    element = parent.first(tag)
    text = element.text.lower() if element else ""
    if element and text not in ("", "0", "1", "false", "true"):
        raise UserError(f"{file}, line {element.line}: <{tag}> is {element.text!r}, which is neither 0 nor 1.")
    return text in ("1", "true")


def _listed(files: Sequence[Path], listed: Path) -> list[Path]:
    """Those files whose names are on the lines of `listed`; VOC's lists for a class have a second column."""
    by_stem = {file.stem: file for file in files}
    chosen = []
    try:
        lines = listed.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The list {listed} cannot be read ({error}).") from None
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if name:
            found = by_stem.get(name) or by_stem.get(name.split()[0])
            if found is None:
                raise UserError(f"{listed}, line {number}: there is no XML file named {name.split()[0]}.xml.")
            chosen.append(found)
    if not chosen:
        raise UserError(f"The list {listed} is empty.")
    return list(dict.fromkeys(chosen))
