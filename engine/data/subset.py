"""A part of a data set: some of its classes, or only the images with objects."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from backbones.errors import UserError, did_you_mean
from engine.data.annotations import Annotations
from engine.data.ragged import Ragged


@dataclass(frozen=True)
class _Subset(Annotations):
    """What `select` gives: another process is sent what it was selected from, which may be a file that all can map."""

    selection: tuple[Any, ...] = field(default=(), compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return _select, self.selection


def select(annotations: Annotations, *, classes: Sequence[str] | None = None, drop_empty: bool = False) -> Annotations:
    """The annotations of some classes, and of the images that are wanted.

    Labels are counted anew: as ever, by the order of the categories' ids. Objects of other classes are gone; what they cover is
    background.

    Args:
        classes: names of categories; None keeps all.
        drop_empty: leave out images without an object of them; one with crowd regions alone counts as empty.

    Raises:
        UserError: a class is given twice, or is not in the file; the message names the nearest.
    """
    if classes is not None:
        names = {category.name for category in annotations.categories}
        twice = [name for name, count in Counter(classes).items() if count > 1]
        problems = [f"{name!r} is given twice." for name in twice]
        problems += [
            f"{annotations.path} has no class {name!r}.{did_you_mean(name, names)}" for name in classes if name not in names
        ]
        if problems:
            raise UserError(f"data.classes: {' '.join(problems)}")
    if classes is None and not drop_empty:
        return annotations
    return _select(annotations, None if classes is None else tuple(classes), drop_empty)


def _select(annotations: Annotations, classes: tuple[str, ...] | None, drop_empty: bool) -> Annotations:
    kept = [category for category in annotations.categories if classes is None or category.name in classes]
    new_label = np.zeros(len(annotations.categories) + 1, np.int64)
    for label, category in enumerate(annotations.categories, start=1):
        new_label[label] = kept.index(category) + 1 if category in kept else 0
    labels = new_label[annotations.labels]
    image_of = np.repeat(np.arange(len(annotations)), np.diff(annotations.offsets))
    images = np.arange(len(annotations))
    if drop_empty:
        images = np.unique(image_of[(labels > 0) & (annotations.iscrowd == 0)])
    rows = np.flatnonzero((labels > 0) & np.isin(image_of, images))
    counts = np.bincount(image_of[rows], minlength=len(annotations))[images]
    segmentations = annotations.segmentations.take(rows)
    num_keypoints = max(len(category.keypoints) for category in kept)
    changed = {
        "categories": kept,
        "image_ids": annotations.image_ids[images],
        "file_names": Ragged.of_bytes(annotations.file_names[index].tobytes() for index in images.tolist()),
        "heights": annotations.heights[images],
        "widths": annotations.widths[images],
        "offsets": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        "boxes": annotations.boxes[rows],
        "labels": labels[rows],
        "areas": annotations.areas[rows],
        "iscrowd": annotations.iscrowd[rows],
        "annotation_ids": annotations.annotation_ids[rows],
        "segmentations": segmentations,
        "keypoints": annotations.keypoints[rows][:, :num_keypoints],
        "has_masks": segmentations.has_masks(),
        "store": None,
    }
    same = {entry.name: getattr(annotations, entry.name) for entry in fields(Annotations) if entry.name not in changed}
    return _Subset(**changed, **same, selection=(annotations, classes, drop_empty))
