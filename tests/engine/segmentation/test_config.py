"""engine/segmentation/config.py: what a segmenter's config takes and what it refuses, with the key."""

import pytest
import torch

from backbones.errors import UserError
from engine.config_file import check_config, dump_config, load_config
from engine.segmentation.build import build_model
from engine.segmentation.config import SegmentationConfig
from heads.segmentation import SEGMENTERS

FOLDERS = {"images": "i", "labels": "l"}
PYRAMID = "model.pyramid={name: fpn}"


def problem(make_config, *overrides):
    with pytest.raises(UserError) as caught:
        make_config(*overrides)
    return str(caught.value)


def test_the_least_config():
    config = check_config({"job": "segmentation", "data": {"train": "shapes", "val": "shapes"}})
    assert isinstance(config, SegmentationConfig)
    assert (config.model.head.name, config.model.pyramid, config.data.ignore_index) == ("fcn", None, 255)
    assert (config.data.min_size, config.data.crop_size, config.data.scale) == (520, None, None)
    assert config.data.ignored_values == {255}


@pytest.mark.parametrize(
    "override",
    [
        "data.train={images: i, annotations: a}",
        "data.train={images: i, labels: l, list: f, image_suffix: .jpg}",
        "data.train=shapes",
        "data.classes={0: background, 7: 'no'}",
        "data.ignore_index=[0, 255]",
        "data.min_size=null",
        "model.head={name: deeplabv3, norm: gn, auxiliary: true, atrous_rates: [1, 2, 3]}",
    ],
)
def test_a_config_survives_the_way_through_a_checkpoint_and_a_file(make_config, tmp_path, override):
    config = make_config(override)
    assert check_config(config.model_dump()) == config
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("head", ["fcn", "deeplabv3", "deeplabv3plus"])
def test_bare_maps_take_no_pyramid(make_config, head):
    said = problem(make_config, f"model.head={{name: {head}}}", PYRAMID)
    assert f"the head {head} takes the backbone's maps as they are: leave model.pyramid out" in said
    assert "semantic_fpn" in said


def test_the_semantic_pyramid_needs_one(make_config):
    said = problem(make_config, "model.head={name: semantic_fpn}")
    assert "model: the head semantic_fpn is built on a pyramid: set model.pyramid" in said
    assert make_config("model.head={name: semantic_fpn}", PYRAMID).model.pyramid.name == "fpn"


@pytest.mark.parametrize("level", ["pool", "p6p7"])
def test_levels_that_would_not_be_trained_are_refused(make_config, level):
    said = problem(make_config, "model.head={name: semantic_fpn}", f"model.pyramid={{name: fpn, extra_level: {level}}}")
    assert "model.pyramid.extra_level=null" in said


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("model.head.name=deeplab", ["no segmenter 'deeplab'", "Did you mean 'deeplabv3'"]),
        ("model.head.auxilary=true", ["no option 'auxilary'", "Did you mean 'auxiliary'"]),
        ("model.head.auxiliary=yes please", ["'auxiliary'", "valid boolean"]),
        ("model.head.norm=frozen_bn", ["'norm'", "'bn', 'sync_bn' or 'gn'"]),
        ("model.head.num_classes=3", ["no option 'num_classes'"]),
        ("model.backbone.output_strid=8", ["no option 'output_strid'", "'output_stride'"]),
        ("data.scale=[2.0, 0.5]", ["data: scale [2.0, 0.5] must be [least, most]"]),
        ("data.scale=[1.0]", ["data.scale", "at least 2 items"]),
        ("data.crop_max_share=0.5", ["crop_max_share goes with crop_size"]),
        ("data.crop_size=1000000", ["data.crop_size", "less than or equal to 16384"]),
        ("data.min_size=[64, 1000000]", ["data.min_size.1", "less than or equal to 16384"]),
        ("data.crop_size=0", ["data.crop_size", "greater than or equal to 1"]),
        ("data.classes={one: a, 2: b}", ["the pixel value 'one'", "whole numbers from 0 to 65535"]),
        ("data.classes={0: a, 65536: b}", ["the pixel value '65536'"]),
        ("data.classes=[]", ["data.classes", "at least 1 item"]),
        ("data.ignore_index=-1", ["data.ignore_index", "greater than or equal to 0"]),
        ("data.crop_sise=3", ["data.crop_sise: unknown key", "Did you mean 'crop_size'"]),
        ("data.train=shape", ["no embedded data set 'shape'", "'shapes'"]),
        ("data.train={images: i}", ["data.train", "`labels`", "`annotations`"]),
        ("data.train={images: i, labels: l, annotations: a}", ["data.train", "one of the two"]),
        ("data.train={images: i, annotations: a, list: f}", ["go with `labels`"]),
        ("data.train={labels: l}", ["data.train.images: this key is required"]),
        ("data.train={images: i, lables: l}", ["data.train.lables: unknown key", "Did you mean 'labels'"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_key(make_config, override, parts):
    said = problem(make_config, override)
    for part in parts:
        assert part in said


def test_an_augmentation_that_resizes_takes_no_scale(make_config):
    jitter = "data.augmentations=[{name: large_scale_jitter, size: 64}]"
    assert "large_scale_jitter brings images to size itself" in problem(make_config, jitter, "data.scale=[0.5, 2.0]")
    assert make_config(jitter).data.scale is None


@pytest.mark.parametrize(
    ("given", "expected"), [("null", set()), ("0", {0}), ("[0, 255]", {0, 255})]
)  # fmt: skip
def test_values_of_no_class(make_config, given, expected):
    assert make_config(f"data.ignore_index={given}").data.ignored_values == expected


def test_every_registered_segmenter_can_be_configured(make_config):
    for name in SEGMENTERS.names():
        pyramid = [PYRAMID] if name == "semantic_fpn" else []
        assert make_config(f"model.head={{name: {name}}}", *pyramid).model.head.name == name


MODULE = """
from torch import nn

from heads.segmentation import OnMap, Segmenter, register_segmenter


@register_segmenter("one_layer")
def one_layer(backbone, num_classes, *, kernel_size: int = 1):
    name, spec = list(backbone.feature_specs.items())[0]
    layer = nn.Conv2d(spec.channels, num_classes, kernel_size, padding=kernel_size // 2)
    return Segmenter(backbone, OnMap(name, nn.Sequential(layer)))
"""


def test_a_segmenter_of_a_user_s_module_is_built_on_either(make_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_segmenter.py").write_text(MODULE)
    head = "model.head={name: 'my_segmenter:one_layer', kernel_size: 3}"
    for pyramid in ([], ["model.pyramid={name: fpn, out_channels: 8}"]):
        model = build_model(make_config(head, *pyramid), num_classes=3, load_weights=False)
        assert model(torch.zeros(1, 3, 32, 48))["out"].shape == (1, 3, 32, 48)
    assert "no option 'kernel'" in problem(make_config, "model.head={name: 'my_segmenter:one_layer', kernel: 3}")
    assert "registers no segmenter 'two_layers'" in problem(make_config, "model.head.name=my_segmenter:two_layers")


def test_a_detector_s_config_is_for_another_tool(tmp_path):
    (tmp_path / "run.yaml").write_text("data: {train: shapes, val: shapes}\n")
    with pytest.raises(UserError, match=r"of the job detection, and this tool is for segmentation: use tools/train_det\.py"):
        load_config(tmp_path / "run.yaml", job="segmentation")
