"""What the plug-outs share, and that none of them is needed by the others, or by our own packages."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from backbones import Backbone, FeatureSpec, UserError, build_backbone, register_backbone
from backbones.check_maps import ContractError
from backbones.plugins.common import all_specs, build, outline, pick

ROOT = Path(__file__).parents[3]
FRAMEWORKS = ["detectron2", "mmdet", "transformers", "segmentation_models_pytorch", "timm"]


def test_a_framework_that_is_not_there_is_one_line_that_says_what_to_install():
    code = """
import importlib, sys
for framework in sys.argv[1:]:
    sys.modules[framework] = None
    try:
        importlib.import_module(f"backbones.plugins.{framework}")
    except ValueError as error:
        print(type(error).__name__, error)
"""
    command = [sys.executable, "-c", code, *FRAMEWORKS]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for framework, line in zip(FRAMEWORKS, lines, strict=True):
        assert line.startswith(f"UserError backbones.plugins.{framework} needs a package that cannot be imported")
        assert framework.replace("_", "-") in line.split("Install it: pip install")[1]


def test_our_packages_import_no_plugin_and_no_framework():
    code = f"import sys, backbones.plugins, heads; print(*{{*sys.modules}} & {{*{FRAMEWORKS}}})"
    code += "\nprint(*[name for name in sys.modules if name.startswith('backbones.plugins.')])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


@pytest.mark.parametrize("name", ["resnet18", "resnet50d", "resnetv2_50", "seresnet50", "resnext50_32x4d", "cifar_resnet20"])
def test_an_outline_declares_what_is_built_and_holds_no_memory(name):
    found = outline(name)
    assert found.feature_specs == build_backbone(name).feature_specs
    assert all(parameter.is_meta for parameter in found.parameters())


def test_an_outline_needs_no_weight_file():
    assert outline("resnet18", weights="no/such/file.pth", pyramid="fpn", out_channels=8).out_channels == 8


def test_all_maps_include_the_stems_where_there_is_one():
    assert list(all_specs("resnet18")) == ["c1", "c2", "c3", "c4", "c5"]
    assert list(all_specs("cifar_resnet20")) == ["c0", "c1", "c2"]
    assert list(all_specs("resnet18", out_features=["c3"])) == ["c3"]
    assert list(all_specs("resnet18", pyramid="fpn")) == ["0", "1", "2", "3", "pool"]


def test_places_are_turned_into_names():
    assert pick(["a", "b", "c"], [-1, 0]) == ["a", "c"]
    for wrong in ([3], [-4], []):
        with pytest.raises(UserError, match="0 a, 1 b, 2 c"):
            pick(["a", "b", "c"], wrong)


class Halved(Backbone):
    """Looks at one of its own numbers as it is built, and declares a stride it does not have."""

    def __init__(self, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        assert torch.ones(1).item() == 1
        self.feature_specs = {"c1": FeatureSpec(4, stride)}

    def forward(self, images):
        return {"c1": self.conv1(images)}


@register_backbone("test_plugins_halved")
def halved(*, in_channels=3, norm="bn", out_features=None, stride=2):
    return Halved(stride)


def test_a_backbone_that_looks_at_its_numbers_is_outlined_too():
    assert outline("test_plugins_halved").feature_specs == {"c1": FeatureSpec(4, 2)}


def test_a_wrong_stride_is_found_at_build():
    assert build("test_plugins_halved").feature_specs == {"c1": FeatureSpec(4, 2)}
    with pytest.raises(ContractError, match="'c1'"):
        build("test_plugins_halved", stride=4)
