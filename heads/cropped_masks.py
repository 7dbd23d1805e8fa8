"""Masks of an image's objects, of each only the part of the image that holds it.

Most objects cover a small part of their image: carried whole, their masks are most of what a loader writes, sends and copies to
the GPU, and 2,000 of 800 x 1333 are 2 GB.
"""

from collections.abc import Iterable, Sequence
from typing import overload

import torch
from torch import Tensor

Window = tuple[int, int, int, int]


class CroppedMasks:
    """Stands for a tensor (N, H, W) of 0 and 1, uint8, in a target; the heads with masks here take it in place of one.

    Args:
        pixels: (P,) uint8, the windows of all masks one after the other, row by row.
        windows: left, top, right, bottom of each mask's window, pixels; outside it the mask is 0.
        size: height and width of the image.
        starts: where in `pixels` each window begins; None where they fill it in order.
    """

    def __init__(
        self, pixels: Tensor, windows: Sequence[Window], size: tuple[int, int], *, starts: Sequence[int] | None = None
    ) -> None:
        self.pixels = pixels
        self.windows = list(windows)
        self.size = size
        if starts is None:
            starts, end = [], 0
            for left, top, right, bottom in self.windows:
                starts.append(end)
                end += (right - left) * (bottom - top)
            assert end == len(pixels), "pixels and windows do not fit"
        self.starts = list(starts)

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, H, W)."""
        return (len(self), *self.size)

    @overload
    def __getitem__(self, rows: int) -> Tensor: ...

    @overload
    def __getitem__(self, rows: Tensor) -> "CroppedMasks": ...

    def __getitem__(self, rows: int | Tensor) -> "Tensor | CroppedMasks":
        """One mask (H, W); or some of them, by number or by a (N,) bool."""
        if isinstance(rows, int):
            return self.dense([rows])[0]
        if rows.dtype == torch.bool:
            numbers = [row for row, is_chosen in enumerate(rows.tolist()) if is_chosen]
        else:
            numbers = rows.tolist()
        windows, starts = [self.windows[row] for row in numbers], [self.starts[row] for row in numbers]
        return CroppedMasks(self.pixels, windows, self.size, starts=starts)

    def dense(self, rows: Iterable[int] | None = None) -> Tensor:
        """The masks as a tensor (N, H, W) uint8, or those of some rows."""
        numbers = list(range(len(self)) if rows is None else rows)
        masks = self.pixels.new_zeros(len(numbers), *self.size)
        for mask, row in zip(masks, numbers, strict=True):
            left, top, right, bottom = self.windows[row]
            height, width = bottom - top, right - left
            start = self.starts[row]
            mask[top:bottom, left:right] = self.pixels[start : start + height * width].view(height, width)
        return masks

    # ---- What a loader does with the tensors of a target ----

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "CroppedMasks":
        """The same on a device."""
        return self._with(self.pixels.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "CroppedMasks":
        """The same in memory that is copied to a GPU without waiting."""
        return self._with(self.pixels.pin_memory())

    def _with(self, pixels: Tensor) -> "CroppedMasks":
        return CroppedMasks(pixels, self.windows, self.size, starts=self.starts)
