"""Feature pyramids: one set of channels at every scale.

Lin et al., Feature Pyramid Networks for Object Detection, https://arxiv.org/abs/1612.03144
P6 and P7: Lin et al., Focal Loss for Dense Object Detection, https://arxiv.org/abs/1708.02002
"""

import itertools
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from backbones.base import Backbone, FeatureSpec, stage_line
from backbones.check_maps import check_maps
from backbones.errors import UserError, did_you_mean
from backbones.norms import NormLayer, norm_layer
from backbones.registry import Registry, build_backbone, check_whole_number


class PooledLevel(nn.Module):
    """The extra level "pool" of the FPN paper: every second pixel of the coarsest map."""

    def specs(self, coarsest: FeatureSpec) -> dict[str, FeatureSpec]:
        """The level this adds above the coarsest pyramid level."""
        return {"pool": FeatureSpec(coarsest.channels, coarsest.stride * 2)}

    def forward(self, p5: Tensor, c5: Tensor) -> dict[str, Tensor]:
        """P5 (B, C, H, W) -> {"pool": (B, C, ceil(H / 2), ceil(W / 2))}."""
        return {"pool": F.max_pool2d(p5, kernel_size=1, stride=2)}


class P6P7(nn.Module):
    """The extra levels "p6" and "p7" of RetinaNet: 3x3 convolutions with stride 2 on P5, or on C5 if `on_c5`."""

    def __init__(self, c5_channels: int, out_channels: int, *, on_c5: bool = False) -> None:
        super().__init__()
        self.on_c5 = on_c5
        self.p6 = nn.Conv2d(c5_channels if on_c5 else out_channels, out_channels, kernel_size=3, stride=2, padding=1)
        self.p7 = nn.Conv2d(out_channels, out_channels, kernel_size=3, stride=2, padding=1)
        for convolution in (self.p6, self.p7):
            nn.init.kaiming_uniform_(convolution.weight, a=1)
            assert convolution.bias is not None
            nn.init.zeros_(convolution.bias)

    def specs(self, coarsest: FeatureSpec) -> dict[str, FeatureSpec]:
        """The levels this adds above the coarsest pyramid level."""
        channels, stride = coarsest.channels, coarsest.stride
        return {"p6": FeatureSpec(channels, stride * 2), "p7": FeatureSpec(channels, stride * 4)}

    def forward(self, p5: Tensor, c5: Tensor) -> dict[str, Tensor]:
        """P5 (B, C, H, W), or C5, -> {"p6": half, "p7": a quarter of its height and width}."""
        p6 = self.p6(c5 if self.on_c5 else p5)
        return {"p6": p6, "p7": self.p7(F.relu(p6))}


EXTRA_LEVELS: dict[str, Callable[[int, int], PooledLevel | P6P7]] = {
    "pool": lambda c5_channels, out_channels: PooledLevel(),
    "p6p7": lambda c5_channels, out_channels: P6P7(c5_channels, out_channels),
    "p6p7_on_c5": lambda c5_channels, out_channels: P6P7(c5_channels, out_channels, on_c5=True),
}


class Pyramid(nn.Module):
    """Turns a backbone's maps into levels that share one number of channels; `out_specs` declares them, finest first."""

    out_specs: dict[str, FeatureSpec]

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """{name: (B, channels, H_i, W_i)} finest first -> {name: (B, out_channels, H_j, W_j)}, as out_specs."""
        raise NotImplementedError(f"{type(self).__name__} does not implement forward")


class FeaturePyramid(Pyramid):
    """FPN: lateral 1x1 convolutions, a top-down path, and a 3x3 convolution on each level.

    Takes the maps that `in_specs` describes, finest first, and gives as many with `out_channels`, named "0", "1", ..., and the
    extra levels above. Parameters are named as in torchvision's FeaturePyramidNetwork.

    Args:
        in_specs: channels and strides of the maps it is given; each stride twice the one before.
        out_channels: channels of every level.
        extra_level: "pool", "p6p7", "p6p7_on_c5", or None.
        norm: name of a normalisation layer after each convolution, which then has no bias; None for a bias and no norm.

    Raises:
        UserError: an unknown extra level or norm, or strides that do not double.
    """

    _version = 2  # torchvision's state dicts before version 2 lack the ".0" of the Sequential below

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
        check_doubling(in_specs)
        specs = list(in_specs.items())
        make_norm = norm_layer(norm) if norm is not None else None
        self.inner_blocks = nn.ModuleList(convolution_block(s.channels, out_channels, 1, make_norm) for _, s in specs)
        self.layer_blocks = nn.ModuleList(convolution_block(out_channels, out_channels, 3, make_norm) for _ in specs)
        coarsest = specs[-1][1]
        self.extra_blocks = EXTRA_LEVELS[extra_level](coarsest.channels, out_channels) if extra_level else None

        self.out_specs = {str(i): FeatureSpec(out_channels, spec.stride) for i, (_, spec) in enumerate(specs)}
        if self.extra_blocks is not None:
            self.out_specs |= self.extra_blocks.specs(FeatureSpec(out_channels, coarsest.stride))

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """{name: (B, channels, H_i, W_i)} finest first -> {"0": (B, out_channels, H_0, W_0), ..., extra levels}."""
        maps = list(features.values())
        levels = self.top_down(maps)
        pyramid = {str(i): level for i, level in enumerate(levels)}
        if self.extra_blocks is not None:
            pyramid |= self.extra_blocks(levels[-1], maps[-1])
        return pyramid

    def top_down(self, maps: list[Tensor]) -> list[Tensor]:
        """The backbone's maps -> the levels P2, P3, ..., each the sum of its own map and the enlarged level above."""
        top_down = self.inner_blocks[-1](maps[-1])
        levels = [self.layer_blocks[-1](top_down)]
        for i in range(len(maps) - 2, -1, -1):
            lateral = self.inner_blocks[i](maps[i])
            # In place: at stride 4 another map is what a process takes the most memory for.
            top_down = lateral.add_(F.interpolate(top_down, size=lateral.shape[-2:], mode="nearest"))
            levels.insert(0, self.layer_blocks[i](top_down))
        return levels

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        if (local_metadata.get("version") or 1) < 2:
            for key in [key for key in state_dict if key.startswith((f"{prefix}inner_blocks.", f"{prefix}layer_blocks."))]:
                block, index, *rest = key.removeprefix(prefix).split(".")
                if rest[0] in ("weight", "bias"):
                    state_dict[f"{prefix}{block}.{index}.0.{rest[0]}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def check_extra_level(extra_level: str | None) -> None:
    """Check that there is such an extra level.

    Raises:
        UserError: there is none.
    """
    if extra_level is not None and extra_level not in EXTRA_LEVELS:
        raise UserError(f"There is no extra_level {extra_level!r}.{did_you_mean(extra_level, EXTRA_LEVELS)}")


def check_doubling(in_specs: dict[str, FeatureSpec]) -> None:
    """Check that each map's stride is twice that of the one before.

    Raises:
        UserError: one is not; the message names both maps.
    """
    for (fine_name, fine), (coarse_name, coarse) in itertools.pairwise(in_specs.items()):
        if coarse.stride != 2 * fine.stride:
            raise UserError(
                f"A feature pyramid needs strides that double: {fine_name} has stride {fine.stride}, the next map "
                f"{coarse_name} has {coarse.stride}, not {2 * fine.stride}. Choose other out_features."
            )


def convolution_block(in_channels: int, out_channels: int, kernel_size: int, make_norm: NormLayer | None) -> nn.Sequential:
    """A convolution that keeps the map's size, with a bias or, where there is one, a norm."""
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=make_norm is None)
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return nn.Sequential(convolution, *([make_norm(out_channels)] if make_norm is not None else []))


PYRAMIDS: Registry[Callable[..., Pyramid]] = Registry("pyramid")
register_pyramid = PYRAMIDS.register
# What `build_fpn_backbone` itself passes to every pyramid.
PYRAMID_STANDARD_OPTIONS = ("in_specs", "out_channels", "extra_level", "norm")
register_pyramid("fpn")(FeaturePyramid)


class FpnBackbone(Backbone):
    """A backbone with a pyramid on top, which torchvision's detectors take as it is.

    `feature_specs` are the pyramid's levels ("0".."3" and the extra ones) and `out_channels` is what all of them have.
    """

    def __init__(self, body: Backbone, fpn: Pyramid) -> None:
        super().__init__()
        self.body = body
        self.fpn = fpn
        self.in_channels = body.in_channels
        self.weights_report = body.weights_report
        self.feature_specs = fpn.out_specs
        self.out_channels = next(iter(fpn.out_specs.values())).channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, C_in, H, W) -> {"0": (B, out_channels, ceil(H / 4), ceil(W / 4)), ..., "pool": stride 64}."""
        levels = self.fpn(self.body(images))
        if not self.body.plain:
            return levels
        # Levels finer than the one map they are made from end where that does, past an image whose sides it does not divide.
        height, width = images.shape[-2:]
        strides = {name: spec.stride for name, spec in self.feature_specs.items()}
        return {name: level[..., : -(-height // strides[name]), : -(-width // strides[name])] for name, level in levels.items()}

    def stages(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        """The body's stages: the pyramid is always trained."""
        return self.body.stages()

    def freeze(self, trainable_layers: int) -> None:
        """Train the body's last `trainable_layers` stages only, and the pyramid."""
        self.body.freeze(trainable_layers)

    def describe_stages(self) -> list[str]:
        """A line for each stage of the body, and one for the pyramid."""
        parameters = sum(parameter.numel() for parameter in self.fpn.parameters())
        return [*self.body.describe_stages(), stage_line("fpn", "trained", parameters)]


def build_fpn_backbone(
    name: str,
    *,
    out_channels: int = 256,
    pyramid: str = "fpn",
    extra_level: str | None = "pool",
    pyramid_norm: str | None = None,
    pyramid_options: dict[str, Any] | None = None,
    **backbone_options: Any,
) -> FpnBackbone:
    """Build a backbone with a feature pyramid, ready for `FasterRCNN(build_fpn_backbone("resnet50"), num_classes=91)`.

    Args:
        name: one of `list_backbones()`.
        out_channels: channels of every pyramid level.
        pyramid: fpn, pafpn, bifpn, simple (all scales from one map) or single (one level). On a backbone with maps of one
            stride alone, such as a plain vision transformer, fpn means simple.
        extra_level: what comes above the coarsest map: "pool", "p6p7" (on P5), "p6p7_on_c5", or None.
        pyramid_norm: normalisation in the pyramid: None, bn, sync_bn or gn.
        pyramid_options: what the pyramid itself offers, such as {"repeats": 5} for bifpn.
        backbone_options: as for `build_backbone`: weights, norm, trainable_layers, in_channels, out_features, ...

    Raises:
        UserError: as `build_backbone`; also unknown pyramids and extra levels, and maps that are not as declared.
    """
    check_whole_number("out_channels", out_channels)
    pyramid_options = pyramid_options or {}
    PYRAMIDS.check_options(pyramid, pyramid_options, besides=PYRAMID_STANDARD_OPTIONS)
    body = build_backbone(name, **backbone_options)
    check_maps(body)
    make_pyramid = PYRAMIDS.get("simple" if pyramid == "fpn" and body.plain else pyramid)
    levels = make_pyramid(
        body.feature_specs, out_channels=out_channels, extra_level=extra_level, norm=pyramid_norm, **pyramid_options
    )
    return FpnBackbone(body, levels)
