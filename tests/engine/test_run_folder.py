"""A run whose disk is full goes on, and keeps its last good checkpoint; on a real file system of a few MB."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from backbones.errors import UserError
from engine.checkpoint import load_checkpoint
from engine.cli import run_tool
from engine.tracking import JsonlTracker
from engine.train import train
from tests.engine.conftest import toy_config

ROOT = Path(__file__).parents[2]
MEGABYTES = 24  # of the toy detector's checkpoints, three to six MB each, four are there at a time


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A tmpfs at `folder`; its own namespace lets a test mount it, and takes it away with the process."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "none", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """A file that takes all there is left."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return path


def main(folder: str, data: str, until: str) -> None:
    """Train for six epochs of a step; the disk is full from the third step on, for good or until the fifth."""
    disk = Path(folder, "disk")
    log = JsonlTracker.log

    def log_and_fill(tracker: JsonlTracker, kind: str, step: int, values: dict) -> None:
        log(tracker, kind, step, values)
        if (kind, step) == ("train", 3):
            fill(disk)
        if kind == "train" and step == int(until):
            (disk / "filler").unlink()

    JsonlTracker.log = log_and_fill  # type: ignore[method-assign]
    overrides = ("train.batch_size=7", "train.epochs=6", "eval.every_epochs=2", "train.keep_every_epochs=3")
    with small_disk(disk):
        try:
            run_tool(lambda: train(toy_config(*overrides, data=json.loads(data), output_dir=disk / "run")))
        finally:
            (disk / "filler").unlink(missing_ok=True)
            shutil.copytree(disk / "run", Path(folder, "after"))


@pytest.fixture
def run_on_small_disk(tmp_path, toy_data):
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False).returncode:
        pytest.skip("a file system of one's own cannot be mounted here")

    def run(until: int) -> subprocess.CompletedProcess[str]:
        code = "import sys; from tests.engine.test_run_folder import main; main(*sys.argv[1:])"
        command = ["unshare", "-rm", sys.executable, "-c", code, str(tmp_path), json.dumps(toy_data), str(until)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)

    return run


def steps(folder: Path) -> list[tuple[str, int]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["kind"], line["step"]) for line in lines]


WHOLE = [*(("train", n) for n in (1, 2)), ("eval", 2), *(("train", n) for n in (3, 4)), ("eval", 4)]
WHOLE += [("train", 5), ("train", 6), ("eval", 6)]


def test_a_disk_that_is_full_for_a_while_costs_warnings_alone(run_on_small_disk, tmp_path):
    ended = run_on_small_disk(until=5)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "last.pt could not be written (No space left on device). Training goes on" in ended.stdout
    assert "last.pt could be written again" in ended.stdout
    assert "times a file could not be written" in ended.stdout
    after = tmp_path / "after"
    assert steps(after) == WHOLE
    events = EventAccumulator(str(after / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert load_checkpoint(after / "last.pt").training["step"] == 6
    assert load_checkpoint(after / "best.pt").training is None
    assert not list(after.glob("*.part"))


def test_a_disk_that_stays_full_ends_with_a_message_and_the_last_good_checkpoint(run_on_small_disk, toy_data, tmp_path):
    ended = run_on_small_disk(until=0)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert ended.stderr.count("\n") == 1
    assert "The training has ended, but in" in ended.stderr
    assert "last.pt (No space left on device)" in ended.stderr
    assert "step 6/6" in ended.stdout, "it went on to the end"
    last = load_checkpoint(tmp_path / "after" / "last.pt")
    assert last.training["step"] == 2
    overrides = ("train.batch_size=7", "train.epochs=6", "eval.every_epochs=2", "train.keep_every_epochs=3")
    train(toy_config(*overrides, data=toy_data, output_dir=tmp_path / "after"), resume="")
    assert steps(tmp_path / "after") == WHOLE
    assert load_checkpoint(tmp_path / "after" / "epoch_0003.pt").training["step"] == 3


def test_a_folder_that_is_deleted_meanwhile_is_said_and_written_again(make_config, tmp_path, monkeypatch, capsys):
    log = JsonlTracker.log

    def log_and_delete(tracker: JsonlTracker, kind: str, step: int, values: dict[str, Any]) -> None:
        log(tracker, kind, step, values)
        if (kind, step) == ("train", 1):
            shutil.rmtree(tmp_path / "run")

    monkeypatch.setattr(JsonlTracker, "log", log_and_delete)
    train(make_config("train.batch_size=6", "train.epochs=2", "train.log_steps=1"))
    assert capsys.readouterr().out.count(f"warning: {tmp_path / 'run'} was deleted.") == 1
    found = {path.name for path in (tmp_path / "run").iterdir()}
    assert found >= {"config.yaml", "metrics.jsonl", "tensorboard", "last.pt", "best.pt", "eval"}
    assert ("train", 1) in steps(tmp_path / "run")


def test_what_stands_in_the_way_is_named(make_config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").touch()
    with pytest.raises(UserError, match=r"run/tensorboard cannot be written \(File exists\)\. .*output_dir=FOLDER\."):
        train(make_config())
