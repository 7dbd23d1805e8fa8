"""Where a run's numbers go."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.tracking import JsonlTracker, TensorBoardTracker

VALUES = {"loss": 1.5, "epoch": 2, "image_ids": [3, 4], "bbox": {"AP": 0.25, "per_class": {"cat": 0.5}}}


def test_each_call_is_a_line_of_json_readable_at_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path)
    tracker.log("train", 7, VALUES)
    line = json.loads(path.read_text())
    assert line.pop("time") > 1.6e9
    assert line == {"kind": "train", "step": 7, **VALUES}
    tracker.close()


def test_a_resumed_run_goes_on_after_its_checkpoints_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path)
    for step in (1, 2, 3, 4):
        tracker.log("train", step, {"run": "first"})
    tracker.close()
    path.write_text(path.read_text() + '{"kind": "train", "ste')  # killed while it wrote
    tracker = JsonlTracker(path, start_step=2)
    tracker.log("train", 3, {"run": "second"})
    tracker.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["run"]) for line in lines] == [(1, "first"), (2, "first"), (3, "second")]


def test_tensorboard_gets_each_number_under_its_path(tmp_path):
    tracker = TensorBoardTracker(tmp_path)
    tracker.log("train", 7, VALUES)
    tracker.log("train", 9, {"loss": 0.5})
    tracker.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == {"train/loss", "train/epoch", "train/bbox/AP", "train/bbox/per_class/cat"}
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(7, 1.5), (9, 0.5)]
    assert events.Scalars("train/bbox/per_class/cat")[0].value == pytest.approx(0.5)


def test_tensorboard_forgets_what_a_resumed_run_does_again(tmp_path):
    for start, steps in ((0, (1, 2, 3, 4)), (2, (3,))):
        tracker = TensorBoardTracker(tmp_path, start_step=start)
        for step in steps:
            tracker.log("train", step, {"loss": float(start)})
        tracker.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 0), (2, 0), (3, 2)]
