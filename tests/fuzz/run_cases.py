"""What is done with a config that could be read: its data, model and optimizer are built, and it is trained for an epoch.

The data are three images of 40 pixels; sizes, batches and epochs are cut to theirs. All else stays as the mutation left it.
"""

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from engine.build import build_optimizer, build_schedule
from engine.config import RunConfig
from engine.config_file import check_config
from engine.job import job_of
from engine.train import train
from tests.fuzz.annotation_cases import SIZES, content, write_images
from tests.fuzz.config_cases import CONFIGS, recipes
from tests.fuzz.mutations import TEXTS

SIDE = 64  # pixels, at most
MOST_PARAMETERS = 40_000_000  # of a model that is trained


class TinyData:
    """The three images as each job's data, in `folder`."""

    def __init__(self, folder: Path) -> None:
        images, labels, classes = folder / "images", folder / "labels", folder / "classes"
        write_images(images)
        (folder / "tiny.json").write_text(json.dumps(content()))
        (labels / "below").mkdir(parents=True)
        rng = np.random.default_rng(1)
        for number, size in enumerate(SIZES):
            name = next(images.rglob(f"{number}.png")).relative_to(images)
            Image.fromarray(rng.integers(0, 3, size, np.uint8)).save(labels / name)
            for word_net_id in ("n01440764", "n01443537"):
                (classes / word_net_id).mkdir(parents=True, exist_ok=True)
                Image.open(images / name).save(classes / word_net_id / f"{number}.png")
        self._annotated = {"images": str(images), "annotations": str(folder / "tiny.json")}
        self._painted = {"images": str(images), "labels": str(labels)}
        self._sorted = {"images": str(classes)}

    def of(self, config: RunConfig) -> dict[str, str]:
        """What `data.train` and `data.val` of a config become."""
        if config.job == "classification":
            return self._sorted
        return self._painted if config.job == "segmentation" and getattr(config.data, "classes", None) else self._annotated


def shrunk(config: RunConfig, data: TinyData, *, output_dir: Path) -> RunConfig:
    """The config on the tiny data, what makes it slow cut; nothing is downloaded.

    Raises:
        UserError: the settings do not go with the cut ones.
    """
    plain = config.model_dump()
    plain |= {"device": "cpu", "output_dir": str(output_dir)}
    plain["data"] |= {"train": data.of(config), "val": data.of(config), "num_workers": 0}
    backbone, train_part = plain["model"]["backbone"], plain["train"]
    if backbone["name"] in ("resnet50", "resnet101") and "output_stride" not in backbone:
        backbone["name"] = "resnet18"
    if backbone["weights"] is not None:
        backbone |= {"weights": None, "norm": backbone["norm"] or "frozen_bn"}
    train_part |= {"batch_size": min(train_part["batch_size"], 2), "epochs": 1, "compile": False}
    if train_part["batch_size"] % train_part["accumulate"]:
        train_part["accumulate"] = 1
    plain["eval"] |= {"batch_size": min(plain["eval"]["batch_size"], 2), "pictures": min(plain["eval"]["pictures"], 1)}
    for key in ("min_size", "max_size", "crop_size", "size", "eval_size", "eval_resize"):
        if key in plain["data"]:
            plain["data"][key] = _cut(plain["data"][key])
    for start_and_side in plain["data"].get("long_side_schedule", ()):
        start_and_side[1] = _cut(start_and_side[1])
    for step in plain["data"].get("augmentations", ()):
        if "size" in step:
            step["size"] = _cut(step["size"])
    return check_config(plain)


def _cut(side: Any) -> Any:
    if isinstance(side, list):
        return [_cut(one) for one in side]
    return min(side, SIDE) if isinstance(side, int) else side


def build(config: RunConfig) -> int:
    """Build the data sets, read them, and build the model, without its memory, and what trains it; its count of parameters."""
    job = job_of(config)
    training_set = job.build_training_set()
    validation_set = job.build_validation_set()
    for index in range(len(training_set)):
        training_set[0, index]
    for index in range(len(validation_set)):
        validation_set[index]
    with torch.device("meta"):
        model = job.build_model(training_set.categories, load_weights=False)
    build_optimizer(config, model)
    factor = build_schedule(config, steps_per_epoch=2)
    for step in range(3):
        factor(step)
    job.start_evaluation(validation_set)
    return sum(parameter.numel() for parameter in model.parameters())


def run(config: RunConfig) -> None:
    """Train for an epoch, and evaluate."""
    train(config)


# ---- Settings of the right kind, at and beyond their bounds ----

VALUES: list[Any] = [
    *(0, -1, 1, 2, 3, 7, 64, 10**6, 0.0, 0.5, 1.0, -0.5, 2.0, 1e-30, 1e30, True, False, None, "", "x", *TEXTS[:4]),
    *([], [[]], [0], [1], [-1], [0.5], [1, 2, 3], [[1, 2], [3]], [[8], [16], [32], [64], [128]], [["a"]], ["c5"], ["c9"]),
    *({}, {"a": 1}, [0.5, 0.5, 0.5], [0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0], [[0.5, 1.0, 2.0]], [64, 32]),
]


def edged(seed: int) -> dict[str, Any]:
    """A recipe with settings, named rightly, of unlikely values."""
    from backbones.fpn import PYRAMIDS
    from backbones.registry import BACKBONES, list_backbones
    from engine.classification.augmentations import IMAGE_AUGMENTATIONS
    from engine.data.augmentations import AUGMENTATIONS
    from engine.job import job_class
    from heads.registry import DETECTORS
    from heads.segmentation import SEGMENTERS

    rng = random.Random(seed)
    chosen = json.loads(json.dumps(recipes({})[rng.randrange(len(CONFIGS))]))
    job = chosen.get("job", "detection")
    fields = job_class(job).config_class.model_fields
    heads = {"detection": DETECTORS, "segmentation": SEGMENTERS}
    for _ in range(rng.choice([1, 1, 2])):
        section = rng.choice(["backbone", "pyramid", "head", "head", "augmentation", "data", "train", "eval", "other"])
        if section == "backbone":
            place, registry = chosen["model"]["backbone"], BACKBONES
            if rng.random() < 0.3:
                place["name"] = rng.choice(list_backbones())
                place.pop("weights", None)
        elif section == "pyramid":
            place, registry = chosen["model"].setdefault("pyramid", {"name": "fpn"}), PYRAMIDS
            place["name"] = rng.choice(PYRAMIDS.names())
        elif section == "head" and job in heads:
            place, registry = chosen["model"].setdefault("head", {}), heads[job]
            place.setdefault("name", registry.names()[0])
            if rng.random() < 0.3:
                place["name"] = rng.choice(registry.names())
        elif section == "augmentation":
            registry = IMAGE_AUGMENTATIONS if job == "classification" else AUGMENTATIONS
            place = {"name": rng.choice(registry.names())}
            steps = chosen["data"].setdefault("augmentations", [])
            if not isinstance(steps, list):
                continue
            steps.insert(rng.randrange(len(steps) + 1), place)
        else:
            name = section if section in ("data", "train", "eval") else rng.choice(["optimizer", "schedule", "distributed"])
            place = chosen.setdefault(name, {})
            section_fields = fields[name].annotation.model_fields
            key = rng.choice(list(section_fields))
            place[key] = rng.choice(_fitting(section_fields[key].annotation))
            continue
        types = registry.options(place["name"]) or {}
        options = sorted(types.keys() - {"backbone", "num_classes", "weights"})
        if section in ("backbone", "pyramid") and rng.random() < 0.5:
            options = ["norm", "out_features", "trainable_layers"] if section == "backbone" else ["out_channels", "extra_level"]
        if options:
            option = rng.choice(options)
            place[option] = rng.choice(_fitting(types.get(option, Any)))
    return chosen


def _fitting(kind: Any) -> list[Any]:
    """The values of a type, bounds aside; all where there is none."""
    fitting = []
    for value in VALUES:
        with contextlib.suppress(ValidationError):
            TypeAdapter(kind).validate_python(value, strict=True)
            fitting.append(value)
    return fitting or VALUES
