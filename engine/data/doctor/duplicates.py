"""Images that are in both splits, or twice in one: the same file, or one that looks the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.data.doctor.findings import Finding
from engine.data.doctor.image_files import ImageFacts

# Two pictures of one thing. On cells, nuclei and photographs others have 0.75 at most; a hash alone takes dark images for one.
_BITS = 10  # of 64 that may differ
_CORRELATION = 0.9  # of the small copies, at least
_FLAT = 1.0  # grey levels of deviation: what has less is like nothing, unless it is the same
_BLOCK = 4_000_000  # pairs that are compared at once
_ONES = np.array([bin(value).count("1") for value in range(2**16)], np.uint8)

Facts = Mapping[int, ImageFacts]  # by an image's place in its list


@dataclass(frozen=True, slots=True)
class Pictures:
    """A split's images."""

    split: str
    folder: Path
    images: Sequence[dict[str, Any]]
    facts: Facts

    def finding(self, kind: str, place: int, message: str, *, twin: Path) -> Finding:
        """Of one of them."""
        image = self.images[place]
        return Finding(self.split, kind, message, image["file_name"], image["id"], place=("images", place), twin=str(twin))

    def path(self, place: int) -> Path:
        """Of one of them."""
        return self.folder / self.images[place]["file_name"]

    def name(self, place: int) -> str:
        """Of one of them, with its id."""
        return f"{self.images[place]['file_name']} (image {self.images[place]['id']})"


def check_duplicates(splits: Sequence[Pictures]) -> list[Finding]:
    """Files twice within a split, and images of one split that are, or look as if they were, in the other.

    A cleaned copy leaves what is in both out of the first split, training, so that scores stay comparable.

    Args:
        splits: training first.
    """
    found: list[Finding] = []
    for split in splits:
        first: dict[bytes, int] = {}
        for place, fact in split.facts.items():
            other = first.setdefault(fact.digest, place) if fact.thumb else place
            if split.path(other) != split.path(place):
                found.append(
                    split.finding("duplicate_image", place, f"the same bytes as {split.name(other)}", twin=split.path(other))
                )
    return found + (_across(*splits) if len(splits) == 2 else [])


def _across(train: Pictures, val: Pictures) -> list[Finding]:
    places = [place for place, fact in train.facts.items() if fact.thumb]
    others = [place for place, fact in val.facts.items() if fact.thumb]
    if not places or not others:
        return []
    by_digest = {val.facts[place].digest: place for place in reversed(others)}
    hashes = np.array([train.facts[place].hash for place in places], np.uint64)
    other_hashes = np.array([val.facts[place].hash for place in others], np.uint64)
    near: dict[int, int] = {}  # by places
    step = max(1, _BLOCK // len(others))
    for start in range(0, len(places), step):
        rows, columns = np.nonzero(_distances(hashes[start : start + step], other_hashes) <= _BITS)
        for row, column in zip((rows + start).tolist(), columns.tolist(), strict=True):
            place, other = places[row], others[column]
            if place not in near and _look_alike(train.facts[place].thumb, val.facts[other].thumb):
                near[place] = other
    found = []
    for place in places:
        twin = by_digest.get(train.facts[place].digest)
        if twin is not None:
            message = f"the same bytes as {val.name(twin)} of val: it is learned by heart, and then scored"
            found.append(train.finding("image_in_train_and_val", place, message, twin=val.path(twin)))
        elif place in near:
            message = f"looks like {val.name(near[place])} of val"
            found.append(train.finding("similar_image_in_train_and_val", place, message, twin=val.path(near[place])))
    return found


def _distances(hashes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N, M) bits that differ."""
    differ = hashes[:, None] ^ others[None]
    if hasattr(np, "bitwise_count"):  # from numpy 2 on, in a tenth of the time
        return np.asarray(np.bitwise_count(differ))
    return _ONES[differ.view(np.uint16).reshape(len(hashes), len(others), 4)].sum(axis=2, dtype=np.uint8)


def _look_alike(thumb: bytes, other: bytes) -> bool:
    """Whether small copies are the same but for brightness and contrast."""
    first, second = (np.frombuffer(pixels, np.uint8).astype(np.float64) for pixels in (thumb, other))
    if min(first.std(), second.std()) < _FLAT:
        return thumb == other
    return float(np.corrcoef(first, second)[0, 1]) >= _CORRELATION
