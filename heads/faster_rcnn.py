"""Faster R-CNN on any backbone. Ren et al., https://arxiv.org/abs/1506.01497, with FPN: https://arxiv.org/abs/1612.03144."""

from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.rpn import RPNHead

from backbones import Backbone
from backbones.registry import check_whole_number
from heads.anchors import anchor_generator, feature_levels, roi_pool
from heads.batched_roi_heads import BatchedRoIHeads
from heads.batched_rpn import BatchedRegionProposalNetwork
from heads.box_coding import BoxCoder
from heads.cached_anchors import CachedAnchorGenerator
from heads.option_checks import check_counts, check_matching, check_shares
from heads.rcnn_parts import RegionProposalNetwork, RoIHeads
from heads.registry import register_detector
from heads.transform import detection_transform


@register_detector("faster_rcnn")
def faster_rcnn(
    backbone: Backbone,
    num_classes: int,
    *,
    min_size: int | list[int] = 800,
    max_size: int = 1333,
    image_mean: list[float] | None = None,
    image_std: list[float] | None = None,
    resize_in_training: bool = True,
    anchor_scale: float = 8,
    anchor_sizes: list[list[int]] | None = None,
    aspect_ratios: list[float] | None = None,
    rpn_pre_nms_top_n_train: int = 2000,
    rpn_pre_nms_top_n_test: int = 1000,
    rpn_post_nms_top_n_train: int = 2000,
    rpn_post_nms_top_n_test: int = 1000,
    rpn_nms_thresh: float = 0.7,
    rpn_fg_iou_thresh: float = 0.7,
    rpn_bg_iou_thresh: float = 0.3,
    rpn_batch_size_per_image: int = 256,
    rpn_positive_fraction: float = 0.5,
    rpn_score_thresh: float = 0.0,
    box_head_dim: int = 1024,
    box_score_thresh: float = 0.05,
    box_nms_thresh: float = 0.5,
    box_detections_per_img: int = 100,
    box_fg_iou_thresh: float = 0.5,
    box_bg_iou_thresh: float = 0.5,
    box_batch_size_per_image: int = 512,
    box_positive_fraction: float = 0.25,
    fast: bool = True,
) -> GeneralizedRCNN:
    """Faster R-CNN with torchvision's parameter names, numbers and defaults.

    Takes images (C, H_i, W_i), uint8 or float in [0, 1], and targets of `boxes` (N, 4) float32 xyxy pixels, `labels` (N,) int64
    from 1, and, optionally, `iscrowd` (N,): nothing inside a crowd region is trained as background.

    Args:
        backbone: its feature_specs give the anchors (sides of `anchor_scale` strides) and the RoI scales.
        num_classes: number of classes, the background counted.
        min_size: the shorter side an image is resized to, in pixels; several are drawn from in training.
        max_size: no side gets longer than this, in pixels.
        image_mean: what is subtracted from each channel of an image in [0, 1]; left out, ImageNet's, and for images not
            of three channels the mean of those, for each.
        image_std: what each channel is divided by then; left out, as for image_mean.
        resize_in_training: whether the model resizes training images, too; say no where the loader has done it.
        anchor_sizes: sides in pixels, a list for each level, in place of `anchor_scale`.
        aspect_ratios: of the anchors, height over width; 0.5, 1 and 2 if left out.
        box_head_dim: width of the two fully connected layers over each RoI.
        fast: proposals, matching, sampling and losses of the whole batch at once; no is torchvision's own code, image by image,
            which gives the same and takes longer.

    The other options are torchvision's own, https://docs.pytorch.org/vision/stable/models/faster_rcnn.html.

    Raises:
        UserError: the backbone's levels and the anchors do not go together, numbers of channels differ, or an option is out of
            its range.
    """
    check_whole_number("num_classes", num_classes, least=2)  # the background and one more
    counts = {
        "rpn_pre_nms_top_n_train": rpn_pre_nms_top_n_train,
        "rpn_pre_nms_top_n_test": rpn_pre_nms_top_n_test,
        "rpn_post_nms_top_n_train": rpn_post_nms_top_n_train,
        "rpn_post_nms_top_n_test": rpn_post_nms_top_n_test,
        "rpn_batch_size_per_image": rpn_batch_size_per_image,
        "box_head_dim": box_head_dim,
        "box_detections_per_img": box_detections_per_img,
        "box_batch_size_per_image": box_batch_size_per_image,
    }
    shares = {
        "rpn_nms_thresh": rpn_nms_thresh,
        "rpn_positive_fraction": rpn_positive_fraction,
        "rpn_score_thresh": rpn_score_thresh,
        "box_score_thresh": box_score_thresh,
        "box_nms_thresh": box_nms_thresh,
        "box_positive_fraction": box_positive_fraction,
    }
    check_counts(counts)
    check_shares(shares)
    check_matching("rpn_", fg_iou_thresh=rpn_fg_iou_thresh, bg_iou_thresh=rpn_bg_iou_thresh)
    check_matching("box_", fg_iou_thresh=box_fg_iou_thresh, bg_iou_thresh=box_bg_iou_thresh)
    levels = feature_levels(backbone)
    channels = next(iter(levels.values())).channels
    anchors = anchor_generator(
        levels, anchor_scale=anchor_scale, anchor_sizes=anchor_sizes, aspect_ratios=aspect_ratios or (0.5, 1.0, 2.0)
    )
    rpn_class, roi_heads_class = (BatchedRegionProposalNetwork, BatchedRoIHeads) if fast else (RegionProposalNetwork, RoIHeads)
    rpn = rpn_class(
        CachedAnchorGenerator(anchors.sizes, anchors.aspect_ratios) if fast else anchors,
        RPNHead(channels, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=rpn_fg_iou_thresh,
        bg_iou_thresh=rpn_bg_iou_thresh,
        batch_size_per_image=rpn_batch_size_per_image,
        positive_fraction=rpn_positive_fraction,
        pre_nms_top_n={"training": rpn_pre_nms_top_n_train, "testing": rpn_pre_nms_top_n_test},
        post_nms_top_n={"training": rpn_post_nms_top_n_train, "testing": rpn_post_nms_top_n_test},
        nms_thresh=rpn_nms_thresh,
        score_thresh=rpn_score_thresh,
    )
    roi_heads = roi_heads_class(
        box_roi_pool=roi_pool(levels, output_size=7, fast=fast),
        box_head=TwoMLPHead(channels * 7 * 7, box_head_dim),
        box_predictor=FastRCNNPredictor(box_head_dim, num_classes),
        fg_iou_thresh=box_fg_iou_thresh,
        bg_iou_thresh=box_bg_iou_thresh,
        batch_size_per_image=box_batch_size_per_image,
        positive_fraction=box_positive_fraction,
        bbox_reg_weights=None,
        score_thresh=box_score_thresh,
        nms_thresh=box_nms_thresh,
        detections_per_img=box_detections_per_img,
    )
    rpn.box_coder, roi_heads.box_coder = BoxCoder(rpn.box_coder.weights), BoxCoder(roi_heads.box_coder.weights)
    transform = detection_transform(
        backbone,
        min_size=min_size,
        max_size=max_size,
        image_mean=image_mean,
        image_std=image_std,
        resize_in_training=resize_in_training,
    )
    return GeneralizedRCNN(backbone, rpn, roi_heads, transform)
