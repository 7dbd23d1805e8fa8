"""Pictures of detections and ground truth: masks, boxes and names on an image; two side by side; a sheet of many."""

import colorsys
import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Colour = tuple[int, int, int]
Rect = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels of the picture, x1 and y1 outside
Tag = tuple[Rect, str, str, Colour]  # the box, its name, what follows the name and is never cut, the box's colour
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_CROWDED = 40  # past so many instances lines are thin, and tags that find no free place are left out
_PAPER, _INK = (246, 246, 244), (45, 45, 45)
# Okabe and Ito's palette, told apart with any colour vision, without its black; neighbours in it are far apart.
_PALETTE = ((230, 159, 0), (86, 180, 233), (213, 94, 0), (0, 158, 115), (204, 121, 167), (240, 228, 66), (0, 114, 178))
# Pillow's own font has little beyond ASCII. For other names, what Linux, macOS and Windows usually have.
_SYSTEM_FONTS = ("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "Arial.ttf", "msyh.ttc")


def class_colour(label: int) -> Colour:
    """The RGB colour of a label (0, the background, is grey). It does not depend on how many labels there are."""
    if label < 1:
        return (128, 128, 128)
    if label <= len(_PALETTE):
        return _PALETTE[label - 1]
    # Hues a golden ratio apart never repeat; lightness varies as well, as hue alone is lost on a colour-blind eye.
    turn = label - len(_PALETTE)
    lightness, saturation = ((0.60, 0.75), (0.42, 0.75), (0.76, 0.65), (0.52, 0.50))[turn % 4]
    red, green, blue = colorsys.hls_to_rgb(turn * 0.6180339887 % 1, lightness, saturation)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_instances(
    image: Tensor | np.ndarray,
    instances: Mapping[str, Any],
    *,
    class_names: Sequence[str],
    score_threshold: float = 0.5,
    min_side: int = 640,
    max_side: int | None = None,
) -> np.ndarray:
    """Draw boxes, masks and names on an image: a picture, (H', W', 3) uint8. Crowd regions are hatched and dashed.

    The best scores are on top. A label has one colour in every picture; with only one class, each instance has its own.

    Args:
        image: uint8, a (C, H, W) tensor or an (H, W, C) or (H, W) array; C is 1, or 3 and more, of which 3 are shown.
        instances: torchvision's dict: `boxes` (N, 4) xyxy in pixels of the image, `labels` (N,), and optionally
            `scores` (N,), `masks` ((N, H, W) bool or uint8, or (N, 1, H, W) probabilities; or what has the `shape` of such a
            tensor and makes one mask at a time, such as `heads.cropped_masks.CroppedMasks`), `keypoints` (N, K, 3) of x, y and
            visibility, and `iscrowd` (N,).
        class_names: the name of each label; index 0 is the background.
        score_threshold: what scores less is left out. Without `scores`, everything is drawn.
        min_side: least longer side of the picture, in pixels: small images are enlarged, so that names are legible.
        max_side: most longer side of the picture, in pixels; None sets no limit.

    Raises:
        ValueError: the image is not as above, masks are not of its size, or a label has no name.
    """
    pixels = _rgb(image)
    longest = max(pixels.shape[:2])
    canvas = _resized(pixels, min(max(longest, min_side), max_side or np.inf) / longest)
    boxes = instances["boxes"].detach().double().cpu().numpy().reshape(-1, 4)
    boxes = np.where(np.isfinite(boxes), boxes, np.nan)  # a diverged model's boxes; NaN reckons on without warnings
    labels: list[int] = instances["labels"].tolist()
    scores = instances["scores"].detach().float().cpu().numpy() if "scores" in instances else None
    crowd = instances["iscrowd"].bool().tolist() if "iscrowd" in instances else [False] * len(boxes)
    # Drawn later is on top: crowd regions lie lowest; without scores, large objects lie under small ones.
    sizes = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    order = [int(i) for i in np.lexsort((-sizes if scores is None else scores, np.logical_not(crowd)))]
    order = [i for i in order if scores is None or scores[i] >= score_threshold]
    for label in (labels[i] for i in order):
        if not 0 <= label < len(class_names):
            raise ValueError(f"label {label} has no name: class_names has {len(class_names)}, the background included")

    one_class, crowded = len(class_names) <= 2, len(order) > _CROWDED
    colours = {i: class_colour(i + 1 if one_class else labels[i]) for i in order}
    line = max(2, round(max(canvas.size) / 500)) // (2 if crowded else 1)
    if "masks" in instances and tuple(instances["masks"].shape[-2:]) != pixels.shape[:2]:
        raise ValueError(f"masks are {tuple(instances['masks'].shape)}, the image {pixels.shape[:2]} (height, width)")
    picture = np.array(canvas)
    for i in order if "masks" in instances else ():
        mask = instances["masks"][i].detach().cpu().reshape(pixels.shape[:2])
        covered = mask.float().numpy() >= 0.5 if mask.is_floating_point() else mask.numpy() != 0
        _paint_mask(picture, covered, colours[i], line, hatched=crowd[i])
    tags = []
    for i in order:
        rect = _on_picture(boxes[i], np.array(canvas.size) / pixels.shape[1::-1], canvas.size)
        if rect is not None:
            _paint_box(picture, rect, colours[i], line, dashed=crowd[i])
            # Among many of one class the name says nothing: the score alone takes less room.
            name = "" if one_class and crowded and not crowd[i] else class_names[labels[i]]
            score = "" if scores is None else f"  {scores[i]:.2f}"
            tags.append((rect, name, score + " (crowd)" * crowd[i], colours[i]))
    for i in order if "keypoints" in instances else ():
        points = instances["keypoints"][i].detach().double().cpu().numpy()
        picture = _with_points(
            picture, points[points[:, 2] > 0, :2] * np.array(canvas.size) / pixels.shape[1::-1], colours[i], line
        )
    font_size = min(max(canvas.size) / 48, 28) * (1 - 0.3 * min(len(order) / _CROWDED, 1))
    return _with_tags(picture, tags, max(9, round(font_size)), may_cover=0 if crowded else 0.3)


def _with_points(picture: np.ndarray, points: np.ndarray, colour: Colour, line: int) -> np.ndarray:
    """Discs at points (N, 2), xy in pixels of the picture, in a light ring so that they are seen on anything."""
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    for x, y in points[np.isfinite(points).all(axis=1)].tolist():
        for radius, fill in ((2.5 * line, _PAPER), (1.7 * line, colour)):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    return np.array(canvas)


def side_by_side(
    truth: np.ndarray, prediction: np.ndarray, *, titles: tuple[str, str] = ("ground truth", "prediction")
) -> np.ndarray:
    """Two pictures, (H, W, 3) uint8, next to each other under their titles; the smaller is enlarged to match."""
    longest = max(*truth.shape[:2], *prediction.shape[:2])
    return contact_sheet([truth, prediction], columns=2, cell=longest, captions=titles)


def contact_sheet(
    pictures: Sequence[np.ndarray],
    *,
    columns: int = 4,
    cell: int = 320,
    captions: Sequence[str] | None = None,
    title: str | None = None,
) -> np.ndarray:
    """Pictures, (H, W, 3) uint8, in a grid, each as large as fits in `cell` x `cell` pixels, under its caption.

    Raises:
        ValueError: there is no picture, or not one caption a picture.
    """
    if not pictures or (captions is not None and len(captions) != len(pictures)):
        raise ValueError(f"{len(pictures)} pictures, {len(captions or ())} captions: give at least one, a caption each")
    fitted = [_resized(picture, cell / max(picture.shape[:2])) for picture in pictures]
    columns, wide = max(1, min(columns, len(fitted))), max(picture.width for picture in fitted)
    font_size = max(11, min(cell // 24, 24))
    gap, band, head = max(6, font_size // 2), round(font_size * 1.6) if captions else 0, font_size * 2 if title else 0
    rows = [fitted[start : start + columns] for start in range(0, len(fitted), columns)]
    tops = np.cumsum([head + gap, *(band + max(picture.height for picture in row) + gap for row in rows)]).tolist()
    sheet = Image.new("RGB", (gap + columns * (wide + gap), tops[-1]), _PAPER)
    draw, font = ImageDraw.Draw(sheet), _font(round(font_size * 1.2), title or "")
    text = _fitted(title or "", "", font, sheet.width - 2 * gap)
    draw.text((gap, (gap + head) / 2), text, fill=_INK, font=font, anchor="lm")
    font = _font(font_size, "".join(captions or ()))
    for i, picture in enumerate(fitted):
        left, top = gap + i % columns * (wide + gap), tops[i // columns]
        text = _fitted(captions[i] if captions else "", "", font, wide)
        draw.text((left + wide / 2, top + band / 2), text, fill=_INK, font=font, anchor="mm")
        sheet.paste(picture, (left + (wide - picture.width) // 2, top + band))
    return np.array(sheet)


def save_picture(picture: np.ndarray, path: Path) -> None:
    """Write a picture, (H, W, 3) uint8, as PNG and create its folder. Nobody ever reads half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        Image.fromarray(picture).save(partial, format="PNG", compress_level=3)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _rgb(image: Tensor | np.ndarray) -> np.ndarray:
    pixels = image.cpu().movedim(0, -1).numpy() if isinstance(image, Tensor) else np.atleast_3d(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.size == 0 or pixels.shape[2] == 2:
        wanted = "a uint8 (C, H, W) tensor or (H, W, C) array with 1, 3 or more channels"
        raise ValueError(f"the image to draw on is {image.dtype} {tuple(image.shape)}; give {wanted}")
    return np.ascontiguousarray(np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[:, :, :3])


def _resized(pixels: np.ndarray, zoom: float) -> Image.Image:
    size = max(1, round(pixels.shape[1] * zoom)), max(1, round(pixels.shape[0] * zoom))
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def _on_picture(box: np.ndarray, scale: np.ndarray, size: tuple[int, int]) -> Rect | None:
    """The pixels a box covers, at least one; None where it lies outside the picture or is not a number."""
    low, high = np.sort(box.reshape(2, 2), axis=0) * scale
    if np.isnan(box).any() or (high < 0).any() or (low >= size).any():
        return None
    x0, y0 = low = np.clip(low.round(), 0, np.array(size) - 1)
    x1, y1 = np.clip(high.round(), low + 1, size)
    return int(x0), int(y0), int(x1), int(y1)


def _paint_mask(picture: np.ndarray, covered: np.ndarray, colour: Colour, line: int, *, hatched: bool) -> None:
    """Tint in place what a mask of the image covers, in stripes where hatched, and trace its contour on the inside."""
    smooth = Image.Resampling.BILINEAR if len(picture) > len(covered) else Image.Resampling.NEAREST  # 10 times faster
    layer = Image.fromarray(covered.view(np.uint8) * 255).resize(picture.shape[1::-1], smooth)
    if (extent := layer.getbbox()) is None:
        return
    # Only where the mask is: the time goes with the size of the objects, not with their number times the image's.
    x0, y0, x1, y1 = extent
    inside = core = np.asarray(layer.crop(extent)) >= 128
    for _ in range(max(1, line - 1)):
        around = np.pad(core, 1)
        core = core & around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    ys, xs = np.ogrid[y0:y1, x0:x1]
    tinted = core & ((ys + xs) % (line * 6) < line * 2) if hatched else core
    region = picture[y0:y1, x0:x1]
    region[tinted] = (0.55 * region[tinted] + 0.45 * np.array(colour)).astype(np.uint8)
    region[inside & ~core] = colour


def _paint_box(picture: np.ndarray, rect: Rect, colour: Colour, line: int, *, dashed: bool) -> None:
    x0, y0, x1, y1 = rect
    across, down = picture[y0:y1, x0:x1], picture[y0:y1, x0:x1].swapaxes(0, 1)
    for side in (across[:line], across[-line:], down[:line], down[-line:]):
        side[:, np.arange(side.shape[1]) % (line * 8) < line * (4 if dashed else 8)] = colour


def _with_tags(picture: np.ndarray, tags: Sequence[Tag], font_size: int, *, may_cover: float) -> np.ndarray:
    """The last tag is on top and chooses its place first; one that shares over `may_cover` of itself is left out."""
    canvas = Image.fromarray(picture)
    draw, font = ImageDraw.Draw(canvas), _font(font_size, "".join(name for _, name, _, _ in tags))
    pad, size = max(2, font_size // 5), np.array(canvas.size)
    placed, taken = [], np.zeros((0, 4), int)
    for (x0, y0, x1, y1), name, ending, colour in reversed(tags):
        text = _fitted(name, ending, font, canvas.width // 2)
        wide, high = round(font.getlength(text)) + 2 * pad, font_size + pad + 2
        places = [(x0, y0 - high), (x0, y1), (x1 - wide, y0 - high), (x1 - wide, y1), (x1, y0), (x0 - wide, y0)]
        if x1 - x0 > wide and y1 - y0 > 2 * high:  # inside, where it does not hide the object
            places[1:1] = [(x0, y0), (x0, y1 - high), (x1 - wide, y0)]
        starts = np.clip(places, 0, np.maximum(size - (wide, high), 0))  # pushed back into the picture: a small fault
        ends = starts + np.array((wide, high))
        shared = np.minimum(ends[:, None], taken[:, 2:]) - np.maximum(starts[:, None], taken[:, :2])
        covered = shared.clip(0).prod(axis=2).sum(axis=1)
        best = np.argmin(covered * 100 + np.abs(starts - places).sum(axis=1))
        if text and covered[best] <= may_cover * wide * high:
            taken = np.vstack((taken, (*starts[best], *ends[best])))
            placed.append((*starts[best].tolist(), *ends[best].tolist(), text, colour))
    for x0, y0, x1, y1, text, colour in reversed(placed):
        draw.rounded_rectangle((x0, y0, x1 - 1, y1 - 1), radius=pad, fill=colour)
        luminance = np.dot((np.array(colour) / 255) ** 2.2, (0.2126, 0.7152, 0.0722))
        ink = "black" if luminance > 0.18 else "white"  # at 0.18 both contrast alike
        draw.text((x0 + pad, (y0 + y1) / 2), text, fill=ink, font=font, anchor="lm")
    return np.array(canvas)


def _fitted(text: str, ending: str, font: Font, width: int) -> str:
    """A text and its ending on one line, the text cut with an ellipsis where they are wider than `width` pixels."""
    text = kept = " ".join("".join(c if c.isprintable() else " " for c in text[:200]).split())
    while kept and font.getlength(kept + ending) > width:
        text = text[:-1]
        kept = text and text + "…"
    return (kept + ending).strip()


def _font(size: int, text: str) -> Font:
    """Pillow's font; where that one lacks characters of the text, the system's font that has most of them."""
    fonts: list[Font] = [ImageFont.load_default(size=size)]
    for name in () if text.isascii() else _SYSTEM_FONTS:
        with contextlib.suppress(OSError):
            fonts.append(ImageFont.truetype(name, size))
    needed = {c for c in text if c.isprintable()}  # U+FFFF never is a character: it looks as a missing one does
    return min(fonts, key=lambda font: sum(bytes(font.getmask(c)) == bytes(font.getmask("\uffff")) for c in needed))
