"""Masks as pictures: a folder for each image with an object in each file, or a map for each image, whose values are objects."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from backbones.errors import UserError
from engine.data.converters.classes import Classes
from engine.data.converters.coco_writer import CocoWriter, ImageEntry
from engine.data.converters.files import ImageFinder, check_size, files_below
from engine.files import IMAGE_SUFFIXES

Values = Literal["instances", "classes", "binary"]
# JPEG is none of them: it blurs borders, and a blurred border is another value.
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif")


def convert_masks(
    images: Path,
    masks: Path | None = None,
    *,
    classes: Classes | None = None,
    values: Values = "instances",
    ignore_value: int | None = None,
    keep_unlabelled: bool = False,
) -> CocoWriter:
    """Read masks and their images. Each object is written as RLE, pixel for pixel; 0 is the background.

    Args:
        images: folder of images; with `masks` None, a folder with `ID/images/*.png` and `ID/masks/*.png` for each image, as the
            Data Science Bowl 2018 has it.
        masks: folder with, for each image, a folder of its name with an object's mask in each file, or one map of its name.
        classes: of "instances" and "binary" the one class of all objects (None: "object"); of "classes" those of 1, 2, ...
        values: what the values of a map are. "instances": each an object, in however many pieces. "classes": each a class,
            whose connected regions are the objects, for a map of classes says no more. "binary": anything but 0 is the one
            class, whose connected regions are the objects.
        ignore_value: a value of maps that is neither object nor background, such as VOC's 255.
        keep_unlabelled: list images without masks as images without objects; else they are left out and counted.

    Raises:
        UserError: a mask is of another size than its image or cannot be read, or a value is no class; the file is named.
    """
    names = _names(classes, values)
    if classes is None:
        classes = Classes({name: number for number, name in enumerate(names, start=1)}, "the default")
    writer = CocoWriter(images, classes=classes)
    found = list(_by_image(images) if masks is None else _by_name(images, masks))
    if not any(files for _, files, _ in found):
        raise UserError(
            f"None of the {len(found)} images in {images} has masks. Wanted: {masks or images}/NAME.png or "
            f"{masks or images}/NAME/*.png for an image NAME, or without a folder of masks {images}/ID/masks/*.png."
        )
    for path, files, is_map in found:
        if not files and not keep_unlabelled:
            writer.note("images left out, for they have no masks", str(path))
            continue
        image = writer.add_image(path)
        for file in files:
            mask = _read_mask(file)
            check_size((mask.shape[1], mask.shape[0]), (image.width, image.height), where=str(file), image=path)
            if ignore_value is not None:
                mask = np.where(mask == ignore_value, 0, mask)
            if is_map:
                _add_map(writer, image, mask, file, names=names, values=values)
            else:
                writer.add_mask(image, names[0], mask, where=str(file))
    return writer


def _names(classes: Classes | None, values: Values) -> list[str]:
    if values == "classes":
        if classes is None:
            raise UserError("Maps of classes need --classes: the names of the values 1, 2, ... in order.")
        return classes.names
    names = classes.names if classes else ["object"]
    if len(names) != 1:
        raise UserError(
            f"Masks of {'instances' if values == 'instances' else 'one class'} say no class, so there can be one name for all, "
            f"not {len(names)}. For maps whose values are classes: --values classes."
        )
    return names


def _by_image(root: Path) -> Iterator[tuple[Path, list[Path], bool]]:
    """Images and masks of `root/ID/images/` and `root/ID/masks/`, and that these are no maps."""
    folders = sorted(path for path in root.glob("*/images") if path.is_dir()) if root.is_dir() else []
    if not folders:
        raise UserError(f"{root} has no folders ID/images beside ID/masks. Where masks lie elsewhere, name their folder, too.")
    for folder in folders:
        paths = files_below(folder, IMAGE_SUFFIXES, what="images")
        if len(paths) > 1:
            raise UserError(f"{folder} has {len(paths)} images, so that it cannot be told whose the masks beside it are.")
        masks = folder.with_name("masks")
        yield paths[0], _mask_files(masks) if masks.is_dir() else [], False


def _by_name(images: Path, masks: Path) -> Iterator[tuple[Path, list[Path], bool]]:
    """Images, what is named after them in the folder of masks, and whether that is a map; each mask must be of an image."""
    all_masks = set(files_below(masks, MASK_SUFFIXES, what="masks"))
    unused = set(all_masks)
    for path in ImageFinder(images).paths:
        if path in all_masks:  # the folder of masks lies within that of images
            continue
        place = masks / path.relative_to(images).with_suffix("")
        if not place.is_dir() and not any(place.with_name(place.name + suffix).is_file() for suffix in MASK_SUFFIXES):
            place = masks / path.stem
        maps = [file for suffix in MASK_SUFFIXES if (file := place.with_name(place.name + suffix)).is_file()]
        files = maps + (_mask_files(place) if place.is_dir() else [])
        if maps and len(files) > 1:
            raise UserError(f"{path} has masks in several places: {files[0]} and {files[1]}. Take one out.")
        unused -= set(files)
        yield path, files, bool(maps)
    if unused:
        raise UserError(f"There is no image in {images} for the mask {min(unused)}. Add it, or take the mask out.")


def _mask_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in MASK_SUFFIXES and not p.name.startswith("."))


def _read_mask(path: Path) -> np.ndarray:
    """A mask's values (H, W) as whole numbers; of a coloured picture each colour is a value, of a palette's its index."""
    try:
        with Image.open(path) as image:
            if image.mode in ("RGB", "RGBA", "LA"):
                pixels = np.asarray(image.convert("RGB"), np.int64)
                grey = (pixels == pixels[:, :, :1]).all()
                return pixels[:, :, 0] if grey else pixels @ np.array([1, 1 << 8, 1 << 16])
            values = np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"The mask {path} cannot be read ({error}). Replace it.") from None
    if values.ndim != 2 or (values.dtype.kind == "f" and not (values == np.floor(values)).all()):
        raise UserError(f"The mask {path} has no whole numbers as pixels (it is of Pillow's mode {image.mode}).")
    return values.astype(np.int64)


def _add_map(
    writer: CocoWriter, image: ImageEntry, values_of: np.ndarray, file: Path, *, names: list[str], values: Values
) -> None:
    present = [int(value) for value in np.unique(values_of) if value != 0]
    if values == "instances":
        if present == [255]:
            writer.note("maps have 255 alone, and so one object; if they mark a class: --values binary", str(file))
        for value in present:
            writer.add_mask(image, names[0], values_of == value, where=f"{file}, value {value}")
        return
    for value in [1] if values == "binary" and present else present:
        inside = values_of != 0 if values == "binary" else values_of == value
        if not 1 <= value <= len(names):
            hint = " If 255 marks pixels to be ignored: --ignore-value 255." if value == 255 else ""
            row, column = np.argwhere(inside)[0]
            raise UserError(
                f"{file} has the value {value} (row {row}, column {column}), but the list of {len(names)} classes gives the "
                f"values 1 to {len(names)}.{hint}"
            )
        for region in _regions(inside):
            writer.add_mask(image, names[value - 1], region, where=f"{file}, value {value}")


def _regions(mask: np.ndarray) -> Iterator[np.ndarray]:
    """The connected regions of a mask, corners counted as touching."""
    import cv2

    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    for number in range(1, count):
        yield labels == number
