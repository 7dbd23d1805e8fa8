"""Backbones of other libraries, by names with a slash: timm/..., torchvision/..., hf/....

Each zoo is one module, imported when it is asked for: `names(pattern)`, `check_name(name)` and `build(name, **options)`.
"""

import importlib
from typing import Protocol, cast

from backbones.base import Backbone
from backbones.errors import UserError, did_you_mean


class Zoo(Protocol):
    """What the module of a zoo offers."""

    def names(self, pattern: str = "*") -> list[str]:
        """The zoo's names that match a shell-style pattern, without the prefix, sorted."""

    def check_name(self, name: str) -> None:
        """Raise a UserError that names the nearest where the zoo has no such model."""

    def build(
        self, name: str, *, weights: str | None, in_channels: int, norm: str, out_features: list[str] | None, **options: object
    ) -> Backbone:
        """Build a model of the zoo, measure its maps and load its weights."""


ZOOS = {"timm": "backbones.zoos.timm", "torchvision": "backbones.zoos.torchvision", "hf": "backbones.zoos.huggingface"}


def split_name(name: str) -> tuple[Zoo, str]:
    """`"timm/convnext_tiny"` -> the zoo and the name within it.

    Raises:
        UserError: no such zoo, or what it needs is not installed.
    """
    prefix, _, rest = name.partition("/")
    if prefix not in ZOOS:
        raise UserError(
            f"There is no zoo {prefix!r}, in the backbone {name!r}.{did_you_mean(prefix, ZOOS)} "
            f"Write timm/NAME, torchvision/NAME or hf/NAME. A model in a file of your own goes as module:name."
        )
    return cast(Zoo, importlib.import_module(ZOOS[prefix])), rest


def list_zoo(pattern: str) -> list[str]:
    """The names of a zoo that match a pattern such as `"timm/*vit*"`, with their prefix.

    Raises:
        UserError: as `split_name`.
    """
    zoo, rest = split_name(pattern)
    prefix = pattern.partition("/")[0]
    return [f"{prefix}/{name}" for name in zoo.names(rest or "*")]
