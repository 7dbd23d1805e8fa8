"""Names for things that can be built: register one with a decorator, build it by name."""

import fnmatch
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from backbones.base import Backbone
from backbones.errors import UserError, did_you_mean
from backbones.weights import load_published_weights
from backbones.zoos import list_zoo, split_name

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
        inherits = self._inherits.get(name)
        while inherits is not None:  # what is inherited may be an entry that itself inherits
            constructors.append(inherits)
            inherits = next(
                (self._inherits.get(other) for other, entry in self._constructors.items() if entry is inherits), None
            )
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


def import_module_of_user(module: str) -> None:
    """Import a module that may also be in the current folder, as with `python -m`, but for this import only."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        importlib.invalidate_caches()
        importlib.import_module(module)
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


class ModuleRegistry(Registry[Constructor]):
    """Constructors by name, and those that modules of the user's register (`module:name`).

    `decorator` is what registers one, for error messages.
    """

    def __init__(self, kind: str, *, decorator: str) -> None:
        super().__init__(kind)
        self.decorator = decorator
        self._modules: dict[str, set[str]] = {}  # what was registered while a module of the user's was imported

    def get(self, name: str) -> Constructor:
        """The constructor of a name of either kind.

        Raises:
            UserError: there is none, or the module cannot be imported or does not register it.
        """
        return self._of_module(name) if ":" in name else super().get(name)

    def options(self, name: str, *, besides: Iterable[str] = ()) -> dict[str, Any] | None:
        """As for any registry."""
        constructor = self.get(name)
        if ":" in name:
            name = next(known for known, entry in self._constructors.items() if entry is constructor)
        return super().options(name, besides=besides)

    def _of_module(self, name: str) -> Constructor:
        module, _, registered = name.partition(":")
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", module):
            example = self.kind.replace(" ", "_")
            raise UserError(
                f"{name!r} names no module: write module:name, with the name that `import` takes, as my_module:my_{example}."
            )
        self._import(module, name)
        own = {known for known, entry in self._constructors.items() if _is_from(entry, module)} | self._modules.get(
            module, set()
        )
        if registered not in own:
            hint = did_you_mean(registered, own) or " It registers none."
            raise UserError(f"The module {module!r} registers no {self.kind} {registered!r} with @{self.decorator}.{hint}")
        return self._constructors[registered]

    def _import(self, module: str, name: str) -> None:
        before = dict(self._constructors)
        folder = str(Path.cwd())
        try:
            import_module_of_user(module)
        except (Exception, SystemExit) as error:
            # What it had registered until then would be in the way of the next attempt.
            self._constructors = before
            missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
            if missing and (module == missing or module.startswith(f"{missing}.")):
                raise UserError(
                    f"There is no module {missing!r}, in the {self.kind} {name!r}. It is searched for in the current folder "
                    f"({folder}), in PYTHONPATH and among what is installed."
                ) from error
            raise UserError(
                f"The module {module!r} of the {self.kind} {name!r} fails on import: {type(error).__name__}: {error}"
            ) from error
        self._modules.setdefault(module, set()).update(self._constructors.keys() - before.keys())


class BackboneRegistry(ModuleRegistry[Callable[..., Backbone]]):
    """Backbones by name: registered ones, those of other zoos (`timm/...`), and those of the user's modules (`module:name`)."""

    def __init__(self) -> None:
        super().__init__("backbone", decorator="register_backbone")

    def get(self, name: str) -> Callable[..., Backbone]:
        """The constructor of a name of any of the three kinds.

        Raises:
            UserError: there is none, the zoo's library is not installed, or the module cannot be imported or does not
                register it.
        """
        if "/" in name:
            zoo, model = split_name(name)
            zoo.check_name(model)
            return partial(zoo.build, model)
        return super().get(name)

    def names(self, pattern: str = "*") -> list[str]:
        """The registered names that match a pattern, sorted; with a slash, as in `timm/*vit*`, those of a zoo."""
        return list_zoo(pattern) if "/" in pattern else super().names(pattern)

    def options(self, name: str, *, besides: Iterable[str] = ()) -> dict[str, Any] | None:
        """As for any registry; None for a zoo's, which hands them on to the other library."""
        if "/" in name:
            self.get(name)
            return None
        return super().options(name, besides=besides)


def _is_from(constructor: Callable[..., Any], module: str) -> bool:
    owner = getattr(constructor, "__module__", None) or ""
    return owner == module or owner.startswith(f"{module}.")


BACKBONES = BackboneRegistry()
register_backbone = BACKBONES.register
# What `build_backbone` itself passes to every constructor.
STANDARD_OPTIONS = ("in_channels", "norm", "out_features")


def list_backbones(pattern: str = "*") -> list[str]:
    """Names that `build_backbone` knows, sorted, filtered by a shell-style pattern such as `"resnext*"`.

    A pattern with a slash lists those of another zoo: `"timm/*vit*"`, `"torchvision/*"`, `"hf/*"`.

    Raises:
        UserError: no such zoo, or its library is not installed.
    """
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
    """Build a backbone by name, load its weights and freeze its first stages.

    Args:
        name: one of `list_backbones()`; timm/NAME, torchvision/NAME or hf/NAME for another zoo's; or my_module:my_backbone for
            what @register_backbone("my_backbone") registers in a module of yours.
        weights: the name of weights torchvision publishes ("IMAGENET1K_V1", "DEFAULT"), the path of a .pth, .safetensors
            or .pkl file, or nothing for random initialisation. For timm also "pretrained" or a pretrained tag, for hf
            "pretrained".
        in_channels: channels of the images.
        norm: frozen_bn, bn, sync_bn or gn. Left out: frozen_bn with weights, bn without.
        trainable_layers: how many stages train, counted from the last. Left out: 3 with weights, all without.
        out_features: which of the feature maps to return, such as ["c3", "c4", "c5"]. Left out: all.
        options: what the backbone itself offers, such as `stride_in_1x1` for a ResNet.

    Raises:
        UserError: unknown name or option, weights that cannot be had or do not fit, a number out of range.
    """
    check_whole_number("in_channels", in_channels)
    if isinstance(out_features, str):
        raise UserError(f"out_features is {out_features!r}: give a list of names, such as [{out_features!r}].")
    constructor = BACKBONES.get(name)
    BACKBONES.check_options(name, options, besides=STANDARD_OPTIONS)
    _check_standard_options(name)
    if norm is None:
        norm = "frozen_bn" if weights is not None else "bn"
    settings = {"in_channels": in_channels, "norm": norm, "out_features": out_features} | options
    if "/" in name:
        # A zoo loads weights itself: only it knows their names.
        backbone = constructor(weights=weights, **settings)
    else:
        backbone = constructor(**settings)
        _check_built(name, backbone, out_features)
        if weights is not None:
            backbone.weights_report = load_published_weights(backbone, weights, architecture=name.rpartition(":")[2])
    if trainable_layers is None:
        num_stages = len(backbone.stages())
        trainable_layers = min(3, num_stages) if weights is not None else num_stages
    backbone.freeze(trainable_layers)
    return backbone


def check_whole_number(option: str, value: Any, *, least: int = 1) -> None:
    """Check that an option is a whole number, and not too small.

    Raises:
        UserError: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{option} is {value!r}: give a whole number of at least {least}.")


def _check_standard_options(name: str) -> None:
    known = BACKBONES.options(name)
    if known is not None and (missing := [option for option in STANDARD_OPTIONS if option not in known]):
        raise UserError(
            f"The backbone {name!r} does not take {', '.join(missing)}. What @register_backbone registers takes "
            "in_channels=3, norm='bn' and out_features=None by keyword."
        )


def _check_built(name: str, backbone: Any, out_features: list[str] | None) -> None:
    """Check that a registered constructor made a backbone, and with the maps it was asked for."""
    if not isinstance(backbone, Backbone):
        raise UserError(
            f"The backbone {name!r} is built as a {type(backbone).__name__}. What @register_backbone registers gives a "
            "backbones.Backbone, which sets feature_specs."
        )
    given = getattr(backbone, "feature_specs", None)
    if given and out_features is not None and set(out_features) != set(given):
        raise UserError(
            f"The backbone {name!r} was asked for out_features {', '.join(out_features)} and gives {', '.join(given)}: "
            "it has no others, or does not follow out_features."
        )
