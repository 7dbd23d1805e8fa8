"""The heads that take a batch at once against torchvision's own code, image by image, under the same weights."""

import pytest
import torch
from torch.testing import assert_close

from backbones import build_fpn_backbone
from heads import build_detector

SIZES = {"min_size": 96, "max_size": 192}
THIN = SIZES | {"box_head_dim": 32, "rpn_post_nms_top_n_train": 60, "rpn_post_nms_top_n_test": 40}
OPTIONS = {
    "faster_rcnn": THIN,
    "mask_rcnn": THIN | {"mask_head_dim": 8, "mask_head_layers": 1},
    "keypoint_rcnn": THIN | {"keypoint_head_dim": 8, "keypoint_head_layers": 1, "num_keypoints": 3},
    "cascade_rcnn": THIN,
    "cascade_mask_rcnn": THIN | {"mask_head_dim": 8, "mask_head_layers": 1},
    "retinanet": SIZES,
    "fcos": SIZES,
}
ALL_ARE_SAMPLED = {"rpn_batch_size_per_image": 10**6, "box_batch_size_per_image": 10**6, "box_positive_fraction": 1.0}
KINDS = {
    "objects": ([[5, 9, 60, 80], [70, 20, 120, 90], [50, 4, 66, 30]], None),
    "one empty image": ([], None),
    "a crowd": ([[30, 10, 100, 70]], [[0, 0, 60, 60]]),
    "all crowd": ([], [[0, 0, 140, 140]]),
}


def pair(head, randomize, **options):
    """The same detector twice, with torchvision's code and with ours."""
    detectors = []
    one_stage = OPTIONS[head] is SIZES
    options = {key.removeprefix("box_") if one_stage else key: value for key, value in options.items()}
    if one_stage:
        options = {key: value for key, value in options.items() if key == "score_thresh"}
    for fast in (False, True):
        # A group norm of 32 groups, which FCOS has on every level, wants more than one number in each.
        body = build_fpn_backbone("resnet18", norm="frozen_bn", out_channels=64 if head == "fcos" else 16)
        detectors.append(build_detector(head, body, 4, fast=fast, **OPTIONS[head], **options))
    plain, batched = detectors
    batched.load_state_dict(randomize(plain).state_dict(), strict=True)
    assert {type(module) for module in plain.modules()} != {type(module) for module in batched.modules()}
    return plain, batched


def batch(kind, head, make_target):
    sizes = [(97, 131), (75, 143)]
    boxes, crowd = KINDS[kind]
    targets = [make_target([[20, 20, 70, 60]], crowd=[], size=sizes[0]), make_target(boxes, crowd=crowd or [], size=sizes[1])]
    if head == "keypoint_rcnn":
        for target in targets:
            middle = (target["boxes"][:, :2] + target["boxes"][:, 2:]) / 2
            points = torch.stack([target["boxes"][:, :2] + 1, middle, target["boxes"][:, 2:] - 1], dim=1)
            target["keypoints"] = torch.cat([points, torch.full((len(points), 3, 1), 2.0)], dim=2)
    generator = torch.Generator().manual_seed(5)
    return [torch.rand(3, *size, generator=generator) for size in sizes], targets


@pytest.mark.parametrize("head", OPTIONS)
def test_detections_are_the_same(head, randomize, make_target):
    plain, batched = pair(head, randomize, box_score_thresh=0.01)
    images, _ = batch("objects", head, make_target)
    with torch.no_grad():
        expected, found = plain.eval()(images), batched.eval()(images)
    for one, other in zip(expected, found, strict=True):
        assert len(one["boxes"]) > 3
        assert set(one) == set(other)
        for key in one:
            assert_close(other[key], one[key], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", OPTIONS)
def test_losses_and_gradients_of_the_same_examples_are_the_same(head, kind, randomize, make_target):
    plain, batched = pair(head, randomize, **ALL_ARE_SAMPLED)
    images, targets = batch(kind, head, make_target)
    losses = []
    for model in (plain, batched):
        torch.manual_seed(0)
        losses.append(model.train()(images, targets))
        sum(losses[-1].values()).backward()
    expected, found = losses
    assert set(expected) == set(found)
    for name, loss in expected.items():
        assert_close(found[name], loss, atol=1e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")
    gradients = dict(batched.named_parameters())
    for name, parameter in plain.named_parameters():
        if parameter.requires_grad:
            scale = parameter.grad.abs().max().item() + 1e-3
            assert_close(gradients[name].grad / scale, parameter.grad / scale, atol=2e-3, rtol=0)


def test_an_image_is_sampled_by_its_own_seed(randomize, make_target):
    _, model = pair("faster_rcnn", randomize)
    images, targets = batch("objects", "faster_rcnn", make_target)
    images = [images[0], images[0]]
    targets = [targets[0] | {"seed": seed} for seed in (4, 5)]
    model.train()
    with torch.no_grad():
        torch.manual_seed(1)
        once = model(images, targets)
        torch.manual_seed(2)
        again = model(images, targets)
        swapped = model(images, targets[::-1])
        halves = [model([image], [target]) for image, target in zip(images, targets, strict=True)]
        other = model(images, [target | {"seed": 77} for target in targets])
    for name in once:
        assert once[name] == again[name]
        assert_close(once[name], swapped[name])
        assert_close(once[name], (halves[0][name] + halves[1][name]) / 2)
    assert any(once[name] != other[name] for name in once)
