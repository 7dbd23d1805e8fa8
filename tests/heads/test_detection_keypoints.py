"""heads/detection_keypoints.py: keypoints found for a few detections at a time are those found for all at once."""

import pytest
import torch
from torch.testing import assert_close

from heads import detection_keypoints as detection_keypoints_module

POINTS = {"num_keypoints": 3, "keypoint_head_dim": 8, "keypoint_head_layers": 2}


@pytest.fixture
def crowded(small_detector, randomize):
    """Models with the same random weights that find 20 objects in an image."""

    def build(**options):
        torch.manual_seed(1)
        many = {"box_score_thresh": 0.0, "box_detections_per_img": 20}
        return randomize(small_detector("keypoint_rcnn", **POINTS, **many, **options)).eval()

    return build


def assert_same_keypoints(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one["keypoints"].shape == (20, 3, 3)
        assert one["keypoints"][..., :2].std() > 0
        for key in ("boxes", "keypoints", "keypoints_scores"):
            assert_close(one[key], other[key], rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_many_detections_have_their_keypoints_found_a_few_at_a_time(crowded, odd_batch, monkeypatch):
    model, (images, _) = crowded(), odd_batch
    together = model(images)
    sizes = []
    model.roi_heads.keypoint_head.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    monkeypatch.setattr(detection_keypoints_module, "AT_ONCE", 6)
    assert_same_keypoints(model(images), together)
    assert sizes == [6, 6, 6, 6, 6, 6, 4]


@torch.no_grad()
def test_they_are_torchvisions(crowded, odd_batch, monkeypatch):
    images, _ = odd_batch
    monkeypatch.setattr(detection_keypoints_module, "AT_ONCE", 6)
    assert_same_keypoints(crowded()(images), crowded(fast=False)(images))


@torch.no_grad()
def test_images_with_fewer_detections_than_others_and_without_any(crowded, odd_batch):
    model, (images, _) = crowded(), odd_batch
    model.roi_heads.score_thresh = 2.0
    for found in model(images):
        assert found["keypoints"].shape == (0, 3, 3)
        assert found["keypoints_scores"].shape == (0, 3)


@torch.no_grad()
def test_each_image_keeps_its_own(crowded, monkeypatch):
    """An image with many detections beside one with few, and one with none."""
    model = crowded()
    features = model.backbone(torch.rand(3, 3, 64, 64))
    corners = torch.rand(9, 2) * 30
    boxes = torch.cat([corners, corners + 5 + torch.rand(9, 2) * 25], dim=1)
    per_image = [boxes[:7], boxes[:0], boxes[7:]]
    whole = detection_keypoints_module.detection_keypoints(model.roi_heads, features, per_image, [(64, 64)] * 3)
    monkeypatch.setattr(detection_keypoints_module, "AT_ONCE", 3)
    parts = detection_keypoints_module.detection_keypoints(model.roi_heads, features, per_image, [(64, 64)] * 3)
    for one, other in zip(parts, whole, strict=True):
        assert [len(image) for image in one] == [7, 0, 2]
        for image, expected in zip(one, other, strict=True):
            assert_close(image, expected, rtol=1e-5, atol=1e-4)
