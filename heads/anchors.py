"""Anchors and RoI pooling derived from what a backbone declares, and the check that it declares it rightly."""

import itertools
import math
from collections.abc import Sequence

from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from backbones import Backbone, FeatureSpec, UserError
from backbones.check_maps import check_maps, declared_specs
from heads.option_checks import check_positive
from heads.roi_align import BatchedRoIAlign

# RoIs are pooled from P2..P5; coarser levels only propose (Lin et al., https://arxiv.org/abs/1612.03144, section 4).
COARSEST_ROI_STRIDE = 32


def feature_levels(backbone: nn.Module) -> dict[str, FeatureSpec]:
    """The backbone's feature_specs, checked to be what a two-stage detector needs: one number of channels, growing strides.

    The backbone is run once, so that maps which are not what it declares are found here and not in training.

    Raises:
        UserError: they are missing, or a level breaks the contract; the message names the level.
    """
    if not isinstance(backbone, Backbone):
        raise UserError(
            f"{type(backbone).__name__} is not a backbones.Backbone, so its channels and strides are unknown. Build one with "
            "build_fpn_backbone, or subclass Backbone and set feature_specs."
        )
    levels = declared_specs(backbone)
    out_channels = getattr(backbone, "out_channels", None)
    if out_channels is None:
        raise UserError(
            f"{type(backbone).__name__} has no out_channels: the heads need one number of channels on every level, and it "
            f"gives {', '.join(f'{name}: {s.channels}' for name, s in levels.items())}. Put a pyramid on it."
        )
    last_stride = 0
    for name, spec in levels.items():
        if spec.channels != out_channels:
            raise UserError(f"Level {name!r} has {spec.channels} channels, but the backbone's out_channels is {out_channels}.")
        if spec.stride <= last_stride:
            raise UserError(f"Level {name!r} has stride {spec.stride}, not more than {last_stride}: order levels finest first.")
        last_stride = spec.stride
    check_maps(backbone)
    return levels


def anchor_generator(
    levels: dict[str, FeatureSpec],
    *,
    anchor_scale: float = 8,
    anchor_sizes: Sequence[Sequence[int]] | None = None,
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
) -> AnchorGenerator:
    """Anchors for each level: sides of `anchor_scale` times its stride (32 pixels at stride 4), or the given `anchor_sizes`.

    Aspect ratios are height over width.

    Raises:
        UserError: the number of anchor_sizes is not the number of levels, or levels differ in their number of anchors; sizes,
            scale or ratios are not above 0.
    """
    check_positive("aspect_ratios", aspect_ratios)
    if anchor_sizes is None:
        check_positive("anchor_scale", anchor_scale)
        anchor_sizes = [[max(1, round(anchor_scale * spec.stride))] for spec in levels.values()]
    if len(anchor_sizes) != len(levels):
        raise UserError(
            f"anchor_sizes has {len(anchor_sizes)} entries, but there are {len(levels)} feature levels ({', '.join(levels)}): "
            "give one list of sizes, in pixels, for each."
        )
    for level_sizes in anchor_sizes:
        check_positive("anchor_sizes", level_sizes)
    if len({len(sizes) for sizes in anchor_sizes}) > 1:
        raise UserError(f"anchor_sizes must give every level as many sizes, for the RPN shares its weights: {anchor_sizes}")
    sizes = tuple(tuple(level) for level in anchor_sizes)
    return AnchorGenerator(sizes, (tuple(aspect_ratios),) * len(sizes))


def roi_pool(
    levels: dict[str, FeatureSpec], *, output_size: int, sampling_ratio: int = 2, fast: bool = True
) -> MultiScaleRoIAlign:
    """RoIAlign over the levels up to stride 32 with the scales that the strides say.

    Left to itself, torchvision infers the scales from the first batch and keeps them, wrong ones too.

    Raises:
        UserError: the strides do not double from level to level.
    """
    pooled = {name: spec for name, spec in levels.items() if spec.stride <= COARSEST_ROI_STRIDE}
    if not pooled:
        pooled = dict([next(iter(levels.items()))])
    strides = [spec.stride for spec in pooled.values()]
    for (finer, coarser), name in zip(itertools.pairwise(strides), list(pooled)[1:], strict=True):
        # Which level a RoI belongs to is a logarithm of its size: a gap would send some to a level that is not there.
        if coarser != 2 * finer:
            raise UserError(f"Level {name!r} has stride {coarser}, not {2 * finer}, twice that of the level before it.")
    pool_class = BatchedRoIAlign if fast else MultiScaleRoIAlign
    pool = pool_class(list(pooled), output_size=output_size, sampling_ratio=sampling_ratio)
    pool.scales = [1.0 / stride for stride in strides]
    # Level k has stride 2**k; a RoI of 224 x 224 pixels belongs to level 4 (equation 1 of the FPN paper).
    pool.map_levels = LevelMapper(int(math.log2(strides[0])), int(math.log2(strides[-1])))
    return pool
