"""The benchmark that kills a run, in short: what it calls the same, and a few kills."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch

from benchmarks.kills import Start, differences, metrics, run_killed, run_stopped
from engine.checkpoint import load_checkpoint
from tests.engine.conftest import toy_config


@pytest.fixture
def finished(tmp_path, trained_folder) -> tuple[Path, Path]:
    second = tmp_path / "second"
    shutil.copytree(trained_folder, second)
    return trained_folder, second


@pytest.fixture(scope="module")
def trained_folder(tmp_path_factory) -> Path:
    from engine.train import train
    from tests.engine.conftest import write_coco

    folder = tmp_path_factory.mktemp("kills")
    train(toy_config("train.batch_size=7", data=write_coco(folder / "data"), output_dir=folder / "run"))
    return folder / "run"


def test_a_copy_is_no_difference(finished):
    assert differences(*finished) == []


def test_the_last_bit_of_a_weight_is_a_difference(finished):
    path = finished[1] / "last.pt"
    content = torch.load(path, weights_only=True)
    name, weight = next(iter(content["model"].items()))
    weight.view(-1).view(torch.int32)[0] ^= 1
    torch.save(content, path)
    assert load_checkpoint(path).training["step"] == 1
    assert differences(*finished) == [f"last.pt/0/{name}"]


def test_a_line_that_is_missing_or_doubled_is_a_difference_and_a_time_is_none(finished):
    path = finished[1] / "metrics.jsonl"
    first, *rest = path.read_text().splitlines(keepends=True)
    path.write_text(json.dumps(json.loads(first) | {"time": 5, "images_per_second": 1}) + "\n" + "".join(rest))
    assert differences(*finished) == []
    path.write_text(first)
    assert differences(*finished) == ["metrics.jsonl"]
    path.write_text("".join([first, first, *rest]))
    assert differences(*finished) == ["metrics.jsonl"]


def test_a_checkpoint_or_scores_that_are_missing_are_a_difference(finished):
    (finished[1] / "best.pt").unlink()
    (finished[1] / "eval" / "scores.json").unlink()
    assert differences(*finished) == ["best.pt", "eval"]


@pytest.mark.minutes
@pytest.mark.parametrize(("processes", "kills"), [(1, 3), (2, 1)])
def test_a_run_that_is_killed_ends_as_the_one_that_was_left_alone(tmp_path, processes, kills):
    start = Start(tmp_path / "whole", processes, ())
    assert start.wait() == 0, start.output.read_text()
    assert metrics(tmp_path / "whole")
    of = {"processes": processes, "rng": random.Random(7)}
    assert len(run_killed(tmp_path / "killed", tmp_path / "whole", kills=kills, seconds=30.0, **of)) == kills
    statuses = run_stopped(tmp_path / "stopped", tmp_path / "whole", stops=1, **of)
    assert processes > 1 or statuses == [143]
