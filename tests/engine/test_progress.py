"""What a run prints."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine import progress
from engine.detection.coco_eval import CocoScore
from engine.distributed import World
from engine.progress import Reporter, Speed, peak_memory_gb
from engine.scores import Score

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


def reporter(rank: int = 0) -> Reporter:
    return Reporter(World(rank, 2, CPU))


def test_only_the_main_process_prints(capsys):
    for rank in (0, 1):
        one = reporter(rank)
        one.line(f"from {rank}")
        one.scores([CocoScore("bbox", "AP", {"AP": 0.5}, {"cat": 0.5})])
        one.per_class([CocoScore("bbox", "AP", {"AP": 0.5}, {"cat": 0.5})])
        with one.bar("working", 3) as show:
            show(1)
    out = capsys.readouterr().out
    assert "from 0" in out
    assert "from 1" not in out
    assert out.count("Average Precision") == out.count("cat") == 1


@pytest.mark.parametrize("text", ["a" * 500, "[red]not markup[/red] [/]", ":dog: /data/:car:/x", "step 3/10  loss 1.5"])
def test_a_line_is_printed_as_it_is(capsys, text):
    reporter().line(text)
    assert capsys.readouterr().out == text + "\n"


@pytest.mark.parametrize("kind_of_score", [Score, CocoScore])
def test_each_score_prints_its_own_lines(capsys, kind_of_score):
    scores = [kind_of_score(kind, "AP", {"AP": 0.25, "AR100": -1.0}, {}) for kind in ("bbox", "segm")]
    reporter().scores(scores)
    assert capsys.readouterr().out.splitlines() == ["bbox:", *scores[0].lines(), "segm:", *scores[1].lines()]


def test_the_table_has_a_row_a_class_and_a_dash_where_there_is_nothing_to_find(capsys):
    boxes = CocoScore("bbox", "AP", {}, {"cat": 0.25, "dog": -1.0})
    masks = CocoScore("segm", "AP", {}, {"cat": 0.125, "dog": 0.0})
    reporter().per_class([boxes, masks])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "AP by class"
    assert any("bbox AP" in line and "segm AP" in line for line in lines)
    assert any("cat" in line and "0.250" in line and "0.125" in line for line in lines)
    assert any("dog" in line and "–" in line and "0.000" in line and "-1" not in line for line in lines)


def test_the_table_is_of_what_runs_are_compared_by(capsys):
    reporter().per_class([Score("labels", "accuracy", {"accuracy": 0.5}, {"cat": 0.75})])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "accuracy by class"
    assert any("labels accuracy" in line for line in lines)
    assert any("cat" in line and "0.750" in line for line in lines)


def test_a_class_that_one_kind_of_result_does_not_have_gets_a_dash(capsys):
    """COCO scores keypoints of the classes that have any."""
    boxes, points = CocoScore("bbox", "AP", {}, {"cat": 0.25, "cup": 0.5}), CocoScore("keypoints", "AP", {}, {"cat": 0.125})
    reporter().per_class([boxes, points])
    lines = capsys.readouterr().out.splitlines()
    assert any("cat" in line and "0.250" in line and "0.125" in line for line in lines)
    assert any("cup" in line and "0.500" in line and "–" in line for line in lines)


@pytest.mark.parametrize("name", ["[other]", "[/x]", "a[red]b", ":dog:"])
def test_a_class_name_is_printed_as_it_is(capsys, name):
    reporter().per_class([Score("bbox", "AP", {}, {name: 0.5})])
    assert name in capsys.readouterr().out


def test_without_a_terminal_there_is_no_bar(capsys):
    with reporter().bar("working", 10) as show:
        show(5)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_speed_counts_the_steps_and_not_what_is_between_them(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    speed = Speed(batch_size=8)
    for step_seconds, pause in ((1, 100), (3, 50)):
        speed.start()
        now[0] += step_seconds
        speed.stop()
        now[0] += pause
    assert speed.report(steps_left=10) == (4.0, 20.0)
    speed.start()
    now[0] += 8
    speed.stop()
    assert speed.report(steps_left=3) == (1.0, 24.0), "only what came after the last report"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_the_most_this_process_held():
    from pathlib import Path

    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    assert peak_memory_gb(CPU) == pytest.approx(int(status["VmHWM"].split()[0]) * 1024 / 1e9, rel=0.05)


PRINTS = """
import sys, torch
from engine.distributed import World
from engine.progress import Reporter
reporter = Reporter(World(0, 1, torch.device("cpu")))
for number in range(3000):
    reporter.line(f"line {number}, long enough that a pipe is soon full")
print("came to its end", file=sys.stderr)
"""


@pytest.mark.parametrize("where", ["| head -1", "> /dev/full", ">&-"])
def test_a_run_whose_lines_nobody_takes_goes_on(where):
    command = f"set -o pipefail; \"{sys.executable}\" -c '{PRINTS}' {where}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.stderr == "came to its end\n"
    assert done.returncode == 0
