"""What every backbone promises (backbones/base.py), checked on all of them."""

import re

import pytest
import torch
from torch import nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from backbones import UserError, build_backbone, build_fpn_backbone, list_backbones
from backbones.registry import BACKBONES

# A name with a slash comes from another zoo, and its adapter has tests of its own.
# The CIFAR forms are one network of several depths: the deepest has a test of its own.
TOO_DEEP = ("cifar_resnet110", "cifar_resnet1202")
# Those of the package: other tests register some for themselves.
OWN = [name for name in list_backbones() if BACKBONES.get(name).__module__.startswith("backbones.")]
NAMES = [name for name in OWN if name not in TOO_DEEP]
SIZES = [(64, 64), (65, 97), (33, 130)]
STAGES = [("conv1.", "bn1."), ("layer1.",), ("layer2.",), ("layer3.",), ("layer4.",)]
PYRAMIDS = [
    {"name": "resnet18"},
    {"name": "resnet18", "extra_level": "p6p7", "out_channels": 32, "pyramid_norm": "gn"},
    {"name": "resnet18", "extra_level": "p6p7_on_c5", "out_features": ["c3", "c4", "c5"]},
    {"name": "resnet50", "extra_level": None, "out_channels": 48, "out_features": ["c2", "c3"]},
]


@pytest.fixture(scope="module", params=NAMES)
def backbone(request):
    return build_backbone(request.param)


def check_declared_shapes(backbone, *, in_channels=3):
    backbone.eval()
    for height, width in SIZES:
        with torch.no_grad():
            features = backbone(torch.randn(1, in_channels, height, width))
        declared = {
            name: (1, spec.channels, -(-height // spec.stride), -(-width // spec.stride))
            for name, spec in backbone.feature_specs.items()
        }
        assert [(name, tuple(feature.shape)) for name, feature in features.items()] == list(declared.items())


def backward(backbone, *, in_channels=3):
    features = backbone(torch.randn(2, in_channels, 40, 72))
    sum(feature.square().mean() for feature in features.values()).backward()


def check_gradients(backbone):
    for name, parameter in backbone.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} got no gradient"
            assert parameter.grad.abs().sum() > 0, f"{name} got a gradient of zero"
        else:
            assert parameter.grad is None, f"{name} is frozen but got a gradient"


def statistics(backbone):
    return {name: buffer.clone() for name, buffer in backbone.named_buffers()}


def frozen_prefixes(trainable_layers):
    return tuple(prefix for stage in STAGES[: 5 - trainable_layers] for prefix in stage)


def test_maps_are_as_declared_and_finest_first(backbone):
    check_declared_shapes(backbone)
    strides = {name: spec.stride for name, spec in backbone.feature_specs.items()}
    # C_k has stride 2**k: for CIFAR from the image's own size, else from a quarter of it.
    assert strides in ({"c0": 1, "c1": 2, "c2": 4}, {"c2": 4, "c3": 8, "c4": 16, "c5": 32})


def test_gradient_reaches_every_parameter(backbone):
    backbone.train()
    backward(backbone)
    check_gradients(backbone)


@pytest.mark.parametrize("options", PYRAMIDS)
def test_pyramid_maps_are_as_declared_and_train(options):
    pyramid = build_fpn_backbone(**options)
    check_declared_shapes(pyramid)
    assert {spec.channels for spec in pyramid.feature_specs.values()} == {pyramid.out_channels}
    pyramid.train()
    backward(pyramid)
    check_gradients(pyramid)


@pytest.mark.parametrize(("name", "trainable_layers"), [*(("resnet18", n) for n in range(6)), ("resnet50", 3)])
def test_frozen_stages_get_no_gradient_and_keep_their_statistics(name, trainable_layers):
    backbone = build_backbone(name, norm="bn", trainable_layers=trainable_layers)
    backbone.eval()
    backbone.train()  # an evaluation in between must not thaw anything
    before = statistics(backbone)
    if trainable_layers == 0:
        assert not any(feature.requires_grad for feature in backbone(torch.randn(2, 3, 40, 72)).values())
    else:
        backward(backbone)
        check_gradients(backbone)
    frozen = frozen_prefixes(trainable_layers)
    for key, parameter in backbone.named_parameters():
        assert parameter.requires_grad == (not key.startswith(frozen)), key
    for key, value in statistics(backbone).items():
        assert torch.equal(value, before[key]) == key.startswith(frozen), key


def test_a_pyramid_in_train_mode_leaves_the_frozen_body_alone():
    pyramid = build_fpn_backbone("resnet18", norm="bn", pyramid_norm="bn", out_channels=16, trainable_layers=1)
    model = nn.ModuleDict({"backbone": pyramid}).train()
    before = statistics(pyramid)
    backward(model["backbone"])
    moved = {key for key, value in statistics(pyramid).items() if not torch.equal(value, before[key])}
    assert moved == {key for key in before if key.startswith(("body.layer4.", "fpn."))}


@pytest.mark.parametrize("trainable_layers", range(6))
def test_the_same_parameters_train_as_in_torchvision(trainable_layers):
    with torch.device("meta"):
        theirs = resnet_fpn_backbone(
            backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=trainable_layers
        )
        ours = build_fpn_backbone("resnet18", trainable_layers=trainable_layers)
    expected = {name: parameter.requires_grad for name, parameter in theirs.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in ours.named_parameters()} == expected


def test_freezing_again_thaws_what_is_to_be_trained():
    backbone = build_backbone("resnet18", trainable_layers=0).train()
    backbone.freeze(5)
    before = statistics(backbone)
    backward(backbone)
    check_gradients(backbone)
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert not any(torch.equal(value, before[key]) for key, value in statistics(backbone).items())


@pytest.mark.parametrize("trainable_layers", [-1, 6])
def test_numbers_of_stages_out_of_range_are_refused(trainable_layers):
    with pytest.raises(UserError, match=rf"trainable_layers is {trainable_layers}.*5 stages.*stem.*layer4"):
        build_backbone("resnet18", trainable_layers=trainable_layers)


def test_frozen_bn_has_neither_norm_parameters_nor_moving_statistics():
    backbone = build_backbone("resnet18", norm="frozen_bn").train()
    assert not [name for name, _ in backbone.named_parameters() if re.search(r"bn\d|downsample\.1", name)]
    before = statistics(backbone)
    backward(backbone)
    check_gradients(backbone)
    assert all(torch.equal(value, before[key]) for key, value in statistics(backbone).items())


@pytest.mark.parametrize(("name", "norm"), [("resnet18", "gn"), ("resnet18", "sync_bn"), ("resnext50_32x4d", "gn")])
def test_every_norm_builds_and_trains(name, norm):
    backbone = build_backbone(name, norm=norm)
    check_declared_shapes(backbone)
    backbone.train()
    backward(backbone)
    check_gradients(backbone)


@pytest.mark.parametrize("in_channels", [1, 4])
def test_images_may_have_other_numbers_of_channels(in_channels):
    backbone = build_backbone("resnet18", in_channels=in_channels)
    check_declared_shapes(backbone, in_channels=in_channels)
    backbone.train()
    backward(backbone, in_channels=in_channels)
    check_gradients(backbone)


@pytest.mark.parametrize("out_features", [["c2"], ["c3", "c5"], ["c4", "c3"]])
def test_subsets_of_the_maps_are_as_declared_and_train_all_that_is_built(out_features):
    backbone = build_backbone("resnet18", out_features=out_features)
    assert list(backbone.feature_specs) == sorted(out_features)
    check_declared_shapes(backbone)
    backbone.train()
    backward(backbone)
    check_gradients(backbone)


def test_without_weights_everything_is_trained_with_batch_norm():
    backbone = build_backbone("resnet18")
    assert isinstance(backbone.bn1, nn.BatchNorm2d)
    assert all(parameter.requires_grad for parameter in backbone.parameters())


def test_stages_are_described_with_what_is_trained_of_how_much():
    pyramid = build_fpn_backbone("resnet18", norm="bn", trainable_layers=2)
    lines = [line.split() for line in pyramid.describe_stages()]
    assert [(line[0], line[1]) for line in lines] == [
        ("stem", "frozen"), ("layer1", "frozen"), ("layer2", "frozen"),
        ("layer3", "trained"), ("layer4", "trained"), ("fpn", "trained"),
    ]  # fmt: skip
    counted = sum(int(line[2].replace(",", "")) for line in lines)
    assert counted == sum(parameter.numel() for parameter in pyramid.parameters())
