"""What every backbone promises: named feature maps, each with its channels and stride, and stages that can be frozen."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from backbones.errors import UserError


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """One feature map a backbone promises: its channels, and how many input pixels one of its pixels spans."""

    channels: int
    stride: int


class Backbone(nn.Module):
    """Turns images into named feature maps.

    A subclass sets `feature_specs`, highest resolution first, implements `forward`, and names its stages in `stages`.
    """

    feature_specs: dict[str, FeatureSpec]

    def __init__(self) -> None:
        super().__init__()
        self._frozen_stages: tuple[str, ...] = ()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, C_in, H, W) -> {name: (B, channels, ceil(H / stride), ceil(W / stride))}, names and order as feature_specs."""
        raise NotImplementedError(f"{type(self).__name__} does not implement forward")

    def stages(self) -> dict[str, list[nn.Module]]:
        """The parts that are frozen or trained together, from the image upwards. One stage unless a subclass says more."""
        return {"backbone": list(self.children())}

    def freeze(self, trainable_layers: int) -> None:
        """Train the last `trainable_layers` stages only; the others get no gradient and their norms keep their statistics.

        As in torchvision, 0 freezes everything and the number of stages (5 for a ResNet) trains everything.

        Raises:
            UserError: the number is not in that range.
        """
        names = list(self.stages())
        if not 0 <= trainable_layers <= len(names):
            raise UserError(
                f"trainable_layers is {trainable_layers}, but {type(self).__name__} has {len(names)} stages "
                f"({', '.join(names)}): give a number from 0 (all frozen) to {len(names)} (all trained)."
            )
        self._frozen_stages = tuple(names[: len(names) - trainable_layers])
        for name, modules in self.stages().items():
            for parameter in _parameters(modules):
                parameter.requires_grad_(name not in self._frozen_stages)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Backbone":
        """As nn.Module.train, but frozen stages stay in evaluation mode: their batch statistics do not move."""
        super().train(mode)
        stages = self.stages() if self._frozen_stages else {}
        for name in self._frozen_stages:
            for module in stages[name]:
                module.eval()
        return self

    def describe_stages(self) -> list[str]:
        """A line for each stage: its name, whether it is trained, and its number of parameters."""
        lines = []
        for name, modules in self.stages().items():
            if not modules:
                continue
            total = sum(parameter.numel() for parameter in _parameters(modules))
            trained = sum(parameter.numel() for parameter in _parameters(modules) if parameter.requires_grad)
            state = "trained" if trained == total else "frozen" if trained == 0 else f"trained in part ({trained:,})"
            lines.append(stage_line(name, state, total))
        return lines


def stage_line(name: str, state: str, parameters: int) -> str:
    """One line of `describe_stages`."""
    return f"{name:<8} {state:<8} {parameters:>12,} parameters"


def _parameters(modules: list[nn.Module]) -> Iterator[nn.Parameter]:
    for module in modules:
        yield from module.parameters()
