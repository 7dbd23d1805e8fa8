"""The parts of torchvision's R-CNNs with what they lack: crowd regions and seeded sampling."""

from typing import Any

from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads as TorchvisionRoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork as TorchvisionRegionProposalNetwork
from torchvision.ops import box_iou

from heads.crowd import in_crowd
from heads.sampling import BalancedSampler
from heads.transform import Targets


class RegionProposalNetwork(TorchvisionRegionProposalNetwork):
    """torchvision's RPN whose losses leave out anchors in crowd regions and draw each image's sample from its own seed."""

    def __init__(self, *args: Any, batch_size_per_image: int, positive_fraction: float, **kwargs: Any) -> None:
        super().__init__(*args, batch_size_per_image=batch_size_per_image, positive_fraction=positive_fraction, **kwargs)
        self.fg_bg_sampler = BalancedSampler(batch_size_per_image, positive_fraction, salt=0)

    def assign_targets_to_anchors(self, anchors: list[Tensor], targets: Targets) -> tuple[list[Tensor], list[Tensor]]:
        """As torchvision's: labels (N,) 1 object, 0 background, -1 ignored, and the matched boxes (N, 4)."""
        labels, matched_boxes = super().assign_targets_to_anchors(anchors, targets)
        for image_labels, image_anchors, target in zip(labels, anchors, targets, strict=True):
            image_labels[(image_labels == 0) & in_crowd(image_anchors, target)] = -1
        self.fg_bg_sampler.follow(targets)
        return labels, matched_boxes

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Objectness and box loss; zero, with gradients, where every anchor lies in a crowd."""
        if not any((image_labels >= 0).any() for image_labels in labels):
            return objectness.sum() * 0, pred_bbox_deltas.sum() * 0
        return super().compute_loss(objectness, pred_bbox_deltas, labels, regression_targets)


class RoIHeads(TorchvisionRoIHeads):
    """torchvision's RoI heads, trained without background examples from crowd regions, each image sampled by its own seed."""

    def __init__(self, *args: Any, batch_size_per_image: int, positive_fraction: float, **kwargs: Any) -> None:
        super().__init__(*args, batch_size_per_image=batch_size_per_image, positive_fraction=positive_fraction, **kwargs)
        self.fg_bg_sampler = BalancedSampler(batch_size_per_image, positive_fraction, salt=1)

    def select_training_samples(
        self, proposals: list[Tensor], targets: Targets | None
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """As torchvision's, on the proposals that are examples of an object or of the background."""
        self.check_targets(targets)
        assert targets is not None
        outside = [self._outside_crowd(boxes, target) for boxes, target in zip(proposals, targets, strict=True)]
        if not any(len(boxes) for boxes in outside) and not any(len(target["boxes"]) for target in targets):
            # A batch that is all crowd gives no example at all, and the mean over none is NaN. Keep one proposal.
            outside[0] = proposals[0][:1]
        proposals = outside
        self.fg_bg_sampler.follow(targets)
        return super().select_training_samples(proposals, targets)

    def _outside_crowd(self, proposals: Tensor, target: dict[str, Tensor]) -> Tensor:
        ignored = in_crowd(proposals, target)
        objects = target["boxes"].to(proposals.dtype)
        if len(objects):
            # A person before the crowd is an object all the same.
            overlap = box_iou(proposals, objects).max(dim=1).values
            ignored &= overlap < self.proposal_matcher.high_threshold
        return proposals[~ignored]
