"""Our backbones in detectron2: `cfg.MODEL.BACKBONE.NAME = "build_vertebra_backbone"`, after `add_vertebra_config(cfg)`.

Importing this module registers the builder. Maps get the names detectron2's heads look for: res2..res5, with a pyramid p2..p7.
"""

import math
from typing import Any

from torch import Tensor

from backbones import base
from backbones.errors import UserError
from backbones.plugins.common import build, missing_framework

try:
    from detectron2.config import CfgNode
    from detectron2.layers import ShapeSpec
    from detectron2.modeling import BACKBONE_REGISTRY, Backbone
except ImportError as error:
    advice = "'git+https://github.com/facebookresearch/detectron2' --no-build-isolation (it is compiled, and not in the index)"
    raise missing_framework("backbones.plugins.detectron2", advice, error) from error


class VertebraBackbone(Backbone):
    """One of our backbones with detectron2's interface: `output_shape`, `size_divisibility`, and its names of maps.

    Args:
        backbone: a bare one, or one with a pyramid.
        names: of its maps in detectron2, finest first. Left out: stem and res2..res5 for c1 and c2..c5, and for the levels of a
            pyramid p2..p7, each by its stride.

    Raises:
        UserError: more or fewer names than maps, or a name that is given twice.
    """

    def __init__(self, backbone: base.Backbone, *, names: list[str] | None = None) -> None:
        super().__init__()
        specs = backbone.feature_specs
        is_pyramid = hasattr(backbone, "fpn")
        own = names or [_pyramid_name(spec) if is_pyramid else _name(name) for name, spec in specs.items()]
        if len(own) != len(specs) or len(set(own)) != len(own):
            raise UserError(
                f"FEATURE_NAMES is {own}, but the maps are {', '.join(specs)}: give {len(specs)} different names, finest first."
            )
        self.backbone = backbone
        self.map_names = dict(zip(specs, own, strict=True))
        self._out_features = own
        self._out_feature_channels = {self.map_names[name]: spec.channels for name, spec in specs.items()}
        self._out_feature_strides = {self.map_names[name]: spec.stride for name, spec in specs.items()}
        # Heads that sum a pyramid's levels need their strides to divide the image; those of the extra levels are not summed.
        self._size_divisibility = max(spec.stride for name, spec in specs.items() if name.isdigit()) if is_pyramid else 0

    @property
    def size_divisibility(self) -> int:
        """What the height and width of images are padded to a multiple of; 0, no padding, without a pyramid."""
        return self._size_divisibility

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, C_in, H, W) -> {name: (B, channels, ceil(H / stride), ceil(W / stride))}, as output_shape."""
        return {self.map_names[name]: level for name, level in self.backbone(x).items()}

    def output_shape(self) -> dict[str, Any]:
        """{name: ShapeSpec(channels, stride)}, finest first."""
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }


def add_vertebra_config(cfg: Any) -> None:
    """Add the keys below MODEL.VERTEBRA to a config, with their defaults; an empty one is left out of what is built.

    NAME, WEIGHTS, NORM, TRAINABLE_LAYERS (-1: left out) and OUT_FEATURES (our names, c2..c5) are `build_backbone`'s; PYRAMID,
    OUT_CHANNELS, EXTRA_LEVEL ("none": none) and PYRAMID_NORM are `build_fpn_backbone`'s, and count if PYRAMID is given. OPTIONS
    are the other ones by name. FEATURE_NAMES are the maps' names in detectron2, if not the usual.
    """
    cfg.MODEL.VERTEBRA = CfgNode(
        {
            "NAME": "resnet50",
            "WEIGHTS": "",
            "NORM": "",
            "TRAINABLE_LAYERS": -1,
            "OUT_FEATURES": [],
            "PYRAMID": "",
            "OUT_CHANNELS": 256,
            "EXTRA_LEVEL": "pool",
            "PYRAMID_NORM": "",
            "FEATURE_NAMES": [],
        }
    )
    cfg.MODEL.VERTEBRA.OPTIONS = CfgNode(new_allowed=True)


def build_vertebra_backbone(cfg: Any, input_shape: Any) -> VertebraBackbone:
    """The backbone that MODEL.VERTEBRA describes, for images of as many channels as MODEL.PIXEL_MEAN has.

    Raises:
        UserError: the config has no such part, or as `build_backbone` and `build_fpn_backbone`.
    """
    if "VERTEBRA" not in cfg.MODEL:
        raise UserError("The config has no MODEL.VERTEBRA: call backbones.plugins.detectron2.add_vertebra_config(cfg) first.")
    keys = cfg.MODEL.VERTEBRA
    options: dict[str, Any] = {
        "weights": keys.WEIGHTS or None,
        "norm": keys.NORM or None,
        "trainable_layers": None if keys.TRAINABLE_LAYERS < 0 else keys.TRAINABLE_LAYERS,
        "out_features": list(keys.OUT_FEATURES) or None,
        "in_channels": input_shape.channels,
    }
    if keys.PYRAMID:
        options |= {
            "pyramid": keys.PYRAMID,
            "out_channels": keys.OUT_CHANNELS,
            "extra_level": None if keys.EXTRA_LEVEL == "none" else keys.EXTRA_LEVEL,
            "pyramid_norm": keys.PYRAMID_NORM or None,
        }
    return VertebraBackbone(build(keys.NAME, **options | dict(keys.OPTIONS)), names=list(keys.FEATURE_NAMES) or None)


def _name(ours: str) -> str:
    """C2 is res2 to detectron2, the stem's C1 is stem; other names stay."""
    if ours == "c1":
        return "stem"
    return f"res{ours[1:]}" if ours[:1] == "c" and ours[1:].isdigit() else ours


def _pyramid_name(spec: base.FeatureSpec) -> str:
    return f"p{round(math.log2(spec.stride))}"


BACKBONE_REGISTRY.register(build_vertebra_backbone)
