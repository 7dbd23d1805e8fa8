"""What in a folder a run goes on from, and what it does not write over; one that went back to an earlier step stays there."""

import json
import os
from pathlib import Path

import pytest

from backbones.errors import UserError
from engine.checkpoint import copy_checkpoint, load_checkpoint
from engine.train import train
from tests.engine.conftest import write_coco
from tests.engine.test_resume import damage, stopped_run


def step_of(path: Path) -> int:
    return load_checkpoint(path).training["step"]


def test_killed_after_it_went_back_it_does_not_go_on_from_where_it_turned_away(stateful, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    train(stateful("train.keep_every_epochs=1"))
    assert step_of(run / "last.pt") == 9

    with monkeypatch.context() as patch:
        patch.setattr("engine.train.Run._train_step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):  # before its first save
            train(stateful("train.keep_every_epochs=1"), resume=str(run / "epoch_0001.pt"))
    assert step_of(run / "last.pt") == 3
    assert step_of(run / "last.previous.pt") == 9, "nothing is lost"

    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    capsys.readouterr()
    train(stateful("train.keep_every_epochs=1"), resume=str(run / "epoch_0001.pt"))
    assert "resumed at step 3 of 9" in capsys.readouterr().out


def test_behind_the_last_comes_what_was_written_last(stateful, tmp_path, capsys):
    run = tmp_path / "run"
    stopped_run(stateful("train.keep_every_epochs=1", "train.checkpoint_steps=2"), step=5)
    for age, name in enumerate(["epoch_0001.pt", "last.previous.pt"]):
        os.utime(run / name, (1e9 - age, 1e9 - age))
    damage(run / "last.pt", "truncated")
    capsys.readouterr()
    train(stateful("train.keep_every_epochs=1", "train.checkpoint_steps=2"), resume="")
    assert f"resumed from {run / 'epoch_0001.pt'}" in capsys.readouterr().out


def test_a_copy_takes_the_place_of_the_last_and_may_come_from_the_one_before(tmp_path):
    last, previous = tmp_path / "last.pt", tmp_path / "last.previous.pt"
    last.write_bytes(b"new")
    previous.write_bytes(b"old")
    copy_checkpoint(previous, last, previous=previous)
    assert (last.read_bytes(), previous.read_bytes()) == (b"old", b"new")
    copy_checkpoint(last, last, previous=previous)
    assert (last.read_bytes(), previous.read_bytes()) == (b"old", b"old")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.previous.pt", "last.pt"]


def test_the_best_weights_alone_are_not_written_over(stateful, tmp_path):
    run = tmp_path / "run"
    stopped_run(stateful(), step=4)
    (run / "best.pt").write_bytes(b"dear to someone")
    for name in ("last.pt", "last.previous.pt"):
        (run / name).unlink(missing_ok=True)
    for resume, message in ((None, "holds a run already"), ("", r"no checkpoint to go on from, and a best\.pt that")):
        with pytest.raises(UserError, match=message):
            train(stateful(), resume=resume)
    assert (run / "best.pt").read_bytes() == b"dear to someone"


def test_a_link_that_leads_nowhere_is_no_empty_folder(stateful, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "last.pt").symlink_to(tmp_path / "not mounted" / "last.pt")
    with pytest.raises(UserError, match=r"There is no checkpoint at .*last\.pt"):
        train(stateful(), resume="")
    with pytest.raises(UserError, match="holds a run already"):
        train(stateful())


def test_a_folder_in_the_place_of_a_checkpoint_is_said_before_the_training(stateful, tmp_path):
    (tmp_path / "run" / "best.pt").mkdir(parents=True)
    (tmp_path / "run" / "last.pt").mkdir()
    with pytest.raises(UserError, match="No checkpoint in"):
        train(stateful(), resume="")
    (tmp_path / "run" / "last.pt").rmdir()
    (tmp_path / "run" / "best.pt").rmdir()
    (tmp_path / "run" / "last.previous.pt").mkdir()
    with pytest.raises(UserError, match="holds a run already"):
        train(stateful())


def test_a_training_set_of_another_size_is_refused(make_config, tmp_path):
    data = write_coco(tmp_path / "data")
    config = make_config("train.batch_size=2", "train.epochs=3", "train.checkpoint_steps=1", data=data)
    stopped_run(config, step=3)
    content = json.loads(Path(data["annotations"]).read_text())
    gone = content["images"].pop()["id"]
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != gone]
    Path(data["annotations"]).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"was trained on \d+ images, .* now gives \d+: the run cannot go on"):
        train(config, resume="")
