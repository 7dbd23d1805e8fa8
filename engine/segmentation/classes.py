"""The classes of a data set: which pixel value is which, and what it is called."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backbones.errors import UserError
from engine.data.annotations import Category
from engine.segmentation.config import SegmentationDataConfig
from heads.segmentation import ignored_label

NO_CLASS = -1


@dataclass(frozen=True)
class LabelClasses:
    """Classes in the order of their labels; a category's id is its pixel value.

    `ignored` is the label of pixels that are no example.
    """

    categories: list[Category]
    table: np.ndarray  # (65536,) int32: a pixel value's label, NO_CLASS where it has none
    path: Path = Path("data.classes")  # where they are named, for messages

    @property
    def ignored(self) -> int:
        """The label of pixels that are no example: 255, or 65535 where 255 is a class."""
        return ignored_label(len(self.categories))

    @property
    def dtype(self) -> type[np.uint8] | type[np.uint16]:
        """What labels are held in."""
        return np.uint8 if self.ignored == 255 else np.uint16

    def to_labels(self, values: np.ndarray, path: Path) -> np.ndarray:
        """Pixel values (H, W) -> labels (H, W) uint8, or uint16 where there are more than 255 classes.

        Raises:
            UserError: a value has no name; the message names the file and the value.
        """
        labels = self.table[values]
        if labels.min() == NO_CLASS:
            row, column = np.unravel_index(np.argmin(labels), labels.shape)
            value = int(values[row, column])
            known = [category.id for category in self.categories]
            raise UserError(
                f"{path} has the value {value} at row {row}, column {column}, and data.classes names {len(known)} values, "
                f"{span(known)}. Name it there, or list it in data.ignore_index if it is no class."
            )
        return labels.astype(self.dtype)


def named_values(config: SegmentationDataConfig) -> LabelClasses | None:
    """The classes of label maps; None where the config names none.

    Raises:
        UserError: a file of names that is missing or malformed, fewer than two classes, or a named value that is ignored.
    """
    if config.classes is None:
        return None
    ignored = config.ignored_values
    if isinstance(config.classes, dict):
        names = {int(value): name for value, name in config.classes.items()}
        if both := sorted(names.keys() & ignored):
            raise UserError(
                f"data.classes names the value {both[0]} ({names[both[0]]!r}), which data.ignore_index says is no class. "
                "Where every value is a class set data.ignore_index=null."
            )
    else:
        listed = class_names(config.classes)
        values = [value for value in range(len(listed) + len(ignored)) if value not in ignored]
        names = dict(zip(values, listed, strict=False))
    if len(names) < 2:
        raise UserError(f"data.classes names {len(names)} class: two are needed, of which one may be the background.")
    return label_classes(names, ignored)


def label_classes(names: Mapping[int, str], ignored_values: set[int]) -> LabelClasses:
    """The classes of {pixel value: name}; labels go by the value."""
    categories = [Category(value, names[value]) for value in sorted(names)]
    table = np.full(65536, NO_CLASS, np.int32)
    table[sorted(names)] = np.arange(len(categories))
    table[sorted(ignored_values)] = ignored_label(len(categories))
    return LabelClasses(categories, table)


def class_names(given: Sequence[str] | str) -> list[str]:
    """Names as a config lists them, or those in a file, one a line.

    Raises:
        UserError: there is no such file, or a line of it is empty.
    """
    if not isinstance(given, str):
        return list(given)
    path = Path(given)
    if not path.is_file():
        raise UserError(f"data.classes: there is no file {path}. It holds the names of the classes, one a line; or list them.")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").rstrip().splitlines()]
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"data.classes: {path} cannot be read as text: {error}.") from None
    if empty := [number for number, line in enumerate(lines, start=1) if not line]:
        raise UserError(f"{path}, line {empty[0]}: this line is empty, and each line names the class of the next pixel value.")
    return lines


def unique_names(categories: Sequence[Category]) -> list[str]:
    """The names, with the id where two classes share one."""
    names = [category.name for category in categories]
    return [name if names.count(name) == 1 else f"{name} (id {c.id})" for name, c in zip(names, categories, strict=True)]


def span(values: Sequence[int]) -> str:
    """`0 to 20` where the values have no gap, or the values."""
    if len(values) > 2 and list(values) == list(range(values[0], values[-1] + 1)):
        return f"{values[0]} to {values[-1]}"
    shown = ", ".join(map(str, values[:12]))
    return f"{shown}, ..." if len(values) > 12 else shown
