"""The classes of a classifier, in order, and which of them a folder or a set's own class is."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from backbones.errors import UserError, did_you_mean
from engine.data.annotations import Category


@dataclass(frozen=True)
class Classes:
    """Names in the order of the labels, from 0. `path` says for messages where they come from."""

    path: Path
    names: list[str]
    other_names: dict[str, int] = field(default_factory=dict)  # further names of a class, such as its WordNet id

    @property
    def categories(self) -> list[Category]:
        """Each class with its label as its id."""
        return [Category(label, name) for label, name in enumerate(self.names)]

    def labels_of(self, names: Sequence[str], *, of: Path) -> np.ndarray:
        """The label of each of the classes (or class folders) of `of`: (len(names),) int64.

        Raises:
            UserError: one that is not among the classes, or two that are the same.
        """
        known = {name: label for label, name in enumerate(self.names)} | self.other_names
        labels: dict[int, str] = {}
        for name in names:
            if name not in known:
                raise UserError(
                    f"{of} has the class {name!r}, which is not among the {len(self.names)} classes of {self.path}."
                    f"{did_you_mean(name, known)} Take it out, or name all classes: data.classes."
                )
            if known[name] in labels:
                raise UserError(f"{of} has {labels[known[name]]!r} and {name!r}, which are the same class. Put them together.")
            labels[known[name]] = name
        return np.fromiter(labels, np.int64, len(labels))


def classes_of(categories: Sequence[Category], *, path: Path) -> Classes:
    """The classes a checkpoint or a set of images knows."""
    return Classes(path, [category.name for category in categories])


def read_classes(given: str | list[str]) -> Classes:
    """The classes that `data.classes` names: a list, a text file with one a line, or `imagenet`.

    Raises:
        UserError: there is no such file, or a name is empty or stands twice.
    """
    if given == "imagenet":
        return imagenet_classes()
    if isinstance(given, str):
        path = Path(given)
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            raise UserError(
                f"data.classes: there is no file {given}. Give a text file with one class a line, a list, or imagenet."
            ) from None
        except (OSError, ValueError) as error:  # a zero byte in the name, or bytes that are no text
            raise UserError(f"data.classes: {given!r} cannot be read as text: {error}.") from None
        while lines and not lines[-1].strip():
            lines.pop()
        names = [line.strip() for line in lines]
        places = [f"{given}, line {number}" for number in range(1, len(names) + 1)]
    else:
        path, names = Path("data.classes"), given
        places = [f"data.classes.{number}" for number in range(len(names))]
    first: dict[str, str] = {}
    for name, place in zip(names, places, strict=True):
        if not name.strip():
            raise UserError(f"{place}: a class needs a name.")
        if name in first:
            raise UserError(f"{place}: the class {name!r} is named twice, first at {first[name]}.")
        first[name] = place
    if not names:
        raise UserError(f"data.classes: {given or 'the list'} names no class.")
    return Classes(path, names)


def imagenet_classes() -> Classes:
    """The 1000 classes of ImageNet (ILSVRC 2012) in the order of their WordNet ids, with torchvision's names for them.

    Where two have one name, it is followed by the id. The other names are the ids.
    """
    from timm.data import ImageNetInfo
    from torchvision.models import ResNet50_Weights

    ids = [str(wordnet_id) for wordnet_id in ImageNetInfo().label_names()]
    names = [str(name) for name in ResNet50_Weights.IMAGENET1K_V1.meta["categories"]]
    unique = [name if names.count(name) == 1 else f"{name} ({ids[label]})" for label, name in enumerate(names)]
    return Classes(Path("imagenet"), unique, {wordnet_id: label for label, wordnet_id in enumerate(ids)})
