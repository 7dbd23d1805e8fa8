"""The region proposal network of a whole batch at once: torchvision's function, without loops over images."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from heads.batched_boxes import match, pad_rows, sample, suppress
from heads.box_coding import BoxCoder
from heads.cached_anchors import CachedAnchorGenerator
from heads.crowd import in_crowd
from heads.rcnn_parts import RegionProposalNetwork
from heads.sampling import generator_of
from heads.transform import Targets


class BatchedRegionProposalNetwork(RegionProposalNetwork):
    """Proposals and losses of `RegionProposalNetwork`, with its parameters; offsets are decoded only of the best anchors.

    In training each image gets as many proposals, those beyond its own being boxes (0, 0, 0, 0): nobody waits for their number.
    """

    anchor_generator: CachedAnchorGenerator

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: Targets | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """A batch and its maps -> proposals (P_i, 4) an image, xyxy pixels, best first, and, in training, losses."""
        maps = list(features.values())
        objectness, offsets = self.head(maps)
        anchors = self.anchor_generator.by_level(images.tensors, maps)
        per_place = [level.shape[1] for level in objectness]
        logits = [level.permute(0, 2, 3, 1).flatten(1) for level in objectness]
        deltas = [
            level.unflatten(1, (count, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)
            for level, count in zip(offsets, per_place, strict=True)
        ]
        with torch.no_grad():
            proposals = self._propose(logits, deltas, anchors, images.image_sizes)
        if not self.training:
            return proposals, {}
        assert targets is not None
        return proposals, self._losses(torch.cat(logits, 1), torch.cat(deltas, 1), torch.cat(anchors), targets)

    def _propose(
        self, logits: list[Tensor], deltas: list[Tensor], anchors: list[Tensor], image_sizes: list[tuple[int, int]]
    ) -> list[Tensor]:
        chosen_logits, chosen_boxes = [], []
        for level_logits, level_deltas, level_anchors in zip(logits, deltas, anchors, strict=True):
            count = min(self.pre_nms_top_n(), level_logits.shape[1])
            top, rows = level_logits.topk(count, dim=1)
            chosen = level_deltas.gather(1, rows[..., None].expand(-1, -1, 4)).flatten(0, 1)
            boxes = BoxCoder.decode_single(self.box_coder, chosen, level_anchors[rows].flatten(0, 1))
            chosen_logits.append(top)
            chosen_boxes.append(boxes.unflatten(0, rows.shape))
        boxes, scores = torch.cat(chosen_boxes, 1), torch.cat(chosen_logits, 1).float().sigmoid()
        sizes = torch.tensor([[w, h, w, h] for h, w in image_sizes], dtype=boxes.dtype).to(boxes.device, non_blocking=True)
        boxes = boxes.clamp(min=0).minimum(sizes[:, None])
        sides = boxes[..., 2:] - boxes[..., :2]
        valid = (sides >= self.min_size).all(-1) & (scores >= self.score_thresh)
        kept = suppress(boxes, scores, valid, [level.shape[1] for level in chosen_logits], self.nms_thresh)
        best, rows = torch.where(kept, scores, -1.0).topk(min(self.post_nms_top_n(), scores.shape[1]), dim=1)
        boxes = boxes.gather(1, rows[..., None].expand(-1, -1, 4))
        is_proposal = best >= 0
        if self.training:
            return list(boxes * is_proposal[..., None])
        return [image_boxes[:count] for image_boxes, count in zip(boxes, is_proposal.sum(1).tolist(), strict=True)]

    def _losses(self, logits: Tensor, deltas: Tensor, anchors: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Losses of logits (B, N) and offsets (B, N, 4) of anchors (N, 4)."""
        objects, present = pad_rows([target["boxes"].to(anchors.dtype) for target in targets], least=1)
        overlap, rows, is_nearest = match(anchors, objects, present)
        matcher = self.proposal_matcher
        labels = torch.where(overlap < matcher.low_threshold, 0, -1)
        labels[(overlap >= matcher.high_threshold) | is_nearest] = 1
        for image_labels, target in zip(labels, targets, strict=True):
            if len(target.get("crowd_boxes", ())):
                image_labels[(image_labels == 0) & in_crowd(anchors, target)] = -1
        sampler = self.fg_bg_sampler
        chosen, is_example = sample(
            labels,
            size=sampler.batch_size_per_image,
            positive_fraction=sampler.positive_fraction,
            generators=[generator_of(target, salt=sampler.salt, device=anchors.device) for target in targets],
        )
        is_object = is_example & (labels.gather(1, chosen) == 1)
        count = is_example.sum().clamp(min=1)
        classes = F.binary_cross_entropy_with_logits(
            logits.gather(1, chosen).float(), is_object.float(), weight=is_example.float(), reduction="sum"
        )
        places = anchors[chosen]
        matched = objects.gather(1, rows.gather(1, chosen)[..., None].expand(-1, -1, 4))
        matched = torch.where(is_object[..., None], matched, places)  # offsets of nothing are none, and finite
        wanted = self.box_coder.encode_single(matched.flatten(0, 1), places.flatten(0, 1)).unflatten(0, chosen.shape)
        given = deltas.gather(1, chosen[..., None].expand(-1, -1, 4)).float()
        distances = F.smooth_l1_loss(given, wanted, beta=1 / 9, reduction="none") * is_object[..., None]
        return {"loss_objectness": classes / count, "loss_rpn_box_reg": distances.sum() / count}
