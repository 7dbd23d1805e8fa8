"""A few images of a large COCO file, with their annotations: read entry by entry, so that what is not kept takes no memory."""

import json
from collections.abc import Callable, Iterator
from json.decoder import WHITESPACE  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any

from backbones.errors import UserError

_decode = json.JSONDecoder().raw_decode


def cut_coco(path: Path, choose: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> dict[str, Any]:
    """The content of a COCO file with the images that `choose` takes of all, and their annotations; the rest stays as it is.

    Raises:
        UserError: the file is no COCO file; also what `choose` raises.
    """
    content: dict[str, Any] = {}
    ids: set[int] | None = None
    try:
        text = path.read_text(encoding="utf-8")
        for key, values in _members(text):
            if key == "images":
                content[key] = choose(list(values))
                ids = {image["id"] for image in content[key]}
            elif key == "annotations":
                # COCO lists images before annotations; where they come after, all annotations are kept for a while.
                content[key] = [value for value in values if ids is None or value["image_id"] in ids]
            else:
                content[key] = next(iter(values))
        if ids is None:
            raise KeyError("images")
        content["annotations"] = [value for value in content["annotations"] if value["image_id"] in ids]
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, StopIteration) as error:
        raise UserError(f"{path} is no COCO file ({error or type(error).__name__}). Delete it, and fetch it again.") from None
    return content


def _members(text: str) -> Iterator[tuple[str, Iterator[Any]]]:
    """The keys of a JSON object, each with the entries of its list; of `images` and `annotations` one by one, else the value.

    The entries of a key must be used up before the next key is asked for.
    """
    place = _expect(text, 0, "{")
    while text[place] != "}":
        key, place = _decode(text, place)
        place = _expect(text, place, ":")
        end = [place]
        if key in ("images", "annotations"):
            yield key, _entries(text, end)
        else:
            value, end[0] = _decode(text, place)
            yield key, iter([value])
        place = _after_value(text, end[0], "}")


def _entries(text: str, place: list[int]) -> Iterator[Any]:
    """The entries of a JSON list that begins at `place[0]`, which is then the place after it."""
    at = _expect(text, place[0], "[")
    while text[at] != "]":
        value, at = _decode(text, at)
        at = _after_value(text, at, "]")
        yield value
    place[0] = at + 1


def _after_value(text: str, place: int, closing: str) -> int:
    """The place of the next value, or of the closing bracket."""
    place = _skip(text, place)
    if text[place] == closing:
        return place
    return _expect(text, place, ",")


def _expect(text: str, place: int, character: str) -> int:
    place = _skip(text, place)
    if text[place] != character:
        raise ValueError(f"{character!r} is missing at character {place}")
    return _skip(text, place + 1)


def _skip(text: str, place: int) -> int:
    """The place after the white space at `place`."""
    return int(WHITESPACE.match(text, place).end())
