"""engine/build.py: from what all jobs' configs share to the backbone, the batches, the optimizer and the schedule."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, PolynomialLR

import backbones.registry
import engine.build
from backbones.errors import UserError
from backbones.fpn import FpnBackbone
from engine.build import (
    build_body,
    build_optimizer,
    build_pyramid,
    build_schedule,
    build_training_sampler,
    check_processes,
    find_data,
    read_annotations,
)
from engine.config import BackboneConfig, CocoFiles, PyramidConfig
from engine.data.sources import DATASETS, CocoPaths
from engine.detection.build import build_training_set
from engine.distributed import World


def world(rank=0, size=1, device="cpu"):
    return World(rank, size, torch.device(device))


# ---- Backbone ----


def test_a_backbone_is_what_its_config_says():
    body = build_body(
        BackboneConfig(name="resnet18", norm="gn", out_features=["c3", "c5"], stem="deep"), load_weights=True, in_channels=5
    )
    assert list(body.feature_specs) == ["c3", "c5"]
    assert isinstance(body.conv1, nn.Sequential)
    assert any(isinstance(module, nn.GroupNorm) for module in body.modules())
    assert set(body(torch.rand(1, 5, 64, 64))) == {"c3", "c5"}


@pytest.mark.parametrize(("trainable_layers", "frozen"), [(None, False), (2, True)])
def test_stages_are_frozen_as_the_config_says(trainable_layers, frozen):
    body = build_body(BackboneConfig(name="resnet18", trainable_layers=trainable_layers), load_weights=True)
    assert body.conv1.weight.requires_grad is not frozen
    assert body.layer4[0].conv1.weight.requires_grad


def test_a_pyramid_is_what_its_config_says():
    config = BackboneConfig(name="resnet18", out_features=["c3", "c4"])
    pyramid = PyramidConfig(name="bifpn", out_channels=24, extra_level="p6p7", norm="bn", repeats=2)
    backbone = build_pyramid(config, pyramid, load_weights=True)
    assert isinstance(backbone, FpnBackbone)
    assert len(backbone.fpn.layers) == 2
    assert [spec.channels for spec in backbone.feature_specs.values()] == [24] * 4
    assert any(isinstance(module, nn.BatchNorm2d) for module in backbone.fpn.modules())


@pytest.mark.parametrize("load_weights", [False, True])
@pytest.mark.parametrize("with_pyramid", [False, True])
@pytest.mark.parametrize(("norm", "frozen"), [(None, True), ("bn", False)])
def test_published_weights_are_asked_for_only_to_train_but_their_norm_stays(
    monkeypatch, load_weights, with_pyramid, norm, frozen
):
    asked = []
    monkeypatch.setattr(backbones.registry, "load_published_weights", lambda *args, **kwargs: asked.append(args[1]))
    config = BackboneConfig(name="resnet18", weights="IMAGENET1K_V1", norm=norm)
    if with_pyramid:
        built = build_pyramid(config, PyramidConfig(out_channels=16), load_weights=load_weights)
    else:
        built = build_body(config, load_weights=load_weights)
    assert asked == (["IMAGENET1K_V1"] if load_weights else [])
    assert any(isinstance(module, nn.BatchNorm2d) for module in built.modules()) is not frozen


# ---- Data ----


def test_the_files_of_a_data_set_are_found_or_named_with_their_key(toy_data):
    paths = find_data(CocoFiles(**toy_data), split="train")
    assert paths == CocoPaths(Path(toy_data["images"]), Path(toy_data["annotations"]))
    with pytest.raises(UserError, match=r"data\.val\.annotations: there is no file no/such\.json"):
        find_data(CocoFiles(images=toy_data["images"], annotations="no/such.json"), split="val")


@pytest.mark.parametrize(("is_main", "expected"), [(True, ["render val", "wait"]), (False, ["wait", "render val"])])
def test_an_embedded_set_is_rendered_by_the_main_process_first(monkeypatch, tmp_path, is_main, expected):
    order = []

    class Process:
        def __init__(self):
            self.is_main = is_main

        def barrier(self):
            order.append("wait")

    def render(split):
        order.append(f"render {split}")
        return tmp_path, tmp_path / "file"

    monkeypatch.setattr(DATASETS, "_constructors", {"own": render})
    assert find_data("own", split="val", world=Process()) == CocoPaths(tmp_path, tmp_path / "file")
    assert order == expected


@pytest.mark.parametrize(("is_main", "expected"), [(True, ["load", "wait"]), (False, ["wait", "load"])])
def test_annotations_are_read_by_the_main_process_first_and_refused_by_all(monkeypatch, tmp_path, is_main, expected):
    order = []

    class Process:
        def __init__(self):
            self.is_main = is_main

        def barrier(self):
            order.append("wait")

    def load(path):
        order.append("load")
        if not path.exists():
            raise UserError("no such file")
        return path

    monkeypatch.setattr(engine.build, "load_annotations", load)
    assert read_annotations(tmp_path, world=Process()) == tmp_path
    assert order == expected
    order.clear()
    with pytest.raises(UserError, match="no such file"):
        read_annotations(tmp_path / "no.json", world=Process())
    assert order == expected
    order.clear()
    assert read_annotations(tmp_path) == tmp_path
    assert order == ["load"]


# ---- Processes ----


@pytest.mark.parametrize(("batch_size", "size", "accumulate", "multiple"), [(4, 3, 1, 3), (8, 2, 8, 16), (2, 4, 1, 4)])
def test_a_batch_that_processes_cannot_share_is_refused(make_config, batch_size, size, accumulate, multiple):
    config = make_config(f"train.batch_size={batch_size}", f"train.accumulate={accumulate}")
    with pytest.raises(UserError, match=rf"batch_size is {batch_size} .* {size} processes .*multiple of {multiple}\."):
        check_processes(config, world(size=size))


def test_a_batch_that_processes_can_share_passes(make_config):
    config = make_config("train.batch_size=12", "train.accumulate=2")
    for size in (1, 2, 3, 6):
        check_processes(config, world(size=size))


@pytest.mark.parametrize("part", ["backbone", "pyramid"])
def test_batch_norm_is_not_synchronised_between_cpus(make_config, part):
    config = make_config(f"model.{part}.norm=sync_bn", "train.batch_size=4")
    check_processes(config, world(size=1))
    check_processes(config, world(size=2, device="cuda"))
    with pytest.raises(UserError, match="sync_bn needs GPUs"):
        check_processes(config, world(size=2))


def test_the_sampler_follows_config_and_process(make_config):
    config = make_config("train.batch_size=4", "train.epochs=3", "train.accumulate=2", "seed=6")
    dataset = build_training_set(config)
    samplers = [build_training_sampler(config, dataset, world(rank, 2), start_step=1) for rank in range(2)]
    assert [len(list(sampler)) for sampler in samplers] == [4, 4]  # (3 epochs of 1 step - 1) * 2 parts
    assert {len(batch) for sampler in samplers for batch in sampler} == {1}
    assert [sampler.seed for sampler in samplers] == [6, 6]
    wide = dataset.annotations.widths > dataset.annotations.heights
    assert samplers[0].groups.tolist() == wide.astype(int).tolist()
    config = make_config("data.aspect_ratio_grouping=false")
    alike = build_training_sampler(config, build_training_set(config), world())
    assert set(alike.groups.tolist()) == {0}


def test_the_sampler_repeats_images_where_the_data_set_does(make_config):
    config = make_config("train.batch_size=2", "data.sampling={name: repeat_factor, threshold: 1.0}")
    dataset = build_training_set(config)
    sampler = build_training_sampler(config, dataset, world())
    assert sampler.repeat_factors.tolist() == dataset.repeat_factors().tolist()
    assert sampler.steps_per_epoch == int(dataset.repeat_factors().sum()) // 2
    plain = make_config("train.batch_size=2")
    assert build_training_sampler(plain, build_training_set(plain), world()).repeat_factors is None


# ---- Optimizer ----


def network():
    """A frozen layer, one that trains, and a normalisation of each kind."""
    layers = [nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.Linear(4, 2)]
    model = nn.Sequential(*layers)
    model[0].requires_grad_(False)
    return model


def test_what_is_frozen_is_not_in_the_optimizer_and_all_else_is_once(make_config):
    model = network()
    optimizer = build_optimizer(make_config(), model)
    optimized = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(optimized) == len(set(optimized))
    assert set(optimized) == {id(p) for layer in model[1:] for p in layer.parameters()}


def test_normalisation_has_its_own_weight_decay(make_config):
    model = network()
    optimizer = build_optimizer(make_config("optimizer.weight_decay=0.5", "optimizer.norm_weight_decay=0"), model)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for place, expected in ((1, 0.5), (2, 0), (3, 0), (4, 0), (5, 0.5)):
        assert {decay[id(p)] for p in model[place].parameters()} == {expected}
    everywhere = build_optimizer(make_config("optimizer.weight_decay=0.5"), model)
    assert {group["weight_decay"] for group in everywhere.param_groups} == {0.5}


def test_sync_batch_norm_is_a_normalisation_too(make_config):
    model = nn.Sequential(nn.SyncBatchNorm(4), nn.Linear(4, 2))
    optimizer = build_optimizer(make_config("optimizer.weight_decay=0.5", "optimizer.norm_weight_decay=0"), model)
    (group,) = [group for group in optimizer.param_groups if group["weight_decay"] == 0]
    assert {id(p) for p in group["params"]} == {id(p) for p in model[0].parameters()}


@pytest.mark.parametrize(("base", "expected"), [("null", 0.02), ("16", 0.005), ("2", 0.04)])
def test_the_learning_rate_scales_with_the_batch(make_config, base, expected):
    config = make_config("optimizer.lr=0.02", f"optimizer.base_batch_size={base}", "train.batch_size=4")
    optimizer = build_optimizer(config, network())
    assert [group["initial_lr"] for group in optimizer.param_groups] == pytest.approx([expected] * 2)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([expected] * 2)


def test_the_optimizer_is_the_one_named(make_config):
    sgd = build_optimizer(make_config("optimizer.name=sgd", "optimizer.momentum=0.75"), network())
    assert type(sgd) is torch.optim.SGD
    assert {group["momentum"] for group in sgd.param_groups} == {0.75}
    assert type(build_optimizer(make_config("optimizer.name=adamw"), network())) is torch.optim.AdamW


def test_there_are_no_empty_groups(make_config):
    optimizer = build_optimizer(make_config(), nn.Sequential(nn.Linear(2, 2)))
    assert [len(group["params"]) for group in optimizer.param_groups] == [2]


# ---- Schedule ----


@pytest.fixture
def factors(make_config):
    """A function that gives the learning rate's factor at every step of a run, and one after it."""

    def compute(*overrides, epochs=4, steps_per_epoch=10):
        config = make_config("schedule.warmup_steps=0", f"train.epochs={epochs}", *overrides)
        factor = build_schedule(config, steps_per_epoch=steps_per_epoch)
        return [factor(step) for step in range(epochs * steps_per_epoch + 1)]

    return compute


def torchs(scheduler_class, steps, **options):
    """The factors that a scheduler of torch's own gives."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = scheduler_class(optimizer, **options)
    values = []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return values


def test_warm_up_rises_in_a_line_to_the_full_rate(factors):
    values = factors("schedule.warmup_steps=5", "schedule.warmup_factor=0.1")
    np.testing.assert_allclose(values[:6], [0.1, 0.28, 0.46, 0.64, 0.82, 1.0])
    assert values[6] == 1


def test_warm_up_takes_a_fifth_of_the_run_at_most(factors):
    values = factors("schedule.warmup_steps=500", "schedule.warmup_factor=0")
    assert values.index(1.0) == 8
    assert values[0] == 0


def test_without_warm_up_the_first_step_has_the_full_rate(factors):
    assert factors()[0] == 1
    assert factors("schedule.name=cosine")[0] == 1


@pytest.mark.parametrize("milestones", ["[0.5, 0.75]", "[2, 3]", "[2, 0.75]", "[3, 2]"])
def test_milestones_are_fractions_of_the_run_or_epochs(factors, milestones):
    values = factors(f"schedule.milestones={milestones}", "schedule.gamma=0.25")
    assert values[:40] == pytest.approx(torchs(MultiStepLR, 40, milestones=[20, 30], gamma=0.25))


@pytest.mark.parametrize(("epochs", "steps_per_epoch"), [(12, 1), (12, 7), (12, 7329), (36, 50), (24, 3)])
def test_the_usual_milestones_fall_at_8_and_11_of_12_epochs(make_config, epochs, steps_per_epoch):
    factor = build_schedule(make_config("schedule.warmup_steps=0", f"train.epochs={epochs}"), steps_per_epoch=steps_per_epoch)
    for milestone, expected in ((epochs * steps_per_epoch * 8 // 12, 0.1), (epochs * steps_per_epoch * 11 // 12, 0.01)):
        assert factor(milestone - 1) == pytest.approx(10 * expected)
        assert factor(milestone) == pytest.approx(expected)


def test_a_milestone_during_warm_up_counts_afterwards(factors):
    values = factors("schedule.warmup_steps=8", "schedule.milestones=[0.1]", "schedule.gamma=0.5")
    assert values[8:] == pytest.approx([0.5] * 33)


def test_cosine_is_torchs_and_ends_at_nothing(factors):
    values = factors("schedule.name=cosine")
    assert values[:40] == pytest.approx(torchs(CosineAnnealingLR, 40, T_max=40))
    assert values[20] == pytest.approx(0.5)
    assert values[40] == pytest.approx(0)
    assert all(later < earlier for earlier, later in pairwise(values))


def test_poly_is_torchs_and_ends_at_nothing(factors):
    values = factors("schedule.name=poly", "schedule.power=0.7")
    assert values[:41] == pytest.approx(torchs(PolynomialLR, 41, total_iters=40, power=0.7))
    assert values[40] == 0


def test_cosine_begins_where_warm_up_ends(factors):
    values = factors("schedule.name=cosine", "schedule.warmup_steps=8")
    assert values[8] == 1
    assert values[24] == pytest.approx(0.5)
    assert values[40] == pytest.approx(0)


@pytest.mark.parametrize("name", ["multistep", "cosine", "poly"])
def test_factors_are_plain_floats_which_a_checkpoint_can_hold(factors, name):
    assert {type(value) for value in factors(f"schedule.name={name}", "schedule.warmup_steps=4")} == {float}


@pytest.mark.parametrize("name", ["multistep", "cosine", "poly"])
def test_a_run_of_one_step_has_a_rate(factors, name):
    assert factors(f"schedule.name={name}", "schedule.warmup_steps=500", epochs=1, steps_per_epoch=1)[0] == 1
