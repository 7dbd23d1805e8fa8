"""A tiny data set in COCO's format, the config of a detector small enough to train on it in a second, and one trained run."""

import contextlib
import copy
import io
import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_api

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

from engine.cli import run_tool
from engine.config_file import apply_overrides
from engine.detection.config import DetectionConfig
from engine.job import JOBS, TOOLS, Job, job_of
from engine.train import train

# Neither in order nor without gaps; the last never occurs.
CATEGORIES = [{"id": 44, "name": "square"}, {"id": 3, "name": "bar"}, {"id": 90, "name": "never"}]
SIZES = ((64, 64), (48, 64), (64, 96), (64, 48))  # (height, width), pixels
EMPTY, CROWD = 4, 2  # which image has no object, which a crowd region
MASKS = ("model.head.name=mask_rcnn", "model.head.mask_head_dim=8", "model.head.mask_head_layers=1")

TOY: dict[str, Any] = {
    "model": {
        "backbone": {"name": "resnet18", "norm": "gn", "out_features": ["c2", "c3"]},
        "pyramid": {"out_channels": 16},
        "head": {
            "name": "faster_rcnn",
            "anchor_scale": 4,
            "box_head_dim": 32,
            "rpn_pre_nms_top_n_train": 60,
            "rpn_pre_nms_top_n_test": 60,
            "rpn_post_nms_top_n_train": 60,
            "rpn_post_nms_top_n_test": 30,
            "box_batch_size_per_image": 16,
            "box_detections_per_img": 20,
        },
    },
    "data": {"min_size": 64, "max_size": 128, "num_workers": 0, "augmentations": []},
    "train": {"batch_size": 2, "epochs": 1, "log_steps": 1},
    "optimizer": {"name": "sgd", "lr": 0.01},
    "schedule": {"warmup_steps": 0},
    "eval": {"pictures": 0},
    "device": "cpu",
}


def write_coco(
    folder: Path, count: int = 7, *, sizes: tuple[tuple[int, int], ...] = SIZES, first_id: int = 5
) -> dict[str, str]:
    """Write images of coloured rectangles and their annotations: polygons, both forms of RLE, a crowd region, an empty image.

    Gives the `images` and `annotations` of a config. Image ids are sparse and descend.
    """
    rng = np.random.default_rng(count)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    (folder / "images").mkdir(parents=True)
    for i in range(count):
        height, width = sizes[i % len(sizes)]
        pixels = rng.integers(90, 130, (height, width, 3)).astype(np.uint8)
        image = {"id": first_id + 10 * (count - i), "file_name": f"{i:03}.png", "height": height, "width": width}
        images.append(image)
        for column in range(0 if i == EMPTY else 2):  # one object in each half, so that none hides another
            square = bool((i + column) % 2)
            w, h = (16, 16) if square else (20, 10)
            left = column * width // 2 + int(rng.integers(0, width // 2 - w + 1))
            top = int(rng.integers(0, height - h + 1))
            pixels[top : top + h, left : left + w] = (230, 30, 30) if square else (30, 60, 230)
            mask = np.zeros((height, width), np.uint8)
            mask[top : top + h, left : left + w] = 1
            crowd = i == CROWD and column == 1
            annotation = {
                "id": 1000 - 7 * len(annotations),
                "image_id": image["id"],
                "category_id": 44 if square else 3,
                "bbox": [left, top, w, h],
                "area": w * h,
                "iscrowd": int(crowd),
                "segmentation": _segmentation(mask, [left, top, w, h], "list" if crowd else ("polygon", "rle", "list")[i % 3]),
            }
            annotations.append(annotation)
        Image.fromarray(pixels).save(folder / "images" / image["file_name"])
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (folder / "instances.json").write_text(json.dumps(content))
    return {"images": str(folder / "images"), "annotations": str(folder / "instances.json")}


def _segmentation(mask: np.ndarray, box: list[int], form: str) -> Any:
    left, top, w, h = box
    if form == "polygon":
        return [[left, top, left + w, top, left + w, top + h, left, top + h]]
    if form == "rle":
        rle = mask_api.encode(np.asfortranarray(mask))
        return {"size": list(mask.shape), "counts": rle["counts"].decode()}
    flat = mask.ravel(order="F").astype(int)
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *ends, len(flat)]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def with_other_category(annotations: str, path: Path, category: dict[str, object]) -> str:
    """A copy of an annotation file at `path`, the category "bar" changed."""
    content = json.loads(Path(annotations).read_text())
    for entry in content["categories"]:
        entry.update(category if entry["name"] == "bar" else {})
    for entry in content["annotations"]:
        entry["category_id"] = category.get("id", 3) if entry["category_id"] == 3 else entry["category_id"]
    path.write_text(json.dumps(content))
    return str(path)


def toy_config(*overrides: str, data: dict[str, str], val: dict[str, str] | None = None, output_dir: Path) -> DetectionConfig:
    """The toy detector on `data`, validated on the same unless `val` is given, with `key=value` overrides."""
    content = copy.deepcopy(TOY) | {"output_dir": str(output_dir)}
    content["data"] |= {"train": dict(data), "val": dict(val or data)}
    config = apply_overrides(content, overrides, origin="the toy config")
    assert isinstance(config, DetectionConfig)
    return config


_TRAINED: list[SimpleNamespace] = []


def train_once(factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A Mask R-CNN trained until it finds what it was trained on: its data, config, folder, last scores and output."""
    if not _TRAINED:
        folder = factory.mktemp("trained")
        data = write_coco(folder / "data")
        learning = ["optimizer.name=adamw", "optimizer.lr=0.001", "schedule.name=cosine", "train.clip_grad_norm=1.0"]
        overrides = [*MASKS, *learning, "train.epochs=32", "eval.every_epochs=32", "eval.pictures=2"]
        config = toy_config(*overrides, data=data, output_dir=folder / "run")
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            scores = train(config)
        run = SimpleNamespace(data=data, config=config, folder=folder / "run", scores=scores, printed=printed.getvalue())
        _TRAINED.append(run)
    return _TRAINED[0]


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Seven images of several sizes, one of them empty, one with a crowd region."""
    return write_coco(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def square_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Eight images of 64 x 64 pixels, so that every batch is padded alike."""
    return write_coco(tmp_path_factory.mktemp("squares"), 8, sizes=((64, 64),))


@pytest.fixture(scope="session")
def few_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two images, quickly evaluated."""
    return write_coco(tmp_path_factory.mktemp("few"), 2)


@pytest.fixture
def make_config(toy_data: dict[str, str], few_data: dict[str, str], tmp_path: Path) -> Callable[..., DetectionConfig]:
    """A function from overrides to a config of the toy detector; the run goes into `tmp_path / name`.

    It trains on `toy_data` and is validated on `few_data`; where `data` is given, on that for both.
    """

    def make(*overrides: str, data: dict[str, str] | None = None, name: str = "run") -> DetectionConfig:
        return toy_config(*overrides, data=data or toy_data, val=data or few_data, output_dir=tmp_path / name)

    return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A finished run (`folder`, `config`, `data`, `scores`, `printed`); not to be written to."""
    return train_once(tmp_path_factory)


# ---- A run to stop and resume ----

# All that has a state: batch statistics, momentum, an average, random augmentations. Three epochs of three steps.
STATEFUL = (
    *MASKS,
    "model.backbone.norm=bn",
    "data.augmentations=[{name: horizontal_flip}, {name: color_jitter}]",
    "data.min_size=[48, 64]",
    "train.epochs=3",
    "train.ema={decay: 0.9}",
    "schedule.name=cosine",
)


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A finished run of `STATEFUL`: `data`, `folder`."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    data = write_coco(folder / "data")
    config = toy_config(*STATEFUL, data=data, output_dir=folder / "run")
    train(config)
    return SimpleNamespace(data=data, folder=folder / "run")


@pytest.fixture
def stateful(uninterrupted: SimpleNamespace, tmp_path: Path) -> Callable[..., DetectionConfig]:
    """A function from overrides to the config of that run; it runs in `tmp_path / run`."""

    def make(*overrides: str) -> DetectionConfig:
        return toy_config(*STATEFUL, *overrides, data=uninterrupted.data, output_dir=tmp_path / "run")

    return make


# ---- A job that is not ours ----

TOY_JOB: dict[str, Any] = {
    "job": "toy",
    "model": {"backbone": {"name": "resnet18", "norm": "frozen_bn", "out_features": ["c2"]}},
    "data": {"num_workers": 0},
    "train": {"batch_size": 2, "epochs": 4, "log_steps": 1},
    "optimizer": {"name": "adamw", "lr": 0.001},
    "schedule": {"warmup_steps": 0},
    "device": "cpu",
}


@pytest.fixture
def toy_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Job[Any]]:
    """A function from overrides to the job of tests/engine/toy_job.py, registered as any is; it runs in `tmp_path / run`."""
    monkeypatch.setitem(JOBS, "toy", "tests.engine.toy_job:ToyJob")
    monkeypatch.setitem(TOOLS, "toy", "toy")

    def make(*overrides: str) -> Job[Any]:
        content = copy.deepcopy(TOY_JOB) | {"output_dir": str(tmp_path / "run")}
        return job_of(apply_overrides(content, overrides, origin="the toy job's config"))

    return make


@pytest.fixture
def toy_run(toy_job: Callable[..., Job[Any]]) -> SimpleNamespace:
    """A finished run of that job: `folder`, `config`, `scores`, `printed`."""
    config = toy_job().config
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        scores = train(config)
    return SimpleNamespace(config=config, folder=Path(config.output_dir), scores=scores, printed=printed.getvalue())


# ---- Processes ----

# They are forked from one that has loaded torch and never used it: a second each, where a new Python takes ten.
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload([__name__, "torch.utils.tensorboard"])


@pytest.fixture
def on_processes(tmp_path: Path) -> Callable[..., list[SimpleNamespace]]:
    """A function that calls one on several processes as torchrun would, and gives each one's exit `status` and `output`."""

    def run(size: int, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> list[SimpleNamespace]:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        outputs = [tmp_path / f"output {rank} of {size}" for rank in range(size)]
        processes = [
            FORKSERVER.Process(target=_process, args=(rank, size, port, outputs[rank], function, arguments, options))
            for rank in range(size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout=120)
        hanging = [process for process in processes if process.is_alive()]
        for process in hanging:
            process.kill()
            process.join()
        assert not hanging, f"{len(hanging)} of {size} processes hang: {[output.read_text() for output in outputs]}"
        return [
            SimpleNamespace(status=process.exitcode, output=output.read_text())
            for process, output in zip(processes, outputs, strict=True)
        ]

    return run


def _process(rank: int, size: int, port: int, output: Path, function: Callable[..., Any], arguments: Any, options: Any) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with output.open("w", buffering=1) as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        run_tool(lambda: function(*arguments, **options))
