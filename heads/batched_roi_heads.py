"""The RoI heads of a whole batch at once: torchvision's function, without loops over images where there need be none."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.roi_heads import keypointrcnn_loss
from torchvision.ops import batched_nms, nms

from heads.batched_boxes import box_areas, match, pad_rows, sample, spread
from heads.box_coding import BoxCoder
from heads.class_masks import detection_masks
from heads.crowd import in_crowd
from heads.detection_keypoints import detection_keypoints
from heads.mask_loss import mask_loss
from heads.rcnn_parts import RoIHeads
from heads.sampling import generator_of
from heads.transform import Targets

Losses = dict[str, Tensor]


class BatchedRoIHeads(RoIHeads):
    """Detections and losses of `RoIHeads`, with its parameters; every image has as many examples, some of which may be none."""

    takes_cropped_masks = True

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Targets | None = None,
    ) -> tuple[list[dict[str, Tensor]], Losses]:
        """Maps, proposals (P_i, 4) an image and image sizes -> detections in evaluation, losses in training."""
        if not self.training:
            return self._detect(features, proposals, image_shapes), {}
        self.check_targets(targets)
        assert targets is not None
        boxes, labels, rows, matched = self._examples(proposals, targets)
        pooled = self.box_roi_pool(features, list(boxes), image_shapes)
        logits, offsets = self.box_predictor(self.box_head(pooled))
        losses = self._box_losses(logits, offsets, boxes.flatten(0, 1), labels.flatten(), matched.flatten(0, 1))
        if not (self.has_mask() or self.has_keypoint()):
            return [], losses
        # Only the objects go on: waiting for their number once costs less than a head that runs over the background.
        is_object = labels > 0
        counts = is_object.sum(1).tolist()
        object_boxes = [image_boxes[:count] for image_boxes, count in zip(boxes, counts, strict=True)]
        object_rows = [image_rows[:count] for image_rows, count in zip(rows, counts, strict=True)]
        if self.has_mask():
            mask_logits = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, object_boxes, image_shapes)))
            masks, classes = [target["masks"] for target in targets], [target["labels"] for target in targets]
            losses["loss_mask"] = mask_loss(mask_logits, object_boxes, masks, classes, object_rows)
        if self.has_keypoint():
            pooled = self.keypoint_roi_pool(features, object_boxes, image_shapes)
            keypoint_logits = self.keypoint_predictor(self.keypoint_head(pooled))
            keypoints = [target["keypoints"] for target in targets]
            losses["loss_keypoint"] = keypointrcnn_loss(keypoint_logits.contiguous(), object_boxes, keypoints, object_rows)
        return [], losses

    def _detect(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        logits, offsets = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, image_shapes)))
        boxes, scores, labels = self.postprocess_detections(logits, offsets, proposals, image_shapes)
        results = [{"boxes": b, "labels": k, "scores": s} for b, k, s in zip(boxes, labels, scores, strict=True)]
        if self.has_mask():
            for result, masks in zip(results, detection_masks(self, features, boxes, labels, image_shapes), strict=True):
                result["masks"] = masks
        if self.has_keypoint():
            keypoints, sure = detection_keypoints(self, features, boxes, image_shapes)
            for result, points, point_scores in zip(results, keypoints, sure, strict=True):
                result |= {"keypoints": points, "keypoints_scores": point_scores}
        return results

    def _examples(self, proposals: list[Tensor], targets: Targets) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Proposals and objects -> the examples: boxes (B, S, 4), labels (B, S), -1 where a place holds none, rows and boxes
        (B, S), (B, S, 4) of the objects they belong to; objects come first."""
        dtype = proposals[0].dtype
        objects, present = pad_rows([target["boxes"].to(dtype) for target in targets], least=1)
        classes, _ = pad_rows([target["labels"] for target in targets], least=1)
        boxes, _ = pad_rows(proposals)
        boxes = torch.cat([boxes, objects], dim=1)
        overlap, rows, _ = match(boxes, objects, present)
        matcher = self.proposal_matcher
        labels = torch.where(overlap >= matcher.high_threshold, classes.gather(1, rows), -1)
        labels[overlap < matcher.low_threshold] = 0
        for image_labels, image_boxes, target in zip(labels, boxes, targets, strict=True):
            if len(target.get("crowd_boxes", ())):
                # A person before the crowd is an object all the same.
                image_labels[(image_labels <= 0) & in_crowd(image_boxes, target)] = -1
        labels[box_areas(boxes) <= 0] = -1
        sampler = self.fg_bg_sampler
        chosen, is_example = sample(
            labels,
            size=sampler.batch_size_per_image,
            positive_fraction=sampler.positive_fraction,
            generators=[generator_of(target, salt=sampler.salt, device=boxes.device) for target in targets],
        )
        rows = rows.gather(1, chosen)
        matched = objects.gather(1, rows[..., None].expand(-1, -1, 4))
        return (
            boxes.gather(1, chosen[..., None].expand(-1, -1, 4)),
            _masked(labels.gather(1, chosen), is_example),
            rows,
            matched,
        )

    def _box_losses(self, logits: Tensor, offsets: Tensor, boxes: Tensor, labels: Tensor, matched: Tensor) -> Losses:
        """Losses of logits (R, K) and offsets (R, 4 K) of boxes (R, 4) with labels (R,) and matched objects (R, 4)."""
        count = (labels >= 0).sum().clamp(min=1)
        classes = F.cross_entropy(logits.float(), labels, ignore_index=-1, reduction="sum")
        is_object = (labels > 0)[:, None]
        boxes = _with_area(boxes)
        wanted = self.box_coder.encode_single(torch.where(is_object, matched, boxes), boxes)  # of the others: none, and finite
        of_class = offsets.unflatten(1, (-1, 4)).gather(1, labels.clamp(min=0)[:, None, None].expand(-1, 1, 4))[:, 0]
        distances = F.smooth_l1_loss(of_class.float(), wanted, beta=1 / 9, reduction="none") * is_object
        return {"loss_classifier": classes / count, "loss_box_reg": distances.sum() / count}

    def postprocess_detections(
        self, class_logits: Tensor, box_regression: Tensor, proposals: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """As torchvision's: boxes, scores and labels an image, best first; decoded are only those that score enough."""
        counts = [len(image_boxes) for image_boxes in proposals]
        scores = class_logits.float().softmax(-1)[:, 1:]
        rows, labels = (scores > self.score_thresh).nonzero().unbind(1)
        scores, labels = scores[rows, labels], labels + 1
        image = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(rows.device)[rows]
        offsets = box_regression.unflatten(1, (-1, 4))[rows, labels]
        boxes = BoxCoder.decode_single(self.box_coder, offsets, torch.cat(proposals)[rows])
        sizes = torch.tensor([[w, h, w, h] for h, w in image_shapes], dtype=boxes.dtype).to(boxes.device)
        boxes = boxes.clamp(min=0).minimum(sizes[image])
        large = (boxes[:, 2:] - boxes[:, :2] >= 1e-2).all(1)
        boxes, scores, labels, image = boxes[large], scores[large], labels[large], image[large]
        if boxes.device.type == "cpu":
            found = []
            for number in range(len(counts)):
                own = (image == number).nonzero()[:, 0]
                found.append(own[batched_nms(boxes[own], scores[own], labels[own], self.nms_thresh)][: self.detections_per_img])
        else:
            groups = image * class_logits.shape[1] + labels
            kept = nms(spread(boxes, groups, count=len(counts) * class_logits.shape[1]), scores, self.nms_thresh)
            own = image[kept].argsort(stable=True)
            per_image = torch.bincount(image[kept], minlength=len(counts)).tolist()
            found = [image_rows[: self.detections_per_img] for image_rows in kept[own].split(per_image)]
        return [boxes[r] for r in found], [scores[r] for r in found], [labels[r] for r in found]


def _masked(labels: Tensor, is_example: Tensor) -> Tensor:
    return torch.where(is_example, labels, -1)


def _with_area(boxes: Tensor) -> Tensor:
    """Boxes (N, 4) in which those without an area are 1 x 1, so that offsets from them are finite."""
    empty = (box_areas(boxes) <= 0)[:, None]
    return torch.where(empty, boxes.new_tensor([0.0, 0.0, 1.0, 1.0]), boxes)
