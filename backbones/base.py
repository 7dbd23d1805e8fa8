"""What every backbone promises: named feature maps, each with its channels and stride, and stages that can be frozen."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from backbones.errors import UserError, did_you_mean
from backbones.load_report import LoadReport


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """One feature map a backbone promises: its channels, and how many input pixels one of its pixels spans."""

    channels: int
    stride: int


class Backbone(nn.Module):
    """Turns images into named feature maps.

    A subclass sets `feature_specs`, highest resolution first, implements `forward`, and names its stages in `stages`.
    `in_channels` says how many channels its images have. `plain` says that maps of one stride are all it can give, as a plain
    vision transformer's, so that a pyramid has to make the other scales from that one.
    """

    feature_specs: dict[str, FeatureSpec]
    in_channels: int = 3
    plain: bool = False
    weights_report: LoadReport | None = None  # what the weights that it was built with left over, where they came from a file

    def __init__(self) -> None:
        super().__init__()
        self._frozen_stages: tuple[str, ...] = ()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, C_in, H, W) -> {name: (B, channels, ceil(H / stride), ceil(W / stride))}, names and order as feature_specs."""
        raise NotImplementedError(f"{type(self).__name__} does not implement forward")

    def stages(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        """The parts that are frozen or trained together, from the image upwards. One stage unless a subclass says more."""
        return {"backbone": [*self.children(), *self.parameters(recurse=False)]}

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
        for name, parts in self.stages().items():
            for parameter in _parameters(parts):
                parameter.requires_grad_(name not in self._frozen_stages)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Backbone":
        """As nn.Module.train, but frozen stages stay in evaluation mode: their batch statistics do not move."""
        super().train(mode)
        stages = self.stages() if self._frozen_stages else {}
        for name in self._frozen_stages:
            for part in stages[name]:
                if isinstance(part, nn.Module):
                    part.eval()
        return self

    def describe_stages(self) -> list[str]:
        """A line for each stage: its name, whether it is trained, and its number of parameters."""
        lines = []
        for name, parts in self.stages().items():
            if not parts:
                continue
            total = sum(parameter.numel() for parameter in _parameters(parts))
            trained = sum(parameter.numel() for parameter in _parameters(parts) if parameter.requires_grad)
            state = "trained" if trained == total else "frozen" if trained == 0 else f"trained in part ({trained:,})"
            lines.append(stage_line(name, state, total))
        return lines


def select_features(all_specs: dict[str, FeatureSpec], names: Sequence[str] | None) -> dict[str, FeatureSpec]:
    """The chosen feature maps, or all, highest resolution first.

    Raises:
        UserError: a name that is not among them, or none chosen.
    """
    for name in names or ():
        if name not in all_specs:
            raise UserError(f"out_features names {name!r}.{did_you_mean(name, all_specs)}")
    if names is not None and len(names) == 0:
        raise UserError(f"out_features is empty. Name at least one of {', '.join(all_specs)}, or leave it out for all.")
    return {name: spec for name, spec in all_specs.items() if names is None or name in names}


def stage_line(name: str, state: str, parameters: int) -> str:
    """One line of `describe_stages`."""
    return f"{name:<8} {state:<8} {parameters:>12,} parameters"


def _parameters(parts: list[nn.Module | nn.Parameter]) -> Iterator[nn.Parameter]:
    for part in parts:
        if isinstance(part, nn.Parameter):
            yield part
        else:
            yield from part.parameters()
