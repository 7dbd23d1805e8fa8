"""A COCO annotation file, checked and turned into columns, which all processes share."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from backbones.errors import UserError
from engine.data.coco_json import MOST_PIXELS, check_entries, clip_boxes, has_extent, object_area, read_carefully
from engine.data.coco_text import CocoText, parse
from engine.data.keypoints import keypoint_names, mirrored
from engine.data.outside_values import MOST, are_names
from engine.data.ragged import Ragged
from engine.data.segmentations import Segmentations
from engine.data.store import Store, Table, load_table, reopen

VERSION = 2  # of the columns: raise it when other ones are made of the same file, and stores of it are made anew
STORED_FROM = 4_000_000  # bytes: a smaller file is read as quickly as its store would be, and leaves none beside it


@dataclass(frozen=True, slots=True)
class Category:
    """A class as the annotation file names it. Its label is its place among the categories sorted by id, from 1."""

    id: int
    name: str
    keypoints: tuple[str, ...] = ()  # names of the points that are marked on each object of the class


@dataclass(frozen=True)
class Annotations:
    """Images and instances of a COCO file. Rows of image i are `offsets[i]:offsets[i + 1]`.

    Columns of a large file are mapped from its store (`engine.data.store`), in memory once for all processes; they can only be
    read. Nothing in here is a Python object for each row.
    """

    path: Path
    categories: list[Category]
    image_ids: np.ndarray  # (I,) int64, in the file's order
    file_names: Ragged  # (I,) UTF-8; see `file_name`
    heights: np.ndarray  # (I,) int64, pixels
    widths: np.ndarray
    offsets: np.ndarray  # (I + 1,) int64
    boxes: np.ndarray  # (N, 4) float32, xyxy pixels, within the image
    labels: np.ndarray  # (N,) int64, from 1
    areas: np.ndarray  # (N,) float32, pixels
    iscrowd: np.ndarray  # (N,) int64
    annotation_ids: np.ndarray  # (N,) int64
    segmentations: Segmentations  # (N,); see `segmentation`
    keypoints: np.ndarray  # (N, K, 3) float32: x, y in pixels, visibility (0: not labelled); K is the most any class has
    num_dropped: int  # annotations left out because their box has no width or height within the image
    has_masks: bool  # whether any object has a segmentation
    store: Store | None = field(default=None, compare=False)  # where the columns are mapped from

    def __len__(self) -> int:
        return len(self.image_ids)

    def __reduce__(self) -> str | tuple[Any, ...]:
        # A process that does not share this one's memory maps the store itself, rather than being sent a copy.
        return (_reopened, (self.path, self.store)) if self.store is not None else super().__reduce__()

    @property
    def class_names(self) -> list[str]:
        """Names by label; label 0 is the background."""
        return ["background", *(category.name for category in self.categories)]

    @property
    def num_keypoints(self) -> int:
        """Keypoints of an object: the most that any class has."""
        return self.keypoints.shape[1]

    @property
    def mirrored_keypoints(self) -> np.ndarray:
        """(labels, K) int64: for each label and keypoint, the place of the one it becomes in a mirror."""
        table = np.tile(np.arange(self.num_keypoints), (len(self.categories) + 1, 1))
        for label, category in enumerate(self.categories, start=1):
            table[label, : len(category.keypoints)] = mirrored(category.keypoints)
        return table

    def file_name(self, index: int) -> str:
        """The name of image `index`, as in the file."""
        return _decoded(self.file_names, index)

    def segmentation(self, row: int) -> Any:
        """The segmentation of a row, equal to what is in the file: polygons or RLE; [] where there is none."""
        return self.segmentations[row]


def load_annotations(path: str | Path, *, stored_from: int = STORED_FROM) -> Annotations:
    """Read and check a COCO annotation file, or map what an earlier call has made of it.

    Boxes are clipped to their image; those left without width or height are dropped, and counted. A missing `iscrowd` is 0, a
    missing `area` that of the mask, or of the box where there is none.

    Args:
        stored_from: the length, in bytes, from which on a file's columns are kept in a store.

    Raises:
        UserError: the file is missing, is no JSON, or lacks a list or a field; ids that are doubled or name nothing; boxes and
            masks that are malformed. The message names the entry.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no annotation file at {path}.")

    def build(text: bytes) -> Table:
        return _to_table(_from_text(path, text))

    if path.stat().st_size < stored_from:
        return _from_table(path, build(path.read_bytes()))
    return _from_table(path, load_table(path, build, version=VERSION))


def _from_text(path: Path, text: bytes) -> Annotations:
    found = parse(text)
    annotations = None if found is None else _assemble(path, found)
    if annotations is None:
        found, num_dropped = read_carefully(path, text)
        annotations = _assemble(path, found, num_dropped=num_dropped)
        assert annotations is not None, "what the careful reader lets pass can be assembled"
    return annotations


def _assemble(path: Path, found: CocoText, *, num_dropped: int = 0) -> Annotations | None:
    """The rows of each image together, as columns; None where something is wrong with them.

    Args:
        num_dropped: how many rows have been left out before.
    """
    rows = found.rows
    try:
        check_entries(path, "categories", found.categories)
        categories = [
            Category(c["id"], str(c["name"]), keypoint_names(c, str(path)))
            for c in sorted(found.categories, key=lambda c: c["id"])
        ]
    except UserError:
        return None
    places = _find(rows.image_ids, found.image_ids)
    labels = _find(rows.category_ids, np.array([category.id for category in categories], np.int64))
    if places is None or labels is None or _are_doubled(rows.ids):
        return None
    if min(found.heights.min(), found.widths.min()) < 1 or not are_names(found.file_names):
        return None
    if (found.heights.astype(np.float64) * found.widths).max() > MOST_PIXELS:
        return None
    if (np.abs(rows.areas) > MOST).any() or (np.abs(rows.keypoints.values) > MOST).any() or (np.abs(rows.boxes) > MOST).any():
        return None
    heights, widths = found.heights[places], found.widths[places]
    boxes = clip_boxes(rows.boxes, heights, widths)
    kept = np.flatnonzero(has_extent(boxes))
    order = kept[np.argsort(places[kept], kind="stable")]
    areas = rows.areas[order]
    for row in np.flatnonzero(np.isnan(areas)):
        of = order[row]
        annotation = {"segmentation": rows.segmentations[of], "bbox": rows.boxes[of].tolist()}
        try:
            areas[row] = object_area(annotation, int(heights[of]), int(widths[of]), str(path))
        except UserError:
            return None
    keypoints = _keypoints(rows.keypoints, order, labels[order], [len(category.keypoints) for category in categories])
    if keypoints is None:
        return None
    segmentations = rows.segmentations.take(order)
    return Annotations(
        path=path,
        categories=categories,
        image_ids=found.image_ids,
        file_names=Ragged.of_bytes(name.encode("utf-8", "surrogatepass") for name in found.file_names),
        heights=found.heights,
        widths=found.widths,
        offsets=np.concatenate([[0], np.cumsum(np.bincount(places[order], minlength=len(found.image_ids)))]).astype(np.int64),
        boxes=boxes[order],
        labels=labels[order] + 1,
        areas=areas.astype(np.float32),
        iscrowd=rows.iscrowd[order],
        annotation_ids=rows.ids[order],
        segmentations=segmentations,
        keypoints=keypoints,
        num_dropped=num_dropped + len(boxes) - len(kept),
        has_masks=segmentations.has_masks(),
    )


def _find(ids: np.ndarray, among: np.ndarray) -> np.ndarray | None:
    """The place of each id `among` some; None where one is not there, one there is doubled, or there are none."""
    if not len(among) or _are_doubled(among):
        return None
    order = np.argsort(among)
    places = order[np.searchsorted(among[order], ids).clip(max=len(among) - 1)]
    return places if (among[places] == ids).all() else None


def _are_doubled(ids: np.ndarray) -> bool:
    ordered = np.sort(ids)  # np.unique is five times slower
    return bool((ordered[1:] == ordered[:-1]).any())


def _keypoints(given: Ragged, order: np.ndarray, labels: np.ndarray, counts: list[int]) -> np.ndarray | None:
    """Keypoints (N, K, 3) float32 of rows in this order; None where there are not three numbers for each of a category's.

    Args:
        labels: (N,) place of each row's category, in this order.
        counts: how many keypoints each category has.
    """
    points = np.zeros((len(order), max(counts), 3), np.float32)
    numbers = given.lengths[order]
    for label in np.flatnonzero(counts):
        count = counts[label]
        rows = np.flatnonzero((labels == label) & (numbers > 0))
        if (numbers[rows] != 3 * count).any():
            return None
        places = given.offsets[order[rows]][:, None] + np.arange(3 * count)
        points[rows, :count] = given.values[places].reshape(len(rows), count, 3)
    return points


# ---- To the store and back ----

_PLAIN = ("image_ids", "heights", "widths", "offsets", "boxes", "labels", "areas", "iscrowd", "annotation_ids", "keypoints")


def _to_table(annotations: Annotations) -> Table:
    columns = {name: getattr(annotations, name) for name in _PLAIN}
    columns |= {"names": annotations.file_names.values, "name_offsets": annotations.file_names.offsets}
    columns |= {f"segmentations.{name}": column for name, column in annotations.segmentations.columns().items()}
    facts = {
        "categories": [[category.id, category.name, category.keypoints] for category in annotations.categories],
        "num_dropped": annotations.num_dropped,
        "has_masks": annotations.has_masks,
    }
    return Table(facts, columns)


def _from_table(path: Path, table: Table) -> Annotations:
    columns, prefix = table.columns, "segmentations."
    names = Ragged(columns["names"], columns["name_offsets"])
    if table.store is not None and not are_names([_decoded(names, index) for index in range(len(names))]):
        raise UserError(f"{table.store.path} was not made here: it names files out of the images folder. Delete it.")
    return Annotations(
        path=path,
        categories=[Category(number, name, tuple(keypoints)) for number, name, keypoints in table.facts["categories"]],
        file_names=names,
        segmentations=Segmentations.from_columns(
            {name.removeprefix(prefix): column for name, column in columns.items() if name.startswith(prefix)}
        ),
        num_dropped=table.facts["num_dropped"],
        has_masks=table.facts["has_masks"],
        store=table.store,
        **{name: columns[name] for name in _PLAIN},
    )


def _decoded(names: Ragged, index: int) -> str:
    return names[index].tobytes().decode("utf-8", "surrogatepass")


def _reopened(path: Path, store: Store) -> Annotations:
    table = reopen(store)
    if table is None:
        raise UserError(f"{path} has changed, or {store.path} is gone, since this run began. Start it again.")
    return _from_table(path, table)
