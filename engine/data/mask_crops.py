"""Masks in the loader, of each only the part of the image that holds it: decoded, mirrored and resized as such."""

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from engine.data.resize import nearest
from heads.cropped_masks import CroppedMasks


@dataclass(frozen=True)
class MaskCrops:
    """Masks (N, H, W) of one image, 0 or 1.

    Args:
        pieces: (h, w) uint8 of each; neither height nor width is 0, but of a mask that is empty.
        corners: left and top of each, pixels.
        size: height and width of the image.
    """

    pieces: list[np.ndarray]
    corners: list[tuple[int, int]]
    size: tuple[int, int]

    @classmethod
    def of(cls, masks: np.ndarray) -> "MaskCrops":
        """Cut out of masks (N, H, W)."""
        found = [_cut(mask) for mask in masks]
        return cls([piece for piece, _ in found], [corner for _, corner in found], (masks.shape[1], masks.shape[2]))

    @classmethod
    def of_columns(cls, masks: Iterable[np.ndarray], size: tuple[int, int]) -> "MaskCrops":
        """Cut out of masks (H, W) that lie in memory column by column, as decoded run lengths do."""
        found = [_cut(mask.T) for mask in masks]
        return cls([np.ascontiguousarray(piece.T) for piece, _ in found], [(left, top) for _, (top, left) in found], size)

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, rows: np.ndarray) -> "MaskCrops":
        """Some of the masks, by number or by a (N,) bool."""
        numbers = np.arange(len(self))[rows].tolist()
        return MaskCrops([self.pieces[i] for i in numbers], [self.corners[i] for i in numbers], self.size)

    def areas(self) -> np.ndarray:
        """Pixels of each mask, (N,) float32."""
        return np.array([cv2.countNonZero(piece) if piece.size else 0 for piece in self.pieces], np.float32)

    def mirrored(self, *, axis: int) -> "MaskCrops":
        """Mirrored top and bottom (axis 0) or left and right (axis 1)."""
        pieces = [np.ascontiguousarray(np.flip(piece, axis)) for piece in self.pieces]
        height, width = self.size
        corners = [
            (width - left - piece.shape[1], top) if axis == 1 else (left, height - top - piece.shape[0])
            for piece, (left, top) in zip(pieces, self.corners, strict=True)
        ]
        return MaskCrops(pieces, corners, self.size)

    def resized(self, size: tuple[int, int]) -> "MaskCrops":
        """Resized to (height, width), each pixel its nearest's, as `resize_masks` does; some may become empty."""
        rows, columns = (nearest(old, new) for old, new in zip(self.size, size, strict=True))
        pieces, corners = [], []
        for piece, (left, top) in zip(self.pieces, self.corners, strict=True):
            height, width = piece.shape
            first, last = np.searchsorted(rows, (top, top + height))
            begin, end = np.searchsorted(columns, (left, left + width))
            pieces.append(piece.take(columns[begin:end] - left, axis=1)[rows[first:last] - top])
            corners.append((int(begin), int(first)))
        return MaskCrops(pieces, corners, size)

    def dense(self) -> np.ndarray:
        """The masks whole, (N, H, W) uint8."""
        masks = np.zeros((len(self), *self.size), np.uint8)
        for mask, piece, (left, top) in zip(masks, self.pieces, self.corners, strict=True):
            mask[top : top + piece.shape[0], left : left + piece.shape[1]] = piece
        return masks

    def tensors(self) -> CroppedMasks:
        """As the heads take them."""
        windows = [
            (left, top, left + piece.shape[1], top + piece.shape[0])
            for piece, (left, top) in zip(self.pieces, self.corners, strict=True)
        ]
        pixels = np.concatenate([piece.ravel() for piece in self.pieces]) if len(self) else np.zeros(0, np.uint8)
        return CroppedMasks(torch.from_numpy(pixels), windows, self.size)


def _cut(mask: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """The smallest rectangle of a mask that holds it, and its left and top."""
    left, top, width, height = cv2.boundingRect(mask) if mask.size else (0, 0, 0, 0)
    return mask[top : top + height, left : left + width], (left, top)
