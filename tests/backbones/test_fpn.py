"""backbones/fpn.py against torchvision's FeaturePyramidNetwork."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from backbones import FeaturePyramid, FeatureSpec, UserError, build_fpn_backbone, register_pyramid
from backbones.fpn import PYRAMIDS

SPECS = {f"c{2 + i}": FeatureSpec(channels, 4 * 2**i) for i, channels in enumerate((8, 16, 24, 40))}
OUT = 12
NAMES = ["0", "1", "2", "3"]
# extra_level, torchvision's block for it, the names it adds. torchvision takes P5 where both channels are the same.
EXTRA_LEVELS = {
    "pool": (LastLevelMaxPool, ["pool"]),
    "p6p7": (lambda: LastLevelP6P7(OUT, OUT), ["p6", "p7"]),
    "p6p7_on_c5": (lambda: LastLevelP6P7(40, OUT), ["p6", "p7"]),
    None: (lambda: None, []),
}


@pytest.fixture
def features():
    """Maps of a 65 x 97 image, whose sides do not halve evenly."""
    sizes = [(17, 25), (9, 13), (5, 7), (3, 4)]
    return {name: torch.randn(2, spec.channels, *size) for (name, spec), size in zip(SPECS.items(), sizes, strict=True)}


def torchvision_fpn(extra_level=None, norm=None):
    extra_blocks = EXTRA_LEVELS[extra_level][0]()
    channels = [spec.channels for spec in SPECS.values()]
    return FeaturePyramidNetwork(channels, OUT, extra_blocks=extra_blocks, norm_layer=norm)


def assert_same_pyramid(ours, theirs, features, extra_names):
    # torchvision names its levels after the maps it is given; its detectors give it "0".."3".
    expected = theirs(dict(zip(NAMES, features.values(), strict=True)))
    levels = ours(features)
    assert list(levels) == list(expected) == NAMES + extra_names
    for name, level in levels.items():
        assert_close(level, expected[name])


@pytest.mark.parametrize("extra_level", EXTRA_LEVELS)
def test_levels_equal_torchvision_under_its_weights(extra_level, features, randomize):
    theirs = randomize(torchvision_fpn(extra_level))
    ours = FeaturePyramid(SPECS, out_channels=OUT, extra_level=extra_level)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert_same_pyramid(ours, theirs, features, EXTRA_LEVELS[extra_level][1])


def test_levels_equal_torchvision_with_a_norm(features, randomize):
    theirs = randomize(torchvision_fpn(norm=nn.BatchNorm2d)).eval()
    ours = FeaturePyramid(SPECS, out_channels=OUT, extra_level=None, norm="bn").eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert_same_pyramid(ours, theirs, features, [])


@pytest.mark.parametrize("extra_level", EXTRA_LEVELS)
def test_declared_specs_are_what_comes_out(extra_level, features):
    pyramid = FeaturePyramid(SPECS, out_channels=OUT, extra_level=extra_level)
    levels = pyramid(features)
    strides = {name: 4 * 2**i for i, name in enumerate(levels)}
    assert pyramid.out_specs == {name: FeatureSpec(level.shape[1], strides[name]) for name, level in levels.items()}


def old_layout(state_dict):
    """The keys of torchvision before version 2 of its pyramid, in a plain dict: no version is known."""
    return {key.replace(".0.weight", ".weight").replace(".0.bias", ".bias"): value for key, value in state_dict.items()}


def test_the_old_key_layout_of_torchvision_loads(features, randomize):
    new = randomize(torchvision_fpn("pool"))
    state_dict = old_layout(new.state_dict())
    assert "inner_blocks.0.weight" in state_dict
    theirs, ours = torchvision_fpn("pool"), FeaturePyramid(SPECS, out_channels=OUT)
    theirs.load_state_dict(state_dict, strict=True)
    ours.load_state_dict(state_dict, strict=True)
    assert_same_pyramid(ours, theirs, features, ["pool"])
    assert_same_pyramid(ours, new, features, ["pool"])


def test_the_old_key_layout_loads_within_a_backbone(randomize):
    new = randomize(build_fpn_backbone("resnet18", out_channels=OUT)).eval()
    body = {f"body.{key}": value for key, value in new.body.state_dict().items()}
    fpn = {f"fpn.{key}": value for key, value in old_layout(new.fpn.state_dict()).items()}
    assert "fpn.layer_blocks.3.bias" in fpn
    backbone = build_fpn_backbone("resnet18", out_channels=OUT).eval()
    backbone.load_state_dict(body | fpn, strict=True)
    images = torch.randn(1, 3, 64, 96)
    for name, level in backbone(images).items():
        assert_close(level, new(images)[name])


@pytest.mark.parametrize(
    ("out_features", "message"),
    [(["c2", "c4"], r"c2 has stride 4, the next map c4 has 16, not 8"), (["c2", "c3", "c5"], r"c3 .* c5 has 32, not 16")],
)
def test_strides_that_do_not_double_are_refused_by_name(out_features, message):
    with pytest.raises(UserError, match=message):
        build_fpn_backbone("resnet18", out_features=out_features)


def test_unknown_extra_level_suggests_the_nearest():
    with pytest.raises(UserError, match=r"'p6_p7'.*Did you mean 'p6p7'\?"):
        build_fpn_backbone("resnet18", extra_level="p6_p7")


def test_unknown_pyramid_names_what_there_is():
    with pytest.raises(UserError, match=r"no pyramid 'bfpn'.*'bifpn'"):
        build_fpn_backbone("resnet18", pyramid="bfpn")


def test_a_registered_pyramid_builds_by_name(monkeypatch):
    monkeypatch.setattr(PYRAMIDS, "_constructors", dict(PYRAMIDS._constructors))

    @register_pyramid("doubled")
    class Doubled(FeaturePyramid):
        def forward(self, features):
            return {name: level * 2 for name, level in super().forward(features).items()}

    backbone = build_fpn_backbone("resnet18", pyramid="doubled", out_channels=OUT).eval()
    plain = build_fpn_backbone("resnet18", out_channels=OUT).eval()
    plain.load_state_dict(backbone.state_dict())
    images = torch.randn(1, 3, 64, 64)
    assert_close(backbone(images)["0"], plain(images)["0"] * 2)
