"""A small COCO file with all that one may hold, its images, and what the product does with a file of annotations."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from engine.config_file import apply_overrides
from engine.data.annotations import load_annotations
from engine.data.doctor.doctor import examine
from engine.data.doctor.fix import clean
from engine.data.doctor.sheet import draw_worst
from engine.data.sources import CocoPaths
from engine.detection.report.report import ResultFiles, write_report
from engine.distributed import World
from engine.job import job_of
from engine.progress import Reporter
from tests.engine.conftest import TOY
from tests.fuzz.mutations import mutate, mutate_bytes

SIZES = ((32, 40), (40, 32), (24, 24))  # (height, width), pixels
POINTS = ["nose", "left_ear", "right_ear"]


def write_images(folder: Path) -> None:
    """The images that the content names."""
    (folder / "below").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate(SIZES):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(folder / _name(number))


def _name(number: int) -> str:
    return f"{'below/' * (number == 2)}{number}.png"


def content() -> dict[str, Any]:
    """A faultless file: boxes, polygons, both forms of RLE, a crowd region, keypoints, an object with nothing but a box."""
    images = [
        {"id": 10 + number, "file_name": _name(number), "height": height, "width": width, "license": 1}
        for number, (height, width) in enumerate(SIZES)
    ]
    height, width = SIZES[0]
    whole = height * width
    annotations: list[dict[str, Any]] = [
        {"segmentation": [[4, 4, 14, 4, 14, 14, 4, 14]], "bbox": [4, 4, 10, 10], "area": 100, "iscrowd": 0},
        {"segmentation": {"size": [height, width], "counts": [33, 8, 24, 8, whole - 73]}, "bbox": [1, 1, 2, 8], "iscrowd": 1},
        {"segmentation": [[20.5, 20.25, 30, 20, 30, 30], [2, 20, 8, 20, 8, 28, 2, 28]], "bbox": [2, 20, 28, 10]},
        {"bbox": [10.5, 3.25, 8, 9], "keypoints": [12, 5, 2, 14, 6, 1, 0, 0, 0], "num_keypoints": 2, "area": 70.5},
        {"segmentation": [], "bbox": [0, 0, 12, 12], "area": None, "iscrowd": 0},
    ]
    for number, annotation in enumerate(annotations):
        of = 0 if number < 2 else number % 2
        annotation |= {
            "id": 100 + number,
            "image_id": 10 + of,
            "category_id": 7 if "keypoints" in annotation else 2 + number % 2,
        }
    mask = np.zeros((height, width), np.uint8)
    mask[8:20, 8:30] = 1
    from engine.data.masks import encode_mask

    annotations.append(
        {"id": 120, "image_id": 10, "category_id": 2, "bbox": [8, 8, 22, 12], "segmentation": encode_mask(mask), "area": 264.0}
    )
    categories = [
        {"id": 2, "name": "cell", "supercategory": "thing"},
        {"id": 3, "name": "nucleus"},
        {"id": 7, "name": "person", "keypoints": POINTS, "skeleton": [[1, 2]]},
    ]
    return {"info": {"year": 2026}, "images": images, "annotations": annotations, "categories": categories, "licenses": []}


def mutated(seed: int) -> bytes:
    """The text of the mutated file number `seed`."""
    rng = random.Random(seed)
    value: Any = content()
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        value = mutate(value, rng)
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1]))
    raw = text.encode("utf-8", "surrogatepass")
    kind = rng.randrange(8)
    if kind == 0 or value == content():
        raw = mutate_bytes(raw, rng)
    elif kind == 1:  # a key twice
        name = rng.choice(['"images"', '"annotations"', '"categories"', '"id"', '"bbox"', '"file_name"'])
        raw = raw.replace(name.encode(), f"{name}: {rng.choice(['[]', '0', 'null', '{}'])}, {name}".encode(), 1)
    elif kind == 2:
        number = rng.choice(["1" * 5000, "1e999", "-1e999", "1E400", "0.1e-999", "01", "+1", ".5", "1.", "0x10"])
        raw = raw.replace(b"10", number.encode(), 1)
    return raw


def uses(images: Path, path: Path, seed: int) -> list[Callable[[], None]]:
    """What is done with a file of annotations, each on its own."""
    rng = random.Random(seed)
    head, on_fault = rng.choice(["faster_rcnn", "mask_rcnn", "keypoint_rcnn"]), rng.choice(["skip", "stop"])
    files = {"images": str(images), "annotations": str(path)}
    job = _detection(files, head, on_fault)

    def load() -> None:
        for stored_from in (0, 1 << 40):
            table = load_annotations(path, stored_from=stored_from)
            for index in range(len(table)):
                table.file_name(index)
            for row in range(len(table.boxes)):
                table.segmentation(row)

    def train() -> None:
        dataset = job.build_training_set()
        job.describe_classes(dataset)
        for index in range(len(dataset)):
            dataset[1, index]

    def validate() -> None:
        dataset = job.build_validation_set()
        evaluation = job.start_evaluation(dataset)
        for index in range(len(dataset)):
            image, target = dataset[index]
            found = {key: target[key] for key in ("boxes", "labels")} | {"scores": torch.ones(len(target["boxes"]))}
            if head == "mask_rcnn":
                found["masks"] = torch.zeros(len(found["boxes"]), 1, *image.shape[1:])
            if head == "keypoint_rcnn":
                found["keypoints"] = torch.zeros(len(found["boxes"]), dataset.annotations.num_keypoints, 3)
            evaluation.add(target, found)
        evaluation.merge([evaluation.collected()])
        evaluation.score(path.parent / "eval")
        if seed % 7 == 0:
            evaluation.draw(path.parent / "drawn")
        if seed % 3 == 0:
            results = ResultFiles("fuzz", {"bbox": path.parent / "eval" / "bbox_results.json"})
            write_report(path, results, path.parent / "report", images=images, resamples=2, num_pictures=1)

    def check() -> None:
        splits = examine({"train": CocoPaths(images, path)}, classes=None, reporter=Reporter(World(0, 1, torch.device("cpu"))))
        draw_worst(splits, count=3)
        for split in splits:
            if split.content is not None:
                clean(split.content, split.findings)

    def paint() -> None:
        painted = job_of(
            apply_overrides(_SEGMENTATION | {"data": {"train": files, "val": files, "num_workers": 0}}, [], origin="toy")
        )
        dataset = painted.build_training_set()
        for index in range(len(dataset)):
            dataset[1, index]

    return [load, train, validate, check, paint]


_SEGMENTATION: dict[str, Any] = {"job": "segmentation", "device": "cpu"}


def _detection(files: dict[str, str], head: str, on_fault: str) -> Any:
    toy = json.loads(json.dumps(TOY))
    toy["model"]["head"] = {"name": head}
    toy["data"] |= {"train": files, "val": files, "on_fault": on_fault, "augmentations": [{"name": "horizontal_flip"}]}
    return job_of(apply_overrides(toy, [], origin="toy"))
