"""The quick check at the start of a run: what cannot be used is left out of training and counted; validation stops at it."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from backbones.errors import UserError
from engine.data.annotations import Annotations, load_annotations
from engine.data.cache import default_cache_dir
from engine.data.converters.coco_writer import write_json
from engine.data.doctor.annotation_checks import read_content
from engine.data.doctor.findings import KINDS, Finding, by_kind
from engine.data.doctor.fix import usable
from engine.data.doctor.image_checks import glance_at_images
from engine.data.doctor.mask_checks import problem_of_mask
from engine.data.ragged import Ragged
from engine.data.segmentations import FLOATS, HUNDREDTHS, NONE
from engine.data.sources import CocoPaths
from engine.distributed import World
from engine.files import make_folder

VERSION = 1  # of what is left out: raise it when that changes
HINT = "tools/check_data.py lists all that is wrong with a config's data; its --fix leaves it out of a copy."
_MOST = 0.5  # of the images or annotations that may be left out: more is a wrong path, or another format

MARKED_FROM = 5_000  # images: to look at the headers of fewer takes less than a second
_UNSETTLED = 2_000_000_000  # ns: the coarsest step of a file system's times

T = TypeVar("T")
OnFault = Literal["skip", "stop"]


def load_for_training(
    paths: CocoPaths,
    load: Callable[[Path], Annotations],
    *,
    on_fault: OnFault = "skip",
    with_masks: bool = True,
    world: World | None = None,
) -> tuple[Annotations, list[str]]:
    """The annotations of a training set without what cannot be used, and lines that say what was left out.

    Left out are images that are missing, are none, or have another size, and annotations that are malformed; a malformed mask
    leaves its object the box. Images are not decoded.

    Args:
        load: reads a file's annotations, and raises alike on all processes.
        on_fault: stop raises in place of leaving anything out.
        with_masks: whether masks are used, and so looked at.

    Raises:
        UserError: something is wrong that cannot be left out: a file's form, its categories, or more than half of it.
    """
    lines: list[str] = []
    # Once cleaned, a file need not be read as a whole again, to be refused again.
    if on_fault == "skip" and _on_main(world, lambda: _known_copy(paths.annotations) is not None, otherwise=False):
        annotations, lines = _load_cleaned(paths.annotations, None, world)
    else:
        try:
            annotations = load(paths.annotations)
        except UserError as error:
            if on_fault == "stop":
                raise UserError(f"{error} {HINT}") from None
            annotations, lines = _load_cleaned(paths.annotations, error, world)
    images, masks = _on_main(world, lambda: _faults(paths, annotations, with_masks=with_masks), otherwise=_SOUND)
    faults = images + masks
    if not faults:
        return annotations, lines
    if on_fault == "stop":
        raise UserError(_first(faults, paths.annotations))
    if len(images) > _MOST * len(annotations):
        raise UserError(
            f"{len(images)} of {len(annotations)} training images cannot be used. {_first(images, paths.annotations)}"
        )
    gone = sorted({finding.place[1] for finding in images if finding.place})
    unmasked = sorted({finding.place[1] for finding in masks if finding.place})
    remaining = without(annotations, images=gone, masks=unmasked)
    went = len(annotations.boxes) - len(remaining.boxes)
    return remaining, lines + left_out(faults) + [f"left out: {went} training objects in these images"] * bool(went)


def check_for_validation(paths: CocoPaths, load: Callable[[Path], Annotations], *, world: World | None = None) -> Annotations:
    """The annotations of a validation set, in which nothing may be at fault: a score on a part of it is another score.

    Raises:
        UserError: an entry is malformed, or an image missing, none, or of another size.
    """
    try:
        annotations = load(paths.annotations)
    except UserError as error:
        raise UserError(f"{error} {HINT}") from None
    images, _ = _on_main(world, lambda: _faults(paths, annotations, with_masks=False), otherwise=_SOUND)
    if images:
        raise UserError(_first(images, paths.annotations))
    return annotations


def left_out(findings: Sequence[Finding], *, shown: int = 5) -> list[str]:
    """A line for each kind of fault: how many are left out, and the first of them."""
    lines = []
    parts = [[f for f in findings if (f.place is not None and f.place[0] == "images") == images] for images in (True, False)]
    for images, part in zip((True, False), parts, strict=True):
        for (_, kind), group in by_kind(part).items():
            what = {"drop_mask": "masks", "drop_field": "fields", "renumber": "ids"}.get(
                str(KINDS[kind].remedy), "images" if images else "objects"
            )
            names = [f"{finding.image_id} ({finding.file})" if images else str(finding.annotation_id) for finding in group]
            more = f" and {len(group) - shown} more" if len(group) > shown else ""
            which = f"{'image' if images else 'annotation'} {', '.join(names[:shown])}{more}"
            done = "replaced" if what == "ids" else "left out"
            lines.append(f"{done}: {len(group)} training {what}, {kind.replace('_', ' ')}: {which}")
    return lines


# ---- A file that the loader refuses ----


def _load_cleaned(path: Path, error: UserError | None, world: World | None) -> tuple[Annotations, list[str]]:
    """What is usable of a file. The cleaned copy is kept in the cache folder, so that it is made, and parsed, but once."""
    if world is not None and not world.is_main:
        world.barrier()
    try:
        copy, lines = _cleaned_copy(path, error)
        # A store of the copy is what other processes are sent; messages name the file itself.
        return replace(load_annotations(copy), path=path), lines
    finally:
        if world is not None and world.is_main:
            world.barrier()


def _copy_of(path: Path) -> tuple[Path, Path, list[int]]:
    """Where a file's cleaned copy is, and the record of what was left out of it; what they are recognised by."""
    status = path.stat()
    key = [VERSION, status.st_size, status.st_mtime_ns]
    named = f"{path.stem}-{hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:16]}"
    folder = default_cache_dir() / "annotations"
    # Which version of the file the copy is of is in its name: another process's copy cannot come between record and copy.
    version = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    return folder / f"{named}-{version}.json", folder / f"{named}.cleaned.json", key


def _record(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _known_copy(path: Path) -> tuple[Path, list[str]] | None:
    """The cleaned copy of a file as it is now, and what was left out; None where there is none yet."""
    copy, record, key = _copy_of(path)
    known = _record(record)
    return (copy, known["lines"]) if known.get("key") == key and "lines" in known and copy.is_file() else None


def _cleaned_copy(path: Path, error: UserError | None) -> tuple[Path, list[str]]:
    """A file's cleaned copy, made where there is none yet; `error` is why."""
    found = _known_copy(path)
    if found is not None:
        return found
    copy, record, key = _copy_of(path)
    known = _record(record)
    error = error or UserError(f"{path} has changed while it was read. Start again.")
    content, _ = read_content(path, split="train")
    if content is None:
        raise error
    cleaned, faults, changes = usable(content, split="train", path=path)
    images, objects = len(cleaned["images"]), len(cleaned["annotations"])
    few = images < (1 - _MOST) * len(content["images"]) or objects < (1 - _MOST) * len(content["annotations"])
    if changes.left or few:
        raise UserError(f"{error} {HINT}")
    lines = left_out(faults)
    lines += [f"left out: {changes.with_images} training objects in these images"] * bool(changes.with_images)
    write_json(copy, cleaned)
    write_json(record, {"key": key, "lines": lines, "copy": copy.name})
    if isinstance(known.get("copy"), str) and known["copy"] != copy.name:
        for old in copy.parent.glob(f"{Path(known['copy']).name}*"):
            old.unlink(missing_ok=True)
    return copy, lines


# ---- Faults that a file's columns and the images' headers show ----

Faults = tuple[list[Finding], list[Finding]]
_SOUND: Faults = ([], [])


def _faults(paths: CocoPaths, annotations: Annotations, *, with_masks: bool) -> Faults:
    """Of images, and of masks; their places are those in the columns."""
    images = [
        {
            "id": int(annotations.image_ids[index]),
            "file_name": annotations.file_name(index),
            "height": int(annotations.heights[index]),
            "width": int(annotations.widths[index]),
        }
        for index in range(len(annotations))
    ]
    mark = _mark(paths, [annotations.file_name(index) for index in range(len(images))]) if len(images) >= MARKED_FROM else None
    of_images: list[Finding] = []
    if mark is None or not mark.is_file():
        of_images = glance_at_images(paths.images, list(enumerate(images)), split="train")
        if mark is not None and not of_images:
            with contextlib.suppress(OSError, UserError):
                make_folder(mark.parent)
                mark.touch()
    return of_images, _of_masks(annotations) if with_masks else []


def _mark(paths: CocoPaths, names: list[str]) -> Path | None:
    """The file that is there once all images of a large set were found sound; None where that cannot be known.

    Its name holds the times of change of the annotations and of the images' folders, in which no image came or went since. An
    image written over in place is not noticed before it is read.
    """
    folders = sorted({name.rpartition("/")[0] for name in names})
    try:
        facts = [paths.annotations.stat(), *((paths.images / folder).stat() for folder in folders)]
    except OSError:
        return None
    times = [status.st_mtime_ns for status in facts]
    if max(times) > time.time_ns() - _UNSETTLED:
        return None  # it could change again within the same tick of the file system's clock
    key = [VERSION, str(paths.annotations.absolute()), facts[0].st_size, str(paths.images.absolute()), folders, times]
    return default_cache_dir() / "annotations" / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.images-seen"


def _of_masks(annotations: Annotations) -> list[Finding]:
    """Malformed masks. Polygons, which are most, can only lack a number: that is seen without looking at each."""
    column = annotations.segmentations
    suspects = ~np.isin(column.kinds, (NONE, HUNDREDTHS, FLOATS))
    for kind, polygons in ((HUNDREDTHS, column.hundredths), (FLOATS, column.floats)):
        rows = np.flatnonzero(column.kinds == kind)
        odd = np.concatenate([[0], np.cumsum(polygons.lengths % 2)])
        suspects[rows] = odd[column.places[rows] + column.lengths[rows]] > odd[column.places[rows]]
    image_of = np.repeat(np.arange(len(annotations)), np.diff(annotations.offsets))
    found = []
    for row in np.flatnonzero(suspects).tolist():
        image = int(image_of[row])
        height, width = int(annotations.heights[image]), int(annotations.widths[image])
        problem = problem_of_mask(annotations.segmentation(row), height, width)
        if problem is not None:
            ids = int(annotations.image_ids[image]), int(annotations.annotation_ids[row])
            found.append(Finding("train", "malformed_mask", problem, annotations.file_name(image), *ids, ("annotations", row)))
    return found


def _on_main(world: World | None, look: Callable[[], T], *, otherwise: T) -> T:
    """What the main process finds, so that all processes do the same; `otherwise` stands in its place on the others."""
    if world is None or world.size == 1:
        return look()
    return world.broadcast(look() if world.is_main else otherwise)


def _first(faults: Sequence[Finding], path: Path) -> str:
    first = faults[0]
    more = f" {len(faults) - 1} more are at fault." if len(faults) > 1 else ""
    return f"{path}: {first.name}: {first.message}.{more} {HINT}"


# ---- Without them ----


@dataclass(frozen=True)
class _Without(Annotations):
    """What `without` gives: another process is sent what it was made from, which may be a file that all can map."""

    made_from: tuple[Any, ...] = field(default=(), compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return _without, self.made_from


def without(annotations: Annotations, *, images: Sequence[int] = (), masks: Sequence[int] = ()) -> Annotations:
    """The annotations without some images, by their place, and without the masks of some rows."""
    return _without(annotations, tuple(images), tuple(masks))


def _without(annotations: Annotations, images: tuple[int, ...], masks: tuple[int, ...]) -> Annotations:
    kept = np.delete(np.arange(len(annotations)), np.array(images, np.int64))
    image_of = np.repeat(np.arange(len(annotations)), np.diff(annotations.offsets))
    rows = np.flatnonzero(np.isin(image_of, kept))
    kinds = annotations.segmentations.kinds.copy()
    kinds[np.array(masks, np.int64)] = NONE
    segmentations = replace(annotations.segmentations, kinds=kinds).take(rows)
    changed: dict[str, Any] = {
        "file_names": Ragged.of_bytes(annotations.file_names[index].tobytes() for index in kept.tolist()),
        "offsets": np.concatenate([[0], np.cumsum(np.diff(annotations.offsets)[kept])]).astype(np.int64),
        "segmentations": segmentations,
        "has_masks": segmentations.has_masks(),
        "store": None,
    }
    for name in ("image_ids", "heights", "widths"):
        changed[name] = getattr(annotations, name)[kept]
    for name in ("boxes", "labels", "areas", "iscrowd", "annotation_ids", "keypoints"):
        changed[name] = getattr(annotations, name)[rows]
    same = {entry.name: getattr(annotations, entry.name) for entry in fields(Annotations) if entry.name not in changed}
    return _Without(**changed, **same, made_from=(annotations, images, masks))
