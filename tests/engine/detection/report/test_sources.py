"""The report of a run's folder, of a results file, and of a model that is run for it."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from backbones.errors import UserError
from engine.detection.report.sources import evaluate_and_report, report_results


def stats(folder: Path) -> dict[str, dict[str, float]]:
    return {kind: found["stats"] for kind, found in json.loads((folder / "figures.json").read_text()).items()}


def expected(trained: SimpleNamespace) -> dict[str, dict[str, float]]:
    return {score.kind: score.stats for score in trained.scores}


def test_a_runs_folder_tells_what_its_results_belong_to(trained: SimpleNamespace, tmp_path: Path) -> None:
    for number, source in enumerate((trained.folder, trained.folder / "eval")):
        path = report_results(str(source), str(tmp_path / str(number)))
        assert stats(path.parent) == expected(trained)
        assert all(f'id="{kind}-numbers"' in path.read_text() for kind in ("bbox", "segm"))


def test_one_type_of_a_run_and_one_file_of_it_can_be_reported(trained: SimpleNamespace, tmp_path: Path) -> None:
    report_results(str(trained.folder), str(tmp_path / "a"), iou_type="segm")
    file = trained.folder / "eval" / "segm_results.json"
    report_results(str(file), str(tmp_path / "b"), iou_type="segm")
    assert stats(tmp_path / "a") == stats(tmp_path / "b") == {"segm": expected(trained)["segm"]}


def test_the_scoring_options_of_the_runs_config_count(trained: SimpleNamespace, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained.folder / "eval", run / "eval")
    config = (trained.folder / "config.yaml").read_text()
    assert "max_dets: null" in config
    (run / "config.yaml").write_text(config.replace("max_dets: null", "max_dets: [1, 2]"))
    report_results(str(run), str(tmp_path / "report"), iou_type="bbox")
    assert {"AR1", "AR2"} <= stats(tmp_path / "report")["bbox"].keys()


def test_a_file_of_no_run_needs_annotations(trained: SimpleNamespace, tmp_path: Path) -> None:
    file = tmp_path / "detectron2.json"
    shutil.copy(trained.folder / "eval" / "bbox_results.json", file)
    with pytest.raises(UserError, match="add --annotations FILE"):
        report_results(str(file), str(tmp_path / "report"))
    data = trained.data
    path = report_results(str(file), str(tmp_path / "report"), annotations=data["annotations"], images=data["images"])
    assert stats(path.parent) == {"bbox": expected(trained)["bbox"]}
    assert "<title>detectron2: the score, explained</title>" in path.read_text()


def test_a_model_is_run_and_compared(trained: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "report"
    evaluate_and_report(str(trained.folder / "best.pt"), [], str(folder), against=str(trained.folder))
    assert {"bbox_results.json", "segm_results.json", "scores.json"} < {path.name for path in folder.iterdir()}
    assert f"report in {folder / 'report.html'}" in capsys.readouterr().out
    for found in json.loads((folder / "figures.json").read_text()).values():
        assert found["comparison"]["differences"][0]["value"] == pytest.approx(0, abs=1e-6)
    assert "run: the score, explained" in (folder / "report.html").read_text()


def test_what_to_compare_with_is_looked_for_before_the_model_is_run(trained: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no results file or run's folder at"):
        evaluate_and_report(str(trained.folder / "best.pt"), [], str(tmp_path / "report"), against=str(tmp_path / "none"))
    assert not (tmp_path / "report").exists()
