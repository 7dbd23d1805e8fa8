"""FCOS on any backbone. Tian et al., FCOS: A Simple and Strong Anchor-free Object Detector, https://arxiv.org/abs/2006.09214."""

import torch
from torch import Tensor
from torchvision.models.detection.fcos import FCOS, FCOSHead

from backbones import Backbone, UserError
from backbones.registry import check_whole_number
from heads.anchors import anchor_generator, feature_levels
from heads.batched_one_stage import BatchedFCOS
from heads.cached_anchors import CachedAnchorGenerator
from heads.crowd import in_crowd
from heads.option_checks import check_counts, check_positive, check_shares
from heads.registry import register_detector
from heads.transform import Targets, detection_transform

# A logit that far below zero is background for certain: no loss, no gradient.
CERTAIN_BACKGROUND = -100.0
NORM_GROUPS = 32  # torchvision's


@register_detector("fcos")
def fcos(
    backbone: Backbone,
    num_classes: int,
    *,
    min_size: int | list[int] = 800,
    max_size: int = 1333,
    image_mean: list[float] | None = None,
    image_std: list[float] | None = None,
    resize_in_training: bool = True,
    center_sampling_radius: float = 1.5,
    score_thresh: float = 0.2,
    nms_thresh: float = 0.6,
    detections_per_img: int = 100,
    topk_candidates: int = 1000,
    fast: bool = True,
) -> FCOS:
    """FCOS with torchvision's parameter names, numbers and defaults: one stage, one box at each place, no anchors to choose.

    Images and targets are those of `faster_rcnn`. torchvision's `fcos_resnet50_fpn` is built on
    `build_fpn_backbone("resnet50", out_features=["c3", "c4", "c5"], extra_level="p6p7")`.

    Args:
        backbone: its feature_specs give the places, and the sizes of objects each level is for (4 to 8 strides).
        num_classes: number of classes, the background counted.
        center_sampling_radius: how far from an object's centre, in strides, a place is its example.
        score_thresh: boxes that score less are left out; a score is the root of class probability times centredness.
        nms_thresh: boxes of a class that overlap a better one by more than this IoU are left out.
        detections_per_img: the best of an image that are kept.
        topk_candidates: the best of each level that are looked at.
        fast: as for `faster_rcnn`.

    The options on images are those of `faster_rcnn`.

    Raises:
        UserError: the backbone's levels are not what a detector needs, or an option is out of its range.
    """
    check_whole_number("num_classes", num_classes, least=2)  # the background and one more
    check_positive("center_sampling_radius", center_sampling_radius)
    check_shares({"score_thresh": score_thresh, "nms_thresh": nms_thresh})
    check_counts({"detections_per_img": detections_per_img, "topk_candidates": topk_candidates})
    levels = feature_levels(backbone)
    channels = next(iter(levels.values())).channels
    if channels % NORM_GROUPS:
        raise UserError(
            f"FCOS normalises its layers in {NORM_GROUPS} groups of channels, and the pyramid's out_channels is "
            f"{channels}: give a multiple of {NORM_GROUPS}."
        )
    anchors = anchor_generator(levels, anchor_scale=1, aspect_ratios=(1.0,))
    fcos_class = BatchedFCOS if fast else FCOS
    model = fcos_class(
        backbone,
        num_classes,
        anchor_generator=CachedAnchorGenerator(anchors.sizes, anchors.aspect_ratios) if fast else anchors,
        head=CrowdAwareFCOSHead(backbone.out_channels, 1, num_classes),
        center_sampling_radius=center_sampling_radius,
        score_thresh=score_thresh,
        nms_thresh=nms_thresh,
        detections_per_img=detections_per_img,
        topk_candidates=topk_candidates,
    )
    model.transform = detection_transform(
        backbone,
        min_size=min_size,
        max_size=max_size,
        image_mean=image_mean,
        image_std=image_std,
        resize_in_training=resize_in_training,
    )
    return model


class CrowdAwareFCOSHead(FCOSHead):
    """torchvision's head, for which places in a crowd region are neither object nor background."""

    def compute_loss(
        self, targets: Targets, head_outputs: dict[str, Tensor], anchors: list[Tensor], matched_idxs: list[Tensor]
    ) -> dict[str, Tensor]:
        """Focal loss of the classes, GIoU loss of the boxes and cross entropy of the centredness."""
        ignored = torch.stack(
            [
                (matched < 0) & in_crowd(boxes, target)
                for matched, boxes, target in zip(matched_idxs, anchors, targets, strict=True)
            ]
        )
        logits = head_outputs["cls_logits"].masked_fill(ignored[..., None], CERTAIN_BACKGROUND)
        return super().compute_loss(targets, head_outputs | {"cls_logits": logits}, anchors, matched_idxs)
