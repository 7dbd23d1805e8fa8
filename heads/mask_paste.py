"""Masks of boxes, put into the images they are of."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class UnpastedMasks:
    """Stands for a tensor (N, 1, H, W) of pasted masks in a prediction; each is pasted when it is asked for.

    Pasted all together, 2,000 masks in an image of 800 x 1333 are 8.5 GB.

    Args:
        masks: (N, 1, M, M), as the head predicts them.
        boxes: (N, 4), xyxy pixels.
        size: height and width of the image.
    """

    def __init__(self, masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> None:
        self.masks, self.boxes, self.size = masks, boxes, size

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, 1, H, W)."""
        return (len(self), 1, *self.size)

    def __getitem__(self, row: int) -> Tensor:
        """One mask (1, H, W), as `paste_masks` gives it."""
        return paste_masks(self.masks[row][None], self.boxes[row][None], self.size)[0]

    def cpu(self) -> "UnpastedMasks":
        """The same on the CPU."""
        return UnpastedMasks(self.masks.cpu(), self.boxes.cpu(), self.size)


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (N, 1, M, M) of boxes (N, 4), xyxy pixels -> (N, 1, H, W), zero outside the boxes; torchvision's values.

    torchvision makes an image for each mask, waits for the device a dozen times for each, and copies them all together. Here
    each is written where it belongs, and the boxes are fetched once.
    """
    shape = (len(masks), 1, *size)
    if masks.dtype == torch.float32 and masks.device.type == "cpu":
        # NumPy takes its zeros from the operating system, which hands out memory only where something is written.
        pasted = torch.from_numpy(np.zeros(shape, np.float32))
    else:
        pasted = masks.new_zeros(shape)
    for image, (top, left, part) in zip(pasted, mask_parts(masks, boxes, size), strict=True):
        image[0, top : top + part.shape[0], left : left + part.shape[1]] = part
    return pasted


def mask_parts(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Iterator[tuple[int, int, Tensor]]:
    """Masks as `paste_masks` takes them -> for each its part of the image: top, left and what is there (h, w)."""
    height, width = size
    side = masks.shape[-1]
    # A pixel around each mask, so that its edge fades into the background, and boxes larger by as much.
    masks = F.pad(masks, (1, 1, 1, 1))
    scale = (side + 2) / side
    centres, halves = (boxes[:, :2] + boxes[:, 2:]) * 0.5, (boxes[:, 2:] - boxes[:, :2]) * 0.5 * scale
    lows, highs = (centres - halves).long().tolist(), (centres + halves).long().tolist()
    for mask, (x, y), (right, bottom) in zip(masks, lows, highs, strict=True):
        extent = (max(bottom - y + 1, 1), max(right - x + 1, 1))
        resized = F.interpolate(mask[None], size=extent, mode="bilinear", align_corners=False)[0, 0]
        left, top, right, bottom = max(x, 0), max(y, 0), min(right + 1, width), min(bottom + 1, height)
        if left < right and top < bottom:
            yield top, left, resized[top - y : bottom - y, left - x : right - x]
        else:
            yield 0, 0, resized[:0, :0]
