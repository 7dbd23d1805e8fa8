"""eval_det.py --report, as a user calls it."""

import json

import pytest


def test_a_runs_results_are_explained_against_others(tool, trained, tmp_path):
    done = tool("eval_det.py", "--results", trained.folder, "--report", tmp_path / "out", "--against", trained.folder / "eval")
    assert (done.status, done.err) == (0, "")
    assert done.out == f"report in {tmp_path / 'out' / 'report.html'}\n"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Difference to run" in page
    assert all(f'id="{kind}-difference"' in page for kind in ("bbox", "segm"))


def test_a_results_file_is_explained_with_its_annotations_and_images(tool, trained, tmp_path):
    results = trained.folder / "eval" / "segm_results.json"
    where = ("--annotations", trained.data["annotations"], "--images", trained.data["images"], "--type", "segm")
    done = tool("eval_det.py", "--results", results, *where, "--report", tmp_path / "out")
    assert (done.status, done.err) == (0, "")
    assert 'id="segm-numbers"' in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["a.pt", "--images", "folder"], "--images and --against go with --report"),
        (["a.pt", "--against", "run"], "--images and --against go with --report"),
        (["a.pt", "--images", "folder", "--report", "out"], "--images goes with --results"),
        (["--results", "none", "--report", "out"], "There is no results file or run's folder at none"),
        (["a.pt", "--report", "out", "--against", "none"], "There is no results file or run's folder at none"),
    ],
)
def test_what_cannot_be_reported_is_said(tool, tmp_path, monkeypatch, arguments, reason):
    monkeypatch.chdir(tmp_path)
    done = tool("eval_det.py", *arguments)
    assert done.status == 2
    assert reason in done.err
    assert list(tmp_path.iterdir()) == []


def test_an_unlabelled_set_is_refused(tool, trained, toy, tmp_path):
    toy.annotations.write_text(json.dumps(json.loads(toy.annotations.read_text()) | {"annotations": []}))
    (tmp_path / "none.json").write_text("[]")
    done = tool(
        "eval_det.py", "--results", tmp_path / "none.json", "--annotations", toy.annotations, "--report", tmp_path / "out"
    )
    assert done.status == 2
    assert done.err == f"{toy.annotations} has no labelled objects: there is nothing to compare results with.\n"
    assert not (tmp_path / "out").exists()
