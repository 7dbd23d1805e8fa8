"""The mask of each detection, out of those that a mask predictor has for every class."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.roi_heads import maskrcnn_inference


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
