"""Write an instances file of train2017's size and statistics, made up: its polygons are of no image.

python benchmarks/coco_size.py /tmp/instances_train2017.json

118,287 images, 860,001 annotations, 80 categories with gaps in their ids; about 1.2 polygons and 23 points an object,
two decimals; 1.2% crowds, as uncompressed RLE; 1% of the images without any object; the fields and their order as COCO's.
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

IMAGES, ANNOTATIONS = 118_287, 860_001
GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}  # of COCO's ids 1..90, no category's
CATEGORY_IDS = [number for number in range(1, 91) if number not in GAPS]
SIZES = ((480, 640), (640, 480), (427, 640), (640, 427), (425, 640), (500, 375))  # (height, width), pixels
EMPTY, CROWDS, PARTS = 0.009, 0.0122, 0.16  # the share of images, of annotations; how often an object has one part more
POINTS = 19.2  # the mean before the shortest outlines are made longer and the longest cut


def write_coco(path: Path, *, images: int = IMAGES, annotations: int = ANNOTATIONS, seed: int = 0) -> None:
    """Write the file; equal arguments write equal bytes."""
    rng = np.random.default_rng(seed)
    sizes = np.array(SIZES)[rng.integers(len(SIZES), size=images)]
    image_ids = np.sort(rng.choice(581_921, size=images, replace=False)) + 1
    popular = 1 / np.arange(1, len(CATEGORY_IDS) + 1)  # a third are of one class, as persons are in COCO
    labels = rng.choice(CATEGORY_IDS, size=annotations, p=popular / popular.sum())
    # A negative binomial: most images have few objects, some dozens. The file's order is not that of the images.
    weights = rng.gamma(0.9, size=images) * (rng.random(images) > EMPTY)
    places = rng.choice(images, size=annotations, p=weights / weights.sum())
    ids = rng.choice(2_200_000, size=annotations, replace=False) + 1
    crowds = rng.random(annotations) < CROWDS
    with path.open("w", encoding="utf-8") as file:
        file.write('{"info": {"description": "as large as COCO 2017, made up","version": "1.0"},"licenses": [],"images": [')
        _write_list(file.write, (_image(int(i), *size.tolist()) for i, size in zip(image_ids, sizes, strict=True)))
        file.write('],"annotations": [')
        rows = zip(ids.tolist(), image_ids[places].tolist(), labels.tolist(), sizes[places].tolist(), crowds, strict=True)
        _write_list(file.write, (_annotation(rng, *row) for row in rows))
        file.write('],"categories": [')
        _write_list(file.write, (json.dumps({"id": i, "name": f"class {i}"}) for i in CATEGORY_IDS))
        file.write("]}")


def _write_list(write: Any, entries: Iterator[str]) -> None:
    for number, entry in enumerate(entries):
        write("," + entry if number else entry)


def _image(image_id: int, height: int, width: int) -> str:
    name = f"{image_id:012d}.jpg"
    return (
        f'{{"license": {image_id % 8 + 1},"file_name": "{name}","coco_url": "http://images.example/train2017/{name}",'
        f'"height": {height},"width": {width},"date_captured": "2013-11-14 11:18:45","flickr_url": '
        f'"http://farm{image_id % 9 + 1}.static.example/8186/81193{image_id:05d}_4e622c8349_z.jpg","id": {image_id}}}'
    )


def _annotation(
    rng: np.random.Generator, annotation_id: int, image_id: int, category_id: int, size: list[int], crowd: bool
) -> str:
    height, width = size
    if crowd:
        runs = rng.integers(1, 60, size=2 * int(rng.integers(60, 500)) + 1)
        runs = runs[: int(np.searchsorted(np.cumsum(runs), height * width - 1))]
        counts = [*runs.tolist(), height * width - int(runs.sum())]
        segmentation = f'{{"counts": {_numbers(counts)},"size": [{height},{width}]}}'
        area, box = sum(counts[1::2]), [0, 0, width - 1, height - 1]
    else:
        span = math.exp(rng.uniform(math.log(8), math.log(260)))
        centre = rng.uniform((0, 0), (width, height))
        parts = [_polygon(rng, centre, span, (width, height)) for _ in range(1 + int(rng.geometric(1 - PARTS) - 1))]
        segmentation = f"[{','.join(_numbers(part.ravel().tolist()) for part in parts)}]"
        area = sum(_area(part) for part in parts)
        points = np.concatenate(parts)
        low, high = points.min(axis=0), points.max(axis=0)
        box = np.round([*low, *np.maximum(high - low, 0.01)], 2).tolist()
    return (
        f'{{"segmentation": {segmentation},"area": {area!r},"iscrowd": {int(crowd)},"image_id": {image_id},'
        f'"bbox": {_numbers(box)},"category_id": {category_id},"id": {annotation_id}}}'
    )


def _polygon(rng: np.random.Generator, centre: np.ndarray, span: float, limit: tuple[int, int]) -> np.ndarray:
    """(N, 2) points of an outline around a centre, within the image, rounded to hundredths of a pixel."""
    number = int(np.clip(rng.lognormal(math.log(POINTS) - 0.32, 0.8), 4, 300))
    angles = np.sort(rng.uniform(0, 2 * math.pi, number))
    radii = span / 2 * rng.uniform(0.6, 1.0, number)
    points = centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.round(np.clip(points, 0, limit), 2)


def _area(points: np.ndarray) -> float:
    x, y = points.T
    return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)


def _numbers(values: list[Any]) -> str:
    return f"[{','.join(map(repr, values))}]"


def main() -> None:
    """Write the file named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--annotations", type=int, default=ANNOTATIONS)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_coco(args.path, images=args.images, annotations=args.annotations, seed=args.seed)
    print(f"{args.path}: {args.path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
