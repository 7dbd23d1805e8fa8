"""A detector's predictions and losses from one pass of its backbone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def detect_with_losses(
    model: Any, images: list[Tensor], targets: list[dict[str, Any]]
) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """What a detector in evaluation mode says of images, and the losses it would be trained with, on the same feature maps.

    torchvision's detectors give the one or the other, by their mode. Here the heads alone are asked a second time, in training
    mode, over maps that are there already; norms and dropout stay as in evaluation.

    Args:
        model: a detector of torchvision's kind, in evaluation mode.
        images: as the model takes them.
        targets: of the same images, with all that the head learns from.
    """
    maps: list[Any] = []
    hook = model.backbone.register_forward_hook(lambda module, inputs, output: maps.append(output))
    try:
        predictions = model(images)
    finally:
        hook.remove()
    asked = [module for module in (model, getattr(model, "rpn", None), getattr(model, "roi_heads", None)) if module is not None]
    backbone = model.backbone
    with _in_training_mode(asked):
        model.backbone = _Remembered(maps[0])
        try:
            losses = model(images, targets)
        finally:
            model.backbone = backbone
    return predictions, losses


class _Remembered(nn.Module):
    """Gives the maps that another backbone has made of these images."""

    def __init__(self, maps: Any) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, images: Tensor) -> Any:
        return self.maps


@contextmanager
def _in_training_mode(modules: Sequence[nn.Module]) -> Iterator[None]:
    """The modules themselves, not those within them."""
    for module in modules:
        module.training = True
    try:
        yield
    finally:
        for module in modules:
            module.training = False
