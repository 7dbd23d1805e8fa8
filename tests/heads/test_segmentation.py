"""heads/segmentation.py against torchvision's FCN and DeepLabv3, and what the others promise."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from torchvision.models import segmentation

from backbones import UserError, build_backbone, build_fpn_backbone
from heads.segmentation import IGNORED, build_segmenter, ignored_label, pixel_cross_entropy

OUT = {"out_features": ["c4", "c5"]}


@pytest.mark.parametrize("name", ["fcn", "deeplabv3"])
def test_torchvision_weights_load_strictly_and_give_the_same_maps(name, randomize):
    build = {"fcn": segmentation.fcn_resnet50, "deeplabv3": segmentation.deeplabv3_resnet50}[name]
    theirs = randomize(build(weights=None, weights_backbone=None, aux_loss=True)).eval()
    ours = build_segmenter(name, build_backbone("resnet50", output_stride=8, **OUT), 21, auxiliary=True).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, 3, 65, 97)
    with torch.no_grad():
        expected, found = theirs(images), ours(images)
    assert list(found) == ["out", "aux"]
    for key, logits in found.items():
        assert logits.shape == (2, 21, 65, 97)
        assert logits.std() > 1e-3
        assert_close(logits, expected[key], atol=1e-4, rtol=1e-4)


def small(name, **options):
    if name == "semantic_fpn":
        return build_segmenter(name, build_fpn_backbone("resnet18", out_channels=16), 5, channels=16, **options)
    out_features = ["c2", "c4", "c5"] if name == "deeplabv3plus" else ["c4", "c5"]
    return build_segmenter(name, build_backbone("resnet18", output_stride=16, out_features=out_features), 5, **options)


@pytest.mark.parametrize("name", ["fcn", "deeplabv3", "deeplabv3plus", "semantic_fpn"])
def test_maps_have_the_image_s_size_and_every_parameter_a_gradient(name):
    model = small(name, **({} if name == "semantic_fpn" else {"auxiliary": True}))
    images = torch.randn(2, 3, 65, 97)
    with torch.no_grad():
        outputs = model.eval()(images)
    assert all(logits.shape == (2, 5, 65, 97) for logits in outputs.values())
    targets = torch.randint(0, 5, (2, 65, 97))
    for labels in (targets, torch.full_like(targets, IGNORED)):
        model.zero_grad(set_to_none=True)
        losses = model.train()(images, labels)
        sum(losses.values()).backward()
        assert all(loss.isfinite() for loss in losses.values())
        assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert sum(losses.values()) == 0


def test_pixels_that_are_no_example_do_not_count():
    logits, targets = torch.randn(2, 4, 6, 5), torch.randint(0, 4, (2, 6, 5))
    targets[0, :3] = IGNORED
    expected = F.cross_entropy(logits.permute(0, 2, 3, 1)[targets != IGNORED], targets[targets != IGNORED])
    assert_close(pixel_cross_entropy(logits, targets), expected)


def test_of_more_than_255_classes_255_is_one():
    assert [ignored_label(num_classes) for num_classes in (2, 255, 256, 300)] == [255, 255, 65535, 65535]
    logits, targets = torch.randn(2, 300, 4, 5), torch.randint(0, 300, (2, 4, 5))
    targets[0, 0], targets[1, 0] = 255, 65535
    kept = targets != 65535
    expected = F.cross_entropy(logits.permute(0, 2, 3, 1)[kept], targets[kept])
    assert_close(pixel_cross_entropy(logits, targets), expected)


@pytest.mark.parametrize(("output_stride", "expected"), [(8, [12, 24, 36]), (16, [6, 12, 18]), (32, [6, 12, 18])])
@pytest.mark.parametrize("name", ["deeplabv3", "deeplabv3plus"])
def test_atrous_rates_are_the_paper_s_for_the_stride(name, output_stride, expected):
    model = build_segmenter(name, build_backbone("resnet18", output_stride=output_stride), 5)
    rates = [module.dilation[0] for module in model.classifier.modules() if isinstance(module, nn.Conv2d)]
    assert [rate for rate in rates if rate > 1] == expected
    assert build_segmenter(name, build_backbone("resnet18"), 5, atrous_rates=[2, 3]).classifier is not None


@pytest.mark.parametrize("name", ["fcn", "deeplabv3", "deeplabv3plus"])
def test_a_head_s_norm_can_be_chosen_and_keeps_its_names(name):
    plain, group, synchronised = (small(name, auxiliary=True, norm=norm) for norm in ("bn", "gn", "sync_bn"))
    for model, kind in ((group, nn.GroupNorm), (synchronised, nn.SyncBatchNorm)):
        heads = nn.ModuleList([model.classifier, model.aux_classifier])
        norms = [module for module in heads.modules() if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm | nn.GroupNorm)]
        assert {type(module) for module in norms} == {kind}
        assert {key for key, _ in model.named_parameters()} == {key for key, _ in plain.named_parameters()}
    assert synchronised.state_dict().keys() == plain.state_dict().keys()
    image = torch.randn(1, 3, 64, 64)
    assert group.train()(image)["out"].isfinite().all(), "of a single image, too"


def test_the_semantic_pyramid_is_the_sum_of_its_levels(randomize):
    head = randomize(small("semantic_fpn").classifier).eval()
    levels = {str(i): torch.randn(1, 16, 32 // 2**i, 48 // 2**i) for i in range(4)} | {"pool": torch.randn(1, 16, 2, 3)}
    with torch.no_grad():
        total = head.branches["level0"][0](levels["0"])
        for i in range(1, 4):
            x = levels[str(i)]
            for layer in head.branches[f"level{i}"]:
                x = F.interpolate(layer(x), scale_factor=2, mode="bilinear", align_corners=False)
            total = total + x
        assert_close(head(levels), head.predictor(total))


def test_what_cannot_be_built_is_refused():
    backbone = build_backbone("resnet18", out_features=["c5"])
    with pytest.raises(UserError, match=r"gives 1 map \(c5\), and 2 are needed"):
        build_segmenter("deeplabv3plus", backbone, 5)
    with pytest.raises(UserError, match=r"no segmenter 'deeplab'.*Did you mean 'deeplabv3'"):
        build_segmenter("deeplab", backbone, 5)
