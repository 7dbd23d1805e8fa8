"""Names for things that can be built: register one with a decorator, build it by name."""

import fnmatch
import inspect
import sys
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from backbones.base import Backbone
from backbones.errors import UserError, did_you_mean
from backbones.weights import load_published_weights

Constructor = TypeVar("Constructor", bound=Callable[..., Any])


class Registry(Generic[Constructor]):
    """Constructors by name. `kind` is what error messages call an entry."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._constructors: dict[str, Constructor] = {}
        self._inherits: dict[str, Callable[..., Any]] = {}

    def register(self, name: str, *, inherits: Callable[..., Any] | None = None) -> Callable[[Constructor], Constructor]:
        """Decorator that enters a constructor under `name`.

        Where the constructor ends in `**options` and hands them on, `inherits` is the function that takes them.

        Raises:
            UserError: the name is taken.
        """

        def decorate(constructor: Constructor) -> Constructor:
            if name in self._constructors:
                owner = getattr(self._constructors[name], "__module__", "another module")
                raise UserError(f"A {self.kind} named {name!r} is registered already, by {owner}. Choose another name.")
            self._constructors[name] = constructor
            if inherits is not None:
                self._inherits[name] = inherits
            return constructor

        return decorate

    def get(self, name: str) -> Constructor:
        """The constructor registered under `name`.

        Raises:
            UserError: there is none; the message names the nearest one.
        """
        if name not in self._constructors:
            raise UserError(f"There is no {self.kind} {name!r}.{did_you_mean(name, self._constructors)}")
        return self._constructors[name]

    def names(self, pattern: str = "*") -> list[str]:
        """The registered names that match a shell-style pattern, sorted."""
        return sorted(fnmatch.filter(self._constructors, pattern))

    def options(self, name: str, *, besides: Iterable[str] = ()) -> dict[str, Any] | None:
        """The keyword options of an entry and their type annotations, without `besides`; None where it takes any."""
        constructors: list[Callable[..., Any]] = [self.get(name)]
        if name in self._inherits:
            constructors.append(self._inherits[name])
        options: dict[str, Any] = {}
        takes_any = False
        for constructor in constructors:
            parameters = inspect.signature(constructor).parameters.values()
            takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
            keywords = [p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
            options |= {p.name: _annotation(p, constructor) for p in keywords if p.name not in besides}
        return None if takes_any else options

    def check_options(self, name: str, options: Iterable[str], *, besides: Iterable[str] = ()) -> None:
        """Check that an entry takes each of `options` by keyword.

        Raises:
            UserError: one that it does not take; the message names the nearest.
        """
        known = self.options(name, besides=besides)
        if known is None:
            return
        for option in options:
            if option not in known:
                hint = did_you_mean(option, known) or ("" if known else " It takes none.")
                raise UserError(f"The {self.kind} {name!r} has no option {option!r}.{hint}")


def _annotation(parameter: inspect.Parameter, constructor: Callable[..., Any]) -> Any:
    """A parameter's type; Any where it has none, or one that only a type checker can see."""
    if not isinstance(parameter.annotation, str):
        return Any if parameter.annotation is parameter.empty else parameter.annotation
    try:
        return eval(parameter.annotation, vars(sys.modules[constructor.__module__]))
    except (NameError, AttributeError):
        return Any


BACKBONES: Registry[Callable[..., Backbone]] = Registry("backbone")
register_backbone = BACKBONES.register
# What `build_backbone` itself passes to every constructor.
STANDARD_OPTIONS = ("in_channels", "norm", "out_features")


def list_backbones(pattern: str = "*") -> list[str]:
    """Names that `build_backbone` knows, sorted, filtered by a shell-style pattern such as `"resnext*"`."""
    return BACKBONES.names(pattern)


def build_backbone(
    name: str,
    *,
    weights: str | None = None,
    in_channels: int = 3,
    norm: str | None = None,
    trainable_layers: int | None = None,
    out_features: list[str] | None = None,
    **options: Any,
) -> Backbone:
    """Build a registered backbone, load its weights and freeze its first stages.

    Args:
        name: one of `list_backbones()`.
        weights: the name of weights torchvision publishes ("IMAGENET1K_V1", "DEFAULT"), the path of a .pth or .safetensors
            file, or nothing for random initialisation.
        in_channels: channels of the images.
        norm: frozen_bn, bn, sync_bn or gn. Left out: frozen_bn with weights, bn without.
        trainable_layers: how many stages train, counted from the last. Left out: 3 with weights, all without.
        out_features: which of the feature maps to return, such as ["c3", "c4", "c5"]. Left out: all.
        options: what the backbone itself offers, such as `stride_in_1x1` for a ResNet.

    Raises:
        UserError: unknown name or option, weights that cannot be had or do not fit, a number out of range.
    """
    constructor = BACKBONES.get(name)
    BACKBONES.check_options(name, options, besides=STANDARD_OPTIONS)
    if norm is None:
        norm = "frozen_bn" if weights is not None else "bn"
    backbone = constructor(in_channels=in_channels, norm=norm, out_features=out_features, **options)
    if weights is not None:
        load_published_weights(backbone, weights, architecture=name)
    if trainable_layers is None:
        num_stages = len(backbone.stages())
        trainable_layers = min(3, num_stages) if weights is not None else num_stages
    backbone.freeze(trainable_layers)
    return backbone
