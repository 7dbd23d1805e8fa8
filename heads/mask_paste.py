"""Masks of boxes, put into the images they are of."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (N, 1, M, M) of boxes (N, 4), xyxy pixels -> (N, 1, H, W), zero outside the boxes; torchvision's values.

    torchvision makes an image for each mask, waits for the device a dozen times for each, and copies them all together. Here
    each is written where it belongs, and the boxes are fetched once.
    """
    height, width = size
    side = masks.shape[-1]
    # A pixel around each mask, so that its edge fades into the background, and boxes larger by as much.
    masks = F.pad(masks, (1, 1, 1, 1))
    scale = (side + 2) / side
    centres, halves = (boxes[:, :2] + boxes[:, 2:]) * 0.5, (boxes[:, 2:] - boxes[:, :2]) * 0.5 * scale
    lows, highs = (centres - halves).long().tolist(), (centres + halves).long().tolist()
    shape = (len(masks), 1, height, width)
    if masks.dtype == torch.float32 and masks.device.type == "cpu":
        # NumPy takes its zeros from the operating system, which hands out memory only where something is written.
        pasted = torch.from_numpy(np.zeros(shape, np.float32))
    else:
        pasted = masks.new_zeros(shape)
    for image, mask, (x, y), (right, bottom) in zip(pasted, masks, lows, highs, strict=True):
        extent = (max(bottom - y + 1, 1), max(right - x + 1, 1))
        resized = F.interpolate(mask[None], size=extent, mode="bilinear", align_corners=False)[0, 0]
        left, top, right, bottom = max(x, 0), max(y, 0), min(right + 1, width), min(bottom + 1, height)
        if left < right and top < bottom:
            image[0, top:bottom, left:right] = resized[top - y : bottom - y, left - x : right - x]
    return pasted
