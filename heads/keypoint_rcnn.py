"""Keypoint R-CNN on any backbone. He et al., Mask R-CNN, https://arxiv.org/abs/1703.06870, section 5."""

from typing import Any

from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor

from backbones import Backbone
from heads.anchors import roi_pool
from heads.batched_roi_heads import BatchedRoIHeads
from heads.faster_rcnn import faster_rcnn
from heads.option_checks import check_counts, check_layers
from heads.rcnn_parts import RoIHeads
from heads.registry import register_detector


@register_detector("keypoint_rcnn", inherits=faster_rcnn, besides_boxes=["keypoints"])
def keypoint_rcnn(
    backbone: Backbone,
    num_classes: int,
    *,
    num_keypoints: int = 17,
    keypoint_head_dim: int = 512,
    keypoint_head_layers: int = 8,
    **box_options: Any,
) -> GeneralizedRCNN:
    """Keypoint R-CNN: `faster_rcnn` and the keypoints of each box, with torchvision's parameter names, numbers and defaults.

    Targets also carry `keypoints` (N, num_keypoints, 3) float32: x and y in pixels, and visibility, 0 where it is not labelled;
    predictions `keypoints` (N, num_keypoints, 3), the last always 1, and `keypoints_scores` (N, num_keypoints).

    Args:
        backbone: as for `faster_rcnn`.
        num_classes: number of classes, the background counted.
        num_keypoints: keypoints of every object.
        keypoint_head_dim: channels of the keypoint head. The default of 512 costs 3.7 GMAC an RoI.
        keypoint_head_layers: number of its 3x3 convolutions.
        box_options: as for `faster_rcnn`.

    Raises:
        UserError: as for `faster_rcnn`.
    """
    check_counts({"num_keypoints": num_keypoints, "keypoint_head_dim": keypoint_head_dim})
    check_layers("keypoint_head_layers", keypoint_head_layers)
    model = faster_rcnn(backbone, num_classes, **box_options)
    levels = backbone.feature_specs
    channels = next(iter(levels.values())).channels
    roi_heads = model.roi_heads
    assert isinstance(roi_heads, RoIHeads)
    roi_heads.keypoint_roi_pool = roi_pool(levels, output_size=14, fast=isinstance(roi_heads, BatchedRoIHeads))
    roi_heads.keypoint_head = KeypointRCNNHeads(channels, (keypoint_head_dim,) * keypoint_head_layers)
    roi_heads.keypoint_predictor = KeypointRCNNPredictor(keypoint_head_dim, num_keypoints)
    return model
