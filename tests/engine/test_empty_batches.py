"""Batches without any object, and layers that are not used: every parameter that trains has a gradient, and nothing hangs."""

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import engine.job
from backbones import build_backbone, build_fpn_backbone
from backbones.errors import UserError
from engine.config_file import apply_overrides
from engine.detection.job import DetectionJob
from engine.distributed import World
from engine.train import Run, train
from engine.unused import parameters_without_gradient
from heads import build_detector, list_detectors
from heads.registry import besides_boxes
from heads.segmentation import SEGMENTERS, build_segmenter
from tests.engine.conftest import MASKS, write_coco
from tests.engine.test_distributed import assert_succeeded, steps

COLUMNS = ("boxes", "labels", "area", "iscrowd", "masks")


def empty_target(height: int, width: int) -> dict[str, Any]:
    return {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "area": torch.zeros(0),
        "iscrowd": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, height, width, dtype=torch.uint8),
        "keypoints": torch.zeros(0, 3, 3),
        "image_id": torch.tensor(1),
        "seed": 5,
    }


@pytest.mark.parametrize("head", list_detectors())
def test_every_detectors_parameters_have_gradients_without_any_object(head, train_step):
    backbone = build_fpn_backbone("resnet18", norm="gn", out_channels=64)
    points = {"num_keypoints": 3} if "keypoints" in besides_boxes(head) else {}
    model = build_detector(head, backbone, 4, min_size=64, max_size=128, **points)
    sizes = [(64, 80), (70, 64)]
    losses = train_step(model, [torch.rand(3, *size) for size in sizes], [empty_target(*size) for size in sizes])
    assert losses


@pytest.mark.parametrize("head", SEGMENTERS.names())
def test_every_segmenters_parameters_have_gradients_without_any_class(head, train_step):
    if head == "semantic_fpn":
        backbone: Any = build_fpn_backbone("resnet18", norm="gn", out_channels=64, extra_level=None)
    else:
        backbone = build_backbone("resnet18", norm="gn")
    model = build_segmenter(head, backbone, 3)
    nothing = torch.full((2, 64, 64), 255)
    losses = train_step(model, torch.rand(2, 3, 64, 64), nothing)
    assert all(float(loss.detach()) == 0 for loss in losses.values())


class EmptyOnTheFirst(DetectionJob):
    """A detector's job, the first process of which never sees an object."""

    def losses(self, model: Any, images: list[Tensor], targets: list[dict[str, Any]]) -> dict[str, Tensor]:
        if os.environ["RANK"] == "0":
            none = [torch.zeros(len(target["labels"]), dtype=torch.bool) for target in targets]
            targets = [
                target | {key: target[key][rows] for key in COLUMNS if key in target}
                for target, rows in zip(targets, none, strict=True)
            ]
        losses = super().losses(model, images, targets)
        assert all(loss.isfinite() for loss in losses.values())
        return losses


def train_with(config: Any, job: str) -> None:
    engine.job.JOBS["detection"] = f"tests.engine.test_empty_batches:{job}"
    train(config)


@pytest.mark.parametrize(
    "head", [MASKS, pytest.param(("model.head={name: fcos}", "model.pyramid.out_channels=64"), marks=pytest.mark.minutes)]
)
def test_one_process_of_two_never_sees_an_object_for_fifty_steps(on_processes, make_config, tmp_path, head):
    data = write_coco(tmp_path / "data", 4, sizes=((64, 64),))
    options = ("train.batch_size=2", "train.epochs=25", "train.log_steps=50", "eval.every_epochs=25", "data.min_size=32")
    assert_succeeded(on_processes(2, train_with, make_config(*options, *head, data=data), "EmptyOnTheFirst"))
    assert [line["step"] for line in steps(tmp_path / "run")] == [1, 50]


# ---- Layers that are not used ----


class WithUnusedLayers(DetectionJob):
    """A detector's job whose model has a layer that no loss depends on."""

    def build_model(self, categories: Any, *, load_weights: bool) -> nn.Module:
        model = super().build_model(categories, load_weights=load_weights)
        model.never_used = nn.Linear(3, 2)
        return model


def test_layers_that_are_not_used_train_on_two_processes_and_are_said(on_processes, make_config, tmp_path):
    data = write_coco(tmp_path / "data", 8, sizes=((64, 64),))
    ended = on_processes(2, train_with, make_config("train.batch_size=4", "train.epochs=2", data=data), "WithUnusedLayers")
    assert_succeeded(ended)
    assert len(steps(tmp_path / "run")) == 4
    assert "no gradient reaches never_used.weight, never_used.bias: each step" in ended[0].output


def test_looking_for_them_changes_nothing(make_config, toy_data, monkeypatch):
    config = make_config("model.backbone.norm=bn", data=toy_data)
    job = WithUnusedLayers(config)
    dataset = job.build_training_set()
    model = job.build_model(dataset.categories, load_weights=True)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    two = World(0, 2, torch.device("cpu"))
    monkeypatch.setattr(World, "broadcast", lambda self, value: value)
    found = parameters_without_gradient(config, job, model.eval(), dataset, two)
    assert found == ["never_used.weight", "never_used.bias"]
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert parameters_without_gradient(config, job, model, dataset, World(0, 1, torch.device("cpu"))) == []


# ---- A process that comes late ----


def train_late(config: Any, seconds: float) -> None:
    evaluate = Run._evaluate

    def later(run: Run, *arguments: Any, **options: Any) -> Any:
        if run.world.rank == 1:
            time.sleep(seconds)
        return evaluate(run, *arguments, **options)

    Run._evaluate = later  # type: ignore[method-assign]
    train(config)


@pytest.mark.parametrize("seconds", [4.0, pytest.param(90.0, marks=pytest.mark.minutes)])
def test_a_process_that_sleeps_before_the_evaluation_is_waited_for(on_processes, make_config, tmp_path, seconds):
    data = write_coco(tmp_path / "data", 4, sizes=((64, 64),))
    config = make_config("train.batch_size=4", f"distributed.step_minutes={0.25 * seconds / 4}", data=data)
    assert_succeeded(on_processes(2, train_late, config, seconds))
    assert (tmp_path / "run" / "best.pt").exists()


# ---- A broken image ----


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_one_process_of_two_meets_a_broken_image_and_finishes(on_processes, make_config, tmp_path, workers):
    data = write_coco(tmp_path / "data", 8, sizes=((64, 64),))
    halve(Path(data["images"], "003.png"))
    sound = write_coco(tmp_path / "sound", 2, sizes=((64, 64),))
    options = ("train.batch_size=4", "train.epochs=2", f"data.num_workers={workers}")
    val = [f"data.val.{key}={value}" for key, value in sound.items()]
    ended = on_processes(2, train, make_config(*options, *val, data=data))
    assert_succeeded(ended)
    train(make_config(*options, *val, data=data, name="alone"))
    two, alone = steps(tmp_path / "run"), steps(tmp_path / "alone")
    assert [line["image_ids"] for line in two] == [line["image_ids"] for line in alone]
    said = [line for line in ended[0].output.splitlines() if "replaced in training" in line]
    assert len(said) == 1, "named once, though it came twice"
    assert "003.png cannot be read" in said[0]
    assert "training samples that were replaced by others: 2; faults, each named above: 1" in ended[0].output
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["samples"] for line in lines if line["kind"] == "replaced"] == [2]


def halve(path: Path) -> Path:
    """Break an image file so that its header stays sound."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.mark.parametrize("job", ["segmentation", "classification"])
def test_other_jobs_replace_a_broken_image_too(job, tmp_path, capsys):
    sound = write_coco(tmp_path / "sound", 2, sizes=((64, 64),))
    common = {
        "train": {"batch_size": 2, "epochs": 1},
        "schedule": {"warmup_steps": 0},
        "eval": {"pictures": 0},
        "device": "cpu",
    }
    body = {"backbone": {"name": "resnet18", "norm": "gn"}}
    if job == "segmentation":
        files = write_coco(tmp_path / "data", 40, sizes=((64, 64),))
        broken = halve(Path(files["images"], "001.png"))  # not among those that are looked at before training
        data: dict[str, Any] = {"train": files, "val": sound, "min_size": 64}
        model: dict[str, Any] = body | {"head": {"name": "fcn"}}
    else:
        source = Path(sound["images"], "000.png").read_bytes()
        for split in ("train", "val"):
            for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
                (tmp_path / split / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / split / name).write_bytes(source)
        broken = halve(tmp_path / "train" / "b" / "2.png")
        data = {"train": {"images": str(tmp_path / "train")}, "val": {"images": str(tmp_path / "val")}, "size": 32}
        model = body
    content = {"job": job, "model": model, "data": data | {"num_workers": 0}, **common, "output_dir": str(tmp_path / "run")}
    train(apply_overrides(content, [], origin="a test"))
    (said,) = (line for line in capsys.readouterr().out.splitlines() if "replaced in training by another image" in line)
    assert str(broken) in said
    with pytest.raises(UserError, match=re.escape(str(broken))):
        train(apply_overrides(content, ["data.on_fault=stop", f"output_dir={tmp_path / 'other'}"], origin="a test"))


def test_a_broken_validation_image_is_never_replaced(make_config, tmp_path):
    data, val = (write_coco(tmp_path / name, 4, sizes=((64, 64),)) for name in ("data", "val"))
    broken = halve(Path(val["images"], "001.png"))
    with pytest.raises(UserError, match=re.escape(str(broken))):
        train(make_config("train.batch_size=4", *(f"data.val.{key}={value}" for key, value in val.items()), data=data))


def test_a_resumed_run_replaces_by_the_same(make_config, tmp_path, monkeypatch):
    data, val = (write_coco(tmp_path / name, 6, sizes=((64, 64),)) for name in ("data", "val"))
    halve(Path(data["images"], "003.png"))
    options = ("train.batch_size=2", *(f"data.val.{key}={value}" for key, value in val.items()), "schedule.milestones=[9.0]")
    train(make_config(*options, "train.epochs=2", data=data, name="whole"))
    train(make_config(*options, "train.epochs=1", data=data, name="parts"))
    train(make_config(*options, "train.epochs=2", data=data, name="parts"), resume="")
    whole, parts = (steps(tmp_path / name) for name in ("whole", "parts"))
    assert [(line["image_ids"], line["loss"]) for line in whole] == [(line["image_ids"], line["loss"]) for line in parts]
