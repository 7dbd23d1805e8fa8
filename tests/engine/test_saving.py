"""Checkpoints written beside the training: what was copied is what is written, and what fails is tried again."""

import errno
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import engine.saving
from engine.checkpoint import write_checkpoint
from engine.files import WriteErrors
from engine.saving import CheckpointWriter, copied

CPU = torch.device("cpu")


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def writer(tmp_path, lines) -> CheckpointWriter:
    return CheckpointWriter(tmp_path, errors=WriteErrors(lines.append))


class Disk:
    """Where files can be written or not, and in which order they were."""

    def __init__(self) -> None:
        self.full = False
        self.written: list[tuple[str, Any]] = []

    def write(self, path: Path, content: dict[str, Any], **_: Any) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.written.append((path.name, content["value"]))


@pytest.fixture
def disk(monkeypatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(engine.saving, "write_checkpoint", disk.write)
    return disk


def test_a_copy_stays_as_it_was_when_the_state_goes_on():
    weights = torch.arange(12.0).view(3, 4).t()
    state = {
        "model": {"w": weights},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "groups": [{"lr": 0.1}]},
        "no": None,
    }
    copy, ready = copied(state, CPU)
    assert ready is None
    before = weights.clone()
    weights.zero_()
    state["optimizer"]["state"][0]["step"] += 1
    assert torch.equal(copy["model"]["w"], before)
    assert copy["model"]["w"].stride() == weights.stride()
    assert copy["optimizer"] == {"state": {0: {"step": torch.tensor(3.0)}}, "groups": [{"lr": 0.1}]}
    assert copy["no"] is None


def test_a_save_does_not_wait_for_the_disk(writer, monkeypatch):
    may_write, written = threading.Event(), []

    def write(path: Path, *_: Any, **__: Any) -> None:
        assert may_write.wait(10)
        written.append(path.name)

    monkeypatch.setattr(engine.saving, "write_checkpoint", write)
    writer.save({"best.pt": {}, "last.pt": {}})
    assert written == []
    may_write.set()
    writer.join()
    assert written == ["best.pt", "last.pt"]


def state(value: int, *, step: int = 0) -> dict[str, Any]:
    return {"value": value, "training": {"step": step, "best": 0.7, "evaluation_due": False}}


def test_what_could_not_be_written_is_written_with_the_next_save_and_only_its_newest(writer, disk, lines):
    disk.full = True
    writer.save({"best.pt": {"value": 1}, "last.pt": state(1)})
    writer.save({"last.pt": state(2)})
    writer.join()
    assert disk.written == []
    disk.full = False
    writer.save({"last.pt": state(3)})
    writer.join()
    assert disk.written == [("best.pt", 1), ("last.pt", 3)], "the last.pt that counts on best.pt comes after it"
    first, second, *again = lines
    assert first.startswith("warning 1: best.pt could not be written (No space left on device). Training goes on; it is tried")
    assert second.startswith("warning 2: last.pt could not be written (No space left on device). Training goes on; it is tried")
    assert again == ["best.pt could be written again", "last.pt could be written again"]
    assert writer.errors.count == 4
    assert writer.errors.unwritten == {}


def test_where_the_best_weights_cannot_be_written_the_run_can_still_be_gone_on_from(writer, tmp_path, lines):
    writer.best = 0.5
    (tmp_path / "best.pt").mkdir()

    def last() -> dict[str, Any]:
        writer.join()
        return torch.load(tmp_path / "last.pt", weights_only=True)["training"]

    writer.save({"best.pt": {"value": 1}, "last.pt": state(1, step=3)}, best=0.7, step=3)
    assert last() == {"step": 3, "best": 0.5, "evaluation_due": True}, "it finds the best weights again"
    writer.save({"last.pt": state(2, step=4)}, step=4)
    assert last() == {"step": 4, "best": 0.5, "evaluation_due": False}, "it knows which best.pt is there"
    (tmp_path / "best.pt").rmdir()
    writer.save({"last.pt": state(3, step=5)}, step=5)
    assert last()["best"] == 0.7
    assert torch.load(tmp_path / "best.pt", weights_only=True)["value"] == 1
    assert lines[-1] == "best.pt could be written again"


def test_the_end_tries_once_more(writer, disk):
    disk.full = True
    writer.save({"last.pt": {"value": 1}})
    writer.finish()
    assert writer.errors.unwritten == {"last.pt": "No space left on device"}
    disk.full = False
    writer.finish()
    assert disk.written == [("last.pt", 1)]
    assert writer.errors.unwritten == {}


def test_a_checkpoint_of_an_epoch_is_given_up_where_there_is_no_room(writer, disk, lines):
    disk.full = True
    writer.save({"epoch_0002.pt": {"value": 1}})
    writer.join()
    disk.full = False
    writer.save({"last.pt": {"value": 2}})
    writer.join()
    assert disk.written == [("last.pt", 2)]
    assert "epoch_0002.pt could not be written" in lines[0]
    assert "it is not kept" in lines[0]


def test_a_mistake_of_the_program_is_raised_where_the_training_waits(writer, monkeypatch):
    def write(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(engine.saving, "write_checkpoint", write)
    writer.save({"last.pt": {}})
    with pytest.raises(ZeroDivisionError, match="a bug"):
        writer.join()
    writer.join()


def test_the_last_but_one_is_kept_until_and_after_the_new_one_is_whole(writer, tmp_path):
    for value in (1, 2, 3):
        writer.save({"last.pt": {"value": value}})
    writer.join()
    values = {path.name: torch.load(path, weights_only=True)["value"] for path in tmp_path.iterdir()}
    assert values == {"last.pt": 3, "last.previous.pt": 2}


def test_a_device_without_room_leaves_the_file_as_it_was_and_no_part(tmp_path):
    """/dev/full takes nothing: PyTorch's own writer hides why."""
    path = tmp_path / "last.pt"
    write_checkpoint(path, {"value": torch.ones(3)})
    before = path.read_bytes()
    (tmp_path / "last.pt.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_checkpoint(path, {"value": torch.ones(100_000)})
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["last.pt"]
