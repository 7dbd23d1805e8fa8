"""Memory of mask evaluation: images of 4000 x 3000 with 300 instances each, from the head's masks to the score.

python benchmarks/mask_evaluation.py -o benchmarks/results/mask_evaluation.json
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.benchmark import describe_machine, peak_bytes
from engine.data.annotations import Category
from engine.data.masks import encode_mask
from engine.detection.coco_eval import ScoreOptions
from engine.detection.results import rows_of_type, to_detections
from engine.detection.streaming import GroundTruth, StreamingScorer
from heads.mask_paste import UnpastedMasks, paste_masks

SIZE = (3000, 4000)
CATEGORY = Category(1, "thing")


def predict(instances: int, *, seed: int) -> dict[str, Tensor]:
    """What a mask head gives of one image: blobs in boxes of all sizes."""
    generator = torch.Generator().manual_seed(seed)
    sides = torch.exp(torch.rand(instances, 2, generator=generator) * 4 + 3).clamp(max=1500)
    corners = torch.rand(instances, 2, generator=generator) * (torch.tensor([SIZE[1], SIZE[0]]) - sides)
    across = torch.linspace(-1, 1, 28)
    radius = across[:, None] ** 2 + across**2
    masks = torch.sigmoid(6 * (0.8 - radius + 0.3 * torch.randn(instances, 28, 28, generator=generator)))
    return {
        "boxes": torch.cat([corners, corners + sides], dim=1),
        "labels": torch.ones(instances, dtype=torch.int64),
        "scores": torch.rand(instances, generator=generator),
        "masks": masks[:, None],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--instances", type=int, default=300, help="an image")
    parser.add_argument("-o", "--output", metavar="FILE")
    args = parser.parse_args()
    before = peak_bytes() / 1e9
    # The truth is every tenth instance of what is "predicted".
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    encoding = 0.0
    found = {}
    for image_id in range(1, args.images + 1):
        began = time.perf_counter()
        prediction = predict(args.instances, seed=image_id)
        small = UnpastedMasks(prediction["masks"], prediction["boxes"], SIZE)
        found[image_id] = to_detections(prediction | {"masks": small})
        encoding += time.perf_counter() - began
        truth["images"].append({"id": image_id, "file_name": f"{image_id}.jpg", "height": SIZE[0], "width": SIZE[1]})
        for row in found[image_id].rows(image_id, [CATEGORY])[::10]:
            number = len(truth["annotations"]) + 1
            truth["annotations"].append({"id": number, "iscrowd": 0, **{k: v for k, v in row.items() if k != "score"}})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "truth.json"
        path.write_text(json.dumps(truth))
        scorer = StreamingScorer(GroundTruth(path), iou_type="segm", options=ScoreOptions())
        began = time.perf_counter()
        for image_id, detections in found.items():
            scorer.add(image_id, rows_of_type(detections.rows(image_id, [CATEGORY]), "segm"))
        score = scorer.score()
        scoring = time.perf_counter() - began
    figures = {
        "peak_gb": peak_bytes() / 1e9,
        "peak_gb_of_the_imports": before,
        "encoding_seconds": encoding,
        "scoring_seconds": scoring,
    }
    print(", ".join(f"{name} {value:.2f}" for name, value in figures.items()), f"AP {score.value:.3f}")

    # The dense path, on a part of an image: all of it would be 14 GB.
    prediction = {key: value[:20] for key, value in predict(args.instances, seed=1).items()}
    pasted = paste_masks(prediction["masks"], prediction["boxes"], SIZE)
    dense = [encode_mask((mask[0] > 0.5).byte().numpy()) for mask in pasted]
    equal = dense == (found[1].masks or [])[:20] and len({np.sum(mask.numpy() > 0.5) for mask in pasted}) > 10
    print("run lengths of 20 masks are", "equal to the dense path's" if equal else "NOT EQUAL to the dense path's")
    if args.output:
        content = {"machine": describe_machine(torch.device("cpu")), "settings": vars(args), "equal": equal, **figures}
        Path(args.output).write_text(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
