"""RetinaNet on any backbone. Lin et al., Focal Loss for Dense Object Detection, https://arxiv.org/abs/1708.02002."""

from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead

from backbones import Backbone
from backbones.registry import check_whole_number
from heads.anchors import anchor_generator, feature_levels
from heads.batched_one_stage import BatchedRetinaNet
from heads.box_coding import BoxCoder
from heads.cached_anchors import CachedAnchorGenerator
from heads.crowd import in_crowd
from heads.option_checks import check_counts, check_matching, check_positive, check_shares
from heads.registry import register_detector
from heads.transform import Targets, detection_transform

# Three anchors an octave: sides of a level's own size, and of 2^(1/3) and 2^(2/3) times that.
OCTAVE_SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))


@register_detector("retinanet")
def retinanet(
    backbone: Backbone,
    num_classes: int,
    *,
    min_size: int | list[int] = 800,
    max_size: int = 1333,
    image_mean: list[float] | None = None,
    image_std: list[float] | None = None,
    resize_in_training: bool = True,
    anchor_scale: float = 4,
    anchor_sizes: list[list[int]] | None = None,
    aspect_ratios: list[float] | None = None,
    score_thresh: float = 0.05,
    nms_thresh: float = 0.5,
    detections_per_img: int = 300,
    topk_candidates: int = 1000,
    fg_iou_thresh: float = 0.5,
    bg_iou_thresh: float = 0.4,
    fast: bool = True,
) -> RetinaNet:
    """RetinaNet with torchvision's parameter names, numbers and defaults: one stage, nine anchors at each place, focal loss.

    Images and targets are those of `faster_rcnn`. torchvision's `retinanet_resnet50_fpn` is built on
    `build_fpn_backbone("resnet50", out_features=["c3", "c4", "c5"], extra_level="p6p7")`.

    Args:
        backbone: its feature_specs give the anchors.
        num_classes: number of classes, the background counted.
        anchor_scale: sides of the smallest anchors over their level's stride; two more sizes follow within the octave.
        anchor_sizes: sides in pixels, a list for each level, in place of `anchor_scale`.
        aspect_ratios: of the anchors, height over width; 0.5, 1 and 2 if left out.
        score_thresh: boxes that score less are left out.
        nms_thresh: boxes of a class that overlap a better one by more than this IoU are left out.
        detections_per_img: the best of an image that are kept.
        topk_candidates: the best of each level that are looked at.
        fg_iou_thresh: IoU from which an anchor is an object.
        bg_iou_thresh: IoU up to which it is background.
        fast: as for `faster_rcnn`.

    The options on images are those of `faster_rcnn`.

    Raises:
        UserError: fewer than two classes; the backbone's levels and the anchors do not go together; an option is out of its
            range.
    """
    check_whole_number("num_classes", num_classes, least=2)  # the background and one more
    check_positive("anchor_scale", anchor_scale)
    check_shares({"score_thresh": score_thresh, "nms_thresh": nms_thresh})
    check_counts({"detections_per_img": detections_per_img, "topk_candidates": topk_candidates})
    check_matching("", fg_iou_thresh=fg_iou_thresh, bg_iou_thresh=bg_iou_thresh)
    levels = feature_levels(backbone)
    if anchor_sizes is None:
        # torchvision cuts the sides down to whole pixels, and so do we: 32, 40, 50.
        anchor_sizes = [[int(anchor_scale * spec.stride * scale) for scale in OCTAVE_SCALES] for spec in levels.values()]
    anchors = anchor_generator(levels, anchor_sizes=anchor_sizes, aspect_ratios=aspect_ratios or (0.5, 1.0, 2.0))
    retinanet_class = BatchedRetinaNet if fast else RetinaNet
    model = retinanet_class(
        backbone,
        num_classes,
        anchor_generator=CachedAnchorGenerator(anchors.sizes, anchors.aspect_ratios) if fast else anchors,
        head=CrowdAwareRetinaNetHead(backbone.out_channels, anchors.num_anchors_per_location()[0], num_classes),
        proposal_matcher=Matcher(fg_iou_thresh, bg_iou_thresh, allow_low_quality_matches=True),
        score_thresh=score_thresh,
        nms_thresh=nms_thresh,
        detections_per_img=detections_per_img,
        topk_candidates=topk_candidates,
    )
    model.box_coder = model.head.regression_head.box_coder = BoxCoder(model.box_coder.weights)
    model.transform = detection_transform(
        backbone,
        min_size=min_size,
        max_size=max_size,
        image_mean=image_mean,
        image_std=image_std,
        resize_in_training=resize_in_training,
    )
    return model


class CrowdAwareRetinaNetHead(RetinaNetHead):
    """torchvision's head, for which anchors in a crowd region are neither object nor background."""

    def compute_loss(
        self, targets: Targets, head_outputs: dict[str, Tensor], anchors: list[Tensor], matched_idxs: list[Tensor]
    ) -> dict[str, Tensor]:
        """Focal loss of the classes and L1 loss of the boxes, over all anchors (N,) of each image that are examples."""
        ignored = [
            matched.masked_fill((matched == Matcher.BELOW_LOW_THRESHOLD) & in_crowd(boxes, target), Matcher.BETWEEN_THRESHOLDS)
            for matched, boxes, target in zip(matched_idxs, anchors, targets, strict=True)
        ]
        return super().compute_loss(targets, head_outputs, anchors, ignored)
