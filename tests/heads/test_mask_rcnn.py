"""heads/mask_rcnn.py against torchvision's Mask R-CNN. What it shares with Faster R-CNN is in test_faster_rcnn.py."""

import pytest
import torch
from torch.testing import assert_close
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from backbones import build_fpn_backbone
from heads import mask_rcnn


def resnet18_mask_rcnn(**options):
    body = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=5)
    return MaskRCNN(body, 5, **options)


def test_torchvision_maskrcnn_resnet50_fpn_loads_and_predicts_the_same(randomize, odd_batch):
    images, _ = odd_batch
    options = {"min_size": 160, "max_size": 256, "box_score_thresh": 0.0, "rpn_post_nms_top_n_test": 60}
    options |= {"box_detections_per_img": 10}
    reference = randomize(maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, **options)).eval()
    with torch.no_grad():
        expected = reference(images)
    for build in (MaskRCNN, mask_rcnn):
        model = build(build_fpn_backbone("resnet50"), num_classes=91, **options).eval()
        model.load_state_dict(reference.state_dict(), strict=True)
        with torch.no_grad():
            predictions = model(images)
        for ours, theirs, image in zip(predictions, expected, images, strict=True):
            assert set(ours) == {"boxes", "labels", "scores", "masks"}
            assert theirs["masks"].shape == (10, 1, *image.shape[1:])
            assert theirs["masks"].std() > 0.01, "the masks are all alike"
            for key in theirs:
                assert_close(ours[key], theirs[key], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "sampling",
    [{"rpn_batch_size_per_image": 10**6, "box_batch_size_per_image": 10**6}, {}],
    ids=["all-are-sampled", "same-random-sample-plain"],
)
def test_training_losses_equal_torchvision(sampling, randomize, odd_batch):
    options = {"min_size": 96, "max_size": 192, "rpn_post_nms_top_n_train": 40} | sampling
    reference = randomize(resnet18_mask_rcnn(**options)).train()
    model = mask_rcnn(build_fpn_backbone("resnet18", norm="frozen_bn"), 5, fast=bool(sampling), **options).train()
    model.load_state_dict(reference.state_dict(), strict=True)
    results = []
    for detector in (model, reference):
        torch.manual_seed(3)
        with torch.no_grad():
            results.append(detector(*odd_batch))
    losses, expected = results
    assert set(losses) == {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask"}
    for name, loss in losses.items():
        assert loss > 0
        assert_close(loss, expected[name], atol=1e-5, rtol=1e-4)


def test_the_mask_pooling_is_torchvision_own():
    ours = mask_rcnn(build_fpn_backbone("resnet18"), 5).roi_heads.mask_roi_pool
    theirs = resnet18_mask_rcnn().roi_heads.mask_roi_pool
    for name in ("featmap_names", "output_size", "sampling_ratio", "canonical_scale", "canonical_level"):
        assert getattr(ours, name) == getattr(theirs, name)


def test_the_mask_head_is_as_wide_and_deep_as_asked(small_detector):
    heads = small_detector("mask_rcnn", mask_head_dim=24, mask_head_layers=3, num_classes=7).roi_heads
    convolutions = [parameter.shape for name, parameter in heads.mask_head.named_parameters() if name.endswith("weight")]
    assert convolutions == [(24, 16, 3, 3), (24, 24, 3, 3), (24, 24, 3, 3)]
    assert heads.mask_predictor.mask_fcn_logits.weight.shape == (7, 24, 1, 1)


def test_crowd_masks_are_no_objects_and_leave_the_others_in_step(small_detector, make_target, randomize):
    """With the crowd row first, a mask taken by the wrong row would be another's."""
    model = randomize(small_detector("mask_rcnn", rpn_batch_size_per_image=10**6, box_batch_size_per_image=10**6)).train()
    image, size = torch.rand(3, 64, 96), (64, 96)
    crowd, thing = [90.0, 60.0, 94.0, 63.0], [5.0, 5.0, 40.0, 50.0]
    last = make_target([thing], crowd=[crowd], size=size, labels=torch.tensor([2, 1]))
    first = {key: value.flip(0) for key, value in last.items()}
    losses, expected = model([image], [first]), model([image], [last])
    assert expected["loss_mask"] > 0
    for name, loss in losses.items():
        assert_close(loss, expected[name])
