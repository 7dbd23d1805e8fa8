"""From COCO results and their annotation file to the report: a page, the pictures on it, and the figures as JSON."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from backbones.errors import UserError
from engine.detection.coco_eval import IouType, ScoreOptions, load_ground_truth
from engine.detection.report.comparison import Comparison, compare
from engine.detection.report.figures import Figures, figures_of
from engine.detection.report.matching import Matched
from engine.detection.report.page import Chapter, page
from engine.detection.report.sections import sections_of
from engine.detection.report.wording import KIND_TITLES
from engine.detection.report.worst import draw_worst
from engine.detection.results import check_results, read_results, rows_of_type
from engine.files import make_folder

PAGE, FIGURES, PICTURES = "report.html", "figures.json", "pictures"


@dataclass(frozen=True)
class ResultFiles:
    """COCO results files of one detector, by what they hold, and what it is called in the report."""

    name: str
    files: Mapping[IouType, Path]


def find_results(source: str | Path, *, iou_type: IouType | None = None) -> ResultFiles:
    """The results of a run's folder (in itself or its `eval/`), or the one file named.

    Args:
        iou_type: what a single file holds (bbox, where not said), or the only type to take from a folder.

    Raises:
        UserError: there is neither such a file nor such a folder with results in it.
    """
    source = Path(source)
    if source.is_dir():
        for folder in (source, source / "eval"):
            found: dict[IouType, Path] = {t: folder / f"{t}_results.json" for t in get_args(IouType)}
            files = {t: path for t, path in found.items() if path.is_file() and iou_type in (None, t)}
            if files:
                name = source.resolve().parent.name if source.resolve().name == "eval" else source.resolve().name
                return ResultFiles(name, files)
        wanted = f"{iou_type}_results.json" if iou_type else "bbox_results.json or the like"
        raise UserError(f"{source} has no results, neither in itself nor in eval/: {wanted}.")
    if not source.is_file():
        raise UserError(f"There is no results file or run's folder at {source}.")
    folder = source.resolve().parent
    in_run = source.stem.endswith("_results") and folder.name == "eval"
    return ResultFiles(folder.parent.name if in_run else source.stem, {iou_type or "bbox": source})


def write_report(
    annotations: str | Path,
    results: ResultFiles,
    folder: str | Path,
    *,
    images: str | Path | None = None,
    against: ResultFiles | None = None,
    options: ScoreOptions | None = None,
    threshold: float | None = None,
    num_pictures: int = 12,
    resamples: int = 500,
    seed: int = 0,
) -> Path:
    """Write `report.html`, which needs no other file; beside it `pictures/<type>/*.png` and `figures.json`, all its numbers.

    Args:
        annotations: the ground truth in COCO's format.
        images: the folder of the images; None draws none.
        against: another detector's results on the same images; what it has no file of is not compared.
        options: what is scored, where it is not what COCO scores.
        threshold: the score from which detections count as errors and are drawn; None for that of the best F1.
        num_pictures: how many of the worst images are drawn.
        resamples, seed: of the bootstrap.

    Returns:
        The page.

    Raises:
        UserError: a file is missing or malformed, the files do not go together, nothing is labelled, or the folder cannot be
            written to.
    """
    truth = load_ground_truth(annotations)
    if images is not None and not Path(images).is_dir():
        raise UserError(f"There is no folder of images at {images}.")
    if not any(not annotation["iscrowd"] for annotation in truth["annotations"]):
        raise UserError(f"{annotations} has no labelled objects: there is nothing to compare results with.")
    folder, options = make_folder(folder), options or ScoreOptions()
    chapters, numbers = [], {}
    for iou_type, path in results.files.items():
        this = _matched(truth, path, iou_type, options)
        if not this.objects:
            raise UserError(f"{annotations} has no labelled {_THINGS[iou_type]}: {path} cannot be scored.")
        figures = figures_of(this, threshold=threshold)
        comparison = None
        if against is not None and iou_type in against.files:
            comparison = compare(
                this, _matched(truth, against.files[iou_type], iou_type, options), resamples=resamples, seed=seed
            )
        worst = draw_worst(
            this,
            figures.outcomes,
            threshold=figures.threshold,
            images=None if images is None else Path(images),
            folder=folder / PICTURES / iou_type,
            count=num_pictures,
        )
        name = against.name if against is not None else ""
        sections = sections_of(figures, worst, comparison=comparison, against=name, drawn=images is not None)
        chapters.append(Chapter(iou_type, KIND_TITLES[iou_type], sections))
        numbers[iou_type] = _as_json(figures, comparison)
    facts = [
        ("results", ", ".join(map(str, results.files.values()))),
        ("annotations", str(annotations)),
        ("images", f"{len(truth['images']):,}"),
        ("classes", f"{len(truth['categories']):,}"),
    ]
    if against is not None:
        facts.append(("compared with", ", ".join(map(str, against.files.values()))))
    (folder / FIGURES).write_text(json.dumps(numbers, indent=1, allow_nan=False))
    path = folder / PAGE
    path.write_text(page(f"{results.name}: the score, explained", facts, chapters), encoding="utf-8")
    return path


_THINGS = {"bbox": "objects", "segm": "objects", "keypoints": "keypoints"}


def _matched(truth: dict[str, Any], path: Path, iou_type: IouType, options: ScoreOptions) -> Matched:
    rows = read_results(path, iou_type=iou_type)
    check_results(rows, truth, source=str(path))
    return Matched(truth, rows_of_type(rows, iou_type), iou_type=iou_type, options=options)


def _as_json(figures: Figures, comparison: Comparison | None) -> dict[str, Any]:
    content: dict[str, Any] = {f.name: _plain(getattr(figures, f.name)) for f in fields(figures) if f.name != "outcomes"}
    content["images"] = [
        {
            "id": outcome.image["id"],
            "file_name": outcome.image["file_name"],
            "correct": len(outcome.correct),
            "missed": len(outcome.missed),
            "false": len(outcome.false),
            "confused": len(outcome.confused),
        }
        for outcome in figures.outcomes
    ]
    return content | ({"comparison": _plain(comparison)} if comparison is not None else {})


def _plain(value: Any) -> Any:
    """Dataclasses and arrays as what JSON has; what is no number, such as an empty bin's mean, as null."""
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(entry) for entry in (value.tolist() if isinstance(value, np.ndarray) else value)]
    if isinstance(value, float):
        return value if np.isfinite(value) and value < 1e9 else None
    return value
