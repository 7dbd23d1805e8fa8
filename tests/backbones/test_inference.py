"""backbones/inference.py: a copy that gives the same, and the original left as it was."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torchvision.models import mobilenet_v3_small
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.ops import FrozenBatchNorm2d

from backbones import build_backbone, build_fpn_backbone, optimize_for_inference
from backbones.errors import UserError
from backbones.inference import fold_norms
from backbones.winograd import WinogradConv2d
from heads import build_segmenter, classifier, mask_rcnn

NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)


def count(model, kinds):
    return sum(isinstance(module, kinds) for module in model.modules())


def assert_same(found, expected):
    if isinstance(expected, torch.Tensor):
        scale = expected.abs().max().item() + 1e-3
        assert_close(found / scale, expected / scale, atol=2e-5, rtol=0)
        return
    for key in expected if isinstance(expected, dict) else range(len(expected)):
        assert_same(found[key], expected[key])


@pytest.mark.parametrize("winograd", [True, False])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {}),
        ("resnet50", {"norm": "bn"}),
        ("resnet50", {"output_stride": 16}),
        ("resnet50d", {}),
        ("seresnet50", {}),
        ("resnet18", {"norm": "gn"}),
        ("resnet18", {"in_channels": 1}),
        ("timm/resnet18", {}),
        ("timm/convnext_atto", {}),
        ("torchvision/regnet_y_400mf", {}),
    ],
)
def test_backbones_give_the_same_maps(name, options, winograd, randomize):
    model = randomize(build_backbone(name, **{"norm": "frozen_bn"} | options if "timm" not in name else options)).eval()
    images = torch.rand(2, model.in_channels, 75, 91)
    with torch.no_grad():
        assert_same(optimize_for_inference(model, winograd=winograd)(images), model(images))


def test_every_norm_after_a_convolution_is_folded():
    model = build_fpn_backbone("resnet50", norm="frozen_bn")
    fast = optimize_for_inference(model)
    assert count(model, NORMS) == 53
    assert count(fast, NORMS) == 0
    assert count(fast, WinogradConv2d) > 10
    assert count(optimize_for_inference(model, winograd=False), WinogradConv2d) == 0
    # In the pre-activation form norms stand before convolutions; those within a block are folded all the same.
    before = build_backbone("resnetv2_50", norm="bn").eval()
    assert 0 < count(optimize_for_inference(before), NORMS) < count(before, NORMS)


def test_the_pre_activation_form_gives_the_same(randomize):
    model = randomize(build_backbone("resnetv2_50", norm="bn")).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert_same(optimize_for_inference(model)(images), model(images))


def test_the_original_is_left_as_it_was(randomize):
    model = randomize(build_fpn_backbone("resnet18", norm="bn", trainable_layers=3)).train()
    state, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    trained = [parameter.requires_grad for parameter in model.parameters()]
    fast = optimize_for_inference(model)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    assert not fast.training
    assert not any(parameter.requires_grad for parameter in fast.parameters())


def test_a_detector_finds_the_same(randomize, odd_batch):
    body = build_fpn_backbone("resnet18", norm="frozen_bn")
    model = randomize(mask_rcnn(body, 4, min_size=96, max_size=192, box_detections_per_img=1000)).eval()
    images, _ = odd_batch
    with torch.no_grad():
        expected, found = model(images), optimize_for_inference(model)(images)
    for one, other in zip(expected, found, strict=True):
        assert len(one["boxes"]) == len(other["boxes"]) > 0
        assert_close(other["scores"], one["scores"], atol=1e-5, rtol=1e-4)
        # Of equal scores the order may change.
        far = (other["boxes"][None] - one["boxes"][:, None]).abs().amax(2) + 1e3 * (other["labels"] != one["labels"][:, None])
        nearest = far.argmin(1)
        assert far.amin(1).max() < 2e-2
        assert ((other["masks"][nearest] - one["masks"]).abs() < 1e-2).float().mean() > 0.999


def test_torchvision_own_detectors_are_taken_too(randomize):
    model = randomize(fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3, min_size=64)).eval()
    images = [torch.rand(3, 64, 80)]
    fast = optimize_for_inference(model)
    assert count(fast.backbone, NORMS) == 0
    with torch.no_grad():
        assert_close(fast(images)[0]["boxes"], model(images)[0]["boxes"], atol=5e-3, rtol=1e-4)


def test_segmenters_and_classifiers_give_the_same(randomize):
    images = torch.rand(2, 3, 64, 64)
    for model in (
        build_segmenter("deeplabv3", build_backbone("resnet18", output_stride=8), 5, auxiliary=True),
        build_segmenter("semantic_fpn", build_fpn_backbone("resnet18", out_channels=32), 5),
        classifier(build_backbone("resnet18"), 5),
    ):
        randomize(model).eval()
        fast = optimize_for_inference(model)
        assert count(fast, NORMS) < count(model, NORMS)
        with torch.no_grad():
            assert_same(fast(images), model(images))


def test_a_norm_that_is_used_twice_stays():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(self.conv(x)) + self.norm(self.conv(x + 1))

    model = Twice().eval()
    assert fold_norms(model, lambda: model(torch.rand(1, 3, 4, 4))) == 0
    assert isinstance(model.norm, nn.BatchNorm2d)


def test_any_module_that_takes_images_will_do(randomize):
    model = randomize(mobilenet_v3_small(num_classes=3)).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert_same(optimize_for_inference(model)(images), model(images))


def test_winograd_elsewhere_than_on_a_cpu_is_refused():
    with pytest.raises(UserError, match="winograd=True is for CPUs"):
        optimize_for_inference(nn.Conv2d(3, 3, 1, device="meta"), winograd=True)
