"""Cascade R-CNN on any backbone: three box heads, each trained on the boxes the one before it made better.

Cai and Vasconcelos, Cascade R-CNN: High Quality Object Detection and Instance Segmentation, https://arxiv.org/abs/1906.09756.
As in detectron2: the later stages take the first one's sampled boxes without sampling again, the gradient into the pooled
features is divided by the number of stages, and masks come from one head.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.ops import boxes as box_ops

from backbones import Backbone, UserError
from heads.class_masks import detection_masks
from heads.crowd import in_crowd
from heads.faster_rcnn import faster_rcnn
from heads.mask_loss import mask_loss
from heads.mask_rcnn import mask_rcnn
from heads.rcnn_parts import RoIHeads
from heads.registry import register_detector
from heads.transform import Targets

STAGE_IOUS = (0.5, 0.6, 0.7)
# What the offsets of a box are multiplied by: the better the boxes of a stage, the smaller the offsets left to learn.
STAGE_BOX_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))


@register_detector("cascade_rcnn", inherits=faster_rcnn)
def cascade_rcnn(backbone: Backbone, num_classes: int, *, box_head_dim: int = 1024, **box_options: Any) -> GeneralizedRCNN:
    """Cascade R-CNN: three box heads at IoU 0.5, 0.6 and 0.7; one box an RoI, whatever its class; the three scores averaged.

    Images, targets and options are those of `faster_rcnn`, but for `box_fg_iou_thresh` and `box_bg_iou_thresh`, which the
    stages settle. The losses are `loss_classifier_1`, `loss_box_reg_1`, ..., a pair a stage, and the RPN's.

    Raises:
        UserError: as for `faster_rcnn`.
    """
    return _cascade(
        faster_rcnn(backbone, num_classes, box_head_dim=box_head_dim, **_checked(box_options)), num_classes, box_head_dim
    )


@register_detector("cascade_mask_rcnn", inherits=mask_rcnn, besides_boxes=["masks"])
def cascade_mask_rcnn(
    backbone: Backbone, num_classes: int, *, box_head_dim: int = 1024, **mask_options: Any
) -> GeneralizedRCNN:
    """Cascade Mask R-CNN: `cascade_rcnn` and a mask for each box, from one mask head; options are those of `mask_rcnn`.

    Raises:
        UserError: as for `mask_rcnn`.
    """
    return _cascade(
        mask_rcnn(backbone, num_classes, box_head_dim=box_head_dim, **_checked(mask_options)), num_classes, box_head_dim
    )


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    for option in ("box_fg_iou_thresh", "box_bg_iou_thresh"):
        if option in options:
            raise UserError(
                f"{option} is not an option of a cascade: its stages take IoUs of {', '.join(map(str, STAGE_IOUS))}."
            )
    return options


def _cascade(model: GeneralizedRCNN, num_classes: int, box_head_dim: int) -> GeneralizedRCNN:
    """Put a cascade in the place of a detector's one box head."""
    plain = model.roi_heads
    assert isinstance(plain, RoIHeads)
    sampler = plain.fg_bg_sampler
    cascade = CascadeRoIHeads(
        box_roi_pool=plain.box_roi_pool,
        box_head=None,
        box_predictor=None,
        fg_iou_thresh=STAGE_IOUS[0],
        bg_iou_thresh=STAGE_IOUS[0],
        batch_size_per_image=sampler.batch_size_per_image,
        positive_fraction=sampler.positive_fraction,
        bbox_reg_weights=STAGE_BOX_WEIGHTS[0],
        score_thresh=plain.score_thresh,
        nms_thresh=plain.nms_thresh,
        detections_per_img=plain.detections_per_img,
        mask_roi_pool=plain.mask_roi_pool,
        mask_head=plain.mask_head,
        mask_predictor=plain.mask_predictor,
    )
    pooled_size = plain.box_head.fc6.in_features
    cascade.stages = nn.ModuleList(CascadeStage(pooled_size, box_head_dim, num_classes) for _ in STAGE_IOUS)
    model.roi_heads = cascade
    return model


class CascadeStage(nn.Module):
    """One box head: two fully connected layers over each RoI, the scores of its classes and one set of box offsets."""

    def __init__(self, pooled_size: int, box_head_dim: int, num_classes: int) -> None:
        super().__init__()
        self.box_head = TwoMLPHead(pooled_size, box_head_dim)
        self.cls_score = nn.Linear(box_head_dim, num_classes)
        self.bbox_pred = nn.Linear(box_head_dim, 4)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features (R, C, 7, 7) -> class logits (R, num_classes) and box offsets (R, 4)."""
        hidden = self.box_head(pooled)
        return self.cls_score(hidden), self.bbox_pred(hidden)


class CascadeRoIHeads(RoIHeads):
    """RoI heads whose boxes go through three stages; the sampling, the crowd's part and the masks are RoIHeads' own."""

    takes_cropped_masks = True

    stages: nn.ModuleList

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.box_coders = [BoxCoder(weights) for weights in STAGE_BOX_WEIGHTS]
        self.matchers = [Matcher(iou, iou, allow_low_quality_matches=False) for iou in STAGE_IOUS]

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Targets | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Maps, proposals (P_i, 4) an image and image sizes -> detections in evaluation, losses in training."""
        if not self.training:
            return self._detect(features, proposals, image_shapes), {}
        assert targets is not None
        # Where an image has fewer proposals than another, the RPN fills up with boxes without area.
        proposals = [boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)] for boxes in proposals]
        sampled, matched_idxs, labels, _ = self.select_training_samples(proposals, targets)
        losses = self._box_losses(features, sampled, image_shapes, targets)
        if self.has_mask():
            objects = [(image_labels > 0).nonzero()[:, 0] for image_labels in labels]
            boxes = [image_boxes[rows] for image_boxes, rows in zip(sampled, objects, strict=True)]
            matched = [idxs[rows] for idxs, rows in zip(matched_idxs, objects, strict=True)]
            masks, classes = [target["masks"] for target in targets], [target["labels"] for target in targets]
            losses["loss_mask"] = mask_loss(
                self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, image_shapes))),
                boxes,
                masks,
                classes,
                matched,
            )
        return [], losses

    def _box_losses(
        self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]], targets: Targets
    ) -> dict[str, Tensor]:
        losses = {}
        for number, stage in enumerate(self.stages, start=1):
            coder = self.box_coders[number - 1]
            logits, offsets = stage(self._pool(features, boxes, image_shapes))
            labels, objects = self._match(boxes, targets, self.matchers[number - 1])
            wanted = torch.cat(coder.encode(objects, boxes))
            is_example, is_object = labels >= 0, labels > 0
            # The means are over all examples of the batch, as in Fast R-CNN. Zero, with gradients, where there are none.
            count = is_example.sum().clamp(min=1)
            classes = F.cross_entropy(logits[is_example], labels[is_example], reduction="sum") / count
            losses[f"loss_classifier_{number}"] = classes + 0 * logits.sum()
            regression = F.smooth_l1_loss(offsets[is_object], wanted[is_object], beta=1 / 9, reduction="sum") / count
            losses[f"loss_box_reg_{number}"] = regression + 0 * offsets.sum()
            boxes = self._refine(coder, offsets.detach(), boxes, image_shapes)
        return losses

    def _match(self, boxes: list[Tensor], targets: Targets, matcher: Matcher) -> tuple[Tensor, list[Tensor]]:
        """Labels (R,) of all boxes, 0 background, -1 in a crowd or empty, and the object (R_i, 4) each is nearest to."""
        labels, objects = [], []
        for image_boxes, target in zip(boxes, targets, strict=True):
            truth = target["boxes"].to(image_boxes.dtype)
            if len(truth) == 0:
                image_labels = torch.zeros(len(image_boxes), dtype=torch.int64, device=image_boxes.device)
                objects.append(image_boxes)
            else:
                matched = matcher(box_ops.box_iou(truth, image_boxes))
                image_labels = torch.where(matched >= 0, target["labels"][matched.clamp(min=0)], 0)
                objects.append(truth[matched.clamp(min=0)])
            has_area = (image_boxes[:, 2:] > image_boxes[:, :2]).all(1)
            ignored = ((image_labels == 0) & in_crowd(image_boxes, target)) | ~has_area
            labels.append(image_labels.masked_fill(ignored, -1))
        return torch.cat(labels), objects

    def _detect(
        self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        probabilities = []
        for stage, coder in zip(self.stages, self.box_coders, strict=True):
            logits, offsets = stage(self._pool(features, boxes, image_shapes))
            probabilities.append(logits.softmax(-1))
            boxes = self._refine(coder, offsets, boxes, image_shapes)
        scores = torch.stack(probabilities).mean(0).split([len(image_boxes) for image_boxes in boxes])
        results = [self._best(image_boxes, image_scores) for image_boxes, image_scores in zip(boxes, scores, strict=True)]
        if self.has_mask():
            boxes = [result["boxes"] for result in results]
            masks = detection_masks(self, features, boxes, [result["labels"] for result in results], image_shapes)
            results = [result | {"masks": image_masks} for result, image_masks in zip(results, masks, strict=True)]
        return results

    def _best(self, boxes: Tensor, scores: Tensor) -> dict[str, Tensor]:
        """Boxes (R, 4) and scores (R, num_classes) of an image -> its detections, best first."""
        rows, labels = (scores[:, 1:] > self.score_thresh).nonzero().unbind(1)
        boxes, labels = boxes[rows], labels + 1
        scores = scores[rows, labels]
        kept = box_ops.remove_small_boxes(boxes, min_size=1e-2)
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        kept = box_ops.batched_nms(boxes, scores, labels, self.nms_thresh)[: self.detections_per_img]
        return {"boxes": boxes[kept], "labels": labels[kept], "scores": scores[kept]}

    def _pool(self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        pooled: Tensor = self.box_roi_pool(features, boxes, image_shapes)
        # Each stage sends a gradient into the same maps: together they count as one head.
        share = 1 / len(self.stages)
        return pooled * share + pooled.detach() * (1 - share) if self.training else pooled

    @staticmethod
    def _refine(coder: BoxCoder, offsets: Tensor, boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> list[Tensor]:
        """Boxes (R_i, 4) an image moved by their offsets (R, 4), within their image."""
        # The coder gives boxes of the offsets' type: in bf16, positions would be rounded to whole pixels and more.
        offsets = offsets.float() if offsets.dtype in (torch.float16, torch.bfloat16) else offsets
        moved = coder.decode(offsets, boxes).reshape(-1, 4).split([len(image_boxes) for image_boxes in boxes])
        return [box_ops.clip_boxes_to_image(b, shape).detach() for b, shape in zip(moved, image_shapes, strict=True)]
