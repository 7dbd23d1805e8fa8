"""Scoring of 5,000 images x 100 boxes: ours, image by image and over several processes' states, against pycocotools.

python benchmarks/scoring.py -o benchmarks/results/scoring.json
"""

import argparse
import contextlib
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.benchmark import describe_machine
from engine.detection.coco_eval import ScoreOptions, score_results
from engine.detection.streaming import GroundTruth, StreamingScorer

CATEGORIES = 80
OBJECTS = 7  # an image, as in COCO


def make_case(images: int, detections: int, *, seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Annotations and results: most detections near an object of the right class, scores with many ties."""
    random = np.random.default_rng(seed)
    truth: dict[str, Any] = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 480, "width": 640} for i in range(1, images + 1)],
        "categories": [{"id": i, "name": f"class {i}"} for i in range(1, CATEGORIES + 1)],
        "annotations": [],
    }
    rows = []
    for image in truth["images"]:
        boxes = np.concatenate([random.uniform(0, 450, (OBJECTS, 2)), random.uniform(5, 150, (OBJECTS, 2))], axis=1).round(2)
        labels = random.integers(1, CATEGORIES + 1, OBJECTS)
        for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
            number = len(truth["annotations"]) + 1
            crowd = int(random.random() < 0.01)
            entry = {"id": number, "image_id": image["id"], "category_id": label, "bbox": box, "area": box[2] * box[3]}
            truth["annotations"].append(entry | {"iscrowd": crowd})
        of = random.integers(0, OBJECTS, detections)
        moved = boxes[of] + random.normal(0, 0.15, (detections, 4)) * boxes[of][:, [2, 3, 2, 3]]
        moved[:, 2:] = np.maximum(moved[:, 2:], 1)
        right = random.random(detections) < 0.8
        found = np.where(right, labels[of], random.integers(1, CATEGORIES + 1, detections))
        scores = random.random(detections).round(2)
        rows += [
            {"image_id": image["id"], "category_id": int(label), "bbox": box, "score": float(score)}
            for box, label, score in zip(moved.tolist(), found, scores, strict=True)
        ]
    return truth, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100, help="an image")
    parser.add_argument("-o", "--output", metavar="FILE")
    args = parser.parse_args()
    truth, rows = make_case(args.images, args.detections, seed=0)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "truth.json"
        path.write_text(json.dumps(truth))
        ground_truth = GroundTruth(path)
        assert ground_truth.content
    by_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in truth["images"]}
    for row in rows:
        by_image[row["image_id"]].append(row)
    for processes in (1, 2, 3, 8):
        began = time.perf_counter()
        scorers = [StreamingScorer(ground_truth, iou_type="bbox", options=ScoreOptions()) for _ in range(processes)]
        for place, (image_id, image_rows) in enumerate(by_image.items()):
            scorers[place % processes].add(image_id, image_rows)
        matched = time.perf_counter()
        states = [scorer.state() for scorer in scorers]
        scorers[0].merge(states)
        score = scorers[0].score()
        ended = time.perf_counter()
        found[f"ours, {processes} processes' states"] = {
            "seconds": ended - began, "after the last image": ended - matched,
            "megabytes sent": sum(map(len, states)) / 1e6, "stats": score.stats,
        }  # fmt: skip
        print(
            f"ours, {processes} states: {ended - began:.2f} s, of which {ended - matched:.2f} s after the last image",
            flush=True,
        )
    for backend in ("hotcoco", "pycocotools"):
        began = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            score = score_results(ground_truth.content, rows, iou_type="bbox", backend=backend)  # type: ignore[arg-type]
        found[f"{backend}, all at once"] = {"seconds": time.perf_counter() - began, "stats": score.stats}
        print(f"{backend}, all at once: {time.perf_counter() - began:.2f} s", flush=True)
    equal = len({json.dumps(one["stats"]) for one in found.values()}) == 1
    print("the twelve numbers are", "equal to the last bit" if equal else "NOT EQUAL")
    if args.output:
        content = {
            "machine": describe_machine(torch.device("cpu")),
            "settings": vars(args),
            "equal": equal,
            "measurements": found,
        }
        Path(args.output).write_text(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
