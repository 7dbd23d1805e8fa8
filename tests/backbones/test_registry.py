"""backbones/registry.py: names, options, and what a newcomer registers."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from backbones import (
    Backbone,
    FeatureSpec,
    UserError,
    build_backbone,
    build_fpn_backbone,
    list_backbones,
    register_backbone,
)
from backbones.registry import BACKBONES, Registry
from engine.config_file import apply_overrides
from heads import build_detector, faster_rcnn, list_detectors


@pytest.fixture
def own_registry(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(BACKBONES, "_constructors", dict(BACKBONES._constructors))


class Patches(Backbone):
    """A user's own backbone: patches of 8 pixels, then of 16."""

    def __init__(self, *, in_channels=3, norm="bn", out_features=None, width=8):
        super().__init__()
        self.feature_specs = {"fine": FeatureSpec(width, 8), "coarse": FeatureSpec(2 * width, 16)}
        self.fine = nn.Conv2d(in_channels, width, 8, stride=8)
        self.coarse = nn.Conv2d(width, 2 * width, 2, stride=2)

    def forward(self, images):
        fine = self.fine(images)
        return {"fine": fine, "coarse": self.coarse(fine)}


@pytest.mark.usefixtures("own_registry")
def test_a_function_registers_a_backbone_that_builds_by_name_and_detects(make_target, train_step):
    @register_backbone("patches")
    def patches(*, in_channels=3, norm="bn", out_features=None, width=8):
        return Patches(in_channels=in_channels, width=width)

    assert "patches" in list_backbones()
    assert build_backbone("patches", width=4).feature_specs["coarse"] == FeatureSpec(8, 16)
    backbone = build_fpn_backbone("patches", width=4, out_channels=16)
    assert backbone.feature_specs == {"0": FeatureSpec(16, 8), "1": FeatureSpec(16, 16), "pool": FeatureSpec(16, 32)}

    model = faster_rcnn(backbone, 3, min_size=64, max_size=96, box_head_dim=8, rpn_post_nms_top_n_train=20)
    losses = train_step(model, [torch.rand(3, 64, 96)], [make_target([[8, 8, 60, 50]])])
    assert losses["loss_classifier"] > 0


@pytest.mark.usefixtures("own_registry")
def test_a_class_registers_as_a_function_does():
    register_backbone("patches")(Patches)
    assert build_backbone("patches", width=4, in_channels=1).fine.weight.shape == (4, 1, 8, 8)
    with pytest.raises(UserError, match=r"'patches' has no option 'widht'.*Did you mean 'width'\?"):
        build_backbone("patches", widht=4)


@pytest.mark.usefixtures("own_registry")
def test_a_backbone_of_one_stage_is_frozen_whole():
    register_backbone("patches")(Patches)
    assert not any(parameter.requires_grad for parameter in build_backbone("patches", trainable_layers=0).parameters())
    with pytest.raises(UserError, match="trainable_layers is 2"):
        build_backbone("patches", trainable_layers=2)


@pytest.mark.usefixtures("own_registry")
def test_weights_torchvision_does_not_publish_are_refused_by_name():
    register_backbone("patches")(Patches)
    with pytest.raises(UserError, match=r"no weights for 'patches'.*path of a \.pth"):
        build_backbone("patches", weights="IMAGENET1K_V1")


@pytest.mark.usefixtures("own_registry")
def test_a_taken_name_is_refused_and_keeps_its_owner():
    with pytest.raises(UserError, match=r"'resnet18' is registered already, by backbones\.resnet"):
        register_backbone("resnet18")(Patches)
    assert build_backbone("resnet18").feature_specs["c2"] == FeatureSpec(64, 4)


@pytest.mark.parametrize(
    ("name", "nearest"), [("resnet5", "resnet50"), ("ResNet50", "resnet50"), ("resnext50_32x8d", "resnext50_32x4d")]
)
def test_unknown_backbones_suggest_the_nearest(name, nearest):
    with pytest.raises(UserError, match=rf"no backbone '{name}'.*Did you mean '{nearest}'\?"):
        build_backbone(name)


def test_an_unknown_backbone_like_no_other_lists_what_there_is_or_suggests_nothing():
    with pytest.raises(UserError, match="no backbone 'zzz'") as error:
        build_backbone("zzz")
    assert "Did you mean" not in str(error.value)


def test_unknown_backbone_options_suggest_the_nearest():
    with pytest.raises(UserError, match=r"'resnet50' has no option 'stride_in_1_x_1'.*Did you mean 'stride_in_1x1'\?"):
        build_backbone("resnet50", stride_in_1_x_1=True)


@pytest.mark.usefixtures("own_registry")
def test_a_backbone_without_options_says_so():
    @register_backbone("bare")
    def bare(*, in_channels=3, norm="bn", out_features=None):
        return Patches(in_channels=in_channels)

    with pytest.raises(UserError, match=r"'bare' has no option 'width'. It takes none"):
        build_backbone("bare", width=4)


def test_options_are_checked_through_a_pyramid():
    with pytest.raises(UserError, match=r"no option 'trainable_layer'"):
        build_fpn_backbone("resnet50", trainable_layer=3)


def test_patterns_choose_among_the_names_in_order():
    assert list_backbones("resnext*") == ["resnext101_32x8d", "resnext101_64x4d", "resnext50_32x4d"]
    assert list_backbones("resnet?8") == ["resnet18"]
    assert list_backbones("nothing*") == []
    assert list_backbones() == sorted(list_backbones())


def test_heads_are_built_by_name_with_their_own_and_their_inherited_options():
    assert {"faster_rcnn", "mask_rcnn"} <= set(list_detectors())
    backbone = build_fpn_backbone("resnet18", out_channels=16)
    model = build_detector("mask_rcnn", backbone, 3, mask_head_dim=8, box_head_dim=16, box_score_thresh=0.3)
    assert model.roi_heads.score_thresh == 0.3
    assert model.roi_heads.mask_predictor.mask_fcn_logits.out_channels == 3


@pytest.mark.parametrize("head", ["faster_rcnn", "mask_rcnn"])
def test_unknown_head_options_suggest_the_nearest(head):
    with pytest.raises(UserError, match=rf"'{head}' has no option 'box_scores_thresh'.*Did you mean 'box_score_thresh'\?"):
        build_detector(head, build_fpn_backbone("resnet18", out_channels=16), 3, box_scores_thresh=0.3)


def test_an_option_like_no_other_does_not_say_that_a_head_takes_none():
    with pytest.raises(UserError, match="no option 'zzz'") as error:
        build_detector("faster_rcnn", build_fpn_backbone("resnet18", out_channels=16), 3, zzz=1)
    assert "takes none" not in str(error.value)


def test_unknown_heads_suggest_the_nearest():
    with pytest.raises(UserError, match=r"no head 'fast_rcnn'.*Did you mean 'faster_rcnn'\?"):
        build_detector("fast_rcnn", build_fpn_backbone("resnet18", out_channels=16), 3)


def test_options_of_an_entry_come_with_their_types():
    registry = Registry("thing")

    @registry.register("plain")
    def plain(image, *, size: int = 3, name: str = "x"):
        return image, size, name

    @registry.register("heir", inherits=plain)
    def heir(image, *, extra: float = 1.0, **options):
        return plain(image, **options), extra

    @registry.register("heir of an heir", inherits=heir)
    def heir_of_an_heir(image, **options):
        return heir(image, **options)

    @registry.register("open")
    def takes_anything(**options):
        return options

    @registry.register("quoted")
    def quoted(*, size: "int | None" = None, image: "Nowhere" = None, untyped=0):  # noqa: F821
        return size, image, untyped

    assert registry.options("quoted") == {"size": int | None, "image": Any, "untyped": Any}
    assert registry.options("plain", besides=["image"]) == {"size": int, "name": str}
    assert registry.options("heir", besides=["image"]) == {"extra": float, "size": int, "name": str}
    assert registry.options("heir of an heir", besides=["image"]) == {"extra": float, "size": int, "name": str}
    assert registry.options("open") is None
    registry.check_options("open", ["whatever"])


def test_own_names_are_listed_without_a_zoo_being_imported():
    script = "import sys, backbones; backbones.list_backbones(); print(sorted({'timm', 'transformers'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip() == "[]"
    assert not any("/" in name for name in list_backbones())


def test_an_unknown_zoo_names_the_three():
    with pytest.raises(
        UserError, match=r"no zoo 'tim', in the backbone 'tim/resnet18'.*'timm'.*timm/NAME, torchvision/NAME or hf/"
    ):
        build_backbone("tim/resnet18")
    with pytest.raises(UserError, match="no zoo 'zoo'"):
        list_backbones("zoo/*")


MODULE = """
from torch import nn
from backbones import Backbone, FeatureSpec, register_backbone

class Patches(Backbone):
    def __init__(self, in_channels, width):
        super().__init__()
        self.in_channels = in_channels
        self.conv = nn.Conv2d(in_channels, width, 16, stride=16, padding=8)
        self.feature_specs = {"c4": FeatureSpec(width, 16)}

    def forward(self, images):
        height, width = images.shape[-2:]
        return {"c4": self.conv(images)[..., : -(-height // 16), : -(-width // 16)]}

@register_backbone("of_a_user")
def of_a_user(*, in_channels=3, norm="bn", out_features=None, width: int = 8):
    return Patches(in_channels, width)
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch, own_registry):
    """Writes a module into the current folder, which is forgotten after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(BACKBONES, "_modules", {})
    written = []

    def write(name, text=MODULE):
        (tmp_path / f"{name}.py").write_text(text)
        written.append(name)
        return name

    yield write
    for name in written:
        sys.modules.pop(name, None)


def test_a_users_module_in_the_current_folder_builds_by_name(user_module):
    module = user_module("users_backbones")
    before = list(sys.path)
    assert build_backbone(f"{module}:of_a_user", width=4).feature_specs == {"c4": FeatureSpec(4, 16)}
    assert sys.path == before
    assert build_backbone("of_a_user").feature_specs == {"c4": FeatureSpec(8, 16)}
    assert build_backbone(f"{module}:of_a_user").feature_specs == {"c4": FeatureSpec(8, 16)}
    with pytest.raises(UserError, match=r"'users_backbones:of_a_user' has no option 'widht'.*Did you mean 'width'\?"):
        build_backbone(f"{module}:of_a_user", widht=4)


def test_a_users_module_is_taken_from_the_config(user_module):
    module = user_module("users_backbones_by_config")
    content = {"data": {"train": "shapes", "val": "shapes"}}
    config = apply_overrides(content, [f"model.backbone.name={module}:of_a_user", "model.backbone.width=4"], origin="the test")
    assert config.model.backbone.options() == {"width": 4}
    with pytest.raises(UserError, match=r"width' is 'wide'"):
        apply_overrides(content, [f"model.backbone.name={module}:of_a_user", "model.backbone.width=wide"], origin="the test")
    with pytest.raises(UserError, match=r"model.backbone.name: There is no module 'nowhere_to_be_found'"):
        apply_overrides(content, ["model.backbone.name=nowhere_to_be_found:of_a_user"], origin="the test")


def test_a_zoos_name_is_taken_from_the_config_and_an_unknown_one_refused_by_its_key():
    content = {"data": {"train": "shapes", "val": "shapes"}}
    config = apply_overrides(
        content, ["model.backbone.name=timm/resnet10t", "model.backbone.drop_path_rate=0.1"], origin="the test"
    )
    assert config.model.backbone.options() == {"drop_path_rate": 0.1}
    with pytest.raises(UserError, match=r"model.backbone.name: timm has no model 'resnet10s'.*Did you mean"):
        apply_overrides(content, ["model.backbone.name=timm/resnet10s"], origin="the test")
    with pytest.raises(UserError, match=r"model.backbone.name: There is no zoo 'tim'"):
        apply_overrides(content, ["model.backbone.name=tim/resnet10t"], origin="the test")


def test_only_what_a_module_registers_is_taken_from_it(user_module):
    module = user_module("users_other_backbones")
    with pytest.raises(UserError, match=r"registers no backbone 'Patches' with @register_backbone.* Known: of_a_user"):
        build_backbone(f"{module}:Patches")
    with pytest.raises(UserError, match=r"module 'os' registers no backbone 'system'.*registers none"):
        build_backbone("os:system")
    with pytest.raises(UserError, match="module 'os' registers no backbone 'resnet18'"):
        build_backbone("os:resnet18")


@pytest.mark.parametrize("name", ["./users.py:x", "users-file:x", "folder/users:x", ":x", ".users:x", "users.py.:x"])
def test_files_are_no_modules(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "users.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(UserError, match=r"names no module|There is no zoo"):
        build_backbone(name)


def test_a_module_that_fails_is_one_sentence_and_can_be_put_right(user_module):
    module = user_module("users_broken_backbone", MODULE + "\nimport not_there_at_all\n")
    with pytest.raises(UserError, match=r"fails on import: ModuleNotFoundError: No module named 'not_there_at_all'"):
        build_backbone(f"{module}:of_a_user")
    with pytest.raises(UserError, match="no backbone 'of_a_user'"):
        build_backbone("of_a_user")
    user_module(module, MODULE + "\nrepaired = True\n")
    assert build_backbone(f"{module}:of_a_user", width=2).feature_specs == {"c4": FeatureSpec(2, 16)}
