"""engine/segmentation/build.py: from a config to data and models, and what it refuses before anything is trained."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backbones.errors import UserError
from engine.distributed import World
from engine.segmentation.build import (
    build_model,
    build_training_set,
    build_validation_set,
    check_batch,
    evaluation_size,
)
from tests.engine.conftest import write_coco
from tests.engine.segmentation.conftest import NAMES, write_maps

CPU, GPU = torch.device("cpu"), torch.device("cuda")
ALONE = World(0, 1, CPU)
PYRAMID = "model.pyramid={name: fpn, out_channels: 16}"


def coco(data):
    return [f"data.{split}={{images: {data['images']}, annotations: {data['annotations']}}}" for split in ("train", "val")]


# ---- Data ----


def test_instances_are_painted(make_config, tmp_path):
    data = write_coco(tmp_path / "data")
    dataset = build_training_set(make_config(*coco(data), "data.classes=null"))
    assert [(category.id, category.name) for category in dataset.categories] == [
        (0, "background"), (3, "bar"), (44, "square"), (90, "never"),
    ]  # fmt: skip
    seen = {label for index in range(7) for label in dataset[index][1]["labels"].unique().tolist()}
    assert seen == {0, 1, 2, 255}


def test_some_categories_may_be_kept(make_config, tmp_path):
    data = write_coco(tmp_path / "data")
    dataset = build_training_set(make_config(*coco(data), "data.classes=[square]"))
    assert [(category.id, category.name) for category in dataset.categories] == [(0, "background"), (44, "square")]
    assert dataset.source.notes == ["2 of 3 categories are background"]
    (tmp_path / "names.txt").write_text("square\nbar\n")
    dataset = build_validation_set(make_config(*coco(data), f"data.classes={tmp_path / 'names.txt'}"))
    assert [category.id for category in dataset.categories] == [0, 44, 3]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("[sqare]", r"has no category 'sqare'\. Did you mean 'square'"),
        ("[bar, bar]", "names 'bar' twice"),
        ("{0: a, 1: b}", "gives names to pixel values, and .* has its own"),
    ],
)
def test_categories_that_cannot_be_kept_are_refused(make_config, tmp_path, classes, message):
    with pytest.raises(UserError, match=message):
        build_training_set(make_config(*coco(write_coco(tmp_path / "data")), f"data.classes={classes}"))


def test_annotations_without_masks_are_refused(make_config, tmp_path):
    data = write_coco(tmp_path / "data")
    content = json.loads(Path(data["annotations"]).read_text())
    for annotation in content["annotations"]:
        annotation["segmentation"] = []
    Path(data["annotations"]).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"instances\.json has no masks .*`labels` in place of `annotations`"):
        build_validation_set(make_config(*coco(data), "data.classes=null"))


def test_label_maps_need_names_and_their_values_are_shown(make_config, maps_data):
    with pytest.raises(UserError, match=r"data\.classes is needed .* 6 maps of .*labels have the values 0, 1, 2, 255; .*=255"):
        build_training_set(make_config("data.classes=null"))


def test_a_mask_of_0_and_255_is_not_taken_for_background_alone(make_config, tmp_path):
    """The foreground would be no class, and the model perfect."""
    data = write_maps(tmp_path / "data", 20)
    for path in Path(data["labels"]).glob("*.png"):
        Image.fromarray(np.where(np.asarray(Image.open(path)) == 1, 255, 0).astype(np.uint8)).save(path)
    message = r"labels of all 20 images in .* have only the class 'background' \(value 0\) and \d+ pixels of no class .*"
    with pytest.raises(UserError, match=message + re.escape("data.classes='{0: background, 255: NAME}'")):
        build_training_set(make_config("data.classes=[background, cell]", data=data))
    dataset = build_training_set(make_config("data.classes={0: background, 255: cell}", "data.ignore_index=null", data=data))
    assert dataset[0][1]["labels"].unique().tolist() == [0, 1]


@pytest.mark.parametrize(("build", "what"), [(build_training_set, "learn"), (build_validation_set, "score")])
def test_maps_of_no_class_at_all_are_refused(make_config, build, what):
    with pytest.raises(UserError, match=rf"have no class and \d+ pixels of no class .*there is nothing to {what}"):
        build(make_config("data.ignore_index=[0, 1, 2, 255]", "data.classes={7: a, 8: b}"))


def test_one_class_can_be_scored(make_config):
    config = make_config("data.ignore_index=[0, 2, 255]", "data.classes={1: a, 8: b}")
    assert len(build_validation_set(config)) == 6


def test_the_second_class_may_be_anywhere(make_config, tmp_path):
    data = write_maps(tmp_path / "data", 40)
    for path in Path(data["labels"]).glob("*.png"):
        if path.stem != "007":  # not among those that are looked at first
            Image.fromarray(np.zeros_like(np.asarray(Image.open(path)))).save(path)
    assert len(build_training_set(make_config(data=data))) == 40


@pytest.mark.parametrize("build", [build_training_set, build_validation_set])
def test_what_is_wrong_with_all_maps_is_said_before_training(make_config, tmp_path, build):
    data = write_maps(tmp_path / "data")
    path = Path(data["labels"]) / "005.png"
    Image.open(path).convert("RGB").save(path)
    with pytest.raises(UserError, match=r"005\.png is in colour"):
        build(make_config(data=data))
    Image.fromarray(np.full((48, 64), 3, np.uint8)).save(path)
    with pytest.raises(
        UserError, match=r"005\.png has the value 3 at row 0, column 0, and data\.classes names 3 values, 0 to 2"
    ):
        build(make_config(data=data))


def test_the_embedded_shapes_are_painted(make_config, tmp_path, monkeypatch):
    monkeypatch.setenv("VERTEBRA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("engine.data.shapes.IMAGE_COUNTS", {"train": 3, "val": 2})
    dataset = build_training_set(make_config("data.train=shapes", "data.val=shapes", "data.classes=null"))
    assert [category.name for category in dataset.categories] == [
        "background", "circle", "square", "triangle", "star", "ring",
    ]  # fmt: skip
    assert len(build_validation_set(make_config("data.train=shapes", "data.val=shapes", "data.classes=null"))) == 2


# ---- Batches ----


@pytest.mark.parametrize("head", ["deeplabv3", "deeplabv3plus"])
def test_one_image_a_pass_is_refused_where_it_is_pooled_to_one_pixel(make_config, head):
    def check(*overrides, world=ALONE):
        check_batch(make_config(f"model.head={{name: {head}}}", *overrides), world)

    message = rf"{head} pools each image to one pixel .* leaves one\. Raise train\.batch_size, or set model\.head\.norm=gn"
    for refused in (["train.batch_size=1"], ["train.batch_size=4", "train.accumulate=4"]):
        with pytest.raises(UserError, match=message):
            check(*refused)
    with pytest.raises(UserError, match=r"train\.batch_size=2 over 2 processes"):
        check("train.batch_size=2", world=World(0, 2, CPU))
    check("train.batch_size=2")
    check("train.batch_size=1", "model.head.norm=gn")
    check("train.batch_size=2", "model.head.norm=sync_bn", world=World(0, 2, GPU))
    with pytest.raises(UserError, match=r"norm=sync_bn needs GPUs"):
        check("train.batch_size=4", "model.head.norm=sync_bn", world=World(0, 2, CPU))


def test_other_heads_take_one_image_a_pass(make_config):
    check_batch(make_config("model.head={name: fcn}", "train.batch_size=1"), ALONE)
    check_batch(make_config("model.head={name: semantic_fpn}", PYRAMID, "train.batch_size=1"), ALONE)


def test_the_check_is_made_before_training(make_config):
    config = make_config("model.head={name: deeplabv3}", "train.batch_size=1")
    with pytest.raises(UserError, match="pools each image"):
        build_training_set(config, world=ALONE)
    assert len(build_training_set(config)) == 6  # to be looked at


# ---- Models ----


@pytest.mark.parametrize(
    ("head", "backbone", "pyramid"),
    [
        ("{name: fcn, auxiliary: true}", "out_features: [c3, c4]", []),
        ("{name: deeplabv3}", "output_stride: 8", []),
        ("{name: deeplabv3plus, low_level_channels: 8}", "output_stride: 16", []),
        ("{name: semantic_fpn, channels: 16}", "norm: bn", [PYRAMID]),
    ],
)
def test_each_head_is_built_on_its_backbone(make_config, head, backbone, pyramid):
    config = make_config(f"model.head={head}", f"model.backbone={{name: resnet18, {backbone}}}", *pyramid)
    model = build_model(config, num_classes=len(NAMES), load_weights=True).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 40, 56))["out"].shape == (1, 3, 40, 56)
    assert (model.aux_classifier is not None) == ("auxiliary" in head)


@pytest.mark.parametrize("pyramid", ["fpn", "pafpn", "bifpn", "simple", "single"])
def test_every_pyramid_is_trained_whole(make_config, pyramid):
    """A parameter without a gradient would hang several processes."""
    features = {"simple": "out_features: [c4]", "single": "out_features: [c5]"}.get(pyramid, "norm: bn")
    config = make_config(
        "model.head={name: semantic_fpn, channels: 8}",
        f"model.pyramid={{name: {pyramid}, out_channels: 8}}",
        f"model.backbone={{name: resnet18, {features}}}",
    )
    model = build_model(config, num_classes=3, load_weights=False).train()
    losses = model(torch.randn(2, 3, 64, 96), torch.randint(0, 3, (2, 64, 96)))
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_evaluation_takes_the_largest_size(make_config):
    assert evaluation_size(make_config("data.min_size=[40, 60, 50]")) == 60
    assert evaluation_size(make_config("data.min_size=40")) == 40
    assert evaluation_size(make_config("data.min_size=null")) is None
