"""The mask of each detection, out of those that a mask predictor has for every class."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.roi_heads import maskrcnn_inference

AT_ONCE = 256  # detections whose maps are held at once: the last are 0.8 MB each


def detection_masks(
    roi_heads: Any,
    features: dict[str, Tensor],
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    image_shapes: Sequence[tuple[int, int]],
) -> list[Tensor]:
    """The masks (R_i, 1, M, M) of each image's detections (R_i, 4), probabilities; computed for a few of them at a time.

    Args:
        roi_heads: what has `mask_roi_pool`, `mask_head` and `mask_predictor`.
    """
    parts: list[list[Tensor]] = [[] for _ in boxes]
    for rows in few_at_a_time(boxes, AT_ONCE):
        some = [image_boxes[rows] for image_boxes in boxes]
        maps = roi_heads.mask_head(roi_heads.mask_roi_pool(features, some, image_shapes))
        own = [image_labels[rows] for image_labels in labels]
        for part, masks in zip(parts, class_masks(roi_heads.mask_predictor, maps, own), strict=True):
            part.append(masks)
    return [torch.cat(part) for part in parts]


def few_at_a_time(boxes: Sequence[Tensor], count: int) -> Iterator[slice]:
    """Slices of the rows of every image's boxes (R_i, 4), that together hold no more than `count`, one an image at least."""
    most, step = max(len(image_boxes) for image_boxes in boxes), max(1, count // len(boxes))
    for start in range(0, max(1, most), step):
        yield slice(start, start + step)


def class_masks(predictor: nn.Module, features: Tensor, labels: Sequence[Tensor]) -> list[Tensor]:
    """Features (R, C, h, w) of all images' detections and labels (R_i,) of each -> probabilities (R_i, 1, H, W) of each.

    torchvision predicts a mask for each of its classes and throws all away but one. With its predictor, whose last layer is a
    1x1 convolution, only the one is computed; with another, as torchvision does.
    """
    if type(predictor) is not MaskRCNNPredictor:
        return list(maskrcnn_inference(predictor(features), list(labels)))
    parts: Any = predictor
    upsampled, last = parts.relu(parts.conv5_mask(features)), parts.mask_fcn_logits
    classes = torch.cat(list(labels))
    weights = last.weight[classes, :, 0, 0, None].to(upsampled.dtype)  # (R, C, 1)
    logits = torch.bmm(upsampled.flatten(2).transpose(1, 2), weights)[..., 0] + last.bias[classes, None]
    masks = logits.sigmoid().view(-1, 1, *upsampled.shape[-2:])
    return list(masks.split([len(image_labels) for image_labels in labels]))
