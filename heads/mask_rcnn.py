"""Mask R-CNN on any backbone. He et al., https://arxiv.org/abs/1703.06870."""

from typing import Any

from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from backbones import Backbone
from heads.anchors import roi_pool
from heads.batched_roi_heads import BatchedRoIHeads
from heads.faster_rcnn import faster_rcnn
from heads.option_checks import check_counts, check_layers
from heads.rcnn_parts import RoIHeads
from heads.registry import register_detector


@register_detector("mask_rcnn", inherits=faster_rcnn, besides_boxes=["masks"])
def mask_rcnn(
    backbone: Backbone,
    num_classes: int,
    *,
    mask_head_dim: int = 256,
    mask_head_layers: int = 4,
    **box_options: Any,
) -> GeneralizedRCNN:
    """Mask R-CNN: `faster_rcnn` and a mask for each box, with torchvision's parameter names, numbers and defaults.

    Targets also carry `masks` (N, H, W) uint8; predictions `masks` (N, 1, H, W), float in [0, 1], at the image's size.

    Args:
        backbone: as for `faster_rcnn`.
        num_classes: number of classes, the background counted.
        mask_head_dim: channels of the mask head. The default of 256 costs 0.46 GMAC an RoI.
        mask_head_layers: number of its 3x3 convolutions.
        box_options: as for `faster_rcnn`.

    Raises:
        UserError: as for `faster_rcnn`.
    """
    check_counts({"mask_head_dim": mask_head_dim})
    check_layers("mask_head_layers", mask_head_layers)
    model = faster_rcnn(backbone, num_classes, **box_options)
    levels = backbone.feature_specs
    channels = next(iter(levels.values())).channels
    roi_heads = model.roi_heads
    assert isinstance(roi_heads, RoIHeads)
    roi_heads.mask_roi_pool = roi_pool(levels, output_size=14, fast=isinstance(roi_heads, BatchedRoIHeads))
    roi_heads.mask_head = MaskRCNNHeads(channels, [mask_head_dim] * mask_head_layers, dilation=1)
    roi_heads.mask_predictor = MaskRCNNPredictor(mask_head_dim, mask_head_dim, num_classes)
    return model
