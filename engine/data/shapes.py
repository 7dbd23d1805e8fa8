"""The embedded data set `shapes`: a small COCO instance set, rendered to disk once, so nothing need be downloaded.

Circles, squares, triangles, stars and rings over textured backgrounds, with what COCO has and toy sets leave out:
images with no object, objects hidden in part or cut by the border, crowd regions, polygons beside both forms of RLE,
category ids with gaps, and keypoints. Every image depends on (DRAWING, split, index) alone.
"""

import contextlib
import itertools
import json
import math
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from engine.data.cache import default_cache_dir

VERSION = 2  # part of the folder's name: raise it when anything written changes
DRAWING = 1  # part of every seed: raise it when the images are to be other ones
IMAGE_COUNTS = {"train": 360, "val": 80}
KEYPOINTS = ["top", "right", "bottom", "left"]  # the outermost points of an object's outline
CATEGORY_IDS = {"circle": 3, "square": 7, "triangle": 12, "star": 25, "ring": 40}  # gaps, so that readers must map them

_SIZES = ((96, 96), (72, 96), (96, 72), (80, 96), (96, 80), (88, 96))  # (height, width), px
_NEGATIVE_SHARE, _CROWD_SHARE = 0.07, 0.08  # of the images
_MAX_OBJECTS = 4
_DIAMETERS = (12.0, 40.0)  # px; a pointed shape reaches up to 20% further
_CROWD_COUNTS, _CROWD_DIAMETERS, _CROWD_PITCH = (8, 20), (8.0, 12.0), 12
_MIN_VISIBLE, _MIN_AREA, _MIN_SIDE = 0.5, 40, 10  # of an object: share of its area, px^2, its box's shorter side in px
_MIN_INSIDE = 0.75  # the share of an object's area that the image border must leave
_MIN_CONTRAST = 60.0  # of an object's colours with what lies under it: weighted RGB distance, black to white is 255
_MIN_POLYGON_IOU = 0.98  # a polygon is written only where it gives back the drawn pixels this well
_SUPERSAMPLE = 4
# A shape's circumscribed radius by its nominal diameter: pointed shapes reach further, so that all look equally large.
_RADII = {"circle": 0.5, "square": 0.62, "triangle": 0.64, "star": 0.62, "ring": 0.5}

Image = NDArray[np.float32]  # (H, W, 3), RGB, 0..255
Share = NDArray[np.float32]  # (H, W), 0..1
Mask = NDArray[np.bool_]  # (H, W)
Points = NDArray[np.float64]  # (N, 2), xy in pixels; a pixel's centre lies at .5
Window = tuple[slice, slice]


def render_shapes(split: Literal["train", "val"], *, cache_dir: Path | None = None) -> tuple[Path, Path]:
    """Where `shapes` lies on disk, rendered first if it is not there yet: (images folder, COCO annotation JSON).

    Both splits are rendered together, in a few seconds. Any number of processes may call this at the same time.
    `cache_dir` defaults to $VERTEBRA_CACHE, else $XDG_CACHE_HOME/vertebra, else ~/.cache/vertebra.

    Raises:
        ValueError: no such split.
        UserError: the cache folder cannot be read or written.
    """
    if split not in IMAGE_COUNTS:
        raise ValueError(f"shapes has the splits {' and '.join(IMAGE_COUNTS)}, not {split!r}")
    folder = (cache_dir or default_cache_dir()) / f"shapes-v{VERSION}"
    try:
        if not _is_complete(folder):
            _render_into_place(folder)
    except OSError as error:
        from backbones.errors import UserError  # not above: the package may bring torch with it

        raise UserError(
            f"the data set shapes cannot be rendered into {folder} ({error}); "
            "set the environment variable VERTEBRA_CACHE to a folder that can be written"
        ) from error
    return folder / split, folder / f"instances_{split}.json"


def _is_complete(folder: Path) -> bool:
    """Whether nothing is missing: only whole folders are put into place, but a cleaner may have passed since."""
    return all(
        (folder / f"instances_{split}.json").is_file() and len(list((folder / split).glob("*.png"))) == count
        for split, count in IMAGE_COUNTS.items()
    )


def _render_into_place(folder: Path) -> None:
    """Render beside `folder`, then rename: other processes see all of it or nothing, and the first to finish wins."""
    rendered, broken = (folder.with_name(f".{folder.name}-{uuid.uuid4().hex}") for _ in range(2))
    try:
        for split in IMAGE_COUNTS:
            _write_split(split, rendered / split, rendered / f"instances_{split}.json")
        if not _is_complete(folder):
            with contextlib.suppress(FileNotFoundError):
                folder.rename(broken)
        try:
            rendered.rename(folder)
        except OSError:  # a folder that holds something is never replaced, so another process may have been first
            if not _is_complete(folder):
                raise
    finally:
        shutil.rmtree(rendered, ignore_errors=True)
        shutil.rmtree(broken, ignore_errors=True)


def _write_split(split: str, images_dir: Path, annotation_file: Path) -> None:
    images_dir.mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(IMAGE_COUNTS[split]):
        scene = _compose(split, index)
        name = f"{index + 1:06d}.png"
        pixels = np.clip(np.rint(scene.pixels), 0, 255).astype(np.uint8)
        # Encoded in memory: imwrite would return False where the disk is full, and write_bytes says so.
        _, png = cv2.imencode(".png", pixels[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
        (images_dir / name).write_bytes(png.tobytes())
        height, width = scene.owner.shape
        images.append({"id": index + 1, "file_name": name, "width": width, "height": height, "license": 1})
        for annotation in _annotate(scene):
            annotations.append({"id": len(annotations) + 1, "image_id": index + 1, **annotation})
    content = {
        "info": {"description": f"shapes/{split}, generated by Vertebra, CC0", "version": str(VERSION)},
        "licenses": [{"id": 1, "name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}],
        "images": images,
        "annotations": annotations,
        "categories": [
            {
                "id": i,
                "name": name,
                "supercategory": "shape",
                "keypoints": KEYPOINTS,
                "skeleton": [[1, 2], [2, 3], [3, 4], [4, 1]],
            }
            for name, i in CATEGORY_IDS.items()
        ],
    }
    annotation_file.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


# ---- What is in an image, and where ----


@dataclass(slots=True)
class _Scene:
    pixels: Image
    owner: NDArray[np.int16]  # (H, W): the number of the object seen in each pixel, -1 where there is none
    reserved: Mask  # the crowd and its surroundings, where no object may be placed
    crowd: tuple[str, Mask] | None = None
    objects: list[tuple[str, list[Points], int]] = field(default_factory=list)  # kind, outlines, area when all is seen


def _compose(split: str, index: int) -> _Scene:
    rng = np.random.default_rng([DRAWING, list(IMAGE_COUNTS).index(split), index])
    height, width = _SIZES[rng.integers(len(_SIZES))]
    owner, reserved = np.full((height, width), -1, np.int16), np.zeros((height, width), np.bool_)
    scene = _Scene(_background(rng, height, width), owner, reserved)
    # Multiples of the golden ratio spread evenly over 0..1, so that a small split too has its share of either kind.
    share = (index * (math.sqrt(5) - 1) / 2) % 1.0
    if share < _NEGATIVE_SHARE:
        return scene
    if share < _NEGATIVE_SHARE + _CROWD_SHARE:
        any(_try_to_add_crowd(scene, rng) for _ in range(40))
    for _ in range(rng.integers(1, _MAX_OBJECTS + 1)):
        kind = str(rng.choice(list(CATEGORY_IDS)))
        diameter = math.exp(rng.uniform(math.log(_DIAMETERS[0]), math.log(_DIAMETERS[1])))
        any(_try_to_add_object(scene, rng, kind, diameter) for _ in range(40))
    return scene


def _try_to_add_object(scene: _Scene, rng: np.random.Generator, kind: str, diameter: float) -> bool:
    """Draw an object at a random place, or leave the scene as it is where that would hide, cut or blend in too much."""
    height, width = scene.owner.shape
    margin = 0.3 * diameter
    x, y = rng.uniform(margin, width - margin), rng.uniform(margin, height - margin)
    outlines = _outlines(rng, kind, (x, y), diameter)
    border = rng.uniform(0.05, 0.08) * diameter if diameter >= 20 and rng.random() < 0.35 else 0.0
    window, cover, inner, area = _coverage(outlines, scene.owner.shape, border)
    drawn = cover >= 0.5
    if not _shows_enough(drawn, _MIN_INSIDE * area) or (scene.reserved[window] & (cover > 0)).any():
        return False
    owner = scene.owner.copy()
    owner[window][drawn] = len(scene.objects)
    for number in set(scene.owner[window][drawn].tolist()) - {-1}:
        if not _shows_enough(owner == number, _MIN_VISIBLE * scene.objects[number][2]):
            return False
    texture = rng.choice(["flat", "stripes", "gradient"]) if diameter >= 24 else "flat"
    used = [True, texture != "flat", border > 0]
    colours = _find_colours(rng, scene.pixels[window][cover > 0], used)
    if colours is None:
        return False
    fill, variant, edge = colours
    if texture != "flat":
        along = _ramp(rng.uniform(0, 2 * math.pi), *cover.shape)
        mix = _stripes(along, max(6.0, diameter / 4)) if texture == "stripes" else np.clip(0.5 + along / diameter, 0, 1)
        fill = fill + mix[..., None] * (variant - fill)
    _paint(scene.pixels[window], cover, edge if border else fill)
    _paint(scene.pixels[window], inner, fill)
    scene.owner = owner
    scene.objects.append((kind, outlines, area))
    return True


def _shows_enough(mask: Mask, min_area: float) -> bool:
    """Whether of an object enough is seen, in px^2 and from side to side."""
    _, _, *sides = cv2.boundingRect(mask.view(np.uint8))
    return bool(mask.sum() >= max(min_area, _MIN_AREA)) and min(sides) >= _MIN_SIDE


def _try_to_add_crowd(scene: _Scene, rng: np.random.Generator) -> bool:
    """Draw a dense patch of small shapes of one kind, which nobody would outline one by one, where they stand out."""
    height, width = scene.owner.shape
    count = int(rng.integers(_CROWD_COUNTS[0], _CROWD_COUNTS[1] + 1))
    columns = math.ceil(math.sqrt(count * 1.4))
    rows = math.ceil(count / columns)
    left = rng.uniform(2, width - columns * _CROWD_PITCH - 2)
    top = rng.uniform(2, height - rows * _CROWD_PITCH - 2)
    around = scene.pixels[int(top) : int(top) + rows * _CROWD_PITCH, int(left) : int(left) + columns * _CROWD_PITCH]
    colours = _find_colours(rng, around.reshape(-1, 3), [True, False, False])
    if colours is None:
        return False
    kind = str(rng.choice(list(CATEGORY_IDS)))
    mask = np.zeros(scene.owner.shape, np.bool_)
    for cell in rng.permutation(rows * columns)[:count].tolist():
        x = left + _CROWD_PITCH * (cell % columns + 0.5) + rng.uniform(-1.5, 1.5)
        y = top + _CROWD_PITCH * (cell // columns + 0.5) + rng.uniform(-1.5, 1.5)
        outlines = _outlines(rng, kind, (x, y), rng.uniform(*_CROWD_DIAMETERS))
        window, cover, _, _ = _coverage(outlines, mask.shape)
        _paint(scene.pixels[window], cover, colours[0] + rng.uniform(-12, 12, 3))
        mask[window] |= cover >= 0.5
    scene.crowd = (kind, mask)
    scene.reserved = cv2.dilate(mask.view(np.uint8), np.ones((17, 17), np.uint8)) > 0  # the gaps, and 8 px around
    return True


# ---- Drawing ----


def _outlines(rng: np.random.Generator, kind: str, centre: tuple[float, float], diameter: float) -> list[Points]:
    """A shape's closed outlines, randomly rotated: one, or for a ring the outer and the inner."""
    corners = {"square": 4, "triangle": 3, "star": 10}.get(kind, 40)
    angles = rng.uniform(0, 2 * math.pi) + np.arange(corners) * (2 * math.pi / corners)
    points = _RADII[kind] * diameter * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points[1::2] *= 0.42 if kind == "star" else 1.0
    scales = [1.0, rng.uniform(0.48, 0.6)] if kind == "ring" else [1.0]
    return [np.round(points * scale + np.asarray(centre), 2) for scale in scales]


def _coverage(outlines: list[Points], image: tuple[int, ...], border: float = 0.0) -> tuple[Window, Share, Share, int]:
    """Where in an image (height, width) a shape lies, and how much of each pixel there it covers.

    Returns the window, the share (h, w) of each of its pixels that the shape covers, the share that it covers without a
    border of this width (px), and the area (px^2) that it would have in a boundless image.
    """
    low = np.floor(outlines[0].min(axis=0)).astype(int) - 1
    width, height = (np.ceil(outlines[0].max(axis=0)).astype(int) + 1 - low).tolist()
    fine = np.zeros((height * _SUPERSAMPLE, width * _SUPERSAMPLE), np.uint8)
    corners = [np.rint(((points - low) * _SUPERSAMPLE - 0.5) * 16).astype(np.int32) for points in outlines]
    cv2.fillPoly(fine, corners, 32, shift=4)  # in one call, where an outline inside another is a hole
    # fillPoly counts the points on the outline as inside. Half of each keeps the area true; means of 16 stay integers.
    cv2.polylines(fine, corners, True, 16, shift=4)
    size = 2 * round(border * _SUPERSAMPLE) + 1
    without = cv2.erode(fine, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))) if border else fine
    cover, inner = (
        cv2.resize(grid, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / np.float32(32)
        for grid in (fine, without)
    )
    x, y = low.tolist()
    window = np.s_[max(y, 0) : min(y + height, image[0]), max(x, 0) : min(x + width, image[1])]
    part = tuple(slice(span.start - at, span.stop - at) for span, at in zip(window, (y, x), strict=True))
    return window, cover[part], inner[part], int((cover >= 0.5).sum())


def _paint(pixels: Image, cover: Share, colour: NDArray[Any]) -> None:
    """Blend a colour (3,) or a picture (h, w, 3) into `pixels`, in place."""
    pixels += cover[..., None] * (colour - pixels)


def _find_colours(rng: np.random.Generator, under: NDArray[np.float32], used: list[bool]) -> NDArray[np.float64] | None:
    """RGB (3, 3) of a fill, a variant for its texture and a dark border; those used stand out from pixels (N, 3)."""
    hues = np.clip(np.abs((rng.random((10, 1)) * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)
    fills = hues + (rng.integers(0, 2, (10, 1)) - hues) * rng.uniform(0, 0.75, (10, 1))  # towards black or white
    opposite = fills.mean(axis=1, keepdims=True) < 0.5
    candidates = 255 * np.stack([fills, fills + (opposite - fills) * 0.4, fills * 0.4], axis=1)
    sample = under[:: len(under) // 100 + 1]
    weights = np.array([2, 4, 3]) / 9  # the eye tells greens apart best
    distances = np.sqrt((weights * (candidates[:, used, None] - sample) ** 2).sum(axis=-1))
    least = np.sort(distances, axis=-1)[..., len(sample) // 20].min(axis=1)  # to all but the nearest 5% of the pixels
    good = np.flatnonzero(least >= _MIN_CONTRAST)
    return candidates[good[0]] if good.size else None


def _ramp(angle: float, height: int, width: int) -> NDArray[np.float64]:
    """(height, width): each pixel's distance from the middle along a direction, px."""
    y, x = np.ogrid[:height, :width]
    return (x - width / 2) * math.cos(angle) + (y - height / 2) * math.sin(angle)


def _stripes(ramp: NDArray[np.float64], period: float) -> NDArray[np.float64]:
    """0..1 by turns along a ramp, with edges about a pixel wide."""
    return np.clip(0.5 + period / 6 * np.sin(ramp * (2 * math.pi / period)), 0, 1)


def _background(rng: np.random.Generator, height: int, width: int) -> Image:
    """Noise, a gradient, stripes, checks or grain between two muted colours."""
    noise = np.zeros((height, width), np.float32)
    for octave, cells in enumerate((3, 6, 12, 24)):
        grid = rng.random((cells, cells), np.float32) - np.float32(0.5)
        noise += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) * np.float32(0.7**octave)
    kind, angle, period = rng.integers(5), rng.uniform(0, 2 * math.pi), rng.uniform(10, 30)
    depth, grain, clouds = ((75, 4, 1.0), (90, 3, 0.2), (25, 4, 0.5), (22, 4, 0.5), (40, 12, 0.3))[kind]
    ramp = _ramp(angle, height, width)
    pattern = clouds * noise + (ramp / 160 if kind == 1 else 0.0)  # 1: gradient
    if kind in (2, 3):  # 2: stripes, 3: checks
        across = _stripes(_ramp(angle + math.pi / 2, height, width), period) if kind == 3 else 0.0
        pattern = pattern + np.abs(_stripes(ramp, period) - across)
    base = rng.uniform(50, 205, 3)
    base += 0.4 * (base.mean() - base)  # duller than the objects
    tint = depth * rng.choice([-1.0, 1.0]) * rng.uniform(0.6, 1.0, 3)
    speckle = grain * rng.standard_normal((height, width, 1), np.float32)
    return np.asarray(np.clip(base + pattern[..., None] * tint + speckle, 0, 255), np.float32)


# ---- Annotations ----


def _annotate(scene: _Scene) -> Iterator[dict[str, Any]]:
    """The COCO annotations of a scene, but for their ids."""
    size = scene.owner.shape
    rles = [_encode(scene.owner == number) for number in range(len(scene.objects))]
    for number, (kind, outlines, area) in enumerate(scene.objects):
        polygon = outlines[0].ravel().tolist()
        read = coco_mask.frPyObjects([polygon], *size)[0]  # what readers make of it
        overlaps = coco_mask.iou([read], rles, [0] * len(rles))[0]
        whole = len(outlines) == 1 and coco_mask.area(rles[number]) == area  # no hole, nothing hidden or cut off
        if whole and overlaps[number] >= _MIN_POLYGON_IOU and np.count_nonzero(overlaps) == 1:
            rles[number] = read  # so that box and area agree with the polygon, and no other polygon overlaps it
            annotation = _annotation(kind, read, [polygon], iscrowd=0)
        else:
            rle = rles[number]
            annotation = _annotation(kind, rle, {"size": list(size), "counts": rle["counts"].decode("ascii")}, iscrowd=0)
        keypoints = _keypoints(outlines[0], scene.owner == number)
        yield annotation | {"keypoints": keypoints, "num_keypoints": sum(visibility > 0 for visibility in keypoints[2::3])}
    if scene.crowd is not None:
        kind, mask = scene.crowd
        pixels = mask.ravel(order="F").tolist()
        runs = [len(list(run)) for _, run in itertools.groupby(pixels)]
        counts = [0, *runs] if pixels[0] else runs  # the first run is of zeros, even if there is none
        yield _annotation(kind, _encode(mask), {"size": list(size), "counts": counts}, iscrowd=1)


def _keypoints(outline: Points, seen: Mask) -> list[float]:
    """The outermost points as COCO writes them: x, y and 2 where it is seen, 1 where it is hidden, 0 outside the image."""
    x, y = outline.T
    numbers: list[float] = []
    for point in (y.argmin(), x.argmax(), y.argmax(), x.argmin()):
        column, row = int(x[point]), int(y[point])
        if x[point] < 0 or y[point] < 0 or row >= seen.shape[0] or column >= seen.shape[1]:
            numbers += [0.0, 0.0, 0]
        else:
            # A corner covers less than half of its pixel: the ones around it say whether it is seen.
            around = seen[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            numbers += [round(float(x[point]), 2), round(float(y[point]), 2), 2 if around.any() else 1]
    return numbers


def _encode(mask: Mask) -> dict[str, Any]:
    return coco_mask.encode(np.asfortranarray(mask, np.uint8))


def _annotation(kind: str, rle: dict[str, Any], segmentation: Any, *, iscrowd: int) -> dict[str, Any]:
    box = [int(number) for number in coco_mask.toBbox(rle)]
    measures = {"area": int(coco_mask.area(rle)), "bbox": box, "iscrowd": iscrowd}
    return {"category_id": CATEGORY_IDS[kind], **measures, "segmentation": segmentation}
