"""heads/keypoint_rcnn.py against torchvision's Keypoint R-CNN. What it shares with Faster R-CNN is in test_faster_rcnn.py."""

import pytest
import torch
from torch.testing import assert_close
from torchvision.models.detection import keypointrcnn_resnet50_fpn

from backbones import build_fpn_backbone
from heads import build_detector, keypoint_rcnn


@pytest.fixture
def keypoint_batch(odd_batch):
    """The odd batch with three keypoints an object, one of them not labelled."""
    images, targets = odd_batch
    for target in targets:
        boxes = target["boxes"]
        places = boxes[:, None, :2] + torch.rand(len(boxes), 3, 2) * (boxes[:, 2:] - boxes[:, :2])[:, None]
        target["keypoints"] = torch.cat([places, torch.tensor([2.0, 1, 0]).expand(len(boxes), 3)[..., None]], dim=2)
    return images, targets


def test_torchvision_keypointrcnn_resnet50_fpn_loads_and_predicts_the_same(randomize, odd_batch):
    options = {"min_size": 160, "max_size": 256, "box_score_thresh": 0.0, "rpn_post_nms_top_n_test": 60}
    options |= {"box_detections_per_img": 4}
    reference = randomize(keypointrcnn_resnet50_fpn(weights=None, weights_backbone=None, **options)).eval()
    model = keypoint_rcnn(build_fpn_backbone("resnet50"), 2, **options).eval()
    model.load_state_dict(reference.state_dict(), strict=True)
    images, _ = odd_batch
    with torch.no_grad():
        for ours, theirs in zip(model(images), reference(images), strict=True):
            assert theirs["keypoints"].shape == (4, 17, 3)
            assert set(ours) == set(theirs)
            for key in theirs:
                assert_close(ours[key], theirs[key], atol=1e-4, rtol=1e-4)


def small(**options):
    thin = {"min_size": 96, "max_size": 192, "box_head_dim": 16, "keypoint_head_dim": 16, "keypoint_head_layers": 2}
    return build_detector(
        "keypoint_rcnn", build_fpn_backbone("resnet18", norm="frozen_bn", out_channels=16), 4, **thin | options
    )


def test_losses_reach_every_parameter_with_objects_and_without(keypoint_batch, train_step):
    images, targets = keypoint_batch
    losses = train_step(small(num_keypoints=3), images, targets)
    assert losses["loss_keypoint"] > 0
    none = [{key: value[:0] for key, value in target.items()} for target in targets]
    assert train_step(small(num_keypoints=3), images, none)["loss_keypoint"] == 0


def test_keypoints_in_a_crowd_go_with_it(keypoint_batch, train_step):
    images, targets = keypoint_batch
    for target in targets:
        target["iscrowd"] = torch.ones(len(target["boxes"]), dtype=torch.int64)
    assert train_step(small(num_keypoints=3), images, targets)["loss_keypoint"] == 0
