"""The residual blocks of a ResNet: basic and bottleneck, after-activation (v1) and pre-activation (v2), and their shortcuts.

He et al., Deep Residual Learning for Image Recognition, https://arxiv.org/abs/1512.03385
He et al., Identity Mappings in Deep Residual Networks ("v2"), https://arxiv.org/abs/1603.05027
"""

from collections.abc import Callable
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from backbones.norms import NormLayer
from backbones.resnet_parts import DeformableConv2d, SqueezeExcitation

Shortcut = Literal["A", "B", "C", "D"]


class ResidualBlock(nn.Module):
    """What the blocks share: the shortcut around their convolutions, and what is done to the residual before the sum."""

    expansion: int  # output channels over the block's `channels`
    last_norm: str  # the norm that closes the residual, which `zero_init_last_norm` sets to zero; of v2, the convolution

    def add_shortcut(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        norm: NormLayer,
        shortcut: Shortcut,
        dilation: int,
        squeeze_excitation: bool,
        drop_probability: float,
    ) -> None:
        """Complete a block whose convolutions are there.

        Args:
            in_channels: channels of the map the block is given.
            out_channels: channels of the map it gives.
            stride: of the block; its shortcut follows.
            norm: makes a normalisation layer from a number of channels.
            shortcut: A, B, C or D; see `make_shortcut`.
            dilation: of the 3x3 convolutions, in place of a stride that is not taken.
            squeeze_excitation: whether the residual's channels are weighed before the sum.
            drop_probability: how often the residual is left out in training (stochastic depth).
        """
        self.relu = nn.ReLU(inplace=True)
        self.downsample = self.make_shortcut(
            in_channels, out_channels, kind=shortcut, stride=stride, norm=norm, dilation=dilation
        )
        self.se = SqueezeExcitation(out_channels) if squeeze_excitation else nn.Identity()
        self.drop_path = StochasticDepth(drop_probability, "row") if drop_probability > 0 else nn.Identity()

    def make_shortcut(
        self, in_channels: int, out_channels: int, *, kind: Shortcut, stride: int, norm: NormLayer, dilation: int
    ) -> nn.Module:
        """The way around the convolutions.

        A: the identity; where the shape changes, every second pixel and zeros for the channels that are new. No parameters.
        B: the identity; where the shape changes, a 1x1 projection. The usual one.
        C: a 1x1 projection everywhere.
        D: as B, but a projection halves its map by averaging, not by leaving pixels out (https://arxiv.org/abs/1812.01187).
        """
        if stride == 1 and in_channels == out_channels and kind != "C":
            return nn.Identity()
        if kind == "A":
            return PaddedIdentity(out_channels - in_channels, stride=stride)
        layers: list[nn.Module] = []
        if kind == "D":
            layers.append(_average_pool(stride, dilation))
            stride = 1
        layers.append(nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False))
        return nn.Sequential(*layers, norm(out_channels))


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions and a shortcut: (B, C_in, H, W) -> (B, channels, ceil(H / stride), ceil(W / stride)).

    A deformable one samples its second convolution freely.
    """

    expansion = 1
    last_norm = "bn2"

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int,
        norm: NormLayer,
        dilation: int = 1,
        first_dilation: int = 1,
        deformable: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels, stride=stride, dilation=first_dilation)
        self.bn1 = norm(channels)
        self.conv2 = conv3x3(channels, channels, dilation=dilation, deformable=deformable)
        self.bn2 = norm(channels)
        self.add_shortcut(in_channels, channels, stride=stride, norm=norm, dilation=dilation, **options)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = self.drop_path(self.se(out))
        out += self.downsample(x)
        return self.relu(out)


class Bottleneck(ResidualBlock):
    """1x1, 3x3 and 1x1 convolutions and a shortcut: (B, C_in, H, W) -> (B, 4 * channels, ceil(H / stride), ceil(W / stride)).

    The stride is in the 3x3 convolution, which is what torchvision trains ("v1.5", ResNet-B). The paper and the Caffe weights
    ("v1") have it in the first 1x1: `stride_in_1x1`. With `groups` of `width_per_group` channels it is ResNeXt's.
    """

    expansion = 4
    last_norm = "bn3"

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int,
        norm: NormLayer,
        groups: int = 1,
        width_per_group: int = 64,
        stride_in_1x1: bool = False,
        dilation: int = 1,
        first_dilation: int = 1,
        deformable: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        width = channels * width_per_group // 64 * groups
        out_channels = channels * self.expansion
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=1, stride=stride_1x1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = conv3x3(width, width, stride=stride_3x3, dilation=first_dilation, groups=groups, deformable=deformable)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, out_channels, kernel_size=1, bias=False)
        self.bn3 = norm(out_channels)
        self.add_shortcut(in_channels, out_channels, stride=stride, norm=norm, dilation=dilation, **options)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out = self.drop_path(self.se(out))
        out += self.downsample(x)
        return self.relu(out)


class PreActivationBasicBlock(BasicBlock):
    """A basic block whose norms and activations come before the convolutions (v2), so that what is summed stays untouched."""

    last_norm = "conv2"

    def __init__(self, in_channels: int, channels: int, *, norm: NormLayer, **options: Any) -> None:
        super().__init__(in_channels, channels, norm=norm, **options)
        self.bn1 = norm(in_channels)
        _leave_out_norm(self.downsample)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(x))
        shortcut = x if isinstance(self.downsample, nn.Identity) else self.downsample(out)
        out = self.conv1(out)
        out = self.conv2(self.relu(self.bn2(out)))
        return shortcut + self.drop_path(self.se(out))


class PreActivationBottleneck(Bottleneck):
    """A bottleneck whose norms and activations come before the convolutions (v2), so that what is summed stays untouched."""

    last_norm = "conv3"

    def __init__(self, in_channels: int, channels: int, *, norm: NormLayer, **options: Any) -> None:
        super().__init__(in_channels, channels, norm=norm, **options)
        self.bn1 = norm(in_channels)
        self.bn3 = norm(self.conv3.in_channels)
        _leave_out_norm(self.downsample)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(x))
        shortcut = x if isinstance(self.downsample, nn.Identity) else self.downsample(out)
        out = self.conv1(out)
        out = self.conv2(self.relu(self.bn2(out)))
        out = self.conv3(self.relu(self.bn3(out)))
        return shortcut + self.drop_path(self.se(out))


class PaddedIdentity(nn.Module):
    """Shortcut A: (B, C, H, W) -> (B, C + new_channels, ceil(H / stride), ceil(W / stride)), zeros on both sides of the old."""

    def __init__(self, new_channels: int, *, stride: int) -> None:
        super().__init__()
        self.before, self.after = new_channels // 2, new_channels - new_channels // 2
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class SamePool2d(nn.Module):
    """The mean of each pixel and its neighbours to the right and below, the map's size kept; outside it are zeros."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(x, (0, 1, 0, 1)), kernel_size=2, stride=1)


def conv3x3(
    in_channels: int, out_channels: int, *, stride: int = 1, dilation: int = 1, groups: int = 1, deformable: bool = False
) -> nn.Module:
    """A 3x3 convolution without bias that keeps the size, but for its stride."""
    make: Callable[..., nn.Module] = DeformableConv2d if deformable else nn.Conv2d
    return make(
        in_channels, out_channels, kernel_size=3, stride=stride, padding=dilation, dilation=dilation, groups=groups, bias=False
    )


def _average_pool(stride: int, dilation: int) -> nn.Module:
    if stride > 1:
        return nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)
    # A stride that dilation stands in for: the same means, at every pixel.
    return SamePool2d() if dilation > 1 else nn.Identity()


def _leave_out_norm(shortcut: nn.Module) -> None:
    """A pre-activation block's projection is given what is normalised already."""
    if isinstance(shortcut, nn.Sequential):
        del shortcut[-1]
