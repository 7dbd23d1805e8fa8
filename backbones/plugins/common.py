"""What the plug-outs share: one way to build any of our backbones, and one line for a framework that is not there."""

from typing import Any

import torch

from backbones.base import Backbone, FeatureSpec
from backbones.check_maps import check_maps, declared_specs
from backbones.errors import UserError
from backbones.fpn import build_fpn_backbone
from backbones.registry import build_backbone


def missing_framework(plugin: str, install: str, error: ImportError) -> UserError:
    """The error for a plug-out whose framework cannot be imported; `install` is what pip is to be given."""
    return UserError(f"{plugin} needs a package that cannot be imported ({error}). Install it: pip install {install}")


def build(name: str, *, pyramid: str | None = None, **options: Any) -> Backbone:
    """A backbone as `build_backbone` gives it, or with `pyramid` as `build_fpn_backbone` gives it, its maps checked.

    Raises:
        UserError: as those two; also maps that are not as declared.
    """
    if pyramid is not None:
        return build_fpn_backbone(name, pyramid=pyramid, **options)
    backbone = build_backbone(name, **options)
    check_maps(backbone)
    return backbone


def outline(name: str, *, pyramid: str | None = None, **options: Any) -> Backbone:
    """A backbone to ask for its feature_specs and stages, not to run: where that is possible it holds no memory.

    Raises:
        UserError: as `build_backbone` or `build_fpn_backbone`.
    """
    options = options | {"weights": None}
    make = build_backbone if pyramid is None else build_fpn_backbone
    if pyramid is not None:
        options["pyramid"] = pyramid
    if "/" in name or ":" in name:  # other zoos' maps are measured on a real image; a user's file may do anything
        return make(name, **options)
    try:
        with torch.device("meta"):
            return make(name, **options)
    except RuntimeError:  # it computes with its own numbers as it is built
        return make(name, **options)


def all_specs(name: str, **options: Any) -> dict[str, FeatureSpec]:
    """All maps a backbone can give: those it gives unasked and, where it has one, the stem's, c1.

    Raises:
        UserError: as `build_backbone` or `build_fpn_backbone`.
    """
    specs = declared_specs(outline(name, **options))
    if options.get("pyramid") is not None or options.get("out_features") is not None:
        return specs
    try:
        return declared_specs(outline(name, **options | {"out_features": ["c1", *specs]}))
    except UserError:
        return specs


def pick(names: list[str], indices: list[int] | tuple[int, ...]) -> list[str]:
    """The names at these places, finest first; a negative place counts from the end.

    Raises:
        UserError: there is no such place, or none is given.
    """
    places = sorted({index + len(names) if index < 0 else index for index in indices})
    if not places or places[0] < 0 or places[-1] >= len(names):
        listed = ", ".join(f"{i} {name}" for i, name in enumerate(names))
        raise UserError(f"out_indices is {list(indices)}: give places among {listed}.")
    return [names[place] for place in places]
