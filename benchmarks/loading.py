"""Loading of training samples: ours against torchvision's reference pipeline, in turns, on the same images, in one process.

python benchmarks/loading.py --images data/train --annotations data/instances_train.json -o benchmarks/results/loading.json

torchvision's is that of its references/detection: `CocoDetection` wrapped for v2, `RandomHorizontalFlip` and
`RandomShortestSize` with the same sides, on tensors. Ours resizes with the same bounds and flips as often,
once as it is with a set too large to be kept, and once with `data.cache_images`; a first pass, which fills it, is not timed.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import datasets
from torchvision.transforms import v2

from engine.benchmark import describe_machine
from engine.data.annotations import load_annotations
from engine.data.augmentations import build_transforms
from engine.data.dataset import CocoDataset
from engine.data.image_cache import ImageCache
from engine.data.pipeline import Augmentation


def torchvisions(images: str, annotations: str, *, with_masks: bool, min_size: int, max_size: int) -> Any:
    """torchvision's data set with its reference transforms."""
    keys = ["boxes", "labels", "image_id", *(["masks"] if with_masks else [])]
    transforms = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomShortestSize(min_size=[min_size], max_size=max_size),
            v2.SanitizeBoundingBoxes(),
            v2.ToPureTensor(),
        ]
    )
    dataset = datasets.CocoDetection(images, annotations, transforms=transforms)
    return datasets.wrap_dataset_for_transforms_v2(dataset, target_keys=keys)


def ours(
    images: str, annotations: str, *, with_masks: bool, min_size: int, max_size: int, keeps_images: bool = False
) -> CocoDataset:
    """Our data set with the same resize and flip; with `keeps_images` as `data.cache_images` makes it."""
    flip = build_transforms("horizontal_flip", {"p": 0.5})
    augmentation = Augmentation(flip, min_sizes=[min_size], max_size=max_size)
    table = load_annotations(annotations)
    return CocoDataset(
        Path(images),
        table,
        augmentation=augmentation,
        with_masks=with_masks,
        cropped_masks=True,
        image_cache=ImageCache(np.stack([table.heights, table.widths], axis=1)) if keeps_images else None,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True)
    parser.add_argument("--annotations", required=True)
    parser.add_argument("--size", type=int, nargs=2, default=[800, 1333], metavar=("MIN", "MAX"))
    parser.add_argument("--rounds", type=int, default=3, help="passes over the data set that are timed")
    parser.add_argument("-o", "--output", metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(1)  # a loader has a process a core
    results = {}
    for with_masks in (False, True):
        sizes = {"min_size": args.size[0], "max_size": args.size[1]}
        sets: dict[str, Any] = {
            "torchvision": torchvisions(args.images, args.annotations, with_masks=with_masks, **sizes),
            "ours": ours(args.images, args.annotations, with_masks=with_masks, **sizes),
            "ours, images kept": ours(args.images, args.annotations, with_masks=with_masks, keeps_images=True, **sizes),
        }
        # torchvision fails on images without an object; both load the others.
        annotations = sets["ours"].annotations
        where = [i for i in range(len(annotations)) if annotations.offsets[i + 1] > annotations.offsets[i]]
        place = {image_id: i for i, image_id in enumerate(sets["torchvision"].ids)}
        keys = {"ours": where, "ours, images kept": where, "torchvision": [place[int(annotations.image_ids[i])] for i in where]}
        times: dict[str, list[float]] = {name: [] for name in sets}
        for number in range(args.rounds + 1):
            for name, dataset in sets.items():
                began = time.perf_counter()
                for key in keys[name]:
                    dataset[key]
                seconds = time.perf_counter() - began
                if number:
                    times[name].append(seconds / len(where))
        kind = "boxes and masks" if with_masks else "boxes"
        medians = {name: statistics.median(values) for name, values in times.items()}
        ratios = {name: medians["torchvision"] / value for name, value in medians.items()}
        rows = (f"  {name:<20}{1 / value:>8.1f} images/s{ratios[name]:>8.2f}x" for name, value in medians.items())
        print(kind, *rows, sep="\n")
        results[kind] = {"seconds_an_image": times, "ratios": ratios}
    if args.output:
        machine = describe_machine(torch.device("cpu"))
        Path(args.output).write_text(json.dumps({"machine": machine, "settings": vars(args), "results": results}, indent=2))


if __name__ == "__main__":
    main()
