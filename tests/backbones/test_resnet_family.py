"""The ResNets that torchvision lacks against timm's under shared weights, and the parts a ResNet can be given."""

import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.testing import assert_close
from torchvision.models._utils import IntermediateLayerGetter

from backbones import FeatureSpec, UserError, build_backbone
from backbones.resnet import ResNet
from backbones.resnet_blocks import BasicBlock, PaddedIdentity
from backbones.resnet_parts import DeformableConv2d, SqueezeExcitation

NAMES = ["c2", "c3", "c4", "c5"]


@pytest.fixture
def odd_images():
    return torch.randn(2, 3, 65, 97)


def timm_maps(model, images):
    """timm's maps of strides 4 to 32, the last normalised where timm does so."""
    last, maps = model.forward_intermediates(images)
    return [*maps[-4:-1], last]


def v2_name(key):
    """Where our pre-activation ResNet has what timm's has under `key`."""
    key = key.replace("stem.conv.", "conv1.").replace("downsample.conv.", "downsample.0.").replace("norm", "bn")
    key = re.sub(r"^bn\.", "norm.", key)
    return re.sub(r"^stages\.(\d)\.blocks\.", lambda found: f"layer{int(found[1]) + 1}.", key)


def assert_same_as_timm(ours, theirs, images, rename=lambda key: key):
    weights = {rename(key): value for key, value in theirs.state_dict().items() if not key.startswith(("fc.", "head."))}
    ours.load_state_dict(weights, strict=True)
    with torch.no_grad():
        expected = timm_maps(theirs.eval(), images)
        maps = ours.eval()(images)
    assert list(maps) == NAMES
    for name, found, wanted in zip(NAMES, maps.values(), expected, strict=True):
        assert wanted.std() > 1e-3, f"{name} is all but constant: equality would show nothing"
        assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        ("resnet18", "resnet18", {}),
        ("resnet18d", "resnet18d", {}),
        ("resnet50c", "resnet50c", {}),
        ("resnet50d", "resnet50d", {}),
        ("seresnet18", "seresnet18", {}),
        ("seresnet50", "seresnet50", {}),
        ("resnet50", "resnet50", {"output_stride": 16}),
        ("resnet50", "resnet50", {"output_stride": 8}),
        ("resnet18", "resnet18", {"output_stride": 8}),
        ("resnet50d", "resnet50d", {"output_stride": 16}),
    ],
)
def test_variants_give_timm_maps_under_its_weights(ours, theirs, options, randomize, odd_images):
    reference = randomize(timm.create_model(theirs, **options))
    assert_same_as_timm(build_backbone(ours, **options), reference, odd_images)


def test_pre_activation_gives_timm_maps_under_its_weights(randomize, odd_images):
    assert_same_as_timm(build_backbone("resnetv2_50"), randomize(timm.create_model("resnetv2_50")), odd_images, v2_name)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilation_is_torchvision_own(output_stride, randomize, odd_images):
    dilated = [False, output_stride == 8, True]
    theirs = randomize(torchvision.models.resnet50(replace_stride_with_dilation=dilated)).eval()
    ours = build_backbone("resnet50", output_stride=output_stride).eval()
    ours.load_state_dict({key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")})
    with torch.no_grad():
        expected = IntermediateLayerGetter(theirs, {f"layer{i}": f"c{i + 1}" for i in range(1, 5)})(odd_images)
        maps = ours(odd_images)
    for name, found in maps.items():
        assert_close(found, expected[name])
    strides = [spec.stride for spec in ours.feature_specs.values()]
    assert strides == [4, 8, min(16, output_stride), output_stride]


def test_a_dilated_network_sees_what_the_undilated_sees(randomize):
    """Holschneider's algorithm à trous: every second pixel of the dilated c5, away from the borders, is the plain one's."""
    plain = randomize(build_backbone("resnet18", out_features=["c4", "c5"])).eval()
    dilated = build_backbone("resnet18", out_features=["c4", "c5"], output_stride=16).eval()
    dilated.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 512, 512)
    with torch.no_grad():
        expected, found = plain(images), dilated(images)
    assert_close(found["c4"], expected["c4"])
    assert_close(found["c5"][..., ::2, ::2][..., 4:-4, 4:-4], expected["c5"][..., 4:-4, 4:-4])


def cifar_reference(state_dict, images, depth):
    """The paper's section 4.2, written as functions: 3x3 convolutions, zeros for new channels."""
    norm = lambda x, at: F.batch_norm(  # noqa: E731
        x, *(state_dict[f"{at}.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
    )
    x = norm(F.conv2d(images, state_dict["conv1.weight"], padding=1), "bn1").relu()
    maps = []
    for stage in range(1, 4):
        for block in range((depth - 2) // 6):
            at = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            out = norm(F.conv2d(x, state_dict[f"{at}.conv1.weight"], stride=stride, padding=1), f"{at}.bn1").relu()
            out = norm(F.conv2d(out, state_dict[f"{at}.conv2.weight"], padding=1), f"{at}.bn2")
            shortcut = x[..., ::stride, ::stride]
            new = (out.shape[1] - shortcut.shape[1]) // 2
            x = (
                out
                + torch.cat(
                    [
                        shortcut.new_zeros(*shortcut.shape[:1], new, *shortcut.shape[2:]),
                        shortcut,
                        shortcut.new_zeros(*shortcut.shape[:1], new, *shortcut.shape[2:]),
                    ],
                    dim=1,
                )
            ).relu()
        maps.append(x)
    return maps


@pytest.mark.parametrize("depth", [20, 32])
def test_the_form_for_cifar_is_the_paper(depth, randomize):
    ours = randomize(build_backbone(f"cifar_resnet{depth}")).eval()
    images = torch.randn(2, 3, 33, 32)
    with torch.no_grad():
        maps = ours(images)
        expected = cifar_reference(ours.state_dict(), images, depth)
    assert list(maps) == ["c0", "c1", "c2"]
    for found, wanted in zip(maps.values(), expected, strict=True):
        assert_close(found, wanted)
    convolutions = [m for m in ours.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) + 1 == depth  # the classifier is the last layer


@pytest.mark.parametrize("depth", [2, 21, 54])
def test_depths_that_are_not_6n_plus_2_are_refused(depth):
    with pytest.raises(UserError, match=rf"6n \+ 2 layers.*depth {depth}"):
        build_backbone("cifar_resnet", depth=depth)


@pytest.mark.parametrize(("shortcut", "projections"), [("A", 0), ("B", 3), ("C", 8), ("D", 3)])
def test_shortcuts_are_those_of_the_paper(shortcut, projections):
    backbone = build_backbone("resnet18", shortcut=shortcut)
    downsamples = [module for name, module in backbone.named_modules() if name.endswith("downsample")]
    assert sum(isinstance(module, nn.Sequential) for module in downsamples) == projections
    assert sum(isinstance(module, PaddedIdentity) for module in downsamples) == (3 if shortcut == "A" else 0)


def test_shortcut_a_pads_with_zeros_and_leaves_out_every_second_pixel():
    x = torch.arange(2.0 * 25).reshape(1, 2, 5, 5)
    out = PaddedIdentity(3, stride=2)(x)
    assert out.shape == (1, 5, 3, 3)
    assert torch.equal(out[:, 1:3], x[:, :, [0, 2, 4]][..., [0, 2, 4]])
    assert not out[:, [0, 3, 4]].any()


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_new_deformable_convolution_is_the_plain_one(name, randomize, odd_images):
    plain = randomize(build_backbone(name)).eval()
    free = build_backbone(name, deformable_stages=["c4", "c5"]).eval()
    missing, unexpected = free.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all("offset_and_mask" in key for key in missing)
    assert len(missing) == 2 * (4 if name == "resnet18" else 9)
    with torch.no_grad():
        for found, wanted in zip(free(odd_images).values(), plain(odd_images).values(), strict=True):
            assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_deformable_convolutions_learn_where_to_look():
    convolution = DeformableConv2d(4, 6, kernel_size=3, padding=1, bias=False)
    x = torch.randn(2, 4, 9, 11)
    convolution(x).square().mean().backward()
    assert convolution.offset_and_mask.weight.grad.abs().sum() > 0
    # One pixel to the right, everywhere: what the plain convolution gives of the shifted map.
    taps = 9
    with torch.no_grad():
        convolution.offset_and_mask.bias[: 2 * taps].view(taps, 2)[:, 1] = 1
        moved, expected = convolution(x)[..., 1:-2], F.conv2d(x, convolution.weight, padding=1)[..., 2:-1]
    assert_close(moved, expected)


def test_deformable_convolutions_run_in_mixed_precision():
    convolution = DeformableConv2d(4, 6, kernel_size=3, padding=1, bias=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert convolution(torch.randn(1, 4, 8, 8)).shape == (1, 6, 8, 8)


def test_squeeze_excitation_is_timm_own(randomize):
    theirs = randomize(timm.layers.SEModule(128, rd_ratio=1 / 16))
    ours = SqueezeExcitation(128)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 128, 5, 7)
    assert_close(ours(x), theirs(x))


def test_c1_is_the_stem_before_its_pooling(randomize, odd_images):
    theirs = randomize(torchvision.models.resnet18()).eval()
    ours = build_backbone("resnet18", out_features=["c1", "c3"]).eval()
    ours.load_state_dict({key: value for key, value in theirs.state_dict().items() if key in ours.state_dict()})
    assert ours.feature_specs == {"c1": FeatureSpec(64, 2), "c3": FeatureSpec(128, 8)}
    with torch.no_grad():
        expected = theirs.relu(theirs.bn1(theirs.conv1(odd_images)))
        assert_close(ours(odd_images)["c1"], expected)
    assert "c1" not in build_backbone("resnet18").feature_specs


def test_stochastic_depth_grows_with_depth_and_is_off_in_evaluation(odd_images):
    backbone = build_backbone("resnet18", stochastic_depth=0.7)
    rates = [getattr(module.drop_path, "p", 0.0) for module in backbone.modules() if isinstance(module, BasicBlock)]
    assert_close(torch.tensor(rates), torch.linspace(0, 0.7, 8))
    same = build_backbone("resnet18").eval()
    same.load_state_dict(backbone.state_dict())
    with torch.no_grad():
        assert_close(backbone.eval()(odd_images)["c5"], same(odd_images)["c5"])
        first, second = (backbone.train()(odd_images)["c5"] for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnetv2_50"])
def test_zero_init_makes_every_block_start_as_its_shortcut(name):
    backbone = build_backbone(name, zero_init_last_norm=True).eval()
    block = backbone.layer3[1]
    x = torch.rand(1, block.conv1.in_channels, 6, 5)  # not negative, so that the last activation changes nothing
    with torch.no_grad():
        assert_close(block(x), x)


@pytest.mark.parametrize(
    ("name", "blocks"), [("resnet18", True), ("resnetv2_18", True), ("seresnet18", True), ("resnet18", ["c2", "c4"])]
)
def test_checkpointing_changes_neither_gradients_nor_statistics(name, blocks, odd_images):
    plain = build_backbone(name, stochastic_depth=0.3)
    saving = build_backbone(name, stochastic_depth=0.3, checkpoint_blocks=blocks)
    saving.load_state_dict(plain.state_dict())
    for backbone in (plain, saving):
        torch.manual_seed(1)
        sum(level.square().mean() for level in backbone.train()(odd_images).values()).backward()
    for (key, expected), found in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")
    for (key, expected), found in zip(plain.named_buffers(), saving.buffers(), strict=True):
        assert_close(found, expected, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.slow
def test_1202_layers_train_at_batch_32_within_6_gb():
    code = (
        "import torch, resource; from backbones import build_backbone\n"
        "torch.set_num_threads(1)\n"
        "backbone = build_backbone('cifar_resnet1202', checkpoint_blocks=True).train()\n"
        "backbone(torch.randn(32, 3, 32, 32))['c2'].square().mean().backward()\n"
        "assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())\n"
        "print(sum(p.numel() for p in backbone.parameters()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    parameters, kilobytes = map(int, result.stdout.split())
    assert 19.2e6 < parameters < 19.5e6  # 19.4 million, says the paper's table 6
    assert kilobytes < 6e6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem": "5x5"}, "stem is '5x5': give one of 7x7, deep, 3x3"),
        ({"shortcut": "E"}, "shortcut is 'E': give one of A, B, C, D"),
        ({"output_stride": 4}, "output_stride is 4: give one of 8, 16, 32"),
        ({"stochastic_depth": 1.0}, "stochastic_depth is 1.0"),
        ({"checkpoint_blocks": ["c6"]}, "checkpoint_blocks names 'c6'. Known: c2, c3, c4, c5"),
        ({"checkpoint_blocks": "c2"}, r"checkpoint_blocks is 'c2': give a list, such as \['c2'\]"),
        ({"deformable_stages": ["c6"]}, "deformable_stages names 'c6'. Known: c2, c3, c4, c5"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        build_backbone("resnet18", **options)


@pytest.mark.parametrize("norm", ["gn", "frozen_bn"])
@pytest.mark.parametrize("options", [{"pre_activation": True}, {"stem": "deep", "shortcut": "D"}, {"squeeze_excitation": True}])
def test_norms_go_with_every_variant(norm, options, odd_images):
    backbone = build_backbone("resnet18", norm=norm, **options)
    sum(level.square().mean() for level in backbone.train()(odd_images).values()).backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_a_resnet_is_built_from_blocks_in_python():
    backbone = ResNet(functools.partial(BasicBlock), (1, 1), width=8, stem="3x3")
    assert backbone.feature_specs == {"c0": FeatureSpec(8, 1), "c1": FeatureSpec(16, 2)}
    assert list(backbone.stages()) == ["stem", "layer1", "layer2"]


def test_only_the_named_stages_are_computed_again(odd_images):
    backbone = build_backbone("resnet18", checkpoint_blocks=["c3"]).train()
    runs = dict.fromkeys(("layer2", "layer3"), 0)
    for stage in runs:

        def count(*_, stage=stage):
            runs[stage] += 1

        getattr(backbone, stage)[0].conv1.register_forward_hook(count)
    sum(level.mean() for level in backbone(odd_images).values()).backward()
    assert runs == {"layer2": 2, "layer3": 1}


@pytest.mark.slow
def test_a_compiled_checkpointed_network_learns_the_same(odd_images):
    plain = build_backbone("resnet18", out_features=["c2"]).train()
    saving = build_backbone("resnet18", out_features=["c2"], checkpoint_blocks=True).train()
    saving.load_state_dict(plain.state_dict())
    compiled = torch.compile(saving, backend="aot_eager", fullgraph=True)
    for backbone in (plain, compiled):
        backbone(odd_images)["c2"].square().mean().backward()
    for expected, found in zip(plain.parameters(), saving.parameters(), strict=True):
        assert_close(found.grad, expected.grad)
    for expected, found in zip(plain.buffers(), saving.buffers(), strict=True):
        assert_close(found, expected)
