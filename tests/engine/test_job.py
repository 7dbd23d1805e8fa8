"""engine/job.py: a job by its name, what is left out, what is of another; and that the engine knows no job but by its class."""

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import yaml

from backbones.errors import UserError
from engine.checkpoint import load_checkpoint
from engine.config_file import apply_overrides, dump_config, load_config
from engine.detection.config import DetectionConfig
from engine.detection.job import DetectionJob
from engine.evaluate import evaluate
from engine.job import JOBS, TOOLS, Evaluation, Job, job_class, job_of
from engine.train import train
from tests.engine.toy_job import ToyConfig, ToyEvaluation, ToyJob, ToySet

SHAPES = {"train": "shapes", "val": "shapes"}

# ---- By name ----


def test_every_job_has_a_class_and_a_name_for_its_tools():
    assert JOBS.keys() == TOOLS.keys()
    assert len(set(TOOLS.values())) == len(TOOLS)
    for place in JOBS.values():
        module, _, attribute = place.partition(":")
        assert module.startswith("engine.")
        assert attribute.endswith("Job")


@pytest.mark.parametrize("name", JOBS)
def test_a_job_by_its_name_is_what_a_config_of_it_gets(name):
    found = job_class(name)
    assert issubclass(found, Job)
    assert get_args(found.config_class.model_fields["job"].annotation) == (name,)


def test_a_config_gets_its_job():
    config = apply_overrides({"data": SHAPES}, [], origin="this test")
    job = job_of(config)
    assert type(job) is DetectionJob
    assert job.config is config


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("detectoin", "There is no job 'detectoin'. Did you mean 'detection'?"),
        ("Segmentation", "There is no job 'Segmentation'. Did you mean 'segmentation'?"),
        ("classify", "There is no job 'classify'. Did you mean 'classification'?"),
        ("pose", "There is no job 'pose'. Known: classification, detection, segmentation."),
    ],
)
def test_an_unknown_job_is_named_with_the_nearest_right_one(name, message):
    with pytest.raises(UserError) as caught:
        job_class(name)
    assert str(caught.value) == message


def test_jobs_are_imported_when_they_are_used(monkeypatch):
    monkeypatch.setitem(JOBS, "broken", "engine.no_such_module:Job")
    assert job_class("detection") is DetectionJob
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        job_class("broken")


@pytest.mark.parametrize("missing", ["losses", "predict", "build_model", "start_evaluation", "present"])
def test_a_job_that_lacks_a_part_cannot_be_made(missing):
    lacking = type("Lacking", (ToyJob,), {missing: getattr(Job, missing)})
    with pytest.raises(TypeError, match=missing):
        lacking(ToyConfig())


# ---- In a config and in a checkpoint ----


def test_a_resolved_config_starts_with_job_model_and_data(trained, toy_run):
    for folder, job in ((trained.folder, "detection"), (toy_run.folder, "toy")):
        text = (folder / "config.yaml").read_text()
        assert text.startswith(f"job: {job}\nmodel:")
        assert list(yaml.safe_load(text))[:3] == ["job", "model", "data"]
        assert load_checkpoint(folder / "last.pt").config["job"] == job


def test_a_run_whose_config_names_no_job_detects(make_config, tmp_path):
    content = make_config("train.batch_size=7").model_dump()
    del content["job"]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    config = load_config(tmp_path / "run.yaml", job="detection")
    assert isinstance(config, DetectionConfig)
    (score,) = train(config)
    assert score.kind == "bbox"
    assert load_checkpoint(tmp_path / "run" / "best.pt").job == "detection"


@pytest.mark.parametrize(("wanted", "named"), [("detection", "toy"), ("toy", "detection"), ("segmentation", "toy")])
def test_what_is_of_one_job_is_refused_where_another_is_wanted(toy_run, trained, wanted, named):
    folder = toy_run.folder if named == "toy" else trained.folder
    tool = {"toy": "toy", "detection": "det"}[named]
    expected = rf"is of the job {named}, and this tool is for {wanted}: use tools/train_{tool}\.py or tools/eval_{tool}\.py"
    with pytest.raises(UserError, match=expected) as caught:
        load_config(folder / "config.yaml", job=wanted)
    assert str(folder / "config.yaml") in str(caught.value)
    with pytest.raises(UserError, match=expected) as caught:
        load_checkpoint(folder / "last.pt").load_config(job=wanted)
    assert str(folder / "last.pt") in str(caught.value)
    for name in ("config.yaml", "last.pt"):
        with pytest.raises(UserError, match=expected):
            evaluate(str(folder / name), [], job=wanted, weights="weights.pth")
    assert load_config(folder / "config.yaml").job == load_checkpoint(folder / "last.pt").load_config().job == named


def test_a_run_of_one_job_cannot_go_on_from_a_checkpoint_of_another(make_config, toy_run, tmp_path):
    before = {path: path.read_bytes() for path in toy_run.folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"last\.pt is of the job toy"):
        train(make_config(name="other"), resume=str(toy_run.folder / "last.pt"))
    with pytest.raises(UserError, match=r"last\.pt is of the job toy"):
        train(make_config(f"output_dir={toy_run.folder}"), resume="")
    assert not (tmp_path / "other").exists()
    assert before == {path: path.read_bytes() for path in toy_run.folder.rglob("*") if path.is_file()}


# ---- A job that is not ours ----


def test_any_job_trains_to_a_run_that_says_how_it_went(toy_run):
    folder, (score,) = toy_run.folder, toy_run.scores
    assert score.stats == {"accuracy": 1, "images": 6}
    lines = toy_run.printed.splitlines()
    assert lines[0] == f"dark or bright with resnet18, 1 process, cpu, in {folder}"
    assert lines[1] == "6 grey images"
    assert "epoch 4 on 6 validation images, in" in toy_run.printed
    assert sum(line == " accuracy 1.0000" for line in lines) >= 1
    assert "accuracy by class" in toy_run.printed
    assert lines[-1] == f"1 pictures in {folder / 'predictions'}, weights in {folder / 'best.pt'}"
    assert (folder / "predictions" / "first.png").exists()
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    trained = [record for record in records if record["kind"] == "train"]
    assert [record["step"] for record in trained] == list(range(1, 13))
    assert all(record["loss"] == record["loss_label"] for record in trained)
    assert set(trained[0]["image_ids"]) < set(range(95, 101))
    last = [record for record in records if record["kind"] == "eval"][-1]
    assert last["labels"] == {"accuracy": 1, "images": 6, "per_class": {"dark": 1, "bright": 1}}
    assert [category.name for category in load_checkpoint(folder / "best.pt").categories] == ["dark", "bright"]
    assert load_config(folder / "config.yaml") == toy_run.config


def test_the_best_weights_are_those_of_the_best_value_of_the_last_score(toy_job, monkeypatch):
    score = ToyEvaluation.score
    values = iter([(0.9, 0.2), (0.1, 0.5), (0.8, 0.4)])
    seen = []

    def told(self, output_dir=None):
        (one,) = score(self, output_dir)
        first, last = next(values)
        seen.append(Path(output_dir).parent)
        return [type(one)("first", "a", {"a": first}, {}), type(one)("last", "b", {"a": 1.0, "b": last}, {})]

    monkeypatch.setattr(ToyEvaluation, "score", told)
    config = toy_job("train.epochs=3").config
    train(config)
    best, last = (load_checkpoint(Path(config.output_dir) / name) for name in ("best.pt", "last.pt"))
    assert last.training["best"] == 0.5
    assert len(seen) == 3
    assert any(not torch.equal(value, last.model[key]) for key, value in best.model.items())


def test_any_job_goes_on_where_it_was_stopped(toy_job, toy_run, tmp_path):
    first = toy_job("train.epochs=4", f"output_dir={tmp_path / 'second'}", "schedule.milestones=[9.0]").config
    train(first)
    longer = toy_job("train.epochs=6", f"output_dir={tmp_path / 'second'}", "schedule.milestones=[9.0]").config
    train(longer, resume="")
    whole = toy_job("train.epochs=6", f"output_dir={tmp_path / 'whole'}", "schedule.milestones=[9.0]").config
    train(whole)
    resumed, straight = (load_checkpoint(tmp_path / name / "last.pt").model for name in ("second", "whole"))
    assert all(torch.equal(value, straight[key]) for key, value in resumed.items())
    with pytest.raises(UserError, match=r"was trained with data\.bright=bright, the config now says light"):
        train(toy_job("train.epochs=5", "data.bright=light").config, resume="")


def test_sets_of_other_classes_are_refused(toy_job, monkeypatch):
    job = toy_job()
    other = job.config.data.model_copy(update={"bright": "light"})
    monkeypatch.setattr(ToyJob, "build_validation_set", lambda self, world=None: ToySet(other, name="val", seed=0))
    with pytest.raises(UserError, match=r"train\.toy and val\.toy list different categories"):
        train(job.config)


def test_an_image_is_prepared_as_it_is_unless_the_job_says_otherwise(toy_job):
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    prepared = toy_job().prepare(pixels)
    assert (prepared.dtype, prepared.shape, prepared.is_contiguous()) == (torch.uint8, (3, 2, 3), True)
    assert torch.equal(prepared.permute(1, 2, 0), torch.from_numpy(pixels))


def test_an_evaluation_that_lacks_a_part_cannot_be_made():
    class Half(Evaluation):
        def add(self, target, prediction):
            pass

    with pytest.raises(TypeError, match="collected"):
        Half()


def test_a_round_trip_keeps_the_job(toy_job, tmp_path):
    config = toy_job("data.count=4").config
    (tmp_path / "toy.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "toy.yaml", job="toy") == config
