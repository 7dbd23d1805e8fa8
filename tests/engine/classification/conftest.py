"""Small folders of class folders, files as MNIST's, and a classifier that is trained on them in a second."""

import copy
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.classification.config import ClassificationConfig
from engine.config_file import apply_overrides

CLASSES = {"blue": (30, 60, 230), "green": (40, 200, 60), "red": (230, 30, 30)}
SIZES = ((20, 24), (24, 20), (18, 30))  # (height, width), pixels

TOY: dict[str, Any] = {
    "job": "classification",
    "model": {"backbone": {"name": "cifar_resnet", "depth": 8, "width": 8, "norm": "gn"}},
    "data": {"size": 16, "num_workers": 0, "augmentations": [{"name": "horizontal_flip"}]},
    "train": {"batch_size": 4, "epochs": 1, "log_steps": 1},
    "optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.01},
    "schedule": {"warmup_steps": 0},
    "eval": {"pictures": 0, "batch_size": 3},
    "device": "cpu",
}


def write_folders(folder: Path, *, count: int = 4, classes: tuple[str, ...] = tuple(CLASSES), seed: int = 0) -> Path:
    """Write `count` images of each class, which have its colour but for noise, into class folders; gives the folder."""
    rng = np.random.default_rng([seed, count])
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            height, width = SIZES[i % len(SIZES)]
            pixels = np.array(CLASSES.get(name, (128, 128, 128))) + rng.integers(-25, 26, (height, width, 3))
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / name / f"{i:03}.png")
    return folder


def write_idx(path: Path, array: np.ndarray) -> Path:
    """Write an array of bytes as MNIST's files are, gzipped if the name ends in .gz."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_mnist(folder: Path, *, count: int = 20, val_count: int = 10, suffix: str = "") -> Path:
    """Write the four files of a set like MNIST into a folder; an image's brightness follows its class."""
    rng = np.random.default_rng(count)
    for split, size in (("train", count), ("t10k", val_count)):
        labels = np.arange(size) % 10
        images = np.clip(labels[:, None, None] * 25 + rng.integers(0, 20, (size, 28, 28)), 0, 255)
        write_idx(folder / f"{split}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{split}-labels-idx1-ubyte{suffix}", labels)
    return folder


def toy_config(*overrides: str, train: Path | str, val: Path | str | None = None, output_dir: Path) -> ClassificationConfig:
    """The toy classifier on folders of images, validated on the same unless `val` is given, with `key=value` overrides."""
    content = copy.deepcopy(TOY) | {"output_dir": str(output_dir)}
    content["data"] |= {"train": {"images": str(train)}, "val": {"images": str(val or train)}}
    config = apply_overrides(content, overrides, origin="the toy config")
    assert isinstance(config, ClassificationConfig)
    return config


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images in three class folders; not to be written to."""
    return write_folders(tmp_path_factory.mktemp("colours") / "images")


@pytest.fixture
def make_config(folders: Path, tmp_path: Path) -> Callable[..., ClassificationConfig]:
    """A function from overrides to a config of the toy classifier; the run goes into `tmp_path / name`."""

    def make(*overrides: str, train: Path | str | None = None, val: Path | str | None = None, name: str = "run"):
        return toy_config(*overrides, train=train or folders, val=val, output_dir=tmp_path / name)

    return make
