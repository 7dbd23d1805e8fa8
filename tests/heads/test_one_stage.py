"""heads/retinanet.py and heads/fcos.py against torchvision's own, under shared weights."""

import pytest
import torch
from torch.testing import assert_close
from torchvision.models import detection

from backbones import build_fpn_backbone
from heads import batched_boxes, build_detector

EVERYWHERE = [[-500.0, -500.0, 1000.0, 1000.0]]
P3_TO_P7 = {"out_features": ["c3", "c4", "c5"], "extra_level": "p6p7"}
HEADS = ["retinanet", "fcos"]


def torchvision_model(head, **options):
    build = {"retinanet": detection.retinanet_resnet50_fpn, "fcos": detection.fcos_resnet50_fpn}[head]
    return build(weights=None, weights_backbone=None, **options)


def small(head, **options):
    backbone = build_fpn_backbone("resnet18", norm="frozen_bn", out_channels=64, **P3_TO_P7)
    return build_detector(head, backbone, 4, **{"min_size": 64, "max_size": 128} | options)


@pytest.mark.parametrize("head", HEADS)
def test_torchvision_weights_load_strictly_and_predict_the_same(head, randomize, odd_batch):
    options = {"min_size": 160, "max_size": 256, "score_thresh": 0.0, "detections_per_img": 30}
    reference = randomize(torchvision_model(head, **options)).eval()
    model = build_detector(head, build_fpn_backbone("resnet50", **P3_TO_P7), 91, **options).eval()
    model.load_state_dict(reference.state_dict(), strict=True)
    images, _ = odd_batch
    with torch.no_grad():
        for ours, theirs in zip(model(images), reference(images), strict=True):
            assert len(theirs["boxes"]) == 30
            assert theirs["scores"].std() > 1e-6
            for key in theirs:
                assert_close(ours[key], theirs[key], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("head", HEADS)
def test_losses_are_torchvision_own_where_there_is_no_crowd(head, randomize, odd_batch):
    reference = randomize(torchvision_model(head, min_size=96, max_size=192)).train()
    backbone = build_fpn_backbone("resnet50", norm="frozen_bn", **P3_TO_P7)
    model = build_detector(head, backbone, 91, min_size=96, max_size=192).train()
    reference.backbone.body.eval()  # torchvision builds it with batch statistics where it is trained from scratch
    missing, unexpected = model.load_state_dict(reference.state_dict(), strict=False)
    assert not missing
    assert all(key.endswith("num_batches_tracked") for key in unexpected)
    with torch.no_grad():
        losses, expected = model(*odd_batch), reference(*odd_batch)
    assert set(losses) == set(expected)
    for name, loss in losses.items():
        assert loss > 0
        assert_close(loss, expected[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("head", HEADS)
def test_background_within_a_crowd_is_not_trained(head, make_target):
    model = small(head).train()
    image = [torch.rand(3, 64, 96)]
    with torch.no_grad():
        crowd_only = model(image, [make_target([], crowd=EVERYWHERE)])
        empty = model(image, [make_target([])])
        both = model(image, [make_target([[8, 8, 60, 50]], crowd=EVERYWHERE)])
        object_alone = model(image, [make_target([[8, 8, 60, 50]])])
    assert crowd_only["classification"] < 1e-6 < empty["classification"]
    assert 0 < both["classification"] < object_alone["classification"]
    assert_close(both["bbox_regression"], object_alone["bbox_regression"])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("rows", [{"boxes": [[8, 8, 60, 50]]}, {"boxes": []}, {"boxes": [], "crowd": EVERYWHERE}])
def test_every_parameter_gets_a_gradient_whatever_the_batch_holds(head, rows, make_target, train_step):
    train_step(small(head), [torch.rand(3, 64, 96)], [make_target(**rows)])


@pytest.mark.parametrize("head", HEADS)
def test_objects_that_are_matched_a_few_at_a_time_give_the_same_losses(head, make_target, monkeypatch):
    corners = torch.rand(40, 2) * 90
    boxes = torch.cat([corners, corners + 4 + torch.rand(40, 2) * 30], dim=1)
    target = make_target([*boxes.tolist(), *boxes[:5].tolist()])  # some stand twice: ties
    model, images = small(head).train(), [torch.rand(3, 128, 128)]
    whole = model(images, [target])
    monkeypatch.setattr(batched_boxes, "MATCH_BUDGET", {"cpu": 1})
    for name, loss in model(images, [target]).items():
        assert torch.equal(loss, whole[name]), name


def test_retinanet_has_torchvision_anchors():
    ours, theirs = small("retinanet").anchor_generator, torchvision_model("retinanet").anchor_generator
    assert ours.sizes == theirs.sizes
    assert ours.aspect_ratios == theirs.aspect_ratios


@pytest.mark.parametrize("head", HEADS)
def test_bytes_and_other_channels_are_taken(head, make_target):
    backbone = build_fpn_backbone("resnet18", norm="frozen_bn", out_channels=64, in_channels=1, **P3_TO_P7)
    model = build_detector(head, backbone, 4, min_size=64, max_size=128).train()
    image = torch.randint(0, 256, (1, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        losses = model([image], [make_target([[8, 8, 60, 50]])])
        expected = model([image / 255], [make_target([[8, 8, 60, 50]])])
    for name, loss in losses.items():
        assert_close(loss, expected[name])
