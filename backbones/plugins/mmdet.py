"""Our backbones in MMDetection: `backbone=dict(type="VertebraBackbone", name="resnet50")`.

A config imports this module with `custom_imports = dict(imports=["backbones.plugins.mmdet"])`, which registers the type.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from backbones.base import FeatureSpec
from backbones.errors import UserError
from backbones.plugins.common import build, missing_framework, outline, pick

try:
    from mmdet.registry import MODELS
    from mmengine.model import BaseModule
except ImportError as error:
    raise missing_framework("backbones.plugins.mmdet", "mmdet mmengine 'mmcv<2.2'", error) from error


@MODELS.register_module()
class VertebraBackbone(BaseModule):
    """A backbone, or with `pyramid` a backbone and neck in one, that gives a tuple of maps, finest first.

    `channels` and `strides` say what the maps are like; the function `channels` says it before anything is built.

    Args:
        name: as `build_backbone` takes it.
        out_indices: which maps to give, counted as in MMDetection: of a ResNet 0 is c2, 3 is c5. Left out: all.
        pyramid: None, or a pyramid of `build_fpn_backbone`; the maps are then its levels.
        init_cfg: MMDetection's way to weights, which would load what fits and keep silent about the rest: use `weights`.
        options: other options of `build_backbone` or `build_fpn_backbone`: weights, norm, trainable_layers, in_channels, ...

    Raises:
        UserError: as those two; also places where there is no map, and an init_cfg.
    """

    def __init__(
        self,
        name: str,
        *,
        out_indices: Sequence[int] | None = None,
        pyramid: str | None = None,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
        **options: Any,
    ) -> None:
        if init_cfg:
            raise UserError(f"VertebraBackbone takes no init_cfg, which is {init_cfg}: give weights=PATH of a file instead.")
        super().__init__()
        specs = _chosen(name, out_indices, pyramid=pyramid, **options)
        if pyramid is None:
            options["out_features"] = list(specs)
        self.backbone = build(name, pyramid=pyramid, **options)
        self.map_names = list(specs)
        self.channels = [spec.channels for spec in specs.values()]
        self.strides = [spec.stride for spec in specs.values()]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, C_in, H, W) -> maps (B, channels[i], H / strides[i], W / strides[i])."""
        maps = self.backbone(x)
        return tuple(maps[name] for name in self.map_names)

    def init_weights(self) -> None:
        """Nothing: the backbone was initialised, or its weights were read, when it was built."""
        self._is_init = True


def channels(name: str, *, out_indices: Sequence[int] | None = None, **options: Any) -> list[int]:
    """The channels of the maps of `VertebraBackbone` with the same arguments: what its neck takes as `in_channels`.

    Raises:
        UserError: as VertebraBackbone.
    """
    return [spec.channels for spec in _chosen(name, out_indices, **options).values()]


def _chosen(name: str, out_indices: Sequence[int] | None, **options: Any) -> dict[str, FeatureSpec]:
    specs = outline(name, **options).feature_specs
    if out_indices is None:
        return specs
    if options.get("out_features") is not None and options.get("pyramid") is None:
        raise UserError("Both out_indices and out_features are given: leave one out.")
    return {map_name: specs[map_name] for map_name in pick(list(specs), list(out_indices))}
