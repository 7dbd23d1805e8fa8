"""The worst of what is found, drawn: images with the boxes and masks in question, on one sheet."""

import contextlib
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageDraw

from backbones.errors import UserError
from engine.data.dataset import read_image
from engine.data.doctor.findings import KINDS, Finding, by_kind
from engine.data.doctor.mask_checks import problem_of_mask
from engine.data.masks import decode_segmentation
from engine.data.sources import CocoPaths
from engine.draw import contact_sheet

_BOX, _MASK, _PAPER, _INK = (222, 45, 38), (49, 130, 189), (228, 228, 224), (90, 90, 90)
_CELL = 320  # pixels
_NO_PICTURE = (240, 320)  # height, width of the card for what cannot be drawn


class HasFindings(Protocol):
    """What is drawn of a split."""

    name: str
    paths: CocoPaths
    content: dict[str, Any] | None
    findings: list[Finding]


def draw_worst(splits: Sequence[HasFindings], *, count: int) -> np.ndarray | None:
    """A contact sheet (H, W, 3) uint8 of up to `count` findings, of each kind in turn, the gravest first; None for nothing.

    A box is red, a mask blue; an image is widened by what a box reaches beyond it.
    """
    by_name = {split.name: split for split in splits}
    chosen = list(_chosen([finding for split in splits for finding in split.findings]))[:count]
    if not chosen:
        return None
    pictures = [_picture(by_name[finding.split], finding) for finding in chosen]
    captions = [f"{finding.kind.replace('_', ' ')}: {finding.split} {finding.name}" for finding in chosen]
    return contact_sheet(pictures, captions=captions, cell=_CELL, title="The worst of what was found")


def _chosen(findings: list[Finding]) -> Iterator[Finding]:
    """One of each kind and split in turn: errors until there are none, then warnings; notes are not drawn."""
    groups = by_kind([finding for finding in findings if finding.place is not None])
    for severity in ("error", "warning"):
        of_severity = [group for (_, kind), group in groups.items() if KINDS[kind].severity == severity]
        for turn in zip_longest(*of_severity):
            yield from (finding for finding in turn if finding is not None)


def _picture(split: HasFindings, finding: Finding) -> np.ndarray:
    if finding.file == "" or split.content is None or finding.place is None:
        return _card(finding.message)
    try:
        pixels = read_image(split.paths.images / Path(finding.file))
    except UserError:
        return _card(finding.message)
    if finding.twin:
        with contextlib.suppress(UserError):
            return contact_sheet([pixels, read_image(Path(finding.twin))], columns=2, cell=_CELL)
    if finding.place[0] == "images":
        return _shrunk(pixels)
    return _with_object(pixels, split.content["annotations"][finding.place[1]])


def _with_object(pixels: np.ndarray, annotation: dict[str, Any]) -> np.ndarray:
    """The image with an annotation's box and mask, as far as they can be drawn."""
    height, width = pixels.shape[:2]
    segmentation = annotation.get("segmentation")
    if segmentation and problem_of_mask(segmentation, height, width) is None:
        mask = decode_segmentation(segmentation, height, width) != 0
        pixels[mask] = (0.4 * pixels[mask] + 0.6 * np.array(_MASK)).astype(np.uint8)
    box = _corners(annotation.get("bbox"))
    if box is None:
        return _shrunk(pixels)
    # A box far outside is shown at the edge of a canvas at most three times as large.
    low = np.clip(np.minimum(0, box[:2]), [-width, -height], 0).astype(int)
    high = np.clip(np.maximum([width, height], box[2:]), 0, [2 * width, 2 * height]).astype(int)
    margin = 0 if (low == 0).all() and (high == [width, height]).all() else max(width, height) // 20
    low, high = low - margin, high + margin
    canvas = Image.new("RGB", (int(high[0] - low[0]), int(high[1] - low[1])), _PAPER)
    canvas.paste(Image.fromarray(pixels), (int(-low[0]), int(-low[1])))
    thick = max(2, max(canvas.size) // 100)
    corners = np.clip(box - np.tile(low, 2), 0, np.tile(np.array(canvas.size) - 1, 2))
    left, top, right, bottom = corners.tolist()
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((left - thick, top - thick, right + thick, bottom + thick), outline=_BOX, width=thick)
    return _shrunk(np.array(canvas))


def _corners(box: Any) -> np.ndarray | None:
    """x0, y0, x1, y1 in order; None where the box is not four finite numbers."""
    try:
        x, y, w, h = (float(value) for value in box)
    except (TypeError, ValueError, OverflowError):
        return None
    corners = np.array([min(x, x + w), min(y, y + h), max(x, x + w), max(y, y + h)])
    return corners if np.isfinite(corners).all() else None


def _shrunk(pixels: np.ndarray) -> np.ndarray:
    """At most twice as large as its cell, so that a sheet of large images takes little memory."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((2 * _CELL, 2 * _CELL))
    return np.array(picture)


def _card(text: str) -> np.ndarray:
    """What stands for an image that cannot be shown: the message."""
    height, width = _NO_PICTURE
    card = Image.new("RGB", (width, height), _PAPER)
    lines, line = [], ""
    for word in text.replace("/", "/ ").split(" "):
        if len(line) + len(word) > 44:
            lines.append(line)
            line = ""
        line += word if word.endswith("/") else word + " "
    ImageDraw.Draw(card).multiline_text((14, 14), "\n".join([*lines, line][:14]), fill=_INK)
    return np.array(card)
