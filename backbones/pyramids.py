"""Pyramids besides FPN: a second path upwards, weighed sums both ways, all scales from one map, and no pyramid at all."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d

from backbones.base import FeatureSpec
from backbones.errors import UserError
from backbones.fpn import (
    EXTRA_LEVELS,
    FeaturePyramid,
    Pyramid,
    check_doubling,
    check_extra_level,
    convolution_block,
    register_pyramid,
)
from backbones.norms import NormLayer, norm_layer


@register_pyramid("pafpn")
class PathAggregationPyramid(FeaturePyramid):
    """FPN, then a path back up: each level adds the finer one below it, halved by a 3x3 convolution.

    Liu et al., Path Aggregation Network, https://arxiv.org/abs/1803.01534. Arguments and errors are FeaturePyramid's.
    """

    def __init__(
        self,
        in_specs: dict[str, FeatureSpec],
        *,
        out_channels: int = 256,
        extra_level: str | None = "pool",
        norm: str | None = None,
    ) -> None:
        super().__init__(in_specs, out_channels=out_channels, extra_level=extra_level, norm=norm)
        make_norm = norm_layer(norm) if norm is not None else None
        self.downsample_blocks = nn.ModuleList()
        self.path_blocks = nn.ModuleList()
        for _ in range(len(in_specs) - 1):
            halving = convolution_block(out_channels, out_channels, 3, make_norm)
            assert isinstance(halving[0], nn.Conv2d)
            halving[0].stride = (2, 2)
            self.downsample_blocks.append(halving)
            self.path_blocks.append(convolution_block(out_channels, out_channels, 3, make_norm))

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """{name: (B, channels, H_i, W_i)} finest first -> {"0": (B, out_channels, H_0, W_0), ..., extra levels}."""
        maps = list(features.values())
        levels = self.top_down(maps)
        path = [levels[0]]
        for level, halve, mix in zip(levels[1:], self.downsample_blocks, self.path_blocks, strict=True):
            path.append(mix(level + halve(path[-1])))
        pyramid = {str(i): level for i, level in enumerate(path)}
        if self.extra_blocks is not None:
            pyramid |= self.extra_blocks(path[-1], maps[-1])
        return pyramid


@register_pyramid("bifpn")
class BidirectionalPyramid(Pyramid):
    """BiFPN: levels are summed downwards and upwards, `repeats` times, each summand with a weight that is learned.

    Tan et al., EfficientDet, https://arxiv.org/abs/1911.09070, section 3. The extra levels take part: "pool" is one more,
    "p6p7" two more, each the maximum over 3x3 pixels of the one before with stride 2.

    Args:
        in_specs: channels and strides of the maps it is given; each stride twice the one before.
        out_channels: channels of every level.
        extra_level: "pool", "p6p7" or None.
        norm: name of the norm after each convolution; left out, bn, as in the paper.
        repeats: number of times the levels are gone through.

    Raises:
        UserError: an unknown extra level or norm, strides that do not double, or fewer than two levels.
    """

    def __init__(
        self,
        in_specs: dict[str, FeatureSpec],
        *,
        out_channels: int = 256,
        extra_level: str | None = "pool",
        norm: str | None = None,
        repeats: int = 3,
    ) -> None:
        super().__init__()
        check_extra_level(extra_level)
        check_doubling(in_specs)
        if extra_level == "p6p7_on_c5":
            raise UserError("bifpn makes its extra levels by pooling, on no other map: give extra_level p6p7, pool or None.")
        if repeats < 1:
            raise UserError(f"bifpn goes through its levels at least once: repeats is {repeats}.")
        make_norm = norm_layer(norm or "bn")
        self.lateral_blocks = nn.ModuleList(
            convolution_block(s.channels, out_channels, 1, make_norm) for s in in_specs.values()
        )
        strides = [spec.stride for spec in in_specs.values()]
        self.out_specs = {str(i): FeatureSpec(out_channels, stride) for i, stride in enumerate(strides)}
        if extra_level is not None:
            extra = EXTRA_LEVELS[extra_level](out_channels, out_channels).specs(FeatureSpec(out_channels, strides[-1]))
            self.out_specs |= extra
        if len(self.out_specs) < 2:
            raise UserError(
                "bifpn sums neighbouring levels, and here there is one. Name more out_features, or use pyramid single."
            )
        self.layers = nn.ModuleList(_BidirectionalLayer(len(self.out_specs), out_channels, make_norm) for _ in range(repeats))

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """{name: (B, channels, H_i, W_i)} finest first -> {"0": (B, out_channels, H_0, W_0), ..., extra levels}."""
        levels = [block(x) for block, x in zip(self.lateral_blocks, features.values(), strict=True)]
        while len(levels) < len(self.out_specs):
            levels.append(F.max_pool2d(levels[-1], kernel_size=3, stride=2, padding=1))
        for layer in self.layers:
            levels = layer(levels)
        return dict(zip(self.out_specs, levels, strict=True))


class _BidirectionalLayer(nn.Module):
    """Once down and once up through `num_levels` levels."""

    def __init__(self, num_levels: int, channels: int, norm: NormLayer) -> None:
        super().__init__()
        # Downwards every level but the coarsest is made anew of two; upwards of three, the coarsest again of two.
        self.down = nn.ModuleList(_WeighedSum(2, channels, norm) for _ in range(num_levels - 1))
        self.up = nn.ModuleList(_WeighedSum(3 if i < num_levels - 2 else 2, channels, norm) for i in range(num_levels - 1))

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Levels (B, C, H_i, W_i), finest first -> as many of the same shapes."""
        down = [levels[-1]]
        for level, weighed_sum in zip(levels[-2::-1], self.down, strict=True):
            down.insert(0, weighed_sum([level, F.interpolate(down[0], size=level.shape[-2:], mode="nearest")]))
        out = [down[0]]
        for i, weighed_sum in enumerate(self.up, start=1):
            halved = F.max_pool2d(out[-1], kernel_size=3, stride=2, padding=1)
            between = [down[i]] if i < len(levels) - 1 else []
            out.append(weighed_sum([levels[i], *between, halved]))
        return out


class _WeighedSum(nn.Module):
    """Fast normalised fusion (equation 3 of the EfficientDet paper) and a depthwise separable 3x3 convolution."""

    def __init__(self, num_summands: int, channels: int, norm: NormLayer) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(num_summands))
        self.depthwise = nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, kernel_size=1, bias=False)
        self.norm = norm(channels)

    def forward(self, summands: list[Tensor]) -> Tensor:
        """As many (B, C, H, W) as it has weights -> one."""
        weights = self.weights.relu()
        weights = weights / (weights.sum() + 1e-4)
        total = torch.stack([weight * summand for weight, summand in zip(weights.unbind(), summands, strict=True)]).sum(0)
        return self.norm(self.pointwise(self.depthwise(F.silu(total))))


@register_pyramid("simple")
class SimpleFeaturePyramid(Pyramid):
    """Levels of strides 4, 8, 16 and 32, each from the one map of a plain vision transformer: enlarged, as it is, or halved.

    Li et al., Exploring Plain Vision Transformer Backbones for Object Detection, https://arxiv.org/abs/2203.16527, section 3.

    Args:
        in_specs: the map it is given; of several, the coarsest is used.
        out_channels: channels of every level.
        extra_level: "pool", "p6p7", "p6p7_on_c5" or None.
        norm: name of the norm after each convolution; left out, layer normalisation over the channels, as in the paper.

    Raises:
        UserError: an unknown extra level or norm, or a stride that is not 4, 8, 16, 32 or 64.
    """

    STRIDES = (4, 8, 16, 32)

    def __init__(
        self,
        in_specs: dict[str, FeatureSpec],
        *,
        out_channels: int = 256,
        extra_level: str | None = "pool",
        norm: str | None = None,
    ) -> None:
        super().__init__()
        check_extra_level(extra_level)
        name, given = list(in_specs.items())[-1]
        if given.stride not in (*self.STRIDES, 64):
            raise UserError(
                f"The simple pyramid makes strides 4 to 32 from {name}, whose stride {given.stride} is no power of two."
            )
        make_norm = norm_layer(norm) if norm is not None else partial(LayerNorm2d, eps=1e-6)
        self.scale_blocks = nn.ModuleList(
            _rescaling(given.channels, out_channels, given.stride, stride, make_norm) for stride in self.STRIDES
        )
        self.extra_blocks = EXTRA_LEVELS[extra_level](given.channels, out_channels) if extra_level else None
        self.out_specs = {str(i): FeatureSpec(out_channels, stride) for i, stride in enumerate(self.STRIDES)}
        if extra_level == "p6p7_on_c5" and given.stride != self.STRIDES[-1]:
            raise UserError(f"p6p7_on_c5 needs a map of stride {self.STRIDES[-1]}, and {name} has {given.stride}: use p6p7.")
        if self.extra_blocks is not None:
            self.out_specs |= self.extra_blocks.specs(FeatureSpec(out_channels, self.STRIDES[-1]))

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """{name: (B, C, H, W)} of stride s -> {"0": (B, out_channels, H * s / 4, W * s / 4), ..., extra levels}."""
        given = list(features.values())[-1]
        levels = {str(i): block(given) for i, block in enumerate(self.scale_blocks)}
        if self.extra_blocks is not None:
            levels |= self.extra_blocks(levels[str(len(self.STRIDES) - 1)], given)
        return levels


def _rescaling(channels: int, out_channels: int, given_stride: int, stride: int, norm: NormLayer) -> nn.Sequential:
    """(B, channels, H, W) of one stride -> (B, out_channels, ...) of another: doubled or halved as often as it takes."""
    layers: list[nn.Module] = []
    doublings = round(math.log2(given_stride / stride))
    for i in range(doublings):
        layers.append(nn.ConvTranspose2d(channels, channels // 2, kernel_size=2, stride=2))
        channels //= 2
        if i < doublings - 1:
            layers += [norm(channels), nn.GELU()]
    layers += [nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True) for _ in range(-doublings)]
    for in_channels, kernel_size in ((channels, 1), (out_channels, 3)):
        layers.append(convolution_block(in_channels, out_channels, kernel_size, norm))
    return nn.Sequential(*layers)


@register_pyramid("single")
class SingleMap(Pyramid):
    """No pyramid: the coarsest map, brought to `out_channels` by a 1x1 convolution, is the only level, "0".

    As in Faster R-CNN before FPN on C4 (`out_features=["c4"]`) or on dilated C5 (`output_stride=16`).

    Args:
        in_specs: the maps it is given.
        out_channels: channels of the level; where the map has them already, it is taken as it is.
        extra_level: the default, "pool", or None; there is no level above a single one.
        norm: name of a norm after the convolution, or None.

    Raises:
        UserError: an unknown norm, or another extra level.
    """

    def __init__(
        self,
        in_specs: dict[str, FeatureSpec],
        *,
        out_channels: int = 256,
        extra_level: str | None = "pool",
        norm: str | None = None,
    ) -> None:
        super().__init__()
        if extra_level not in (None, "pool"):
            raise UserError(
                f"pyramid single has one level: leave out extra_level, which is {extra_level!r}, or use another pyramid."
            )
        spec = list(in_specs.values())[-1]
        make_norm = norm_layer(norm) if norm is not None else None
        keeps = spec.channels == out_channels and make_norm is None
        self.projection = nn.Identity() if keeps else convolution_block(spec.channels, out_channels, 1, make_norm)
        self.out_specs = {"0": FeatureSpec(out_channels, spec.stride)}

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """{name: (B, C, H, W)} -> {"0": (B, out_channels, H, W)} of the last."""
        return {"0": self.projection(list(features.values())[-1])}
