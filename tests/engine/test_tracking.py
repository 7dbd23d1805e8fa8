"""Where a run's numbers go."""

import errno
import json
import os
import shutil

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.files import WriteErrors
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


def test_a_run_that_evaluates_again_takes_out_the_line_of_the_evaluation_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path)
    tracker.log("train", 1, VALUES)
    tracker.log("train", 2, VALUES)
    tracker.log("eval", 2, VALUES)
    tracker.close()
    tracker = JsonlTracker(path, start_step=2)
    assert [record["kind"] for record in tracker.last_records] == ["train", "eval"]
    tracker.close()
    tracker = JsonlTracker(path, start_step=2, evaluates_again=True)
    assert [(record["kind"], record["step"]) for record in tracker.last_records] == [("train", 2)]
    tracker.close()
    assert [json.loads(line)["kind"] for line in path.read_text().splitlines()] == ["train", "train"]


def test_tensorboard_has_the_step_once_whose_evaluation_is_done_again(tmp_path):
    tracker = TensorBoardTracker(tmp_path)
    for step in (1, 2):
        tracker.log("train", step, {"loss": float(step)})
    tracker.log("eval", 2, {"AP": 0.5})
    tracker.close()
    again = [{"kind": "train", "step": 2, "time": 5.0, "loss": 2.0}]
    tracker = TensorBoardTracker(tmp_path, start_step=2, again=again)
    tracker.log("eval", 2, {"AP": 0.25})
    tracker.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 1), (2, 2)]
    assert [(event.step, event.value) for event in events.Scalars("eval/AP")] == [(2, 0.25)]


def test_tensorboard_forgets_a_start_that_had_no_checkpoint_yet(tmp_path):
    for loss in (1.0, 2.0):
        tracker = TensorBoardTracker(tmp_path)
        tracker.log("train", 1, {"loss": loss})
        tracker.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 2)]


def test_what_is_logged_is_in_the_file_when_the_process_is_killed(tmp_path):
    tracker = TensorBoardTracker(tmp_path)
    tracker.log("train", 1, {"loss": 1.5})
    events = EventAccumulator(str(tmp_path)).Reload()  # nothing was flushed or closed
    assert [event.value for event in events.Scalars("train/loss")] == [1.5]
    tracker.close()


@pytest.mark.parametrize("room", [0, 1, 40])
def test_what_a_full_disk_does_not_take_is_written_when_it_does(tmp_path, monkeypatch, room):
    lines, left, write = [], [room], os.write

    def write_while_there_is_room(handle: int, data: bytes) -> int:
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(handle, data[: left[0]])
        left[0] -= written
        return written

    errors = WriteErrors(lines.append)
    trackers = [JsonlTracker(tmp_path / "metrics.jsonl", errors=errors), TensorBoardTracker(tmp_path / "tb", errors=errors)]
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write_while_there_is_room)
        for step in (1, 2):
            for tracker in trackers:
                tracker.log("train", step, VALUES)
    assert errors.count >= 4
    assert [line.split(" could not")[0] for line in lines] == ["warning 1: metrics.jsonl", "warning 2: tb/"]
    for tracker in trackers:
        tracker.flush()
        tracker.close()
    assert errors.unwritten == {}
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 1.5), (2, 1.5)]


def test_files_that_are_deleted_meanwhile_are_there_again_and_whole(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    trackers = JsonlTracker(folder / "metrics.jsonl"), TensorBoardTracker(folder / "tensorboard")
    for step in (1, 2, 3):
        for tracker in trackers:
            tracker.log("train", step, {"loss": 0.5})
        if step == 1:
            shutil.rmtree(folder)
        for tracker in trackers:
            tracker.flush()
    for tracker in trackers:
        tracker.close()
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3]


@pytest.mark.parametrize(
    "line",
    [
        b"# my note",
        b"\xff\x00",
        b"[" * 100_000,
        b'{"step": "x", "kind": 1, "time": 2}',
        b'{"step": 1, "kind": "train"}',
        b"[1]",
    ],
)
def test_lines_of_others_are_taken_out_said_and_kept_beside(tmp_path, line):
    path, said = tmp_path / "metrics.jsonl", []
    tracker = JsonlTracker(path)
    tracker.log("train", 1, {})
    path.write_bytes(path.read_bytes() + line + b"\n")
    tracker.log("train", 2, {})
    tracker.close()
    before = path.read_bytes()
    tracker = JsonlTracker(path, start_step=2, errors=WriteErrors(said.append))
    tracker.close()
    assert [json.loads(kept)["step"] for kept in path.read_text().splitlines()] == [1, 2]
    assert (tmp_path / "metrics.before.jsonl").read_bytes() == before
    assert len(said) == 1
    assert "1 lines of" in said[0]


def test_what_is_no_number_is_null(tmp_path):
    tracker = JsonlTracker(tmp_path / "metrics.jsonl")
    tracker.log("eval", 1, {"losses": {"loss": float("nan"), "other": 1.0}, "list": [float("inf"), 2]})
    tracker.close()

    def refuse(word: str) -> None:
        raise AssertionError(word)

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert (line["losses"], line["list"]) == ({"loss": None, "other": 1.0}, [None, 2])


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_waited_for(tmp_path, make):
    make(tmp_path / "metrics.jsonl")
    with pytest.raises(OSError, match="something else than a file"):
        JsonlTracker(tmp_path / "metrics.jsonl")


def test_a_file_that_an_editor_has_put_there_is_gone_on_with(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path)
    tracker.log("train", 1, {"loss": 1})
    path.with_name("edited").write_text(path.read_text().replace("loss", "cost"))
    path.with_name("edited").replace(path)
    tracker.flush()
    tracker.log("train", 2, {"loss": 1})
    tracker.close()
    first, second = map(json.loads, path.read_text().splitlines())
    assert (first["step"], first["cost"], second["step"], second["loss"]) == (1, 1, 2, 1)


def test_a_device_in_its_place_takes_all(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to(os.devnull)
    errors = WriteErrors(lambda _: None)
    tracker = JsonlTracker(tmp_path / "metrics.jsonl", errors=errors)
    tracker.log("train", 1, {})
    tracker.flush()
    tracker.close()
    assert (errors.count, errors.unwritten) == (0, {})


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_and_takes_its_place_is_told_and_the_lines_are_kept(tmp_path, make):
    path, said = tmp_path / "metrics.jsonl", []
    errors = WriteErrors(said.append)
    tracker = JsonlTracker(path, errors=errors)
    tracker.log("train", 1, {})
    path.unlink()
    make(path)
    tracker.flush()
    tracker.log("train", 2, {})
    assert list(errors.unwritten) == ["metrics.jsonl"]
    assert len(said) == 1
    path.rename(tmp_path / "elsewhere")
    tracker.flush()
    tracker.close()
    assert errors.unwritten == {}
    assert json.loads(path.read_text())["step"] == 2


def test_a_last_line_of_others_that_is_whole_is_kept_beside_and_one_cut_short_is_not(tmp_path):
    path, said = tmp_path / "metrics.jsonl", []
    for line, copies in ((b"# my no", 0), (b"# my note\n", 1)):
        path.write_bytes(line)
        JsonlTracker(path, errors=WriteErrors(said.append)).close()
        assert (len(said), (tmp_path / "metrics.before.jsonl").exists()) == (copies, bool(copies))
