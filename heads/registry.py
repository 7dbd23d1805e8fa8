"""Detectors by name."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import nn

from backbones import Backbone
from backbones.registry import Registry

DETECTORS: Registry[Callable[..., nn.Module]] = Registry("head")
# What they are trained on and predict besides boxes: "masks", "keypoints".
_BESIDES_BOXES: dict[str, tuple[str, ...]] = {}
Detector = TypeVar("Detector", bound=Callable[..., nn.Module])
# What `build_detector` itself passes to every constructor.
STANDARD_OPTIONS = ("backbone", "num_classes")


def register_detector(
    name: str, *, inherits: Callable[..., Any] | None = None, besides_boxes: Sequence[str] = ()
) -> Callable[[Detector], Detector]:
    """Decorator that enters a detector under `name`.

    Args:
        inherits: the function that takes the options which the detector hands on as `**options`.
        besides_boxes: what it is trained on and predicts besides boxes: "masks", "keypoints".

    Raises:
        UserError: the name is taken.
    """

    def decorate(constructor: Detector) -> Detector:
        DETECTORS.register(name, inherits=inherits)(constructor)
        _BESIDES_BOXES[name] = tuple(besides_boxes)
        return constructor

    return decorate


def besides_boxes(name: str) -> tuple[str, ...]:
    """What a registered detector is trained on and predicts besides boxes: some of "masks" and "keypoints"."""
    DETECTORS.get(name)
    return _BESIDES_BOXES.get(name, ())


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
