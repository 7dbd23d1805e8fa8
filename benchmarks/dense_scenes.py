"""Peak memory of a step on an image with 20 objects and with 2,000: training, detection of as many, and prediction.

python benchmarks/dense_scenes.py -o benchmarks/results/dense_scenes.json

Each figure is the peak of a process of its own: one 800 x 1333 image, a ResNet-50 with random weights, on a CPU. Detection is
what an evaluation does; prediction is what tools/predict.py does, which also draws all that is found and writes it down.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backbones import build_fpn_backbone
from engine.benchmark import describe_machine, peak_bytes
from engine.config_file import load_config
from engine.data.annotations import Category
from engine.job import job_of
from heads import build_detector
from heads.cropped_masks import CroppedMasks

SIZE = (800, 1333)
DETECTORS = ("faster_rcnn", "mask_rcnn", "cascade_mask_rcnn", "keypoint_rcnn", "retinanet", "fcos")
TASKS = ("training", "detection", "prediction")
KEYPOINTS = 17
COUNTS = (20, 2000)


def build(head: str, *, detections: int) -> nn.Module:
    """A detector for COCO's classes; its scores are random, and all count."""
    torch.manual_seed(0)
    one_stage = head in ("retinanet", "fcos")
    pyramid: dict[str, Any] = {"out_features": ["c3", "c4", "c5"], "extra_level": "p6p7"} if one_stage else {}
    backbone = build_fpn_backbone("resnet50", norm="frozen_bn", trainable_layers=3, **pyramid)
    most: dict[str, Any] = {"detections_per_img": detections, "score_thresh": 0.0, "topk_candidates": detections}
    if not one_stage:
        most = {"box_detections_per_img": detections, "box_score_thresh": 0.0, "rpn_post_nms_top_n_test": detections}
    return build_detector(head, backbone, num_classes=91, resize_in_training=False, **most)


def make_target(count: int, *, masks: bool, keypoints: bool) -> dict[str, Any]:
    """Boxes of 8 to 120 pixels anywhere in the image, filled by their masks, or with keypoints anywhere in them."""
    generator = torch.Generator().manual_seed(count)
    sides = 8 + 112 * torch.rand(count, 2, generator=generator) ** 3
    corners = torch.rand(count, 2, generator=generator) * (torch.tensor([SIZE[1], SIZE[0]]) - sides)
    boxes = torch.cat([corners, corners + sides], dim=1).round()
    target: dict[str, Any] = {"boxes": boxes, "labels": torch.randint(1, 91, (count,), generator=generator), "seed": 0}
    if masks:
        windows = [tuple(box) for box in boxes.int().tolist()]
        pixels = sum((right - left) * (bottom - top) for left, top, right, bottom in windows)
        target["masks"] = CroppedMasks(torch.ones(pixels, dtype=torch.uint8), windows, SIZE)
    if keypoints:
        places = corners[:, None] + sides[:, None] * torch.rand(count, KEYPOINTS, 2, generator=generator)
        target["keypoints"] = torch.cat([places, torch.full((count, KEYPOINTS, 1), 2.0)], dim=2)
    return target


@torch.no_grad()
def predict(model: nn.Module) -> int:
    """What tools/predict.py does with an image, all that is found drawn; the number of objects."""
    job = job_of(load_config(str(Path(__file__).parents[1] / "configs" / "mrcnn_r50.yaml")))
    points = tuple(f"point {number}" for number in range(KEYPOINTS))
    categories = [Category(number, f"class {number}", points) for number in range(1, 91)]
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        prediction = job.predict(model, [job.prepare(image)])[0]
        _, rows = job.present(image, prediction, categories, picture=Path(folder) / "picture.png", score_threshold=0.0)
        (Path(folder) / "results.json").write_text(json.dumps(rows))
    return len(rows)


def step(head: str, task: str, count: int) -> dict[str, float]:
    """One step in this process; its peak memory in GB, beyond nothing, and its seconds."""
    model = build(head, detections=count)
    images: list[Tensor] = [torch.rand(3, *SIZE)]
    began = time.perf_counter()
    if task == "training":
        losses = model.train()(images, [make_target(count, masks="mask" in head, keypoints="keypoint" in head)])
        torch.stack(list(losses.values())).sum().backward()
        found = count
    elif task == "prediction":
        found = predict(model.eval())
    else:
        # As the engine evaluates: masks stay what the head predicts, 28 x 28, until they are scored.
        with torch.no_grad(), model.transform.masks_as_predicted():  # type: ignore[operator, union-attr]
            found = len(model.eval()(images)[0]["boxes"])
    return {"gb": round(peak_bytes() / 1e9, 2), "seconds": round(time.perf_counter() - began, 1), "objects": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", nargs="+", choices=DETECTORS, default=DETECTORS)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--step", nargs=3, metavar=("HEAD", "TASK", "COUNT"), help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", metavar="FILE")
    args = parser.parse_args()
    if args.step:
        print(json.dumps(step(args.step[0], args.step[1], int(args.step[2]))))
        return
    rows = []
    for head in args.heads:
        for task in args.tasks:
            few, many = (
                json.loads(subprocess.check_output([sys.executable, __file__, "--step", head, task, str(count)], text=True))
                for count in COUNTS
            )
            rows.append({"head": head, "task": task, "few": few, "many": many, "more_gb": round(many["gb"] - few["gb"], 2)})
            print(json.dumps(rows[-1]), flush=True)
    if args.output:
        result = {"machine": describe_machine(torch.device("cpu")), "size": SIZE, "objects": COUNTS, "rows": rows}
        Path(args.output).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
