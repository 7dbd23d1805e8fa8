"""The checks of all image files of a split, over all cores."""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from engine.data.doctor.findings import Finding
from engine.data.doctor.image_files import ImageFacts, examine, glance

Listed = tuple[int, dict[str, Any]]  # an image's place in its list, and its entry, which is well-formed
T = TypeVar("T")


def check_images(
    folder: Path, images: Sequence[Listed], *, split: str, on_progress: Callable[[int], None] | None = None
) -> tuple[list[Finding], dict[int, ImageFacts]]:
    """What is wrong with the files of these images, each decoded once; and what is known of each, by its place.

    Args:
        on_progress: called with the number of images done.
    """
    found: list[Finding] = []
    facts: dict[int, ImageFacts] = {}
    for done, ((place, image), fact) in enumerate(zip(images, _on_all(folder, images, examine), strict=True), start=1):
        facts[place] = fact
        found += [_finding(split, place, image, *fault) for fault in fact.faults]
        if on_progress is not None:
            on_progress(done)
    return found, facts


def glance_at_images(folder: Path, images: Sequence[Listed], *, split: str) -> list[Finding]:
    """The faults that the files' headers show: a tenth of a millisecond each."""
    faults = zip(images, _on_all(folder, images, glance), strict=True)
    return [_finding(split, place, image, *fault) for (place, image), fault in faults if fault is not None]


def _finding(split: str, place: int, image: dict[str, Any], kind: str, message: str) -> Finding:
    return Finding(split, kind, message, file=image["file_name"], image_id=image["id"], place=("images", place))


def _on_all(folder: Path, images: Sequence[Listed], look: Callable[[Path, int, int], T]) -> Iterator[T]:
    """`look` at each file, in order. Pillow decodes and hashlib hashes without the interpreter: threads use all cores."""

    def task(listed: Listed) -> T:
        image = listed[1]
        return look(folder / image["file_name"], image["height"], image["width"])

    # Set once, around all threads, whose filters it is.
    with warnings.catch_warnings(), ThreadPoolExecutor(min(32, 2 * (os.cpu_count() or 1))) as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.simplefilter("ignore", UserWarning)  # of garbled EXIF data, of TIFF tags
        # A few hundred at a time: results wait in memory, not all files' tasks.
        rest = iter(images)
        while batch := list(islice(rest, 512)):
            yield from pool.map(task, batch)


def well_formed_images(images: Iterable[Any], faulty: set[int]) -> list[Listed]:
    """Images by their place in the list, without those whose entries are at fault."""
    return [(place, image) for place, image in enumerate(images) if place not in faulty]
