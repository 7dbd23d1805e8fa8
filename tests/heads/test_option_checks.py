"""Heads refuse numbers out of range when they are built, by name; torchvision would fail in the middle of a run, or never."""

import pytest

from backbones import build_backbone, build_fpn_backbone
from backbones.errors import UserError
from heads import build_detector, build_segmenter


@pytest.fixture(scope="module")
def body():
    return build_fpn_backbone("resnet18", out_channels=8, out_features=["c2", "c3"])


@pytest.mark.parametrize(
    ("head", "options", "message"),
    [
        ("faster_rcnn", {"rpn_pre_nms_top_n_train": -1}, "rpn_pre_nms_top_n_train is -1: give a whole number of at least 1"),
        ("faster_rcnn", {"box_head_dim": 0}, "box_head_dim is 0"),
        ("faster_rcnn", {"box_detections_per_img": -5}, "box_detections_per_img is -5"),
        ("faster_rcnn", {"box_batch_size_per_image": 0}, "box_batch_size_per_image is 0"),
        ("faster_rcnn", {"rpn_positive_fraction": 1.5}, "rpn_positive_fraction is 1.5: give a number from 0 to 1"),
        ("faster_rcnn", {"box_nms_thresh": float("nan")}, "box_nms_thresh is nan"),
        ("faster_rcnn", {"rpn_bg_iou_thresh": 0.8}, "rpn_bg_iou_thresh is 0.8, above rpn_fg_iou_thresh=0.7"),
        ("faster_rcnn", {"box_fg_iou_thresh": 0.4}, "box_bg_iou_thresh is 0.5, above box_fg_iou_thresh=0.4"),
        ("faster_rcnn", {"anchor_scale": 0}, "anchor_scale is 0: give a number above 0"),
        ("faster_rcnn", {"anchor_sizes": [[8], [], [32]]}, r"anchor_sizes is \[\]: give numbers above 0, one at least"),
        ("faster_rcnn", {"anchor_sizes": [[8], [-16], [32]]}, r"anchor_sizes is \[-16\]"),
        ("faster_rcnn", {"aspect_ratios": [1.0, -1.0]}, r"aspect_ratios is \[1.0, -1.0\]"),
        ("faster_rcnn", {"image_std": [1.0, 0.0, 1.0]}, r"image_std is \[1.0, 0.0, 1.0\]: give numbers above 0"),
        ("cascade_rcnn", {"rpn_nms_thresh": 2.0}, "rpn_nms_thresh is 2.0"),
        ("mask_rcnn", {"mask_head_layers": 0}, "mask_head_layers is 0"),
        ("mask_rcnn", {"mask_head_layers": 10**6}, "mask_head_layers is 1000000: give at most 100"),
        ("keypoint_rcnn", {"keypoint_head_dim": -1}, "keypoint_head_dim is -1"),
        ("fcos", {"topk_candidates": -1}, "topk_candidates is -1"),
        ("fcos", {"center_sampling_radius": 0.0}, "center_sampling_radius is 0.0"),
        ("retinanet", {"anchor_scale": -4}, "anchor_scale is -4"),
        ("retinanet", {"fg_iou_thresh": 0.3}, "bg_iou_thresh is 0.4, above fg_iou_thresh=0.3"),
    ],
)
def test_a_detector_names_the_option(body, head, options, message):
    with pytest.raises(UserError, match=message):
        build_detector(head, body, 3, **options)


def test_fcos_says_which_channels_it_can_be_built_on(body):
    with pytest.raises(UserError, match="out_channels is 8: give a multiple of 32"):
        build_detector("fcos", body, 3)


@pytest.mark.parametrize(
    ("head", "options", "message"),
    [
        ("deeplabv3", {"atrous_rates": [6, 0]}, "each of atrous_rates is 0: give a whole number of at least 1"),
        ("deeplabv3plus", {"atrous_rates": [-1]}, "each of atrous_rates is -1"),
        ("deeplabv3plus", {"low_level_channels": 0}, "low_level_channels is 0"),
        ("semantic_fpn", {"channels": -1}, "channels is -1"),
    ],
)
def test_a_segmenter_names_the_option(head, options, message):
    body = build_backbone("resnet18", out_features=["c2", "c3"])
    with pytest.raises(UserError, match=message):
        build_segmenter(head, body, 3, **options)


def test_the_ends_of_the_ranges_are_taken(body):
    build_detector("faster_rcnn", body, 3, rpn_bg_iou_thresh=0.7, box_score_thresh=0, box_nms_thresh=1, box_head_dim=1)
