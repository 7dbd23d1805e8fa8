"""A cleaned copy of an annotation file's content: what cannot be used goes, the rest stays as it was."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.data.doctor.annotation_checks import check_content
from engine.data.doctor.findings import KINDS, Finding


@dataclass
class Changes:
    """What was changed, by kind of fault."""

    images: Counter[str] = field(default_factory=Counter)  # gone
    annotations: Counter[str] = field(default_factory=Counter)  # gone
    with_images: int = 0  # annotations that went with their images
    changed: Counter[str] = field(default_factory=Counter)  # annotations that stay without their mask or a field, or renumbered
    left: Counter[str] = field(default_factory=Counter)  # errors about which nothing can be done here

    def lines(self) -> list[str]:
        """Each as a line of text."""
        lines = [f"{count} images dropped: {_words(kind)}" for kind, count in self.images.items()]
        lines += [f"{count} annotations dropped: {_words(kind)}" for kind, count in self.annotations.items()]
        lines += [f"{self.with_images} annotations dropped with their images"] * bool(self.with_images)
        lines += [
            f"{count} annotations {_DONE[KINDS[kind].remedy or '']}: {_words(kind)}" for kind, count in self.changed.items()
        ]
        return lines + [f"{count} left as they are, for you to decide: {_words(kind)}" for kind, count in self.left.items()]


_DONE = {"drop_mask": "lost their mask", "drop_field": "lost a field", "renumber": "got a new id"}


def clean(content: dict[str, Any], findings: Sequence[Finding]) -> tuple[dict[str, Any], Changes]:
    """A copy of a file's content with each finding's remedy applied, and what was done. The content itself stays as it is.

    Args:
        findings: of this content.
    """
    changes = Changes()
    gone: dict[str, dict[int, str]] = {"images": {}, "annotations": {}}
    changed: dict[int, list[Finding]] = {}
    for finding in findings:
        if finding.place is None or finding.remedy is None:
            if finding.severity == "error":
                changes.left[finding.kind] += 1
            continue
        name, index = finding.place
        if finding.remedy in ("drop_image", "drop_annotation", "drop_entry"):
            gone[name].setdefault(index, finding.kind)  # of several faults, the first counts
        else:
            changed.setdefault(index, []).append(finding)
    images = [image for index, image in enumerate(content["images"]) if index not in gone["images"]]
    changes.images.update(gone["images"].values())
    changes.annotations.update(gone["annotations"].values())
    kept_ids = {image["id"] for image in images}
    next_id = 1 + max((e["id"] for e in content["annotations"] if isinstance(e, dict) and type(e.get("id")) is int), default=0)
    annotations = []
    for index, annotation in enumerate(content["annotations"]):
        if index in gone["annotations"]:
            continue
        if annotation["image_id"] not in kept_ids:
            changes.with_images += 1
            continue
        if index in changed:
            annotation = dict(annotation)
            for finding in changed[index]:
                if finding.remedy == "renumber":
                    annotation["id"], next_id = next_id, next_id + 1
                elif finding.remedy == "drop_mask":
                    annotation["segmentation"] = []
                else:
                    annotation.pop(finding.field, None)
                changes.changed[finding.kind] += 1
        annotations.append(annotation)
    return content | {"images": images, "annotations": annotations}, changes


def usable(
    content: dict[str, Any], *, split: str, path: Any, masks: bool = True
) -> tuple[dict[str, Any], list[Finding], Changes]:
    """A file's content without what training cannot use, the findings that made it go, and what was done.

    Args:
        masks: whether masks are used, and so looked at.
    """
    findings = [f for f in check_content(content, split=split, path=path, masks=masks) if not KINDS[f.kind].usable]
    findings = [finding for finding in findings if finding.severity == "error"]
    cleaned, changes = clean(content, findings)
    return cleaned, findings, changes


def _words(kind: str) -> str:
    return kind.replace("_", " ")
