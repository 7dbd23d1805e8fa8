"""Pictures of label maps: classes as colours over an image, with a legend."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from engine.data.annotations import Category
from engine.draw import Colour, class_colour, contact_sheet, save_picture
from engine.segmentation.classes import unique_names

_CELL, _BAR = 480, 132  # longest side of an image in a row, length of a bar in a legend, pixels
_MOST_NAMED = 18  # classes in a legend
_PAPER = (246, 246, 244)


def class_colours(categories: Sequence[Category]) -> list[Colour]:
    """A colour for each label. Only a first class that is the background is grey."""
    first = 0 if _begins_with_background(categories) else 1
    return [class_colour(label + first) for label in range(len(categories))]


def overlay(image: np.ndarray, labels: np.ndarray, categories: Sequence[Category], *, ignored: int) -> np.ndarray:
    """Classes as colours over an image (H, W, 3) uint8: a picture of the same size.

    A first class named background is left clear. Pixels of no class, `ignored` in `labels`, are hatched.
    """
    colours = np.array(class_colours(categories), np.float32)
    picture = image.astype(np.float32)
    grey = picture @ np.array([0.299, 0.587, 0.114], np.float32)  # so that the image's own colours do not change the classes'
    known = labels != ignored
    tinted = known & (labels > 0) if _begins_with_background(categories) else known
    picture[tinted] = 0.4 * grey[tinted, None] + 0.6 * colours[labels[tinted]]
    rows, columns = np.ogrid[: labels.shape[0], : labels.shape[1]]
    hatched = ~known & ((rows + columns) % 8 < 3)
    picture[hatched] = 0.3 * picture[hatched] + 0.7 * np.array(_PAPER)
    return picture.round().astype(np.uint8)


def enlarged(picture: np.ndarray, side: int) -> np.ndarray:
    """A picture (H, W, 3) uint8 whose longer side is at least `side` pixels."""
    longest = max(picture.shape[:2])
    if longest >= side:
        return picture
    size = round(picture.shape[1] * side / longest), round(picture.shape[0] * side / longest)
    return np.array(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def with_legend(
    picture: np.ndarray, maps: Sequence[np.ndarray], categories: Sequence[Category], *, most: int = _MOST_NAMED
) -> np.ndarray:
    """A picture over a legend of the classes in some label maps, the most frequent first, `most` of them by name."""
    counts = np.sum([np.bincount(labels.ravel(), minlength=65536) for labels in maps], axis=0)[: len(categories)]
    present = [int(label) for label in np.argsort(-counts, kind="stable") if counts[label]]
    if not present:
        return picture
    colours, names = class_colours(categories), unique_names(categories)
    bars = [np.full((8, _BAR, 3), colours[label], np.uint8) for label in present[:most]]
    captions = [names[label] for label in present[:most]]
    if len(present) > most:
        bars.append(np.full((8, _BAR, 3), _PAPER, np.uint8))
        captions.append(f"and {len(present) - most} more")
    zoom = min(max(picture.shape[1] / 960, 1), 1.5)  # so that names are legible under wide pictures, too
    legend = contact_sheet(bars, columns=max(1, int(picture.shape[1] / zoom) // (_BAR + 8)), cell=_BAR, captions=captions)
    legend = enlarged(legend, round(max(legend.shape) * zoom))
    width = max(picture.shape[1], legend.shape[1])
    whole = np.full((picture.shape[0] + legend.shape[0], width, 3), _PAPER, np.uint8)
    whole[: picture.shape[0], : picture.shape[1]] = picture
    whole[picture.shape[0] :, : legend.shape[1]] = legend
    return whole


def save_label_map(labels: np.ndarray, categories: Sequence[Category], path: Path) -> None:
    """Write labels (H, W) as a PNG of the categories' ids: a palette in the classes' colours, or 16 bits where ids pass 255.

    Where an id is none that 16 bits hold, the pixels are the labels.
    """
    ids = np.array([category.id for category in categories])
    if ids.min() < 0 or ids.max() > 65535:
        ids = np.arange(len(categories))
    values = ids[labels]
    if ids.max() > 255:
        image = Image.fromarray(values.astype(np.uint16))
    else:
        palette = np.zeros((256, 3), np.uint8)
        palette[ids] = class_colours(categories)
        image = Image.fromarray(values.astype(np.uint8))
        image.putpalette(palette.tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.partial")
    try:
        image.save(part, format="PNG")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def draw_evaluated(
    image: np.ndarray, truth: np.ndarray, predicted: np.ndarray, categories: Sequence[Category], *, ignored: int, path: Path
) -> None:
    """Draw an image, the truth and the prediction beside each other, and a legend, into a file."""
    drawn = [image, *(overlay(image, labels, categories, ignored=ignored) for labels in (truth, predicted))]
    sheet = contact_sheet(drawn, columns=3, cell=_CELL, captions=["image", "ground truth", "prediction"])
    save_picture(with_legend(sheet, [truth, predicted], categories), path)


def _begins_with_background(categories: Sequence[Category]) -> bool:
    return categories[0].name.strip("_ ").lower() == "background"
