"""RetinaNet and FCOS of a whole batch at once: torchvision's functions, without loops over images."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import BoxLinearCoder
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.ops import batched_nms, generalized_box_iou_loss, nms, sigmoid_focal_loss

from heads.batched_boxes import at_once, box_areas, match, pad_rows, spread
from heads.crowd import in_crowd
from heads.transform import Targets

Losses = dict[str, Tensor]
Detections = list[dict[str, Tensor]]


class BatchedRetinaNet(RetinaNet):
    """Losses and detections of torchvision's RetinaNet, with its parameters; places in a crowd region are no examples."""

    def compute_loss(self, targets: Targets, head_outputs: dict[str, Tensor], anchors: list[Tensor]) -> Losses:
        """The focal loss of the classes and the L1 loss of the boxes: means over an image's objects, then over the images."""
        places = anchors[0]  # the same for every image
        objects, present = pad_rows([target["boxes"].to(places.dtype) for target in targets], least=1)
        classes, _ = pad_rows([target["labels"] for target in targets], least=1)
        overlap, rows, is_nearest = match(places, objects, present)
        matcher = self.proposal_matcher
        is_object = (overlap >= matcher.high_threshold) | is_nearest
        is_example = is_object | (overlap < matcher.low_threshold)
        is_example &= is_object | ~crowded(places, targets)
        counts = is_object.sum(1).clamp(min=1)
        image, place = is_object.nonzero().unbind(1)
        row = rows[image, place]
        focal = focal_loss(head_outputs["cls_logits"], image, place, classes[image, row], is_example) / counts
        wanted = self.box_coder.encode_single(objects[image, row], places[place])
        distances = (head_outputs["bbox_regression"][image, place].float() - wanted).abs().sum(1)
        boxes = distances.new_zeros(len(targets)).index_add(0, image, distances) / counts
        return {"classification": focal.mean(), "bbox_regression": boxes.mean()}

    def postprocess_detections(
        self, head_outputs: dict[str, list[Tensor]], anchors: list[list[Tensor]], image_shapes: list[tuple[int, int]]
    ) -> Detections:
        """Outputs a level -> torchvision's dicts, best first; probabilities are computed only where they are large enough."""
        least = math.log(self.score_thresh / (1 - self.score_thresh)) if 0 < self.score_thresh < 1 else -math.inf
        found = []
        for logits, offsets, places in zip(
            head_outputs["cls_logits"], head_outputs["bbox_regression"], anchors[0], strict=True
        ):
            # The logarithm is rounded: a little more is looked at, and the threshold applied to the probability itself.
            image, place, label = (logits > least - 1e-3).nonzero().unbind(1)
            scores = logits[image, place, label].float().sigmoid()
            kept = best_of_each(scores, image, scores > self.score_thresh, count=self.topk_candidates)
            image, place, label, scores = image[kept], place[kept], label[kept], scores[kept]
            boxes = self.box_coder.decode_single(offsets[image, place], places[place])
            found.append((image, boxes, scores, label))
        return finish(found, image_shapes, threshold=self.nms_thresh, most=self.detections_per_img)


class BatchedFCOS(FCOS):
    """Losses and detections of torchvision's FCOS, with its parameters; places in a crowd region are no examples."""

    def compute_loss(
        self, targets: Targets, head_outputs: dict[str, Tensor], anchors: list[Tensor], num_anchors_per_level: list[int]
    ) -> Losses:
        """Focal loss of the classes, GIoU loss of the boxes, cross entropy of the centredness: means over all objects."""
        places = anchors[0]  # the same for every image
        objects, present = pad_rows([target["boxes"].to(places.dtype) for target in targets], least=1)
        classes, _ = pad_rows([target["labels"] for target in targets], least=1)
        rows = self._match(places, objects, present, num_anchors_per_level)
        is_object = rows >= 0
        is_example = is_object | ~crowded(places, targets)
        image, place = is_object.nonzero().unbind(1)
        row = rows[image, place]
        count = max(1, len(image))
        focal = focal_loss(head_outputs["cls_logits"], image, place, classes[image, row], is_example).sum() / count
        coder, wanted, places = BoxLinearCoder(normalize_by_size=True), objects[image, row], places[place]
        given = coder.decode(head_outputs["bbox_regression"][image, place].float(), places)
        boxes = generalized_box_iou_loss(given, wanted, reduction="sum") / count
        left, top, right, bottom = coder.encode(places, wanted).unbind(1)
        across = torch.minimum(left, right) / torch.maximum(left, right)
        centredness = (across * torch.minimum(top, bottom) / torch.maximum(top, bottom)).sqrt()
        logits = head_outputs["bbox_ctrness"][image, place, 0].float()
        centres = F.binary_cross_entropy_with_logits(logits, centredness, reduction="sum") / count
        return {"classification": focal, "bbox_regression": boxes, "bbox_ctrness": centres}

    def _match(self, places: Tensor, objects: Tensor, present: Tensor, per_level: list[int]) -> Tensor:
        """The row (B, N) of the smallest object whose middle a place (N, 4) is near, and whose level it is of; -1 for none."""
        centres = (places[:, :2] + places[:, 2:]) / 2
        sizes = places[:, 2] - places[:, 0]
        lower, upper = sizes * 4, sizes * 8
        lower[: per_level[0]] = 0
        upper[-per_level[-1] :] = math.inf
        best = places.new_full((len(objects), len(places)), 1e-5)
        rows = torch.full(best.shape, -1, device=places.device)
        step = at_once(4 * len(objects) * len(places), places.device)  # a pair has four numbers
        for start in range(0, objects.shape[1], step):
            some = objects[:, start : start + step, None]  # (B, G, 1, 4)
            middles = (some[..., :2] + some[..., 2:]) / 2
            fits = (centres - middles).abs().amax(-1) < self.center_sampling_radius * sizes
            sides = torch.cat([centres - some[..., :2], some[..., 2:] - centres], dim=-1)
            farthest = sides.amax(-1)
            fits &= (sides.amin(-1) > 0) & (farthest > lower) & (farthest < upper)
            fits &= present[:, start : start + step, None]
            smallness, which = (fits * (1e8 - box_areas(some))).max(dim=1)
            better = smallness > best
            best = torch.where(better, smallness, best)
            rows = torch.where(better, which + start, rows)
        return rows

    def postprocess_detections(
        self, head_outputs: dict[str, list[Tensor]], anchors: list[list[Tensor]], image_shapes: list[tuple[int, int]]
    ) -> Detections:
        """Outputs a level -> torchvision's dicts, best first; scores are computed only where they can reach the threshold."""
        # A score is the root of the class's probability times the centredness: neither may be below its square.
        square = self.score_thresh**2
        least = math.log(square / (1 - square)) if 0 < square < 1 else -math.inf
        coder = BoxLinearCoder(normalize_by_size=True)
        found = []
        levels = (head_outputs[name] for name in ("cls_logits", "bbox_regression", "bbox_ctrness"))
        for logits, offsets, centredness, places in zip(*levels, anchors[0], strict=True):
            image, place, label = (logits > least - 1e-3).nonzero().unbind(1)
            scores = (logits[image, place, label].float().sigmoid() * centredness[image, place, 0].float().sigmoid()).sqrt()
            kept = best_of_each(scores, image, scores > self.score_thresh, count=self.topk_candidates)
            image, place, label, scores = image[kept], place[kept], label[kept], scores[kept]
            boxes = coder.decode(offsets[image, place].float(), places[place])
            found.append((image, boxes, scores, label))
        return finish(found, image_shapes, threshold=self.nms_thresh, most=self.detections_per_img)


def focal_loss(logits: Tensor, image: Tensor, place: Tensor, label: Tensor, is_example: Tensor) -> Tensor:
    """Logits (B, N, K), where objects are, (M,) each, and which places are examples, (B, N) -> sums (B,) of the focal loss."""
    wanted = torch.zeros_like(logits, dtype=torch.float32)
    wanted[image, place, label] = 1.0
    losses = sigmoid_focal_loss(logits.float(), wanted, reduction="none").sum(2)
    return torch.where(is_example, losses, 0.0).sum(1)


def crowded(places: Tensor, targets: Targets) -> Tensor:
    """(B, N) bool: which of the places (N, 4) lie in a crowd region of each image."""
    found = torch.zeros((len(targets), len(places)), dtype=torch.bool, device=places.device)
    for own, target in zip(found, targets, strict=True):
        if len(target.get("crowd_boxes", ())):
            own |= in_crowd(places, target)
    return found


def best_of_each(scores: Tensor, image: Tensor, valid: Tensor, *, count: int) -> Tensor:
    """Rows of the `count` best valid scores (M,) of each image (M,), image by image, best first."""
    rows = valid.nonzero()[:, 0]
    rows = rows[scores[rows].argsort(descending=True, stable=True)]
    rows = rows[image[rows].argsort(stable=True)]
    if not len(rows):
        return rows
    own = image[rows]
    starts = torch.searchsorted(own, own)  # where each image's begin
    return rows[torch.arange(len(rows), device=rows.device) - starts < count]


def finish(
    levels: list[tuple[Tensor, Tensor, Tensor, Tensor]], image_shapes: list[tuple[int, int]], *, threshold: float, most: int
) -> Detections:
    """Candidates of each level (image, boxes, scores, labels) -> detections an image: clipped, without doubles, best first."""
    image, boxes, scores, labels = (torch.cat(parts) for parts in zip(*levels, strict=True))
    sizes = torch.tensor([[w, h, w, h] for h, w in image_shapes], dtype=boxes.dtype).to(boxes.device)
    boxes = boxes.clamp(min=0).minimum(sizes[image])
    kept = []
    if boxes.device.type == "cpu":  # many small problems are less work than one large one
        for number in range(len(image_shapes)):
            own = (image == number).nonzero()[:, 0]
            kept.append(own[batched_nms(boxes[own], scores[own], labels[own], threshold)][:most])
    else:
        num_labels = int(labels.max()) + 1 if len(labels) else 1
        rows = nms(spread(boxes, image * num_labels + labels, count=num_labels * len(image_shapes)), scores, threshold)
        counts = torch.bincount(image[rows], minlength=len(image_shapes)).tolist()
        kept = [own[:most] for own in rows[image[rows].argsort(stable=True)].split(counts)]
    return [{"boxes": boxes[own], "scores": scores[own], "labels": labels[own]} for own in kept]
