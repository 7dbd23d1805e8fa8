"""The list of classes that labels are checked against, and that says their order."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from backbones.errors import UserError

_SUFFIXES = {".txt", ".names", ".yaml", ".yml", ".json"}


@dataclass(frozen=True)
class Classes:
    """Names of classes with their ids as COCO categories, in order, and where they come from."""

    ids: dict[str, int]
    source: str

    @property
    def names(self) -> list[str]:
        """The names, in order."""
        return list(self.ids)


def read_classes(given: Sequence[str]) -> Classes:
    """Classes as a user gives them: their names, or one file of them.

    A text file (`classes.txt`, `obj.names`) has a name on each line; a YAML file (`data.yaml`) has them under `names`; a JSON
    file is a COCO file, whose categories keep their ids, so that two files of one data set agree.

    Raises:
        UserError: the file is missing or malformed, a name is empty or doubled.
    """
    if len(given) == 1 and Path(given[0]).suffix.lower() in _SUFFIXES:
        path = Path(given[0])
        if not path.is_file():
            raise UserError(f"There is no file of classes at {path}.")
        suffix = path.suffix.lower()
        if suffix == ".json":
            return _of_coco(path)
        names = names_in_yaml(read_yaml(path), path) if suffix in (".yaml", ".yml") else _lines(path)
        return _numbered(names, str(path))
    return _numbered(list(given), "as given")


def read_yaml(path: Path) -> dict[str, Any]:
    """The content of a YAML file, which must be keys with values.

    Raises:
        UserError: it is missing, or no such file.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.") from None
    # A number of thousands of digits, a date that is none; nested too deep.
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        raise UserError(f"{path}{line}: this is no YAML.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} has no keys with values.")
    return content


def names_in_yaml(content: dict[str, Any], path: Path) -> list[str]:
    """The class names of a YOLO data set's YAML file: a list, or a name for each number from 0.

    Raises:
        UserError: there are none, or numbers are left out.
    """
    names = content.get("names")
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise UserError(f"{path}: `names` must number the classes from 0 without a gap, not {sorted(map(str, names))}.")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise UserError(f"{path} has no list `names` of classes.")
    if any(isinstance(name, list | dict) for name in names):  # by way of aliases, a few lines could stand for any length
        raise UserError(f"{path}: `names` must hold names, not lists or keys.")
    return [str(name) for name in names]


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text in UTF-8.") from None


def _of_coco(path: Path) -> Classes:
    try:
        categories = json.loads(path.read_bytes())["categories"]
        pairs = sorted((int(category["id"]), str(category["name"])) for category in categories)
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        raise UserError(f"{path} is no COCO file: it has no categories with id and name.") from None
    _check_names([name for _, name in pairs], str(path))
    return Classes({name: number for number, name in pairs}, str(path))


def _numbered(names: list[str], source: str) -> Classes:
    _check_names(names, source)
    return Classes({name: number for number, name in enumerate(names, start=1)}, source)


def _check_names(names: list[str], source: str) -> None:
    if not names:
        raise UserError(f"The list of classes ({source}) is empty.")
    for number, name in enumerate(names, start=1):
        if not name:
            raise UserError(f"Class number {number} of the list ({source}) has no name: take the empty line out.")
        if name in names[: number - 1]:
            raise UserError(f"The list of classes ({source}) names {name!r} twice.")
