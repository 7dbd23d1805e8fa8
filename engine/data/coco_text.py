"""A COCO file's text -> arrays, without a Python object for each number: for files in which nothing is out of the ordinary.

Where anything is, `parse` gives None, and the careful reader of `engine.data.coco_json`, which says what is wrong and where,
has the word. So nothing here explains itself to a user.
"""

import codecs
import contextlib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any

import msgspec
import numpy as np

from engine.data.number_text import read_numbers
from engine.data.ragged import Ragged
from engine.data.segmentations import (
    Segmentations,
    in_order,
    no_columns,
    polygon_columns,
    rle_columns,
    runs_columns,
    segmentations_of,
)

CHUNK = 1 << 21  # bytes of annotations read at once


class _Image(msgspec.Struct, gc=False):
    id: int
    file_name: str
    height: int
    width: int


class _Annotation(msgspec.Struct, gc=False):
    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float | None = None
    iscrowd: int | bool | None = None
    keypoints: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    segmentation: msgspec.Raw = msgspec.Raw(b"null")


class _Beside(msgspec.Struct):
    """The file's other lists, as far as they stand in one part of it."""

    images: list[_Image] | msgspec.UnsetType = msgspec.UNSET
    categories: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    annotations: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    last: list[_Annotation] | msgspec.UnsetType = msgspec.field(default=msgspec.UNSET, name="the last annotations")


class _Rle(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    counts: msgspec.Raw
    size: tuple[int, int]


@dataclass(frozen=True)
class Rows:
    """The annotations of a file in its order, as the file states them."""

    ids: np.ndarray  # (N,) int64
    image_ids: np.ndarray
    category_ids: np.ndarray
    boxes: np.ndarray  # (N, 4) float64: x, y, width, height
    areas: np.ndarray  # (N,) float64, NaN where there is none
    iscrowd: np.ndarray  # (N,) int64, 0 or 1
    keypoints: Ragged  # (N,) of float64; no numbers where they are missing
    segmentations: Segmentations


@dataclass(frozen=True)
class CocoText:
    """What `parse` finds."""

    image_ids: np.ndarray  # (I,) int64
    file_names: list[str]
    heights: np.ndarray  # (I,) int64
    widths: np.ndarray
    categories: list[dict[str, Any]]
    rows: Rows


def parse(text: bytes) -> CocoText | None:
    """The lists of a COCO file; None where it takes the careful reader to say what they are.

    What is given is what `json` would have read. It is not checked beyond its types: ids may be doubled, or name nothing.
    """
    if not _is_utf8(text):
        return None
    try:
        begun = _begin(text)
        if begun is None:
            return None
        before, start = begun
        parts: list[Rows] = []
        after = before
        for entries, beside in _entries(text, start):
            parts.append(_rows(entries))
            after = beside or after
        # What stands twice in an object counts where it stands last; a second list of annotations has not been read.
        images = before.images if after.images is msgspec.UNSET else after.images
        raw = before.categories if after.categories is msgspec.UNSET else after.categories
        if after.annotations is not msgspec.UNSET or images is msgspec.UNSET or raw is msgspec.UNSET:
            return None
        categories = json.loads(bytes(raw))
        if not isinstance(categories, list) or not all(isinstance(category, dict) for category in categories):
            return None
        return CocoText(
            image_ids=np.array([image.id for image in images], np.int64),
            file_names=[image.file_name for image in images],
            heights=np.array([image.height for image in images], np.int64),
            widths=np.array([image.width for image in images], np.int64),
            categories=categories,
            rows=_joined(parts),
        )
    # NaN, a field of another type, a whole number beyond 64 bits, lists nested a thousand deep
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
        return None


def _is_utf8(text: bytes) -> bool:
    """Whether `json` would take it for text: msgspec does not look into the strings it skips."""
    if text.isascii():
        return True
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(text), 1 << 20):
            decoder.decode(text[start : start + (1 << 20)])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _begin(text: bytes) -> tuple[_Beside, int] | None:
    """What stands before the annotations, and where the first of them begins."""
    for found in itertools.islice(re.finditer(rb'"annotations"\s*:\s*\[', text), 10):
        with contextlib.suppress(msgspec.DecodeError):  # the word stands in a text, or the list in another object
            return msgspec.json.decode(text[: found.end()] + b"]}", type=_Beside), found.end()
    return None


def _entries(text: bytes, start: int) -> Iterator[tuple[list[_Annotation], _Beside | None]]:
    """The annotations, some at a time, and what stands after them with the last.

    They are cut where one object seems to end and another to begin. A cut at a wrong place, in a string or within an object,
    leaves a piece that is no balanced list, and no JSON: then the piece is made longer. Neither is a piece that reaches beyond
    the list, so the last ones are read with all that follows.

    Args:
        start: where the first one begins.
    """
    seam = re.compile(rb"\}\s*,\s*\{")
    decoder = msgspec.json.Decoder(list[_Annotation])
    size = CHUNK
    while found := seam.search(text, start + size):
        try:
            entries = decoder.decode(b"".join((b"[", memoryview(text)[start : found.start() + 1], b"]")))
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            size *= 2
            continue
        yield entries, None
        start, size = found.end() - 1, CHUNK
    rest = text[start:]
    if b"the last annotations" in rest:
        raise ValueError("a name that is needed here")
    beside = msgspec.json.decode(b'{"the last annotations":[' + rest, type=_Beside)
    assert beside.last is not msgspec.UNSET
    yield beside.last, beside


def _rows(entries: list[_Annotation]) -> Rows:
    crowds = np.array([entry.iscrowd or 0 for entry in entries], np.int64)
    if not np.isin(crowds, (0, 1)).all():
        raise ValueError("a crowd flag is 0 or 1")
    return Rows(
        ids=np.array([entry.id for entry in entries], np.int64),
        image_ids=np.array([entry.image_id for entry in entries], np.int64),
        category_ids=np.array([entry.category_id for entry in entries], np.int64),
        boxes=np.fromiter(chain.from_iterable([entry.bbox for entry in entries]), np.float64, 4 * len(entries)).reshape(-1, 4),
        areas=np.array([entry.area for entry in entries], np.float64),
        iscrowd=crowds,
        keypoints=_keypoints([b"" if entry.keypoints is msgspec.UNSET else bytes(entry.keypoints) for entry in entries]),
        segmentations=_segmentations([bytes(entry.segmentation) for entry in entries]),
    )


def _keypoints(texts: list[bytes]) -> Ragged:
    """Lists of numbers from their JSON; where there is none, no numbers."""
    rows = [row for row, text in enumerate(texts) if text not in (b"", b"null", b"[]")]
    lengths = np.zeros(len(texts), np.int64)
    if not rows:
        return Ragged.of_lengths(np.zeros(0, np.float64), lengths)
    if not all(texts[row][:1] == b"[" for row in rows):
        raise ValueError("keypoints are no list")
    found = read_numbers(b"&".join([texts[row][1:-1] for row in rows]).translate(None, _BLANK))
    if found is None:
        raise ValueError("keypoints are no numbers")
    values, marks = found
    lengths[rows] = np.diff(np.flatnonzero(marks == ord("&")), prepend=-1)
    return Ragged.of_lengths(values if values.dtype == np.float64 else values / 100, lengths)


def _joined(parts: list[Rows]) -> Rows:
    columns: dict[str, Any] = {field.name: [getattr(part, field.name) for part in parts] for field in fields(Rows)}
    parts.clear()  # so that each column's parts are gone before those of the next are joined
    for field in fields(Rows):
        join: Any = field.type.join if field.type in (Ragged, Segmentations) else np.concatenate
        columns[field.name] = join(columns[field.name])
    return Rows(**columns)


def _segmentations(texts: list[bytes]) -> Segmentations:
    """Segmentations from their JSON."""
    lists: list[int] = []
    objects: list[int] = []
    others: list[int] = []
    for row, text in enumerate(texts):
        if text[:2] == b"[[" or (text[:1] == b"[" and text[1:].lstrip(_BLANK)[:1] == b"["):
            lists.append(row)
        else:
            (objects if text[:1] == b"{" and len(text) > 2 else others).append(row)
    polygons, rle = _polygons([texts[row] for row in lists]), _rle([texts[row] for row in objects])
    if polygons is None or rle is None:
        return segmentations_of([msgspec.json.decode(text) for text in texts])
    if len(lists) == len(texts):
        return polygons
    rest = segmentations_of([msgspec.json.decode(texts[row]) for row in others])
    return in_order([polygons, rle, rest], [lists, objects, others])


def _polygons(texts: list[bytes]) -> Segmentations | None:
    """Lists that begin with a list as columns; None where one holds anything but lists of numbers, or an empty one."""
    if not texts:
        return no_columns(0)
    # The brackets between two rows, and between two polygons, become one mark each, that sorts below the digits as the comma.
    # Other brackets than those of two levels, beginning and ending together, leave some behind, which are no digits.
    text = b"&".join([text[2:-2] for text in texts])
    if b" " in text or b"\n" in text:
        # White space within a string would matter; but a string is no number, and is found below.
        text = b"&".join([text.translate(None, _BLANK)[2:-2] for text in texts])
    found = read_numbers(text.replace(b"],[", b"!"))
    if found is None:
        return None
    values, marks = found
    ends = np.flatnonzero(marks != ord(","))
    polygons = Ragged(values, np.concatenate([[0], ends + 1]))
    rows = np.flatnonzero(marks[ends] == ord("&"))
    return polygon_columns(polygons, np.diff(rows, prepend=-1), hundredths=values.dtype != np.float64)


def _rle(texts: list[bytes]) -> Segmentations | None:
    """RLE of one form or the other as columns; None where one has other fields, or they are not what they should be."""
    try:
        rles = [_RLE.decode(text) for text in texts]
    except msgspec.DecodeError:
        return None
    counts = [bytes(rle.counts) for rle in rles]
    sizes = np.array([rle.size for rle in rles], np.int64).reshape(-1, 2)
    if (sizes < 0).any():
        return None
    compressed = [row for row, text in enumerate(counts) if text[:1] == b'"']
    lists = [row for row, text in enumerate(counts) if text[:1] == b"[" and len(text) > 2]
    if len(compressed) + len(lists) < len(counts):
        return None
    strings = b"".join([counts[row] for row in compressed])
    if b"\\" in strings or not strings.isascii():
        return None
    parts = [rle_columns(Ragged.of_bytes(counts[row][1:-1] for row in compressed), sizes[compressed]), no_columns(0)]
    if lists:
        text = b"&".join([counts[row][1:-1] for row in lists]).translate(None, _BLANK)
        found = read_numbers(text) if b"." not in text else None
        if found is None or found[0].dtype == np.float64:
            return None
        runs = Ragged(found[0] // 100, np.concatenate([[0], np.flatnonzero(found[1] == ord("&")) + 1]))
        parts[1] = runs_columns(replace(runs, values=runs.values.astype(np.uint32)), sizes[lists])
    return in_order(parts, [compressed, lists])


_BLANK = b" \t\r\n"
_RLE = msgspec.json.Decoder(_Rle)
