"""Classes without objects, in one split alone, rare, or many times rarer than others."""

from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

from engine.data.doctor.findings import Finding

_RARE = 10  # objects in training, below which a class is hardly learned
_IMBALANCE = 100  # times rarer than the most frequent


def check_classes(
    train: dict[str, Any], val: dict[str, Any] | None, *, classes: Collection[str] | None = None
) -> Iterator[Finding]:
    """What the numbers of objects of each class say. Crowd regions do not count.

    Args:
        train: a file's content, cleaned.
        val: likewise; None where there is no other.
        classes: names of the categories that are trained on; None is all.
    """
    chosen = [category for category in train["categories"] if classes is None or category["name"] in classes]
    if val is not None and _described(train) != _described(val):
        differing = sorted(_described(train) ^ _described(val))
        message = f"training and validation list different categories: {str(differing)[:200]}"
        yield Finding("val", "categories_differ", message)
    in_train, in_val = _counts(train), _counts(val) if val is not None else Counter()
    for category in chosen:
        number, name = category["id"], category["name"]
        if not in_train[number] and in_val[number]:
            message = f"{name}: {in_val[number]} objects in validation, none in training: it cannot be learned"
            yield Finding("val", "class_in_val_only", message, file=str(name))
        elif not in_train[number]:
            yield Finding("train", "class_without_objects", f"{name} has no object", file=str(name))
        elif val is not None and not in_val[number]:
            message = f"{name}: {in_train[number]} objects in training, none in validation: it is not scored"
            yield Finding("train", "class_in_train_only", message, file=str(name))
        if 0 < in_train[number] < _RARE:
            yield Finding("train", "rare_class", f"{name} has {in_train[number]} objects in training", file=str(name))
    present = [(in_train[category["id"]], str(category["name"])) for category in chosen if in_train[category["id"]]]
    if present and max(present)[0] > _IMBALANCE * min(present)[0]:
        (many, frequent), (few, rare) = max(present), min(present)
        message = (
            f"{frequent} has {many} objects, {rare} {few}: {many // few} times fewer. "
            "data.sampling={name: repeat_factor} shows images of rare classes more often"
        )
        yield Finding("train", "class_imbalance", message, file=frequent)


def _counts(content: dict[str, Any]) -> Counter[int]:
    return Counter(entry["category_id"] for entry in content["annotations"] if not entry.get("iscrowd"))


def _described(content: dict[str, Any]) -> set[tuple[int, str]]:
    return {(category["id"], str(category["name"])) for category in content["categories"]}
