"""The data doctor: all checks of a config's two splits, the report, the contact sheet and a cleaned copy."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from backbones.errors import UserError
from engine.build import find_data
from engine.config import CocoFiles, RunConfig
from engine.data.converters.coco_writer import write_json
from engine.data.doctor.annotation_checks import check_content, read_content
from engine.data.doctor.class_checks import check_classes
from engine.data.doctor.duplicates import Pictures, check_duplicates
from engine.data.doctor.findings import KINDS, Finding, by_kind, count_by_severity, table_rows, write_findings
from engine.data.doctor.fix import Changes, clean
from engine.data.doctor.image_checks import check_images, well_formed_images
from engine.data.doctor.image_files import ImageFacts
from engine.data.doctor.sheet import draw_worst
from engine.data.sources import CocoPaths
from engine.distributed import World
from engine.draw import save_picture
from engine.files import make_folder
from engine.progress import Reporter


@dataclass
class Split:
    """A split as it is found."""

    name: str
    paths: CocoPaths
    content: dict[str, Any] | None  # of the annotation file; None where it cannot be read
    findings: list[Finding]
    facts: dict[int, ImageFacts] = field(default_factory=dict)  # by an image's place in its list


def check_data(config: RunConfig, *, output: str | Path, fix: str | Path | None = None, count: int = 24) -> int:
    """Check a config's data, print what is found, and write `findings.json` and `worst.png`.

    Args:
        output: the folder they are written to.
        fix: a folder for cleaned copies of the annotation files; None writes none.
        count: how many of the worst to draw.

    Returns:
        1 where there are errors, else 0.

    Raises:
        UserError: there is no such file; the config's data is not in COCO's format; a folder cannot be written to.
    """
    reporter = Reporter(World(0, 1, torch.device("cpu")))
    paths = {name: _paths(config, name) for name in ("train", "val")}
    targets = {} if fix is None else _targets(paths, Path(fix))
    folder = make_folder(output)
    splits = examine(paths, classes=getattr(config.data, "classes", None), reporter=reporter)
    findings = [finding for split in splits for finding in split.findings]
    for split in splits:
        reporter.line(_describe(split))
    if findings:
        columns = ["severity", "split", "what", "count", "which"]
        reporter.table(columns, table_rows(findings), title="What was found")
        for (split_name, kind), group in by_kind(findings).items():
            if KINDS[kind].severity == "error":
                reporter.line(f"{kind.replace('_', ' ')}, {split_name} {group[0].name}: {group[0].message}")
    counts = count_by_severity(findings)
    reporter.line(", ".join(f"{number} {severity}{'s' * (number != 1)}" for severity, number in counts.items()))
    write_findings(findings, folder / "findings.json")
    reporter.line(f"all of them, with ids: {folder / 'findings.json'}")
    sheet = draw_worst(splits, count=count)
    if sheet is not None:
        save_picture(sheet, folder / "worst.png")
        reporter.line(f"the worst, drawn: {folder / 'worst.png'}")
    for split in splits:
        if split.name in targets:
            _write_cleaned(split, targets[split.name], reporter)
    return 1 if counts["error"] else 0


def examine(paths: dict[str, CocoPaths], *, classes: Collection[str] | None, reporter: Reporter) -> list[Split]:
    """All checks of these splits; the same annotation file twice, as in a test of overfitting, is looked at once."""
    splits: list[Split] = []
    for name, where in paths.items():
        if any(where == split.paths for split in splits):
            reporter.line(f"{name} is the same data as train")
            continue
        content, findings = read_content(where.annotations, split=name)
        split = Split(name, where, content, findings)
        if content is not None:
            findings += check_content(content, split=name, path=where.annotations)
            at_fault = {
                f.place[1]
                for f in findings
                if f.place and f.kind in ("malformed_entry", "repeated_image_entry") and f.place[0] == "images"
            }
            images = well_formed_images(content["images"], at_fault)
            with reporter.bar(f"images of {name}", len(images)) as show:
                of_images, split.facts = check_images(where.images, images, split=name, on_progress=show)
            findings += of_images
        splits.append(split)
    readable = [split for split in splits if split.content is not None]
    twins = check_duplicates(
        [Pictures(split.name, split.paths.images, split.content["images"], split.facts) for split in readable if split.content]
    )
    for split in readable:
        split.findings += [finding for finding in twins if finding.split == split.name]
    cleaned = {split.name: clean(split.content, split.findings)[0] for split in readable if split.content}
    if "train" in cleaned and not any(f.kind == "malformed_category" for split in splits for f in split.findings):
        for finding in check_classes(cleaned["train"], cleaned.get("val"), classes=classes):
            next(split for split in splits if split.name == finding.split).findings.append(finding)
    return splits


def _paths(config: RunConfig, name: Any) -> CocoPaths:
    source = getattr(config.data, name)
    if not isinstance(source, CocoFiles) and config.job != "detection":
        raise UserError(f"data.{name} is no data in COCO's format: there is nothing here to check a job {config.job!r} by.")
    return find_data(source, split=name)


def _describe(split: Split) -> str:
    if split.content is None:
        return f"{split.name}: {split.paths.annotations}"
    images, annotations = split.content["images"], split.content["annotations"]
    labelled = {str(entry.get("image_id")) for entry in annotations if isinstance(entry, dict)}
    empty = sum(isinstance(image, dict) and str(image.get("id")) not in labelled for image in images)
    return (
        f"{split.name}: {len(images)} images, {empty} of them without an object, {len(annotations)} annotations of "
        f"{len(split.content['categories'])} classes in {split.paths.annotations}"
    )


def _targets(paths: dict[str, CocoPaths], folder: Path) -> dict[str, Path]:
    """Where the cleaned copies go; no file is written over."""
    folder = make_folder(folder)
    names = [path.name for path in {where.annotations.resolve() for where in paths.values()}]
    targets = {}
    for split, where in paths.items():
        name = where.annotations.name if len(set(names)) == len(names) else f"{split}_{where.annotations.name}"
        targets[split] = folder / name
        if targets[split].exists():
            raise UserError(f"--fix: {targets[split]} is there already. Name another folder, or delete it.")
    return targets


def _write_cleaned(split: Split, target: Path, reporter: Reporter) -> None:
    if split.content is None:
        reporter.line(f"{split.name}: nothing can be cleaned in a file that cannot be read")
        return
    content, changes = clean(split.content, split.findings)
    write_json(target, content)
    reporter.line(f"{split.name}: the cleaned copy is {target}")
    for line in _lines(changes):
        reporter.line(f"  {line}")


def _lines(changes: Changes) -> Sequence[str]:
    return changes.lines() or ["nothing had to go"]
