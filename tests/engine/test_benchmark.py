"""engine/benchmark.py: both sides have the same weights and images, the figures are added up rightly."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.benchmark import Measurement, agreement, contenders, describe_machine, measure, table, to_json

CPU = torch.device("cpu")


def test_medians_spreads_and_ratios():
    theirs = Measurement("torchvision", "inference", 2, [4.0, 2.0, 3.0, 3.0])
    ours = Measurement("ours", "inference", 2, [1.0, 2.0, 1.5, 1.5], peak_memory_gb=1.234, cuda={"launches": 7})
    assert theirs.median == 3.0
    assert 0 < ours.spread < 1
    assert Measurement("ours", "training", 1, [1.0]).spread == 0
    rows = table([theirs, ours])
    assert rows[0][:3] == ["inference", "2", "torchvision"]
    assert rows[0][5:7] == ["0.67", "1.00x"]
    assert rows[1][3] == "1500 ms"
    assert rows[1][5:] == ["1.33", "2.00x", "1.23 GB", "7 launches"]
    content = to_json([theirs, ours], machine=describe_machine(CPU), settings={"size": (64, 64)})
    assert json.loads(json.dumps(content))["measurements"][1]["seconds"] == [1.0, 2.0, 1.5, 1.5]
    assert content["machine"]["torch"] == torch.__version__


@pytest.mark.slow
@pytest.mark.parametrize("head", ["faster_rcnn", "mask_rcnn"])
def test_contenders_have_the_same_weights_and_find_something(head):
    models = contenders(head, "inference", size=(64, 96), device=CPU)
    assert list(models) == ["torchvision", "ours", "ours, optimized"]
    differences = agreement(models, size=(64, 96))
    assert differences["torchvision"] == 0
    assert max(differences.values()) < 1e-4
    found = measure(models, "inference", size=(64, 96), batch_size=1, rounds=2)
    assert [one.contender for one in found] == list(models)
    assert all(len(one.seconds) == 2 and min(one.seconds) > 0 for one in found)
    with torch.inference_mode():
        predictions = [model([torch.rand(3, 64, 96)])[0] for model in models.values()]
    assert min(len(prediction["boxes"]) for prediction in predictions) > 10, "or no mask would be computed"


@pytest.mark.slow
def test_training_leaves_the_weights_as_they_are():
    models = contenders("mask_rcnn", "training", size=(64, 96), device=CPU)
    before = {name: [p.detach().clone() for p in model.parameters()] for name, model in models.items()}
    found = measure(models, "training", size=(64, 96), batch_size=1, rounds=1)
    assert [one.task for one in found] == ["training"] * 2
    for name, model in models.items():
        assert all(p.equal(old) for p, old in zip(model.parameters(), before[name], strict=True))


@pytest.mark.slow
def test_the_tool_prints_a_table_and_writes_the_figures(tmp_path):
    root = Path(__file__).parents[2]
    command = [sys.executable, "tools/benchmark.py", "--size", "64", "96", "--rounds", "1", "--threads", "1", "-o"]
    done = subprocess.run([*command, str(tmp_path / "a" / "out.json")], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ours, optimized" in done.stdout
    content = json.loads((tmp_path / "a" / "out.json").read_text())
    assert content["settings"]["size"] == [64, 96]
    assert {one["contender"] for one in content["measurements"]} >= {"torchvision", "ours"}


def test_impossible_settings_are_refused():
    root = Path(__file__).parents[2]
    command = [sys.executable, "tools/benchmark.py", "--size", "10", "10"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "at least 64 x 64" in done.stderr
