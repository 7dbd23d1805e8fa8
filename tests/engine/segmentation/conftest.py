"""Tiny images with label maps, the config of a segmenter small enough to train on them in a second, and one trained run."""

import contextlib
import copy
import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.config_file import apply_overrides
from engine.segmentation.config import SegmentationConfig
from engine.train import train

SIZES = ((64, 64), (48, 64), (64, 96), (64, 48))  # (height, width), pixels
NAMES = ["background", "square", "bar"]
BORDER = 255

TOY: dict[str, Any] = {
    "job": "segmentation",
    "model": {
        "backbone": {"name": "resnet18", "norm": "gn", "out_features": ["c2"]},
        "head": {"name": "fcn", "norm": "gn"},
    },
    "data": {"classes": NAMES, "min_size": 64, "max_size": 128, "num_workers": 0, "augmentations": []},
    "train": {"batch_size": 2, "epochs": 1, "log_steps": 1},
    "optimizer": {"name": "sgd", "lr": 0.01},
    "schedule": {"warmup_steps": 0},
    "eval": {"pictures": 0},
    "device": "cpu",
}


def write_maps(folder: Path, count: int = 6, *, sizes: tuple[tuple[int, int], ...] = SIZES) -> dict[str, str]:
    """Write images of a red square and a blue bar and their label maps, each square within a border of no class.

    Gives the `images` and `labels` of a config.
    """
    rng = np.random.default_rng(count)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for i in range(count):
        height, width = sizes[i % len(sizes)]
        pixels = rng.integers(90, 130, (height, width, 3)).astype(np.uint8)
        labels = np.zeros((height, width), np.uint8)
        top, left = int(rng.integers(1, height - 20)), int(rng.integers(1, width // 2 - 18))
        labels[top - 1 : top + 17, left - 1 : left + 17] = BORDER
        labels[top : top + 16, left : left + 16] = 1
        top, left = int(rng.integers(0, height - 10)), int(rng.integers(width // 2, width - 20))
        labels[top : top + 10, left : left + 20] = 2
        pixels[labels == 1] = (230, 30, 30)
        pixels[labels == 2] = (30, 60, 230)
        Image.fromarray(pixels).save(folder / "images" / f"{i:03}.png")
        save_palette(labels, folder / "labels" / f"{i:03}.png")
    return {"images": str(folder / "images"), "labels": str(folder / "labels")}


def save_palette(labels: np.ndarray, path: Path) -> None:
    """A palette PNG, as PASCAL VOC's, whose indices are the labels."""
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(np.random.default_rng(3).integers(0, 256, 768).astype(np.uint8).tobytes())
    image.save(path)


def toy_config(
    *overrides: str, data: dict[str, str], val: dict[str, str] | None = None, output_dir: Path
) -> SegmentationConfig:
    """The toy segmenter on `data`, validated on the same unless `val` is given, with `key=value` overrides."""
    content = copy.deepcopy(TOY) | {"output_dir": str(output_dir)}
    content["data"] |= {"train": dict(data), "val": dict(val or data)}
    config = apply_overrides(content, list(overrides), origin="the toy config")
    assert isinstance(config, SegmentationConfig)
    return config


_TRAINED: list[SimpleNamespace] = []


def train_once(factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A segmenter trained until it knows what it was trained on: its data, config, folder, last scores and output."""
    if not _TRAINED:
        folder = factory.mktemp("trained segmenter")
        data = write_maps(folder / "data")
        learning = ["optimizer.name=adamw", "optimizer.lr=0.003", "schedule.name=cosine", "train.clip_grad_norm=1.0"]
        overrides = [*learning, "train.epochs=20", "eval.every_epochs=20", "eval.pictures=3"]
        config = toy_config(*overrides, data=data, output_dir=folder / "run")
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            scores = train(config)
        run = SimpleNamespace(data=data, config=config, folder=folder / "run", scores=scores, printed=printed.getvalue())
        _TRAINED.append(run)
    return _TRAINED[0]


@pytest.fixture(scope="session")
def maps_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Six images of several sizes with their label maps; not to be written to."""
    return write_maps(tmp_path_factory.mktemp("maps"))


@pytest.fixture
def make_config(maps_data: dict[str, str], tmp_path: Path) -> Callable[..., SegmentationConfig]:
    """A function from overrides to a config of the toy segmenter; the run goes into `tmp_path / name`."""

    def make(*overrides: str, data: dict[str, str] | None = None, name: str = "run") -> SegmentationConfig:
        return toy_config(*overrides, data=data or maps_data, output_dir=tmp_path / name)

    return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A finished run (`folder`, `config`, `data`, `scores`, `printed`); not to be written to."""
    return train_once(tmp_path_factory)
