"""Parts that a ResNet's blocks can be given: channel weights, free sampling, and a cheaper memory of activations."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import DeformConv2d


class SqueezeExcitation(nn.Module):
    """Weighs each channel of (B, C, H, W) by a number in [0, 1] drawn from the means of all.

    Hu et al., Squeeze-and-Excitation Networks, https://arxiv.org/abs/1709.01507. The bottleneck has C / 16 channels, rounded to
    a multiple of 8, as timm's.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(8, (channels // 16 + 4) // 8 * 8)
        self.fc1 = nn.Conv2d(channels, squeezed, kernel_size=1)
        self.fc2 = nn.Conv2d(squeezed, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)
        return x * self.fc2(self.fc1(means).relu()).sigmoid()


class DeformableConv2d(DeformConv2d):
    """A convolution whose nine samples move and are weighed, each pixel on its own.

    Zhu et al., Deformable ConvNets v2, https://arxiv.org/abs/1811.11168. The weights of the samples are 2 * sigmoid, so that a
    new one, whose offsets are zero, is the plain convolution of its `weight`: pretrained weights start where they ended.
    """

    def __init__(self, in_channels: int, out_channels: int, **options: Any) -> None:
        super().__init__(in_channels, out_channels, **options)
        taps = self.kernel_size[0] * self.kernel_size[1]
        self.offset_and_mask = nn.Conv2d(
            in_channels, 3 * taps, self.kernel_size, stride=self.stride, padding=self.padding, dilation=self.dilation
        )
        self.reset_offsets()

    def reset_offsets(self) -> None:
        """Make it the plain convolution of its weight."""
        nn.init.zeros_(self.offset_and_mask.weight)
        assert self.offset_and_mask.bias is not None
        nn.init.zeros_(self.offset_and_mask.bias)

    def forward(self, x: Tensor) -> Tensor:  # it finds its offsets itself
        # Positions need float32: in half precision a pixel of a large map has no fractions.
        predicted = self.offset_and_mask(x).float()
        taps = predicted.shape[1] // 3
        offset, mask = predicted[:, : 2 * taps], 2 * predicted[:, 2 * taps :].sigmoid()
        if x.dtype != self.weight.dtype:  # under autocast
            return super().forward(x.to(self.weight.dtype), offset, mask).to(x.dtype)
        return super().forward(x, offset.to(x.dtype), mask.to(x.dtype))


def checkpointed(block: nn.Module, x: Tensor) -> Tensor:
    """`block(x)` that keeps its input alone and computes the rest again in the backward pass: less memory, a third more time.

    Chen et al., Training Deep Nets with Sublinear Memory Cost, https://arxiv.org/abs/1604.06174
    """

    if torch.compiler.is_compiling():  # there each change of a buffer is made once, after the pass
        return checkpoint(block, x, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_held(block)

    return checkpoint(block, x, use_reentrant=False, context_fn=contexts)


@contextmanager
def _statistics_held(block: nn.Module) -> Iterator[None]:
    """Within it, batch norms normalise as they did, but their running statistics stay: they have seen this batch."""
    norms = [m for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    momenta = [norm.momentum for norm in norms]
    counts = [norm.num_batches_tracked.clone() if norm.num_batches_tracked is not None else None for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        with torch.no_grad():
            for norm, momentum, count in zip(norms, momenta, counts, strict=True):
                norm.momentum = momentum
                if count is not None and norm.num_batches_tracked is not None:
                    norm.num_batches_tracked.copy_(count)
