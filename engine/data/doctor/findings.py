"""What the data doctor finds: kinds of fault, how grave each is, and what becomes of the entry."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
Remedy = Literal["drop_image", "drop_annotation", "drop_mask", "drop_field", "renumber", "drop_entry"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault.

    An error spoils training or a score, a warning may, a note is good to know.
    """

    severity: Severity
    remedy: Remedy | None = None  # what a cleaned copy does about it
    usable: bool = False  # whether training can use the entry as it is


KINDS: dict[str, Kind] = {
    # of the file
    "unreadable_annotations": Kind("error"),
    "missing_list": Kind("error"),
    "malformed_category": Kind("error"),
    "malformed_entry": Kind("error", "drop_entry"),
    "duplicate_category_id": Kind("error"),
    "duplicate_category_name": Kind("warning"),
    "categories_differ": Kind("error"),
    "duplicate_image_id": Kind("error", "drop_image"),
    "repeated_image_entry": Kind("error", "drop_image"),
    "same_file_twice": Kind("warning"),
    "duplicate_annotation_id": Kind("error", "renumber"),
    "repeated_annotation": Kind("error", "drop_annotation"),
    "unknown_image_id": Kind("error", "drop_annotation"),
    "unknown_category_id": Kind("error", "drop_annotation"),
    # of boxes and masks
    "malformed_box": Kind("error", "drop_annotation"),
    "not_a_finite_number": Kind("error", "drop_annotation"),
    "box_outside_image": Kind("error", "drop_annotation"),
    "box_beyond_border": Kind("warning", usable=True),
    "degenerate_box": Kind("error", "drop_annotation"),
    "tiny_box": Kind("warning", usable=True),
    "same_object_twice": Kind("warning", usable=True),
    "malformed_mask": Kind("error", "drop_mask"),
    "empty_mask": Kind("error", "drop_mask"),
    "no_mask": Kind("note"),
    "box_and_mask_disagree": Kind("error", "drop_annotation", usable=True),
    "box_and_mask_differ": Kind("warning", usable=True),
    "malformed_area": Kind("error", "drop_field"),
    "area_and_mask_differ": Kind("warning", usable=True),
    "malformed_crowd_flag": Kind("error", "drop_annotation"),
    "malformed_keypoints": Kind("error", "drop_field"),
    # of image files
    "missing_image": Kind("error", "drop_image"),
    "unreadable_image": Kind("error", "drop_image"),
    "truncated_image": Kind("error", "drop_image"),
    "wrong_image_size": Kind("error", "drop_image"),
    "exif_rotation": Kind("warning", usable=True),
    "16_bit_image": Kind("warning", usable=True),
    "cmyk_image": Kind("warning", usable=True),
    "palette_image": Kind("note", usable=True),
    "grey_image": Kind("note", usable=True),
    "transparent_image": Kind("note", usable=True),
    "several_frames": Kind("warning", usable=True),
    # of the whole
    "image_in_train_and_val": Kind("error", "drop_image", usable=True),
    "similar_image_in_train_and_val": Kind("warning", usable=True),
    "duplicate_image": Kind("warning", usable=True),
    "class_without_objects": Kind("warning"),
    "class_in_val_only": Kind("warning"),
    "class_in_train_only": Kind("note"),
    "rare_class": Kind("note"),
    "class_imbalance": Kind("note"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault of one entry."""

    split: str
    kind: str
    message: str
    file: str = ""  # the image's name as the annotations have it, or the annotation file
    image_id: Any = None  # as in the file: it may be no number
    annotation_id: Any = None
    place: tuple[str, int] | None = None  # which list of the annotation file, and the entry's place in it
    field: str = ""  # of a drop_field
    twin: str = ""  # the path of the image that this one is the same as

    @property
    def severity(self) -> Severity:
        """Of its kind."""
        return KINDS[self.kind].severity

    @property
    def remedy(self) -> Remedy | None:
        """What a cleaned copy does about it."""
        return KINDS[self.kind].remedy

    @property
    def name(self) -> str:
        """The least that tells the entry: its annotation's id, its image's, or the file."""
        if self.annotation_id is not None:
            return f"annotation {self.annotation_id}"
        return f"image {self.image_id}" if self.image_id is not None else self.file


def by_kind(findings: Sequence[Finding]) -> dict[tuple[str, str], list[Finding]]:
    """Findings by (split, kind), the gravest kinds first, in the order of `KINDS`."""
    order = {kind: (SEVERITIES.index(KINDS[kind].severity), place) for place, kind in enumerate(KINDS)}
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.split, finding.kind), []).append(finding)
    return dict(sorted(groups.items(), key=lambda group: (order[group[0][1]], group[0][0] != "train")))


def count_by_severity(findings: Sequence[Finding]) -> dict[Severity, int]:
    """How many there are of each severity."""
    return {severity: sum(finding.severity == severity for finding in findings) for severity in SEVERITIES}


def table_rows(findings: Sequence[Finding], *, shown: int = 5) -> list[list[str]]:
    """Rows of severity, split, kind, count and the first that have it."""
    rows = []
    for (split, kind), group in by_kind(findings).items():
        names = ", ".join(str(finding.name) for finding in group[:shown])
        rest = f" and {len(group) - shown} more" if len(group) > shown else ""
        rows.append([KINDS[kind].severity, split, kind.replace("_", " "), str(len(group)), names + rest])
    return rows


def write_findings(findings: Sequence[Finding], path: Path) -> None:
    """Write all of them as JSON: split, kind, severity, file, image_id, annotation_id, message."""
    entries = [
        {"severity": finding.severity} | {k: v for k, v in asdict(finding).items() if k not in ("place", "field", "twin")}
        for group in by_kind(findings).values()
        for finding in group
    ]
    counts = count_by_severity(findings)
    path.write_text(json.dumps({"counts": counts, "findings": entries}, indent=1, default=str) + "\n", encoding="utf-8")
