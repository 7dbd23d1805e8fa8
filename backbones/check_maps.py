"""One real forward pass that shows whether a backbone's maps are what it declares."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from backbones.base import Backbone, FeatureSpec
from backbones.errors import UserError


class ContractError(UserError):
    """What a backbone does is not what it promises."""


def check_maps(backbone: Backbone, *, size: tuple[int, int] | None = None) -> None:
    """Run a backbone on one black image and compare its maps with its `feature_specs`.

    Nothing random is drawn, no statistics move, no gradient is kept.

    Args:
        size: height and width of the image, pixels. Left out: a multiple of every stride.

    Raises:
        ContractError: the maps' names, order, channels, strides or layout are others; the message names the first such level.
    """
    declared = declared_specs(backbone)
    if size is None:
        side = math.lcm(*(spec.stride for spec in declared.values()))
        side *= -(-64 // side)
        size = (side, 2 * side)
    kind = type(backbone).__name__
    maps = run(backbone, size)
    if not isinstance(maps, Mapping):
        raise ContractError(
            f"{kind}.forward gives a {type(maps).__name__}; it must give {{name: map}} for {', '.join(declared)}."
        )
    if list(maps) != list(declared):
        raise ContractError(
            f"{kind}.forward gives the maps {', '.join(map(repr, maps)) or 'of no name'}, but feature_specs declares "
            f"{', '.join(map(repr, declared))}. Names and order must be the same, finest first."
        )
    for name, spec in declared.items():
        _check_map(maps[name], name, spec, size, kind)


def declared_specs(backbone: Backbone) -> dict[str, FeatureSpec]:
    """The backbone's feature_specs, seen to be there, whole and finest first.

    Raises:
        ContractError: they are not; the message names the level.
    """
    kind = type(backbone).__name__
    specs: dict[str, FeatureSpec] = getattr(backbone, "feature_specs", {})
    if not specs:
        raise ContractError(
            f"{kind} sets no feature_specs: name each map, as {{'c3': FeatureSpec(channels=512, stride=8), ...}}."
        )
    before = 0
    for name, spec in specs.items():
        if not isinstance(spec, FeatureSpec) or spec.channels < 1 or spec.stride < 1:
            raise ContractError(
                f"Level {name!r} of {kind} is declared as {spec!r}: give FeatureSpec(channels=..., stride=...), both from 1."
            )
        if spec.stride < before:
            raise ContractError(
                f"Level {name!r} has stride {spec.stride} after one of {before}, in {kind}: order levels finest first."
            )
        before = spec.stride
    return specs


@torch.no_grad()
def run(backbone: Backbone, size: tuple[int, int]) -> dict[str, Tensor]:
    """The maps of one black image (height, width), in evaluation mode; the backbone is left as it was.

    Raises:
        ContractError: it cannot take the image; the message holds its own error.
    """
    first = next((p for p in backbone.parameters() if p.is_floating_point()), torch.empty(0))
    image = torch.zeros(1, backbone.in_channels, *size, dtype=first.dtype, device=first.device)
    modes = {module: module.training for module in backbone.modules()}
    backbone.eval()
    try:
        return backbone(image)
    except UserError:
        raise
    except (RuntimeError, ValueError, AssertionError, IndexError, KeyError, TypeError, AttributeError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ContractError(
            f"{type(backbone).__name__} cannot take an image (1, {backbone.in_channels}, {size[0]}, {size[1]}): {first_line}. "
            "A backbone takes any height and width; how many channels, its attribute in_channels says."
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode


def _check_map(found: Tensor, name: str, spec: FeatureSpec, size: tuple[int, int], kind: str) -> None:
    if not isinstance(found, Tensor):
        raise ContractError(f"Level {name!r} of {kind} is a {type(found).__name__}, not a tensor.")
    height, width = (-(-side // spec.stride) for side in size)
    expected = (1, spec.channels, height, width)
    if tuple(found.shape) == expected:
        return
    what = (
        f"Level {name!r} of {kind} is {tuple(found.shape)} for an image of {size[0]} x {size[1]} pixels, expected {expected} "
        f"from {spec.channels} channels and stride {spec.stride}"
    )
    if tuple(found.shape) == (1, height, width, spec.channels):
        raise ContractError(f"{what}. Its channels come last (NHWC): permute(0, 3, 1, 2).")
    if found.ndim != 4:
        raise ContractError(f"{what}. A map has four dimensions: batch, channels, height, width.")
    if found.shape[1] != spec.channels:
        raise ContractError(f"{what}: it has {found.shape[1]} channels.")
    seen = size[0] / found.shape[2] if found.shape[2] else math.inf
    raise ContractError(
        f"{what}: its stride is about {seen:.4g}. Where an image is no multiple of the stride, sizes are rounded up."
    )
