"""What the report is written from: a results file, a run's folder, or a model that is run now."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from backbones.errors import UserError
from engine.build import find_data
from engine.config import RunConfig
from engine.config_file import load_config
from engine.detection.coco_eval import IouType, ScoreOptions
from engine.detection.config import DetectionConfig
from engine.detection.report.report import ResultFiles, find_results, write_report
from engine.evaluate import evaluate, open_source
from engine.files import make_folder


@dataclass(frozen=True)
class _Data:
    annotations: Path
    images: Path | None
    options: ScoreOptions


def report_results(
    results: str,
    folder: str,
    *,
    annotations: str | None = None,
    images: str | None = None,
    iou_type: IouType | None = None,
    against: str | None = None,
) -> Path:
    """Write the report of a results file, or of all results in a run's folder, whose config then says what is not given.

    Args:
        annotations: the ground truth; needed with a file that is in no run's folder.
        images: the folder of images to draw from.
        iou_type: what a file holds (bbox, where not said); of a run's folder, the only type to report.
        against: another results file or run's folder, to compare with.

    Raises:
        UserError: as `write_report`; also no annotations are named and there is no config that does.
    """
    found = find_results(results, iou_type=iou_type)
    if annotations is not None:
        data = _Data(Path(annotations), None, ScoreOptions())
    else:
        data = _data_of(load_config(str(_config_of(results)), [], job="detection"))
    return _write(found, data, folder, images=images, against=against)


def evaluate_and_report(
    source: str,
    overrides: list[str],
    folder: str,
    *,
    weights: str | None = None,
    output_dir: str | None = None,
    against: str | None = None,
) -> None:
    """Score a model as `engine.evaluate.evaluate` does, and write the report of it.

    Args:
        folder: where the report is written.
        output_dir: where results and scores are written; None for the report's folder.
        against: a results file or run's folder, to compare with.

    Raises:
        UserError: as `evaluate` and `write_report`.
    """
    if against is not None:
        find_results(against)  # before the work, not after it
    make_folder(folder)
    written = output_dir or folder
    scores = evaluate(source, overrides, job="detection", weights=weights, output_dir=written)
    if os.environ.get("RANK", "0") != "0":
        return
    config, _ = open_source(source, overrides, job="detection", weights=weights)
    found = find_results(written)
    if scores:  # files of other types are another model's
        found = replace(found, files={t: path for t, path in found.files.items() if t in {score.kind for score in scores}})
    name = Path(source).resolve().parent.name if Path(source).suffix == ".pt" else Path(source).stem
    _write(replace(found, name=name), _data_of(config), folder, images=None, against=against)


def _write(found: ResultFiles, data: _Data, folder: str, *, images: str | None, against: str | None) -> Path:
    types = list(found.files)
    other = None if against is None else find_results(against, iou_type=types[0] if len(types) == 1 else None)
    path = write_report(data.annotations, found, folder, images=images or data.images, against=other, options=data.options)
    print(f"report in {path}")
    return path


def _data_of(config: RunConfig) -> _Data:
    assert isinstance(config, DetectionConfig)
    paths = find_data(config.data.val, split="val")
    return _Data(paths.annotations, paths.images, config.eval.score_options())


def _config_of(results: str) -> Path:
    """The config of the run whose folder, whose `eval/`, or a file in it, this is."""
    source = Path(results).resolve()
    folder = source if source.is_dir() else source.parent
    for path in (folder / "config.yaml", folder.parent / "config.yaml"):
        if (source.is_dir() or folder.name == "eval") and path.is_file():
            return path
    raise UserError(f"Which annotations {results} belongs to is not known: add --annotations FILE.")
