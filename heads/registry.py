"""Detectors by name."""

from collections.abc import Callable
from typing import Any

from torch import nn

from backbones import Backbone
from backbones.registry import Registry

DETECTORS: Registry[Callable[..., nn.Module]] = Registry("head")
register_detector = DETECTORS.register
# Those that are trained on masks.
MASK_DETECTORS = {"mask_rcnn"}
# What `build_detector` itself passes to every constructor.
STANDARD_OPTIONS = ("backbone", "num_classes")


def list_detectors(pattern: str = "*") -> list[str]:
    """Names that `build_detector` knows, sorted, filtered by a shell-style pattern."""
    return DETECTORS.names(pattern)


def build_detector(name: str, backbone: Backbone, num_classes: int, **options: Any) -> nn.Module:
    """Build a registered detector: `model(images, targets) -> losses` in training, `model(images) -> list[dict]` in evaluation.

    Args:
        name: one of `list_detectors()`.
        backbone: gives feature maps that share one number of channels, such as `build_fpn_backbone` makes.
        num_classes: number of classes, the background counted.
        options: what the detector offers, such as `box_score_thresh`.

    Raises:
        UserError: unknown name or option, or a backbone the detector cannot be built on.
    """
    constructor = DETECTORS.get(name)
    DETECTORS.check_options(name, options, besides=STANDARD_OPTIONS)
    return constructor(backbone, num_classes, **options)


def predicts_masks(name: str) -> bool:
    """Whether a registered detector is trained on masks, so that the data set has to read them."""
    DETECTORS.get(name)
    return name in MASK_DETECTORS
