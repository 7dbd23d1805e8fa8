"""The loss of a mask head, whose targets are cut out of the objects' masks a few at a time."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from heads.cropped_masks import CroppedMasks

CHUNK = 32  # masks that are whole, and float, at once: 140 MB for images of 800 x 1333


def mask_loss(
    logits: Tensor,
    boxes: Sequence[Tensor],
    masks: Sequence[Tensor | CroppedMasks],
    labels: Sequence[Tensor],
    rows: Sequence[Tensor],
) -> Tensor:
    """The mean binary cross entropy of the logits of each box's class; that of torchvision's `maskrcnn_loss`.

    Args:
        logits: (R, num_classes, M, M), of the boxes of all images.
        boxes: (R_i, 4) of each image, xyxy pixels.
        masks: (N_i, H_i, W_i) of each image's objects.
        labels: (N_i,) of the objects.
        rows: (R_i,) the object of each box.

    Returns:
        A scalar; zero, with gradients, where there are no boxes.
    """
    targets = torch.cat(
        [
            mask_targets(image_masks, image_boxes, image_rows, logits.shape[-1])
            for image_masks, image_boxes, image_rows in zip(masks, boxes, rows, strict=True)
        ]
    )
    classes = torch.cat([image_labels[image_rows] for image_labels, image_rows in zip(labels, rows, strict=True)])
    if len(targets) == 0:
        return logits.sum() * 0
    own = logits[torch.arange(len(classes), device=classes.device), classes]
    return F.binary_cross_entropy_with_logits(own, targets)


def mask_targets(masks: Tensor | CroppedMasks, boxes: Tensor, rows: Tensor, size: int) -> Tensor:
    """Each box's part of its object's mask, sampled to (R, size, size), float in [0, 1], as by RoIAlign.

    Args:
        masks: (N, H, W).
        boxes: (R, 4), xyxy pixels.
        rows: (R,) the mask of each box.
    """
    if len(masks) <= CHUNK:
        return _sampled(masks.dense() if isinstance(masks, CroppedMasks) else masks, boxes, rows, size)
    numbers = rows.tolist()
    wanted = sorted(set(numbers))
    targets = boxes.new_zeros(len(boxes), size, size)
    for start in range(0, len(wanted), CHUNK):
        place = {row: number for number, row in enumerate(wanted[start : start + CHUNK])}
        some = masks.dense(place) if isinstance(masks, CroppedMasks) else masks[list(place)]
        here = [i for i, row in enumerate(numbers) if row in place]
        places = torch.tensor([place[numbers[i]] for i in here], device=boxes.device)
        targets[here] = _sampled(some, boxes[here], places, size)
    return targets


def _sampled(masks: Tensor, boxes: Tensor, rows: Tensor, size: int) -> Tensor:
    rois = torch.cat([rows[:, None].to(boxes), boxes], dim=1)
    return roi_align(masks[:, None].to(rois), rois, (size, size), spatial_scale=1.0)[:, 0]
