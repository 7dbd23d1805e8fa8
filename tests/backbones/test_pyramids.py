"""backbones/pyramids.py: the papers' formulas, written out again, under shared weights; levels as declared; gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from backbones import FeaturePyramid, FeatureSpec, UserError, build_fpn_backbone
from backbones.pyramids import BidirectionalPyramid, PathAggregationPyramid, SimpleFeaturePyramid, SingleMap
from heads import faster_rcnn

SPECS = {f"c{2 + i}": FeatureSpec(channels, 4 * 2**i) for i, channels in enumerate((8, 16, 24, 40))}
OUT = 12
PYRAMIDS = ["fpn", "pafpn", "bifpn", "simple", "single"]


@pytest.fixture
def features():
    """Maps of a 65 x 97 image, whose sides do not halve evenly."""
    sizes = [(17, 25), (9, 13), (5, 7), (3, 4)]
    return {name: torch.randn(2, spec.channels, *size) for (name, spec), size in zip(SPECS.items(), sizes, strict=True)}


def convolve(state, at, x, **options):
    return F.conv2d(x, state[f"{at}.weight"], state.get(f"{at}.bias"), **options)


def test_path_aggregation_is_fpn_and_then_the_way_up(features, randomize):
    ours = randomize(PathAggregationPyramid(SPECS, out_channels=OUT, extra_level="p6p7"))
    state = ours.state_dict()
    fpn = FeaturePyramid(SPECS, out_channels=OUT, extra_level=None)
    fpn.load_state_dict({key: value for key, value in state.items() if key in fpn.state_dict()})
    expected = list(fpn(features).values())
    for i in range(1, 4):
        halved = convolve(state, f"downsample_blocks.{i - 1}.0", expected[i - 1], stride=2, padding=1)
        expected[i] = convolve(state, f"path_blocks.{i - 1}.0", expected[i] + halved, padding=1)
    p6 = convolve(state, "extra_blocks.p6", expected[3], stride=2, padding=1)
    p7 = convolve(state, "extra_blocks.p7", p6.relu(), stride=2, padding=1)
    levels = ours(features)
    assert list(levels) == ["0", "1", "2", "3", "p6", "p7"] == list(ours.out_specs)
    for found, wanted in zip(levels.values(), [*expected, p6, p7], strict=True):
        assert_close(found, wanted)


def fuse(state, at, *summands):
    """Equation 3 and the convolution after it; the norm is an affine map here, its statistics being 0 and 1."""
    weights = state[f"{at}.weights"].clamp(min=0)
    total = sum(weight * summand for weight, summand in zip(weights, summands, strict=True)) / (weights.sum() + 1e-4)
    out = F.conv2d(F.silu(total), state[f"{at}.depthwise.weight"], padding=1, groups=total.shape[1])
    out = F.conv2d(out, state[f"{at}.pointwise.weight"])
    scale, shift = (state[f"{at}.norm.{name}"][:, None, None] for name in ("weight", "bias"))
    mean, var = (state[f"{at}.norm.running_{name}"][:, None, None] for name in ("mean", "var"))
    return (out - mean) / (var + 1e-5).sqrt() * scale + shift


def test_bifpn_is_the_paper_written_out(randomize):
    """Figure 2 (d) with four levels, the last of them pooled from the third."""
    specs = dict(list(SPECS.items())[:3])
    features = {name: torch.randn(1, spec.channels, 64 // spec.stride, 96 // spec.stride) for name, spec in specs.items()}
    ours = randomize(BidirectionalPyramid(specs, out_channels=OUT, extra_level="pool", repeats=2)).eval()
    state = ours.state_dict()
    p = [ours.lateral_blocks[i](x) for i, x in enumerate(features.values())]
    p.append(F.max_pool2d(p[-1], 3, 2, 1))
    enlarge = lambda x, like: F.interpolate(x, size=like.shape[-2:])  # noqa: E731
    halve = lambda x: F.max_pool2d(x, 3, 2, 1)  # noqa: E731
    for layer in ("layers.0", "layers.1"):
        d2 = fuse(state, f"{layer}.down.0", p[2], enlarge(p[3], p[2]))
        d1 = fuse(state, f"{layer}.down.1", p[1], enlarge(d2, p[1]))
        d0 = fuse(state, f"{layer}.down.2", p[0], enlarge(d1, p[0]))
        u1 = fuse(state, f"{layer}.up.0", p[1], d1, halve(d0))
        u2 = fuse(state, f"{layer}.up.1", p[2], d2, halve(u1))
        p = [d0, u1, u2, fuse(state, f"{layer}.up.2", p[3], halve(u2))]
    levels = ours(features)
    assert list(levels) == ["0", "1", "2", "pool"]
    for found, wanted in zip(levels.values(), p, strict=True):
        assert_close(found, wanted)


def channel_norm(state, at, x):
    x = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], state[f"{at}.weight"], state[f"{at}.bias"], eps=1e-6)
    return x.permute(0, 3, 1, 2)


def test_the_simple_pyramid_is_vitdet(randomize):
    ours = randomize(SimpleFeaturePyramid({"c4": FeatureSpec(16, 16)}, out_channels=OUT))
    state = ours.state_dict()
    x = torch.randn(2, 16, 4, 6)

    def finish(at, first, x):
        x = channel_norm(state, f"{at}.{first}.1", F.conv2d(x, state[f"{at}.{first}.0.weight"]))
        return channel_norm(state, f"{at}.{first + 1}.1", F.conv2d(x, state[f"{at}.{first + 1}.0.weight"], padding=1))

    def double(at, x):
        return F.conv_transpose2d(x, state[f"{at}.weight"], state[f"{at}.bias"], stride=2)

    quarter = F.gelu(channel_norm(state, "scale_blocks.0.1", double("scale_blocks.0.0", x)))
    expected = [
        finish("scale_blocks.0", 4, double("scale_blocks.0.3", quarter)),
        finish("scale_blocks.1", 1, double("scale_blocks.1.0", x)),
        finish("scale_blocks.2", 0, x),
        finish("scale_blocks.3", 1, F.max_pool2d(x, 2)),
    ]
    expected.append(expected[-1][..., ::2, ::2])
    levels = ours({"c4": x})
    assert {name: spec.stride for name, spec in ours.out_specs.items()} == {"0": 4, "1": 8, "2": 16, "3": 32, "pool": 64}
    for found, wanted in zip(levels.values(), expected, strict=True):
        assert_close(found, wanted)


@pytest.mark.parametrize("stride", [4, 8, 16, 32, 64])
def test_the_simple_pyramid_makes_the_same_scales_of_a_map_of_any_stride(stride):
    pyramid = SimpleFeaturePyramid({"map": FeatureSpec(64, stride)}, out_channels=OUT, extra_level=None)
    levels = pyramid({"map": torch.randn(1, 64, 128 // stride, 192 // stride)})
    assert [tuple(level.shape[-2:]) for level in levels.values()] == [(32, 48), (16, 24), (8, 12), (4, 6)]


def test_a_single_map_is_the_coarsest_one_as_it_is_or_projected(features):
    same = SingleMap(SPECS, out_channels=40)
    assert same.out_specs == {"0": FeatureSpec(40, 32)}
    assert same(features)["0"] is features["c5"]
    projected = SingleMap(SPECS, out_channels=OUT)
    weight, bias = projected.projection[0].weight, projected.projection[0].bias
    assert_close(projected(features)["0"], F.conv2d(features["c5"], weight, bias))


@pytest.mark.parametrize("name", PYRAMIDS)
@pytest.mark.parametrize("norm", [None, "gn"])
def test_every_pyramid_trains_in_a_detector(name, norm, make_target, train_step):
    backbone = build_fpn_backbone("resnet18", pyramid=name, out_channels=32, pyramid_norm=norm, norm="frozen_bn")
    norms = [module for module in backbone.fpn.modules() if isinstance(module, nn.GroupNorm)]
    assert bool(norms) == (norm == "gn")
    model = faster_rcnn(backbone, 3, min_size=64, max_size=96, box_head_dim=8, rpn_post_nms_top_n_train=20, anchor_scale=4)
    losses = train_step(model, [torch.rand(3, 64, 96)], [make_target([[8, 8, 60, 50]])])
    assert losses["loss_classifier"] > 0


@pytest.mark.parametrize("name", PYRAMIDS)
@pytest.mark.parametrize("extra_level", [None, "pool", "p6p7"])
def test_levels_are_as_declared_on_odd_sizes(name, extra_level):
    if name == "single" and extra_level == "p6p7":
        pytest.skip("a single level has none above")
    backbone = build_fpn_backbone("resnet18", pyramid=name, out_channels=16, extra_level=extra_level).eval()
    with torch.no_grad():
        levels = backbone(torch.randn(1, 3, 96, 160))
    assert list(levels) == list(backbone.feature_specs)
    for level, spec in zip(levels.values(), backbone.feature_specs.values(), strict=True):
        assert level.shape == (1, 16, -(-96 // spec.stride), -(-160 // spec.stride))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pyramid": "single", "extra_level": "p6p7"}, "single has one level.*'p6p7'"),
        ({"pyramid": "bifpn", "extra_level": "p6p7_on_c5"}, "bifpn.*give extra_level p6p7"),
        ({"pyramid": "bifpn", "extra_level": None, "out_features": ["c5"]}, "here there is one"),
        ({"pyramid": "pafpn", "out_features": ["c2", "c4"]}, "c2 has stride 4, the next map c4 has 16, not 8"),
        ({"pyramid": "simple", "extra_level": "p6p7_on_c5", "out_features": ["c4"]}, "c4 has 16: use p6p7"),
    ],
)
def test_what_a_pyramid_cannot_do_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        build_fpn_backbone("resnet18", **options)


def test_a_pyramid_takes_options_of_its_own():
    backbone = build_fpn_backbone("resnet18", pyramid="bifpn", out_channels=16, pyramid_options={"repeats": 2})
    assert len(backbone.fpn.layers) == 2
    with pytest.raises(UserError, match=r"'bifpn' has no option 'repeat'.*Did you mean 'repeats'\?"):
        build_fpn_backbone("resnet18", pyramid="bifpn", pyramid_options={"repeat": 2})
