"""The segmentations of many objects as arrays, from which each comes back as the annotation file has it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain, pairwise
from typing import Any

import numpy as np

from engine.data.masks import has_mask
from engine.data.ragged import Ragged

# What a row's kind says of the column its data are in.
NONE, HUNDREDTHS, FLOATS, RLE, RUNS, JSON = range(6)
_EXACT = 2.0**53  # whole numbers from here on may not be what the file says once they are floats


@dataclass(frozen=True)
class Segmentations:
    """`segmentations[row]` is equal to what `json` makes of the file: [] where there is none, polygons, or an RLE dict.

    Polygons whose numbers have two decimals at most, as COCO's, are whole hundredths, in half or a quarter of the memory: a
    number divided by 100 again is the float that `json` reads, since both are the one nearest to the decimal number. What has
    an unforeseen form, perhaps a malformed one, is kept as JSON.
    """

    kinds: np.ndarray  # (N,) uint8: NONE ... JSON
    places: np.ndarray  # (N,) int32: in its kind's column, of polygons the first
    lengths: np.ndarray  # (N,) int32: polygons
    hundredths: Ragged  # (P,) of uint16 or int32
    floats: Ragged  # (P,) of float64
    rle: Ragged  # (R,) of uint8: the text of compressed RLE
    rle_sizes: np.ndarray  # (R, 2) int64: height, width
    runs: Ragged  # (U,) of uint32: the counts of uncompressed RLE
    runs_sizes: np.ndarray
    json: Ragged  # (J,) of uint8

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, row: int) -> Any:
        kind, place = self.kinds[row], int(self.places[row])
        if kind == NONE:
            return []
        if kind in (HUNDREDTHS, FLOATS):
            column = self.hundredths if kind == HUNDREDTHS else self.floats
            bounds = column.offsets[place : place + self.lengths[row] + 1].tolist()
            numbers = column.values[bounds[0] : bounds[-1]].astype(np.float64)
            numbers = (numbers / 100 if kind == HUNDREDTHS else numbers).tolist()
            return [numbers[a - bounds[0] : b - bounds[0]] for a, b in pairwise(bounds)]
        if kind == RLE:
            return {"size": self.rle_sizes[place].tolist(), "counts": self.rle[place].tobytes().decode()}
        if kind == RUNS:
            return {"size": self.runs_sizes[place].tolist(), "counts": self.runs[place].tolist()}
        return json.loads(self.json[place].tobytes())

    def take(self, rows: np.ndarray) -> "Segmentations":
        """These rows, in this order."""
        return replace(self, kinds=self.kinds[rows], places=self.places[rows], lengths=self.lengths[rows])

    def has_masks(self) -> bool:
        """Whether any row covers anything at all, as `engine.data.masks.has_mask` has it."""
        if np.isin(self.kinds, (RLE, RUNS)).any():
            return True
        for kind, column in ((HUNDREDTHS, self.hundredths), (FLOATS, self.floats)):
            rows = np.flatnonzero(self.kinds == kind)
            large = np.concatenate([[0], np.cumsum(column.lengths >= 6)])
            if (large[self.places[rows] + self.lengths[rows]] > large[self.places[rows]]).any():
                return True
        return any(has_mask(self[int(row)]) for row in np.flatnonzero(self.kinds == JSON))

    def columns(self) -> dict[str, np.ndarray]:
        """All arrays by name, which `from_columns` takes."""
        named: dict[str, np.ndarray] = {}
        for field in fields(self):
            column = getattr(self, field.name)
            parts = (
                {f".{part.name}": getattr(column, part.name) for part in fields(Ragged)}
                if field.type is Ragged
                else {"": column}
            )
            named |= {field.name + name: part for name, part in parts.items()}
        return named

    @classmethod
    def from_columns(cls, columns: dict[str, np.ndarray]) -> "Segmentations":
        """What gave these columns."""
        found: dict[str, Any] = {}
        for field in fields(cls):
            parts = [columns[f"{field.name}.{part.name}"] for part in fields(Ragged)] if field.type is Ragged else []
            found[field.name] = Ragged(*parts) if parts else columns[field.name]
        return cls(**found)

    @classmethod
    def join(cls, parts: "Sequence[Segmentations]") -> "Segmentations":
        """The rows of all."""
        if not parts:
            return segmentations_of([])
        places = []
        before = np.zeros(JSON + 1, np.int64)  # entries of the parts before, by kind
        for part in parts:
            places.append((part.places + before[part.kinds]).astype(np.int32))
            before += [0, *(len(column) for column in (part.hundredths, part.floats, part.rle, part.runs, part.json))]
        joined: dict[str, Any] = {"places": np.concatenate(places)}
        for field in fields(cls):
            if field.name not in joined:
                join: Callable[..., Any] = Ragged.join if field.type is Ragged else np.concatenate
                joined[field.name] = join([getattr(part, field.name) for part in parts])
        return cls(**joined)


def segmentations_of(segmentations: Sequence[Any]) -> Segmentations:
    """Segmentations as `json` gives them, as columns; whatever is empty or null is []."""
    rows: dict[int, list[int]] = {kind: [] for kind in (NONE, FLOATS, RLE, RUNS, JSON)}
    for row, segmentation in enumerate(segmentations):
        rows[_kind(segmentation) if segmentation else NONE].append(row)
    polygons, rle, runs, other = ([segmentations[row] for row in rows[kind]] for kind in (FLOATS, RLE, RUNS, JSON))
    counts = [one["counts"] for one in runs]
    parts = [
        no_columns(len(rows[NONE])),
        polygon_columns(_rows(list(chain.from_iterable(polygons)), np.float64), _lengths(polygons)),
        rle_columns(Ragged.of_bytes(one["counts"].encode() for one in rle), _sizes(rle)),
        runs_columns(_rows(counts, np.uint32), _sizes(runs)),
        _json_columns(Ragged.of_bytes(json.dumps(one).encode() for one in other)),
    ]
    return in_order(parts, list(rows.values()))


def in_order(parts: Sequence[Segmentations], rows: Sequence[Sequence[int]]) -> Segmentations:
    """One of parts of whose rows it is known which ones they are of the whole."""
    return Segmentations.join(parts).take(np.argsort(np.concatenate([np.array(part, np.int64) for part in rows])))


def no_columns(count: int) -> Segmentations:
    """Rows without a segmentation."""
    nothing, sizes, zeros = np.zeros(1, np.int64), np.zeros((0, 2), np.int64), np.zeros(count, np.int32)
    empty = {dtype: Ragged(np.zeros(0, dtype), nothing) for dtype in ("uint8", "uint16", "uint32", "float64")}
    return Segmentations(
        kinds=zeros.astype(np.uint8),
        places=zeros,
        lengths=zeros,
        hundredths=empty["uint16"],
        floats=empty["float64"],
        rle=empty["uint8"],
        rle_sizes=sizes,
        runs=empty["uint32"],
        runs_sizes=sizes,
        json=empty["uint8"],
    )


def rle_columns(texts: Ragged, sizes: np.ndarray) -> Segmentations:
    """Rows that are compressed RLE, of texts in ASCII and of sizes (N, 2)."""
    return replace(_one_each(len(texts), RLE), rle=texts, rle_sizes=sizes)


def runs_columns(counts: Ragged, sizes: np.ndarray) -> Segmentations:
    """Rows that are uncompressed RLE, of counts in uint32 and of sizes (N, 2)."""
    return replace(_one_each(len(counts), RUNS), runs=counts, runs_sizes=sizes)


def _json_columns(texts: Ragged) -> Segmentations:
    return replace(_one_each(len(texts), JSON), json=texts)


def _one_each(count: int, kind: int) -> Segmentations:
    return replace(no_columns(count), kinds=np.full(count, kind, np.uint8), places=np.arange(count, dtype=np.int32))


def polygon_columns(polygons: Ragged, per_row: np.ndarray, *, hundredths: bool = False) -> Segmentations:
    """Rows that are lists of polygons, none of them empty.

    Args:
        polygons: their numbers x, y, x, y, ...: float64 pixels, or whole hundredths.
        per_row: (N,) how many polygons each row has.
        hundredths: whether the numbers are hundredths, from 0 on and below 2 ** 31.
    """
    nothing = no_columns(0)
    whole, floats = np.ones(len(per_row), np.bool_), nothing.floats
    if not hundredths:
        with np.errstate(over="ignore"):
            rounded = np.rint(polygons.values * 100)
        other = (rounded / 100 != polygons.values) | ~(rounded >= 0) | ~(rounded < 2**31)
        others = np.concatenate([[0], np.cumsum(other)])[polygons.offsets[np.concatenate([[0], np.cumsum(per_row)])]]
        whole = others[1:] == others[:-1]
        of_polygon = np.repeat(whole, per_row)
        of_number = np.repeat(of_polygon, polygons.lengths)
        floats = Ragged.of_lengths(polygons.values[~of_number], polygons.lengths[~of_polygon])
        polygons = Ragged.of_lengths(rounded[of_number].astype(np.int32), polygons.lengths[of_polygon])
    dtype = np.uint16 if polygons.values.max(initial=0) < 2**16 else np.int32
    return replace(
        nothing,
        kinds=np.where(whole, HUNDREDTHS, FLOATS).astype(np.uint8),
        places=np.where(whole, _places(per_row * whole), _places(per_row * ~whole)).astype(np.int32),
        lengths=per_row.astype(np.int32),
        hundredths=replace(polygons, values=polygons.values.astype(dtype)),
        floats=floats,
    )


def _rows(rows: Sequence[Sequence[Any]], dtype: type) -> Ragged:
    return Ragged.of_lengths(np.array(list(chain.from_iterable(rows)), dtype), _lengths(rows))


def _lengths(rows: Sequence[Sequence[Any]]) -> np.ndarray:
    return np.array([len(row) for row in rows], np.int64)


def _sizes(rles: Sequence[dict[str, Any]]) -> np.ndarray:
    return np.array([rle["size"] for rle in rles], np.int64).reshape(-1, 2)


def _places(lengths: np.ndarray) -> np.ndarray:
    """Where each row of these lengths begins."""
    return np.cumsum(lengths) - lengths


def _kind(segmentation: Any) -> int:
    """The kind of a segmentation that is not empty; polygons are FLOATS, until it is seen that hundredths hold them."""
    if isinstance(segmentation, list):
        if set(map(type, segmentation)) == {list} and _are_numbers(list(chain.from_iterable(segmentation))):
            return FLOATS
    elif isinstance(segmentation, dict) and segmentation.keys() == {"size", "counts"}:
        size, counts = segmentation["size"], segmentation["counts"]
        if isinstance(size, list) and len(size) == 2 and _are_whole(size):
            if isinstance(counts, str) and counts.isascii():
                return RLE
            if isinstance(counts, list) and _are_whole(counts):
                return RUNS
    return JSON


def _are_numbers(values: list[Any]) -> bool:
    """Whether all are numbers, and equal to a float."""
    types = set(map(type, values))
    return types <= {int, float} and (int not in types or all(abs(value) < _EXACT for value in values if type(value) is int))


def _are_whole(values: list[Any]) -> bool:
    """Whether all are whole numbers that 32 bits hold."""
    return not values or (set(map(type, values)) == {int} and min(values) >= 0 and max(values) < 2**32)
