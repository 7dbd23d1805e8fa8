"""engine/build.py: from a config to the model, the data, the optimizer and the schedule."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

import backbones.registry
from backbones.errors import UserError
from engine.build import (
    build_model,
    build_optimizer,
    build_schedule,
    build_training_sampler,
    build_training_set,
    build_validation_set,
    check_processes,
    evaluation_size,
    find_data,
    iou_types,
)
from engine.data.sources import DATASETS, CocoPaths
from engine.distributed import World

MASKS = ("model.head.name=mask_rcnn", "model.head.mask_head_dim=8", "model.head.mask_head_layers=1")


def world(rank=0, size=1, device="cpu"):
    return World(rank, size, torch.device(device))


# ---- Model ----


def test_backbones_and_pyramids_take_their_own_options(make_config):
    config = make_config(
        "model.backbone.shortcut=D", "model.backbone.stem=deep", "model.pyramid={name: bifpn, out_channels: 16, repeats: 2}"
    )
    model = build_model(config, num_classes=3, load_weights=True)
    assert len(model.backbone.fpn.layers) == 2
    assert isinstance(model.backbone.body.conv1, nn.Sequential)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.pyramid={name: bifpn, repeat: 2}", "no option 'repeat'.*Did you mean 'repeats'"),
        ("model.backbone.output_stride=12", "'output_stride' is 12"),
        ("model.backbone.shortcut=E", "'shortcut' is 'E'"),
    ],
)
def test_their_options_are_checked_before_anything_is_built(override, message, make_config):
    with pytest.raises(UserError, match=message):
        make_config(override)


def test_the_model_is_what_the_config_says(make_config):
    config = make_config(
        "model.pyramid.out_channels=24", "data.min_size=[64, 96, 80]", "data.max_size=200",
        "model.head.box_detections_per_img=7", "model.head.box_head_dim=40",
    )  # fmt: skip
    model = build_model(config, num_classes=5, load_weights=True)
    assert model.backbone.out_channels == 24
    assert model.roi_heads.box_predictor.cls_score.weight.shape == (5, 40)
    assert model.roi_heads.detections_per_img == 7
    assert model.transform.min_size == (96,)
    assert model.transform.max_size == 200
    assert iou_types(config) == ["bbox"]


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("mask_rcnn", ["bbox", "segm"]),
        ("cascade_mask_rcnn", ["bbox", "segm"]),
        ("keypoint_rcnn", ["bbox", "keypoints"]),
        ("retinanet", ["bbox"]),
    ],
)
def test_what_a_head_predicts_is_what_is_scored(head, expected, make_config):
    assert iou_types(make_config("model.head={name: " + head + "}")) == expected


def test_training_images_are_not_resized_again_and_others_are(make_config):
    model = build_model(make_config(), num_classes=4, load_weights=True)  # min_size 64
    image = torch.zeros(3, 40, 80)
    assert model.train().transform([image], [{"boxes": torch.zeros(0, 4)}])[0].image_sizes == [(40, 80)]
    assert model.eval().transform([image])[0].image_sizes == [(64, 128)]


@pytest.mark.parametrize("load_weights", [False, True])
def test_a_checkpoints_model_asks_for_no_published_weights_but_keeps_their_norm(make_config, monkeypatch, load_weights):
    asked = []
    monkeypatch.setattr(backbones.registry, "load_published_weights", lambda *args, **kwargs: asked.append(args[1]))
    config = make_config("model.backbone={name: resnet18, weights: IMAGENET1K_V1, out_features: [c2, c3]}")
    model = build_model(config, num_classes=4, load_weights=load_weights)
    assert asked == (["IMAGENET1K_V1"] if load_weights else [])
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.backbone.modules())


@pytest.mark.parametrize(("min_size", "expected"), [("300", 300), ("[640, 800, 672]", 800)])
def test_evaluation_takes_the_largest_size(make_config, min_size, expected):
    size = evaluation_size(make_config(f"data.min_size={min_size}"))
    assert size == expected
    assert type(size) is int


# ---- Data ----


def test_training_samples_are_augmented_and_validation_samples_are_the_files(make_config, toy_data):
    config = make_config(*MASKS, "data.min_size=32", "data.max_size=40", "seed=9")
    training_set = build_training_set(config)
    assert training_set.seed == 9
    for index in range(len(training_set)):
        image, target = training_set[index]
        assert min(image.shape[1:]) == 32 or max(image.shape[1:]) == 40
        assert target["masks"].shape[1:] == image.shape[1:]
    validation_set = build_validation_set(config)
    assert validation_set[0][0].shape == (3, 64, 64)
    assert "masks" not in validation_set[0][1]


def test_a_step_that_brings_images_to_size_is_not_followed_by_another(make_config):
    config = make_config("data.augmentations=[{name: large_scale_jitter, size: 50}, {name: horizontal_flip}]")
    training_set = build_training_set(config)
    assert {tuple(training_set[i][0].shape) for i in range(len(training_set))} == {(3, 50, 50)}


@pytest.fixture
def change_data(toy_data, tmp_path):
    """A function that changes every annotation of a copy of the toy data, and gives the copy's paths."""

    def change(**fields):
        content = json.loads(Path(toy_data["annotations"]).read_text())
        for annotation in content["annotations"]:
            annotation.update(fields)
        (tmp_path / "changed.json").write_text(json.dumps(content))
        return {"images": toy_data["images"], "annotations": str(tmp_path / "changed.json")}

    return change


def test_a_mask_head_on_boxes_alone_is_refused_with_advice(make_config, change_data):
    config = make_config(*MASKS, data=change_data(segmentation=[]))
    with pytest.raises(UserError, match=r"changed\.json has no masks .*mask_rcnn.*model\.head\.name=faster_rcnn"):
        build_training_set(config)
    assert len(build_training_set(make_config(data=config.data.train.model_dump()))) == 7


def test_a_keypoint_head_on_data_without_keypoints_is_refused_with_advice(make_config):
    with pytest.raises(UserError, match="has no keypoints, which keypoint_rcnn is trained on: `keypoints`, their names"):
        build_training_set(make_config("model.head={name: keypoint_rcnn}"))


def test_data_without_a_usable_object_are_refused(make_config, change_data):
    config = make_config(data=change_data(bbox=[500, 500, 3, 3]))
    with pytest.raises(UserError, match=r"changed\.json has no usable object"):
        build_training_set(config)
    assert len(build_validation_set(config)) == 7


@pytest.mark.parametrize(("split", "build"), [("train", build_training_set), ("val", build_validation_set)])
def test_missing_files_are_named_with_their_key(make_config, split, build):
    with pytest.raises(UserError, match=rf"data\.{split}\.images: there is no folder no/such"):
        build(make_config(f"data.{split}.images=no/such"))


def test_albumentations_mistakes_are_found_before_the_first_sample(make_config):
    with pytest.raises(UserError, match=r"no transform 'CLAHEE'\. Did you mean 'CLAHE'"):
        build_training_set(make_config("data.augmentations=[{name: albumentations/CLAHEE}]"))


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
    alike = build_training_sampler(make_config("data.aspect_ratio_grouping=false"), dataset, world())
    assert set(alike.groups.tolist()) == {0}


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


def test_cosine_begins_where_warm_up_ends(factors):
    values = factors("schedule.name=cosine", "schedule.warmup_steps=8")
    assert values[8] == 1
    assert values[24] == pytest.approx(0.5)
    assert values[40] == pytest.approx(0)


@pytest.mark.parametrize("name", ["multistep", "cosine"])
def test_factors_are_plain_floats_which_a_checkpoint_can_hold(factors, name):
    assert {type(value) for value in factors(f"schedule.name={name}", "schedule.warmup_steps=4")} == {float}


@pytest.mark.parametrize("name", ["multistep", "cosine"])
def test_a_run_of_one_step_has_a_rate(factors, name):
    assert factors(f"schedule.name={name}", "schedule.warmup_steps=500", epochs=1, steps_per_epoch=1)[0] == 1
