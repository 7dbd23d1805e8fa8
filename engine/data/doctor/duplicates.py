"""Images that are in both splits, or twice in one: the same file, or one that looks the same."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from engine.data.doctor.findings import Finding
from engine.data.doctor.image_files import ImageFacts

_BITS = 6  # of 64 that may differ between two copies of one image
_LEVELS = 6.0  # grey levels of 255 that their small copies differ by, on average
_FLAT = 12.0  # grey levels: an image of less contrast looks like many another
_BLOCK = 4096
_ONES = np.array([bin(value).count("1") for value in range(2**16)], np.uint8)

Facts = Mapping[int, ImageFacts]  # by an image's place in its list


def check_duplicates(splits: Mapping[str, tuple[list[dict[str, Any]], Facts]]) -> list[Finding]:
    """Files twice within a split, and images of one split that are, or look as if they were, in the other.

    A cleaned copy leaves what is in both out of the first split, training, so that scores stay comparable.

    Args:
        splits: images, and facts of those that could be read, by the split's name.
    """
    found: list[Finding] = []
    for split, (images, facts) in splits.items():
        first: dict[bytes, int] = {}
        for place, fact in facts.items():
            if fact.thumb and first.setdefault(fact.digest, place) != place:
                other = images[first[fact.digest]]
                if other["file_name"] != images[place]["file_name"]:
                    found.append(_finding(split, "duplicate_image", images, place, f"the same bytes as {_name(other)}"))
    if len(splits) == 2:
        (split, (images, facts)), (_, (others, other_facts)) = splits.items()
        found += _across(split, images, facts, others, other_facts)
    return found


def _across(
    split: str, images: list[dict[str, Any]], facts: Facts, others: list[dict[str, Any]], other_facts: Facts
) -> list[Finding]:
    found = []
    places = [place for place, fact in facts.items() if fact.thumb]
    other_places = [place for place, fact in other_facts.items() if fact.thumb]
    if not places or not other_places:
        return []
    by_digest = {other_facts[place].digest: place for place in reversed(other_places)}
    hashes = np.array([facts[place].hash for place in places], np.uint64)
    other_hashes = np.array([other_facts[place].hash for place in other_places], np.uint64)
    thumbs, other_thumbs = _thumbs(facts, places), _thumbs(other_facts, other_places)
    near: dict[int, int] = {}
    step = max(1, _BLOCK * 1024 // len(other_hashes))  # so that a block of distances takes some megabytes
    for start in range(0, len(hashes), step):
        rows, columns = np.nonzero(_distances(hashes[start : start + step], other_hashes) <= _BITS)
        for row, column in zip((rows + start).tolist(), columns.tolist(), strict=True):
            if row not in near and _look_alike(thumbs[row], other_thumbs[column]):
                near[row] = column
    for row, place in enumerate(places):
        twin = by_digest.get(facts[place].digest)
        if twin is not None:
            message = f"the same bytes as {_name(others[twin])} of val: scores on it say nothing"
            found.append(_finding(split, "image_in_train_and_val", images, place, message))
        elif row in near:
            message = f"looks like {_name(others[other_places[near[row]]])} of val"
            found.append(_finding(split, "similar_image_in_train_and_val", images, place, message))
    return found


def _distances(hashes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N, M) bits that differ."""
    differ = (hashes[:, None] ^ others[None]).view(np.uint16).reshape(len(hashes), len(others), 4)
    return _ONES[differ].sum(axis=2, dtype=np.uint8)


def _look_alike(thumb: np.ndarray, other: np.ndarray) -> bool:
    """Whether small copies are the same but for brightness; what has no contrast is like nothing."""
    if min(float(thumb.std()), float(other.std())) < _FLAT:
        return bool(np.array_equal(thumb, other))
    return float(np.abs((thumb - thumb.mean()) - (other - other.mean())).mean()) <= _LEVELS


def _thumbs(facts: Facts, places: list[int]) -> np.ndarray:
    return np.stack([np.frombuffer(facts[place].thumb, np.uint8) for place in places]).astype(np.float32)


def _finding(split: str, kind: str, images: list[dict[str, Any]], place: int, message: str) -> Finding:
    image = images[place]
    return Finding(split, kind, message, file=image["file_name"], image_id=image["id"], place=("images", place))


def _name(image: dict[str, Any]) -> str:
    return f"{image['file_name']} (image {image['id']})"
