"""Masks of an image as a file has them, decoded one at a time."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from engine.data.masks import decode_segmentation


class EncodedMasks:
    """Stands for a tensor (N, H, W) of 0 and 1, uint8; each mask is decoded when it is asked for.

    2,000 masks of 800 x 1333 pixels, decoded all together, are 2 GB.

    Args:
        segmentations: polygons or RLE of each, as `decode_segmentation` takes them.
        size: height and width of the image.
    """

    def __init__(self, segmentations: Sequence[Any], size: tuple[int, int]) -> None:
        self.segmentations, self.size = segmentations, size

    def __len__(self) -> int:
        return len(self.segmentations)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, H, W)."""
        return (len(self), *self.size)

    def __getitem__(self, row: int) -> Tensor:
        """One mask (H, W).

        Raises:
            ValueError: it is malformed, or not of the size.
        """
        return torch.from_numpy(decode_segmentation(self.segmentations[row], *self.size))
