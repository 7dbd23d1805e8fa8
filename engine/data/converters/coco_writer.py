"""What every converter does alike: collect images and objects, count what is left out, write one COCO file."""

import json
import math
import shlex
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from PIL import Image

from backbones.errors import UserError, did_you_mean
from engine.data.converters.classes import Classes
from engine.data.masks import encode_mask, mask_area, to_rle
from engine.files import make_folder

_INFO = {"description": "written by tools/convert_to_coco.py"}
_ORIENTATION = 0x0112  # EXIF's tag; 1 is upright


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """An image as COCO lists it."""

    id: int
    file_name: str  # below the images folder
    width: int  # pixels
    height: int


class CocoWriter:
    """Collects images and their objects, in COCO's conventions: ids from 1, boxes (x, y, width, height) in pixels.

    Boxes are cut at the image's border. An object with nothing left within its image is dropped, and counted.

    Args:
        root: the folder that file names are relative to.
        classes: the categories, in their order; None takes the names that occur, sorted.
    """

    def __init__(self, root: Path, *, classes: Classes | None = None) -> None:
        self.root = root
        self.classes = classes
        self.images: list[ImageEntry] = []
        self.objects: list[dict[str, Any]] = []  # as annotations, with the class's name in place of its id
        self.notes: dict[str, list[str]] = {}  # what happened -> where, each time

    def add_image(self, path: Path) -> ImageEntry:
        """List an image; its size comes from the file's header, its pixels are not read.

        Raises:
            UserError: there is no such file, or it is no image.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(path) as image:
                    width, height = image.size
                    # Of other formats, PNG for one, Pillow would have to read the pixels first.
                    rotated = image.format in ("JPEG", "MPO", "WEBP", "TIFF") and image.getexif().get(_ORIENTATION, 1) != 1
        except FileNotFoundError:
            raise UserError(f"There is no image {path}.") from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(
                f"{path} cannot be read as an image ({error}). Replace it, or take it and its labels out."
            ) from None
        if rotated:
            self.note(
                "with an EXIF rotation, which training does not apply: if they were labelled as a viewer shows them, "
                "their labels are misplaced; save them upright and label these files",
                str(path),
            )
        entry = ImageEntry(len(self.images) + 1, path.relative_to(self.root).as_posix(), width, height)
        self.images.append(entry)
        return entry

    def add_box(self, image: ImageEntry, name: str, box: Sequence[float], *, where: str, iscrowd: int = 0) -> None:
        """Add an object by its box (x1, y1, x2, y2), in pixels from the image's corner; `where` says which it is.

        Raises:
            UserError: its class is not in the list.
        """
        bbox = self._within(image, box, where)
        if bbox is not None:
            self._add(image, name, bbox, bbox[2] * bbox[3], [], where=where, iscrowd=iscrowd)

    def add_polygons(self, image: ImageEntry, name: str, polygons: Sequence[Sequence[float]], *, where: str) -> None:
        """Add an object by the outlines of its parts, each x, y, x, y, ... in pixels.

        Its box is the outlines' extent, its area the pixels they cover.

        Raises:
            UserError: its class is not in the list.
        """
        rounded = [[round(float(value), 3) for value in polygon] for polygon in polygons]
        xs = [x for polygon in rounded for x in polygon[0::2]]
        ys = [y for polygon in rounded for y in polygon[1::2]]
        bbox = self._within(image, (min(xs), min(ys), max(xs), max(ys)), where)
        if bbox is None:
            return
        rle = to_rle(rounded, image.height, image.width)
        area = 0 if rle is None else mask_area(rle)
        if area == 0:
            self.note("left out, for their outline covers no pixel", where)
            return
        self._add(image, name, bbox, area, rounded, where=where)

    def add_mask(self, image: ImageEntry, name: str, mask: np.ndarray, *, where: str) -> None:
        """Add an object by its mask (H, W), non-zero inside; it is written as compressed RLE, pixel for pixel.

        Raises:
            UserError: its class is not in the list.
        """
        columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        if not len(columns):
            self.note("left out, for their mask is empty", where)
            return
        x, y = int(columns[0]), int(rows[0])
        bbox: list[float] = [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]
        inside = mask != 0
        self._add(image, name, bbox, int(inside.sum()), encode_mask(inside), where=where)

    def note(self, what: str, where: str) -> None:
        """Remember what a user should know, for `summary`."""
        self.notes.setdefault(what, []).append(where)

    def content(self) -> dict[str, Any]:
        """The COCO file's content."""
        if self.classes is not None:
            ids = self.classes.ids
        else:
            ids = {name: number for number, name in enumerate(sorted({o["name"] for o in self.objects}), start=1)}
        annotations = [
            {"id": number, "image_id": o["image_id"], "category_id": ids[o["name"]]}
            | {key: o[key] for key in ("bbox", "area", "iscrowd", "segmentation")}
            for number, o in enumerate(self.objects, start=1)
        ]
        images = [
            {"id": image.id, "file_name": image.file_name, "width": image.width, "height": image.height}
            for image in self.images
        ]
        categories = [{"id": number, "name": name} for name, number in ids.items()]
        return {"info": _INFO, "images": images, "annotations": annotations, "categories": categories}

    def write(self, path: str | Path) -> None:
        """Write the COCO file, whole or not at all.

        Raises:
            UserError: it cannot be written, or would hold no image or no class.
        """
        check_output(path := Path(path))
        content = self.content()
        if not content["images"]:
            raise UserError(f"There is nothing to write: none of the images in {self.root} has labels.")
        if not content["categories"]:
            raise UserError(f"There is nothing to write: no object is left in {self.root}. {' '.join(self.summary())}")
        write_json(path, content)

    def summary(self) -> list[str]:
        """What there is, and what was left out, in lines."""
        of_class = Counter(o["name"] for o in self.objects)
        names = list(self.classes.ids) if self.classes is not None else sorted(of_class)
        empty = len(self.images) - len({o["image_id"] for o in self.objects})
        lines = [f"{len(self.images)} images, {empty} of them without objects; {len(self.objects)} objects:"]
        lines += [f"  {of_class[name]:8} {name}" for name in names]
        return lines + [f"{len(places)} {what} (first: {places[0]})" for what, places in self.notes.items()]

    def _within(self, image: ImageEntry, box: Sequence[float], where: str) -> list[float] | None:
        """(x, y, width, height) of the part of (x1, y1, x2, y2) within the image, or None where there is none."""
        x1, y1, x2, y2 = (round(float(value), 3) for value in box)
        left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2, image.width), min(y2, image.height)
        if right <= left or bottom <= top:
            self.note("left out, for they have no width or height within their image", where)
            return None
        if (left, top, right, bottom) != (x1, y1, x2, y2):
            self.note("cut at their image's border", where)
        return [left, top, round(right - left, 3), round(bottom - top, 3)]

    def _add(
        self,
        image: ImageEntry,
        name: str,
        bbox: list[float],
        area: float,
        segmentation: list[list[float]] | dict[str, Any],
        *,
        where: str,
        iscrowd: int = 0,
    ) -> None:
        if self.classes is not None and name not in self.classes.ids:
            hint = did_you_mean(name, self.classes.ids)
            raise UserError(f"{where}: the class {name!r} is not in the list ({self.classes.source}).{hint}")
        self.objects.append(
            {
                "image_id": image.id,
                "name": name,
                "bbox": bbox,
                "area": round(area, 3),
                "iscrowd": iscrowd,
                "segmentation": segmentation,
            }
        )


def check_output(path: Path) -> None:
    """Check that a COCO file may be written: nothing is there, or one that was written by us.

    Raises:
        UserError: something else is there, a file of labels for one.
    """
    ours = f'{{"info": {json.dumps(_INFO)}'.encode()
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(ours)) not in (ours, b""):
                raise UserError(f"{path} is there, and was not written by this tool. Name another file, or delete it.")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file beside its place, then move it there: it is whole or not there.

    Raises:
        UserError: it cannot be written.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder. Name a file.")
    make_folder(path.parent)
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(json.dumps(content))
        part.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}).") from None
    finally:
        part.unlink(missing_ok=True)


def data_arguments(split: Literal["train", "val"] | str, images: Path, annotations: Path) -> str:
    """The overrides that train or score on this data, as a shell takes them."""
    values = {"images": images, "annotations": annotations}
    return " ".join(shlex.quote(f"data.{split}.{key}={_as_yaml(str(value))}") for key, value in values.items())


def _as_yaml(text: str) -> str:
    """A text so that YAML, as which the value of an override is read, gives it back."""
    try:
        float(text)  # 1e3 is a text in PyYAML, and a number in our configs
        plain = False
    except ValueError:
        try:
            plain = yaml.safe_load(text) == text
        except yaml.YAMLError:
            plain = False
    return text if plain else yaml.safe_dump(text, allow_unicode=True, default_style='"', width=10**9).strip()


def finite(text: str) -> float | None:
    """A number that a text states, or None where it is none, or not finite."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
