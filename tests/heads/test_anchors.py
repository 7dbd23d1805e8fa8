"""heads/anchors.py: anchors and RoI pooling follow from what the backbone declares, and a wrong declaration is refused."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torchvision.models.detection.faster_rcnn import _default_anchorgen
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign, roi_align

from backbones import Backbone, FeatureSpec, UserError, build_backbone, build_fpn_backbone
from heads import faster_rcnn, mask_rcnn
from heads.anchors import anchor_generator, feature_levels, roi_pool

FPN_LEVELS = {name: FeatureSpec(16, 4 * 2**i) for i, name in enumerate(["0", "1", "2", "3", "pool"])}


class Declares(Backbone):
    """A backbone that declares what it is told to."""

    def __init__(self, specs, out_channels=None):
        super().__init__()
        if specs is not None:
            self.feature_specs = specs
        if out_channels is not None:
            self.out_channels = out_channels

    def forward(self, images):
        height, width = images.shape[-2:]
        return {
            name: images.new_zeros(len(images), spec.channels, -(-height // spec.stride), -(-width // spec.stride))
            for name, spec in self.feature_specs.items()
        }


def test_anchors_of_a_pyramid_are_torchvision_defaults():
    ours, theirs = anchor_generator(FPN_LEVELS), _default_anchorgen()
    assert ours.num_anchors_per_location() == theirs.num_anchors_per_location()
    for cell, expected in zip(ours.cell_anchors, theirs.cell_anchors, strict=True):
        assert_close(cell, expected)


@pytest.mark.parametrize("first_stride", [4, 8])
def test_anchors_have_sides_of_eight_strides_and_stand_on_the_feature_pixels(first_stride):
    levels = {"a": FeatureSpec(8, first_stride), "b": FeatureSpec(8, 2 * first_stride)}
    height, width = 64, 96
    maps = [torch.zeros(1, 8, height // spec.stride, width // spec.stride) for spec in levels.values()]
    generator = anchor_generator(levels, aspect_ratios=[1.0])
    (anchors,) = generator(ImageList(torch.zeros(1, 3, height, width), [(height, width)]), maps)
    expected = [
        [x - 4 * spec.stride, y - 4 * spec.stride, x + 4 * spec.stride, y + 4 * spec.stride]
        for spec in levels.values()
        for y in range(0, height, spec.stride)
        for x in range(0, width, spec.stride)
    ]
    assert anchors.tolist() == expected


def test_aspect_ratios_are_height_over_width_and_keep_the_area():
    (cell,) = anchor_generator({"a": FeatureSpec(8, 16)}, anchor_scale=4, aspect_ratios=[0.25, 4.0]).cell_anchors
    width, height = (cell[:, 2:] - cell[:, :2]).unbind(1)
    assert (height / width).tolist() == [0.25, 4.0]
    assert (height * width).tolist() == [64**2, 64**2]


def test_given_anchor_sizes_replace_those_from_the_strides():
    levels = {"a": FeatureSpec(8, 4), "b": FeatureSpec(8, 8)}
    generator = anchor_generator(levels, anchor_sizes=[[10, 20], [40, 80]], aspect_ratios=[1.0])
    assert [(cell[:, 2] - cell[:, 0]).tolist() for cell in generator.cell_anchors] == [[10, 20], [40, 80]]


def test_a_wrong_number_of_anchor_sizes_is_refused_with_the_levels():
    with pytest.raises(UserError, match=r"anchor_sizes has 2 entries, but there are 5 .*0, 1, 2, 3, pool"):
        faster_rcnn(build_fpn_backbone("resnet18", out_channels=16), 3, anchor_sizes=[[32], [64]])


def test_levels_with_different_numbers_of_anchors_are_refused():
    with pytest.raises(UserError, match=r"every level as many sizes.*\[\[8\], \[16, 32\]\]"):
        anchor_generator({"a": FeatureSpec(8, 4), "b": FeatureSpec(8, 8)}, anchor_sizes=[[8], [16, 32]])


@pytest.mark.parametrize("head", [faster_rcnn, mask_rcnn])
def test_a_module_that_is_no_backbone_is_refused(head):
    with pytest.raises(UserError, match=r"Conv2d is not a backbones\.Backbone"):
        head(nn.Conv2d(3, 8, 1), 3)


def test_a_backbone_without_feature_specs_is_refused():
    with pytest.raises(UserError, match=r"Declares.*feature_specs"):
        feature_levels(Declares(None, out_channels=8))


def test_a_backbone_without_out_channels_is_refused_with_its_levels():
    with pytest.raises(UserError, match=r"no out_channels.*c2: 64, c3: 128.*Put a pyramid on it"):
        faster_rcnn(build_backbone("resnet18"), 3)


def test_a_level_with_other_channels_is_refused_by_name():
    specs = {"a": FeatureSpec(8, 4), "b": FeatureSpec(12, 8)}
    with pytest.raises(UserError, match=r"Level 'b' has 12 channels, but .* 8"):
        feature_levels(Declares(specs, out_channels=8))


@pytest.mark.parametrize("stride", [4, 8])
def test_a_level_that_is_not_coarser_than_the_one_before_is_refused_by_name(stride):
    specs = {"a": FeatureSpec(8, 8), "b": FeatureSpec(8, stride)}
    with pytest.raises(UserError, match=rf"Level 'b' has stride {stride}.*finest first"):
        feature_levels(Declares(specs, out_channels=8))


def test_good_levels_are_handed_on():
    specs = {"a": FeatureSpec(8, 4), "b": FeatureSpec(8, 8)}
    assert feature_levels(Declares(specs, out_channels=8)) == specs


@pytest.mark.parametrize("head", ["faster_rcnn", "mask_rcnn"])
@pytest.mark.parametrize(
    ("backbone", "scales"),
    [
        ({}, [1 / 4, 1 / 8, 1 / 16, 1 / 32]),
        ({"extra_level": "p6p7"}, [1 / 4, 1 / 8, 1 / 16, 1 / 32]),
        ({"out_features": ["c3", "c4"]}, [1 / 8, 1 / 16, 1 / 32]),  # "pool" is the one of stride 32 here
        ({"out_features": ["c3", "c4"], "extra_level": None}, [1 / 8, 1 / 16]),
        ({"out_features": ["c5"], "extra_level": None}, [1 / 32]),
    ],
)
def test_roi_scales_are_one_over_the_strides_up_to_32(head, backbone, scales, small_detector):
    roi_heads = small_detector(head, backbone=backbone).roi_heads
    assert roi_heads.box_roi_pool.scales == scales
    if head == "mask_rcnn":
        assert roi_heads.mask_roi_pool.scales == scales


def test_rois_of_every_size_are_pooled_from_torchvision_level():
    """An image whose padded size says its scales itself, so that torchvision's own guess is right."""
    levels = dict(list(FPN_LEVELS.items())[:4])
    maps = {name: torch.randn(1, 16, 1024 // spec.stride, 1024 // spec.stride) for name, spec in levels.items()}
    sides = torch.tensor([5.0, 55, 60, 111, 113, 223, 225, 447, 449, 900])
    boxes = torch.stack([torch.zeros(10), torch.zeros(10), sides, sides], dim=1)
    theirs = MultiScaleRoIAlign(list(levels), output_size=7, sampling_ratio=2)
    assert_close(roi_pool(levels, output_size=7)(maps, [boxes], [(1024, 1024)]), theirs(maps, [boxes], [(1024, 1024)]))


def test_rois_are_pooled_from_the_finest_level_where_all_are_coarse():
    levels = {"a": FeatureSpec(8, 64), "b": FeatureSpec(8, 128)}
    maps = {"a": torch.randn(1, 8, 4, 4), "b": torch.full((1, 8, 2, 2), 99.0)}
    boxes = torch.tensor([[10.0, 20, 200, 240]])
    expected = roi_align(maps["a"], [boxes], output_size=7, spatial_scale=1 / 64, sampling_ratio=2)
    assert_close(roi_pool(levels, output_size=7)(maps, [boxes], [(256, 256)]), expected)


def test_strides_with_a_gap_between_them_are_refused_by_name():
    """torchvision sends a RoI to level log2(its size): where no map has that stride, its features would silently be zero."""
    specs = {"a": FeatureSpec(8, 4), "b": FeatureSpec(8, 16)}
    with pytest.raises(UserError, match="Level 'b' has stride 16"):
        faster_rcnn(Declares(specs, out_channels=8), 3)


def test_an_odd_first_image_does_not_settle_the_roi_scales(small_detector, randomize):
    """torchvision guesses them from the first batch, 1/2 for a 65-pixel image padded to 96, and keeps them."""
    options = {"min_size": 65, "max_size": 1000, "box_score_thresh": 0.0, "rpn_post_nms_top_n_test": 20}
    model = randomize(small_detector(**options)).eval()
    odd, usual = torch.rand(3, 65, 65), torch.rand(3, 65, 96)
    trapped = copy.deepcopy(model)
    trapped.roi_heads.box_roi_pool = MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=7, sampling_ratio=2)
    with torch.no_grad():
        trapped([odd])
        (expected,) = model([usual])
        model([odd])
        (prediction,) = model([usual])
    assert trapped.roi_heads.box_roi_pool.scales[0] == 0.5, "this image is no trap any more: find another"
    assert model.roi_heads.box_roi_pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    assert len(expected["boxes"]) > 0
    for key, value in expected.items():
        assert_close(prediction[key], value)


def test_one_map_without_a_pyramid_has_all_anchors_and_all_rois(make_target, train_step):
    backbone = build_fpn_backbone("resnet18", output_stride=16, out_features=["c5"], pyramid="single", out_channels=32)
    model = faster_rcnn(
        backbone,
        3,
        min_size=64,
        max_size=96,
        box_head_dim=8,
        rpn_post_nms_top_n_train=20,
        anchor_sizes=[[32, 64, 128, 256, 512]],
    )
    assert model.rpn.anchor_generator.num_anchors_per_location() == [15]
    assert model.roi_heads.box_roi_pool.scales == [1 / 16]
    losses = train_step(model, [torch.rand(3, 64, 96)], [make_target([[8, 8, 60, 50]])])
    assert losses["loss_classifier"] > 0
