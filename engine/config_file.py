"""From a YAML file and `key=value` overrides to a checked config, every mistake named with its key and line."""

import copy
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from backbones.errors import UserError, did_you_mean
from engine.config import ELSEWHERE, MOST_FLOAT, Choice, RunConfig
from engine.job import TOOLS, job_class, job_name

Key = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number, as YAML 1.2 does; YAML 1.1, and so PyYAML, reads a string."""


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what the loader above would read as a number."""


MOST_VALUES = 100_000  # of a file: aliases of aliases make a few lines stand for any number
_FLOAT = re.compile(r"^[-+]?((\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$")
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


@dataclass
class _Source:
    """Where each key of a config comes from: the file and its line, or an override."""

    path: str
    places: dict[Key, str] = field(default_factory=dict)
    values: int = 0  # that have been read

    def place(self, key: Key) -> str:
        """Where to put a mistake right: an override of this key or of what is below it, or the nearest line of the file."""
        for known, place in reversed(self.places.items()):
            if known[: len(key)] == key and place.startswith("the override"):
                return place
        while key and key not in self.places:
            key = key[:-1]
        return self.places.get(key, self.path)


def load_config(path: str | Path, overrides: Sequence[str] = (), *, job: str | None = None) -> RunConfig:
    """Read a config file, apply overrides such as `train.epochs=3`, and check it whole.

    Args:
        job: the job it must be for; None takes any.

    Raises:
        UserError: the file is missing or is no YAML, or keys are unknown, doubled, missing or of a wrong type; all are named.
            Also, it is for another job; the message names the tool.
    """
    path = Path(path)
    if not path.is_file():
        known = [str(config) for folder in (path.parent, Path("configs")) for config in folder.glob("*.yaml")]
        if str(Path("configs", path.name)) in known:
            raise UserError(f"There is no config at {path}. Did you mean {str(Path('configs', path.name))!r}?")
        raise UserError(f"There is no config at {path}.{did_you_mean(str(path), known)}")
    source = _Source(str(path))
    try:
        text = path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} cannot be read as text, so it is no YAML: {error}.") from None
    content = _parse(text, source)
    for override in overrides:
        _apply(content, override, source)
    return check_config(content, source, job=job)


def check_config(content: dict[str, Any], source: _Source | None = None, *, job: str | None = None) -> RunConfig:
    """A config from plain values, such as those in a checkpoint. Its key `job` says whose; left out, it is detection's.

    Raises:
        UserError: as `load_config`.
    """
    source = source or _Source("the config")
    place = source.place(("job",))
    try:
        named = job_name(content.get("job", "detection"))
    except UserError as error:
        raise UserError(f"{place}: job: {error}") from None
    check_job(named, job, where=place if place.startswith("the override") else source.path)
    config_class = job_class(named).config_class
    try:
        return config_class.model_validate(content)
    except ValidationError as error:
        problems = _describe(error, content, source, config_class)
        heading = f"{source.path} has {len(problems)} problems:\n  " if len(problems) > 1 else ""
        raise UserError(heading + "\n  ".join(problems)) from None


def check_job(named: str, wanted: str | None, *, where: str) -> None:
    """Check that what `where` names is of the wanted job; None wants any.

    Raises:
        UserError: it is of another; the message names the tools for it. Or there is no such job.
    """
    if wanted is None or named == wanted:
        return
    if named not in TOOLS:
        raise UserError(f"{where} is of the job {named!r}, which this version does not know, and this tool is for {wanted}.")
    raise UserError(
        f"{where} is of the job {named}, and this tool is for {wanted}: use tools/train_{TOOLS[named]}.py or "
        f"tools/eval_{TOOLS[named]}.py. (A config says its job in the key `job`; one that does not is of detection.)"
    )


def apply_overrides(
    content: dict[str, Any], overrides: Sequence[str], *, origin: str, job: str | None = None, is_trusted: bool = True
) -> RunConfig:
    """A config from plain values and `key=value` overrides.

    Args:
        origin: whose the values are, for messages.
        job: the job it must be for; None takes any.
        is_trusted: whether names of the kind `module:name` may import a module. If not, as with values from a file of someone
            else's, only those may that an override repeats, and modules that are imported already.

    Raises:
        UserError: as `load_config`; also, a module that is not trusted would be imported.
    """
    source = _Source(origin)
    content = copy.deepcopy(content)
    for override in overrides:
        _apply(content, override, source)
    if not is_trusted:
        _refuse_imports(content, (), source)
    return check_config(content, source, job=job)


def _refuse_imports(values: Any, key: Key, source: _Source) -> None:
    """Refuse names that would import a module, wherever a config may have them."""
    if isinstance(values, dict):
        for name, value in values.items():
            _refuse_imports(value, (*key, name), source)
    elif isinstance(values, str) and key[-1:] == ("name",):
        module, is_name, _ = values.partition(":")
        if is_name and module not in sys.modules and not source.place(key).startswith("the override"):
            raise UserError(
                f"{source.path} says {_dotted(key)}={values}, by which the module {module!r} would be imported and its code "
                f"run. If you trust it, say so: {_dotted(key)}={values} (predict.py: after --set; extract_features.py and "
                f"replay.py: --import {module}; in Python: import it first)."
            )


def dump_config(config: RunConfig) -> str:
    """The whole config as YAML, defaults included."""
    return yaml.dump(config.model_dump(), Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=120)


def _parse(text: str, source: _Source) -> dict[str, Any]:
    loader = None
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        content = {} if root is None else _construct(loader, root, (), source)
    except RecursionError:
        raise UserError(f"{source.path} cannot be read: its lists and keys are nested too deep.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{source.path}{where}: this is no YAML: {getattr(error, 'problem', None) or error}") from None
    finally:
        if loader is not None:
            loader.dispose()
    if not isinstance(content, dict):
        raise UserError(f"{source.path} must hold keys and values (`model: ...`), not a {type(content).__name__}.")
    return content


def _parse_value(text: str) -> Any:
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        return None if root is None else _construct(loader, root, (), _Source("the override"))
    finally:
        loader.dispose()


def _construct(loader: _Loader, node: yaml.Node, key: Key, source: _Source, ancestors: tuple[yaml.Node, ...] = ()) -> Any:
    source.places[key] = f"{source.path}, line {node.start_mark.line + 1}"
    source.values += 1
    if source.values > MOST_VALUES:
        raise UserError(f"{source.places[key]}: the config has more than {MOST_VALUES} values, its aliases written out.")
    if node in ancestors:
        raise UserError(f"{source.places[key]}: {_dotted(key)} holds itself. An alias must name something that is complete.")
    ancestors = (*ancestors, node)
    if not isinstance(node, yaml.MappingNode | yaml.SequenceNode):
        return _scalar(loader, node)
    if node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
        raise yaml.constructor.ConstructorError(None, None, f"the tag {node.tag!r} is not for a config", node.start_mark)
    if isinstance(node, yaml.SequenceNode):
        return [_construct(loader, child, (*key, i), source, ancestors) for i, child in enumerate(node.value)]
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        name = str(_scalar(loader, key_node))
        if name in mapping:
            line = key_node.start_mark.line + 1
            raise UserError(f"{source.path}, line {line}: the key {_dotted((*key, name))} stands twice. Keep one.")
        mapping[name] = _construct(loader, value_node, (*key, name), source, ancestors)
        source.places[(*key, name)] = f"{source.path}, line {key_node.start_mark.line + 1}"
    return mapping


def _scalar(loader: _Loader, node: yaml.Node) -> Any:
    """A text, number, truth value or date; what is written as one and is none is no YAML."""
    if not isinstance(node, yaml.ScalarNode):
        raise yaml.constructor.ConstructorError(None, None, "a key must be a word", node.start_mark)
    try:
        return loader.construct_object(node)
    # The 30th of February, a number of thousands of digits, a base-64 text that is none.
    except (ValueError, OverflowError) as error:
        problem = f"{node.value!r:.60} cannot be read ({error})"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None


def _apply(content: dict[str, Any], override: str, source: _Source) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise UserError(f"{override!r:.200} is no override. Write key=value, such as train.epochs=3 or data.min_size=240.")
    try:
        value = _parse_value(text)
    except (yaml.YAMLError, UserError, RecursionError):
        raise UserError(f"The value in the override {override!r:.200} is no YAML. Put it in quotes.") from None
    here: Any = content
    *parents, last = dotted.split(".")
    for i, name in enumerate(parents):
        if not isinstance(here, dict | list):
            raise UserError(f"The override {override!r:.200}: {'.'.join(parents[:i])} has no keys.")
        if isinstance(here, list):
            here = here[_list_index(here, name, override)]
            continue
        if name not in here and (*parents, last)[i + 1].isdigit():
            path = ".".join(parents[: i + 1])
            raise UserError(f"The override {override!r:.200}: the config has no list {path}. Give it whole: {path}=[...].")
        if not isinstance(here.get(name), dict | list):
            here[name] = {}  # a section left to its defaults, or a name such as `shapes` replaced by paths
        here = here[name]
    if not isinstance(here, dict | list):
        raise UserError(f"The override {override!r:.200}: {'.'.join(parents)} has no keys.")
    if isinstance(here, list):
        here[_list_index(here, last, override)] = value
    else:
        here[last] = value
    key: Key = tuple(int(p) if p.isdigit() else p for p in dotted.split("."))
    for known in [known for known in source.places if known[: len(key)] == key]:
        del source.places[known]  # what stood below it is gone, and its lines with it
    source.places[key] = f"the override {override!r:.200}"


def _list_index(values: list[Any], name: str, override: str) -> int:
    if not name.isdigit() or int(name) >= len(values):
        raise UserError(f"The override {override!r:.200}: {name!r} is no place in a list of {len(values)} entries.")
    return int(name)


def _describe(error: ValidationError, content: dict[str, Any], source: _Source, config_class: type[RunConfig]) -> list[str]:
    problems: dict[Key, list[str]] = {}
    for item in error.errors():
        key = _within(content, item["loc"], keep_missing=item["type"] == "missing")
        if item["type"] == "extra_forbidden":
            name = str(item["loc"][-1])
            key = (*_within(content, item["loc"][:-1]), name)
            elsewhere = f" {ELSEWHERE[name]}" if name in ELSEWHERE else ""
            message = f"unknown key.{elsewhere or did_you_mean(name, _known_keys(config_class, item['loc'][:-1]))}"
        elif item["type"] == "missing":
            message = "this key is required"
        elif item["type"] == "value_error":
            message = str(item["ctx"]["error"])
        elif item["type"] in ("model_type", "model_attributes_type"):
            message = f"this key has keys of its own, and cannot be {item['input']!r:.200}"
        elif item["type"] == "less_than_equal" and item["ctx"]["le"] == MOST_FLOAT:
            message = f"Input should be at most {MOST_FLOAT:g}, not {item['input']!r:.200}"  # not with its thirty zeros
        else:
            message = f"{item['msg']}, not {item['input']!r:.200}"
        known = problems.setdefault(key, [])
        if message not in known:
            known.append(message)
    # Where a key takes values of two kinds, what is wrong inside the one says more than that it is not the other.
    outer = [key for key in problems for other in problems if len(other) > len(key) and other[: len(key)] == key]
    for key in outer:
        problems.pop(key, None)
    return [f"{source.place(key)}: {_dotted(key)}{': ' if key else ''}{'; or '.join(m)}" for key, m in problems.items()]


def _within(content: Any, location: Sequence[str | int], *, keep_missing: bool = False) -> Key:
    """The part of pydantic's location that is a key of the config: it also names the members of unions."""
    key: list[str | int] = []
    for i, name in enumerate(location):
        inside = (isinstance(content, dict) and name in content) or (
            isinstance(content, list) and isinstance(name, int) and name < len(content)
        )
        if inside:
            content = content[name]
            key.append(name)
        elif keep_missing and i == len(location) - 1:
            key.append(name)
    return tuple(key)


def _known_keys(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """The keys of the section at a location, for the suggestion of the nearest one."""
    for name in location:
        annotation = model.model_fields[str(name)].annotation if str(name) in model.model_fields else None
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
        elif annotation is not None:
            nested = [a for a in getattr(annotation, "__args__", ()) if isinstance(a, type) and issubclass(a, BaseModel)]
            model = nested[0] if nested else model
    return [] if issubclass(model, Choice) else list(model.model_fields)


def _dotted(key: Key) -> str:
    return ".".join(str(name) for name in key)
