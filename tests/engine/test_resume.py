"""A run that was stopped and resumed ends as one that was not, to the last bit."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import engine.detection.job
import engine.run_folder
import engine.train
from backbones.errors import UserError
from engine.checkpoint import load_checkpoint
from engine.detection.build import build_model
from engine.detection.coco_eval import CocoScore
from engine.detection.config import DetectionConfig
from engine.detection.evaluate import DetectionEvaluation
from engine.tracking import JsonlTracker
from engine.train import train
from tests.engine.conftest import toy_config, write_coco

SHORT = ("train.batch_size=7",)  # one step an epoch


class Killed(BaseException):
    pass


def differences(first: Any, second: Any, path: str = "") -> list[str]:
    """Where two nests of dicts, lists, tensors and numbers are not the same to the bit."""
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        return [found for key in first for found in differences(first[key], second[key], f"{path}/{key}")]
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        return [found for i, pair in enumerate(zip(first, second, strict=True)) for found in differences(*pair, f"{path}/{i}")]
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return [] if torch.equal(first, second) else [path]
    return [] if type(first) is type(second) and first == second else [path]


def assert_same_end(first: Path, second: Path) -> None:
    for name in ("last.pt", "best.pt"):
        one, two = load_checkpoint(first / name), load_checkpoint(second / name)
        assert differences(one.model, two.model) == []
        assert differences(one.training, two.training) == []
    assert (first / "eval" / "segm_results.json").read_text() == (second / "eval" / "segm_results.json").read_text()
    assert losses(first) == losses(second)


def losses(folder: Path) -> list[tuple[str, int, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["kind"], line["step"], line.get("loss", line.get("segm"))) for line in lines]


def stop_after(monkeypatch, *, epoch: int | None = None, step: int | None = None) -> None:
    """Make the next run break off once an epoch has been saved, or once a step has been logged."""
    end_epoch, log = engine.train.Run._end_epoch, JsonlTracker.log

    def end_epoch_and_stop(run, number):
        end_epoch(run, number)
        if number == epoch:
            raise Killed

    def log_and_stop(tracker, kind, number, values):
        log(tracker, kind, number, values)
        if number == step:
            raise Killed

    monkeypatch.setattr(engine.train.Run, "_end_epoch", end_epoch_and_stop)
    monkeypatch.setattr(JsonlTracker, "log", log_and_stop)


def stopped_run(config: DetectionConfig, **when: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, **when)
        with pytest.raises(Killed):
            train(config)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- To the bit ----


def test_what_a_resume_compares_covers_weights_average_momentum_and_scaler(uninterrupted):
    training = load_checkpoint(uninterrupted.folder / "last.pt").training
    assert set(training) == {
        "step",
        "best",
        "evaluation_due",
        "processes",
        "num_images",
        "skipped",
        "optimizer",
        "scaler",
        "model",
        "num_averaged",
    }
    assert training["step"] == int(training["num_averaged"]) == 9
    assert any("running_mean" in key for key in training["model"])
    assert any(state["momentum_buffer"].abs().sum() > 0 for state in training["optimizer"]["state"].values())
    other = {**training, "model": {key: value + 1e-7 for key, value in training["model"].items()}}
    assert differences(training, other) != []


@pytest.mark.parametrize("epoch", [1, 2])
def test_stopped_after_an_epoch_and_resumed_it_ends_the_same(stateful, uninterrupted, tmp_path, epoch):
    stopped_run(stateful(), epoch=epoch)
    assert load_checkpoint(tmp_path / "run" / "last.pt").training["step"] == 3 * epoch
    train(stateful(), resume="")
    assert_same_end(tmp_path / "run", uninterrupted.folder)


@pytest.mark.parametrize("workers", [0, 1])
def test_stopped_within_an_epoch_and_resumed_it_ends_the_same(stateful, uninterrupted, tmp_path, workers):
    config = stateful("train.checkpoint_steps=2", f"data.num_workers={workers}")
    stopped_run(config, step=5)
    assert load_checkpoint(tmp_path / "run" / "last.pt").training["step"] == 4
    train(config, resume="")
    assert_same_end(tmp_path / "run", uninterrupted.folder)


@pytest.mark.parametrize("when", ["before", "after"])
def test_stopped_while_it_evaluated_and_resumed_it_evaluates_first_and_ends_the_same(
    stateful, uninterrupted, tmp_path, monkeypatch, when
):
    """Before its numbers are written, or after that, and before it is saved that it was done."""
    with monkeypatch.context() as patch:
        if when == "before":
            patch.setattr(DetectionEvaluation, "score", lambda *_: (_ for _ in ()).throw(Killed))
            with pytest.raises(Killed):
                train(stateful())
        else:
            save = engine.run_folder.RunFolder.save

            def save_or_stop(folder, *names):
                if "best.pt" in names:
                    raise Killed
                save(folder, *names)

            patch.setattr(engine.run_folder.RunFolder, "save", save_or_stop)
            with pytest.raises(Killed):
                train(stateful())
    training = load_checkpoint(tmp_path / "run" / "last.pt").training
    assert (training["step"], training["evaluation_due"]) == (3, True)
    train(stateful(), resume="")
    assert_same_end(tmp_path / "run", uninterrupted.folder)


def _train_and_be_killed(config: DetectionConfig) -> None:
    """The seventh checkpoint is half written when SIGKILL comes: steps 1 to 3, best.pt and step 3 evaluated, 4, 5."""
    save, calls = torch.save, []

    def save_or_die(content, file):
        calls.append(file)
        if len(calls) == 7:
            file.file.write(b"half of it")
            file.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        save(content, file)

    torch.save = save_or_die
    train(config)


def test_killed_while_it_wrote_a_checkpoint_and_resumed_it_ends_the_same(stateful, uninterrupted, on_processes, tmp_path):
    (killed,) = on_processes(1, _train_and_be_killed, stateful("train.checkpoint_steps=1"))
    assert killed.status == -signal.SIGKILL, killed.output
    assert (tmp_path / "run" / "last.pt.part").read_bytes() == b"half of it"
    assert load_checkpoint(tmp_path / "run" / "last.pt").training["step"] == 4
    train(stateful(), resume="")
    assert_same_end(tmp_path / "run", uninterrupted.folder)
    assert not (tmp_path / "run" / "last.pt.part").exists()


@pytest.mark.parametrize("override", ["optimizer.name=adamw", "train.precision=fp16"])
def test_the_state_of_other_optimizers_and_of_the_loss_scale_comes_back(make_config, few_data, tmp_path, override):
    def config(name: str) -> DetectionConfig:
        return make_config(override, "optimizer.lr=0.001", "train.epochs=2", "eval.every_epochs=2", data=few_data, name=name)

    train(config("whole"))
    stopped_run(config("stopped"), epoch=1)
    train(config("stopped"), resume="")
    whole, stopped = (load_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "stopped"))
    assert differences(whole.model, stopped.model) == []
    assert differences(whole.training, stopped.training) == []


def test_what_layers_draw_at_random_comes_back(make_config, few_data, tmp_path, monkeypatch):
    """A dropout behind the box head draws anew in every step, and in a resumed run as in one that was not stopped."""

    def build_with_dropout(*arguments, **options):
        model = build_model(*arguments, **options)
        model.roi_heads.box_head.register_forward_hook(lambda head, _, out: nn.functional.dropout(out, 0.5, head.training))
        return model

    def config(name: str) -> DetectionConfig:
        return make_config("train.epochs=2", "eval.every_epochs=2", data=few_data, name=name)

    train(config("without"))
    monkeypatch.setattr(engine.detection.job, "build_model", build_with_dropout)
    train(config("whole"))
    stopped_run(config("stopped"), epoch=1)
    torch.manual_seed(5)
    train(config("stopped"), resume="")
    without, whole, stopped = (load_checkpoint(tmp_path / name / "last.pt") for name in ("without", "whole", "stopped"))
    assert differences(whole.model, stopped.model) == []
    assert differences(whole.model, without.model) != []


def test_a_resumed_run_knows_the_best_score_so_far(make_config, tmp_path, monkeypatch):
    scores = iter([0.5, 0.3, 0.4, 0.6])
    monkeypatch.setattr(DetectionEvaluation, "score", lambda *_: [CocoScore("bbox", "AP", {"AP": next(scores)}, {})])
    stopped_run(make_config(*SHORT, "train.epochs=4"), epoch=1)
    best = []
    with pytest.MonkeyPatch.context() as patch:
        end_epoch = engine.train.Run._end_epoch

        def end_epoch_and_note(run, number):
            end_epoch(run, number)
            run.folder.writer.join()
            best.append((tmp_path / "run" / "best.pt").read_bytes())

        best.append((tmp_path / "run" / "best.pt").read_bytes())
        patch.setattr(engine.train.Run, "_end_epoch", end_epoch_and_note)
        train(make_config(*SHORT, "train.epochs=4"), resume="")
    assert best[0] == best[1] == best[2] != best[3]


# ---- What resuming does ----


def test_a_finished_run_stays_as_it_is(make_config, tmp_path, capsys):
    config = make_config(*SHORT)
    train(config)
    before = contents(tmp_path / "run")
    assert train(config, resume="") == []
    assert "was finished already, at step 1" in capsys.readouterr().out
    after = contents(tmp_path / "run")
    assert {path for path in before if before[path] != after[path]} == set()


def test_a_run_that_is_to_be_shorter_than_it_is_has_nothing_left(make_config, tmp_path, capsys):
    train(make_config("train.batch_size=6", "train.epochs=2"))
    steps = load_checkpoint(tmp_path / "run" / "last.pt").training["step"]
    train(make_config("train.batch_size=6", "train.epochs=1"), resume="")
    said = f"nothing is left to train: it is at step {steps}, and train.epochs asks for {steps // 2}\n"
    assert said in capsys.readouterr().out


def test_resuming_where_there_is_no_run_starts_one(make_config, tmp_path, capsys):
    train(make_config(*SHORT, name="fresh"))
    train(make_config(*SHORT, name="resumed"), resume="")
    assert "There is no checkpoint in" in capsys.readouterr().out
    fresh, resumed = (load_checkpoint(tmp_path / name / "last.pt") for name in ("fresh", "resumed"))
    assert differences(fresh.model, resumed.model) == []


def test_a_run_may_go_on_for_more_epochs_and_log_and_evaluate_otherwise(make_config, tmp_path, capsys):
    train(make_config(*SHORT))
    others = ("train.log_steps=2", "data.num_workers=1", "eval.backend=pycocotools", "train.checkpoint_steps=5")
    train(make_config(*SHORT, "train.epochs=3", *others), resume="")
    assert "resumed at step 1 of 3" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "run" / "last.pt").training["step"] == 3
    assert [(kind, step) for kind, step, _ in losses(tmp_path / "run")] == [
        ("train", 1), ("eval", 1), ("train", 2), ("eval", 2), ("eval", 3),
    ]  # fmt: skip


def test_a_run_may_go_on_in_another_folder_and_leaves_the_first_alone(make_config, tmp_path):
    train(make_config(*SHORT, name="first"))
    before = contents(tmp_path / "first")
    train(make_config(*SHORT, "train.epochs=2", name="second"), resume=str(tmp_path / "first" / "last.pt"))
    assert contents(tmp_path / "first") == before
    assert load_checkpoint(tmp_path / "second" / "last.pt").training["step"] == 2


def test_going_on_from_another_run_does_not_write_over_the_one_that_is_there(make_config, tmp_path):
    for name in ("first", "second"):
        train(make_config(*SHORT, name=name))
    before = contents(tmp_path / "second")
    with pytest.raises(UserError, match="holds a run already"):
        train(make_config(*SHORT, "train.epochs=2", name="second"), resume=str(tmp_path / "first" / "last.pt"))
    assert contents(tmp_path / "second") == before


def test_an_epochs_checkpoint_is_kept_and_can_be_gone_on_from(stateful, uninterrupted, tmp_path):
    train(stateful("train.keep_every_epochs=2"))
    assert sorted(path.name for path in (tmp_path / "run").glob("*.pt")) == [
        "best.pt", "epoch_0002.pt", "last.previous.pt", "last.pt",
    ]  # fmt: skip
    kept = load_checkpoint(tmp_path / "run" / "epoch_0002.pt")
    assert (kept.training["step"], kept.training["evaluation_due"]) == (6, False)
    train(stateful(f"output_dir={tmp_path / 'other'}"), resume=str(kept.path))
    one, two = (load_checkpoint(folder / "last.pt") for folder in (tmp_path / "other", uninterrupted.folder))
    assert differences(one.model, two.model) == []
    assert differences(one.training, two.training) == []


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    half = len(content) // 2
    if how == "missing":
        path.unlink()
    else:
        flipped = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
        path.write_bytes({"empty": b"", "truncated": content[:half], "flipped": flipped, "foreign": b"text"}[how])


@pytest.mark.parametrize("how", ["missing", "empty", "truncated", "flipped", "foreign"])
def test_the_newest_good_checkpoint_is_taken_and_what_is_skipped_is_said(stateful, uninterrupted, tmp_path, capsys, how):
    stopped_run(stateful("train.checkpoint_steps=1"), step=6)
    (tmp_path / "run" / "last.pt.part").write_bytes(b"half of it")
    assert load_checkpoint(tmp_path / "run" / "last.previous.pt").training["step"] == 4
    damage(tmp_path / "run" / "last.pt", how)
    capsys.readouterr()
    train(stateful(), resume="")
    out = capsys.readouterr().out
    assert f"skipped: {tmp_path / 'run' / 'last.pt'}" in out
    assert f"resumed from {tmp_path / 'run' / 'last.previous.pt'}" in out
    assert "resumed at step 4 of 9" in out
    assert_same_end(tmp_path / "run", uninterrupted.folder)
    assert not list((tmp_path / "run").glob("*.part"))


def test_where_no_checkpoint_is_good_each_is_named_with_its_fault(stateful, tmp_path):
    stopped_run(stateful("train.keep_every_epochs=1"), epoch=1)
    names = ("last.pt", "last.previous.pt", "epoch_0001.pt")
    for name, how in zip(names, ("truncated", "empty", "flipped"), strict=True):
        damage(tmp_path / "run" / name, how)
    with pytest.raises(UserError, match=r"No checkpoint in .*run can be resumed from:") as caught:
        train(stateful(), resume="")
    assert [sum(name in line for line in str(caught.value).splitlines()) for name in names] == [1, 1, 1]
    assert "last.previous.pt is empty; " in str(caught.value)
    assert str(caught.value).endswith("output_dir=FOLDER.")


def test_a_run_of_which_only_the_checkpoint_before_is_left_is_not_written_over(stateful, tmp_path):
    stopped_run(stateful("train.checkpoint_steps=1"), step=3)
    (tmp_path / "run" / "last.pt").unlink()
    with pytest.raises(UserError, match="holds a run already"):
        train(stateful())


@pytest.mark.parametrize(("name", "who"), [("TORCHELASTIC_RESTART_COUNT", "torchrun"), ("SLURM_RESTART_COUNT", "SLURM")])
def test_a_run_that_a_scheduler_starts_again_goes_on_by_itself(
    stateful, uninterrupted, tmp_path, monkeypatch, capsys, name, who
):
    monkeypatch.setenv(name, "0")
    stopped_run(stateful("train.checkpoint_steps=2"), step=5)
    monkeypatch.setenv(name, "1")
    train(stateful())
    out = capsys.readouterr().out
    assert f"started again by {who} (restart 1): going on from where it was" in out
    assert "resumed at step 4 of 9" in out
    assert_same_end(tmp_path / "run", uninterrupted.folder)


def test_what_may_change_but_changes_the_last_digits_is_said(make_config, tmp_path, capsys):
    train(make_config("train.batch_size=6"))
    content = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    content["training"]["processes"] = 2
    torch.save(content, tmp_path / "run" / "last.pt")
    capsys.readouterr()
    train(make_config("train.batch_size=6", "train.epochs=2", "train.accumulate=2"), resume="")
    out = capsys.readouterr().out
    assert "resumed on 1 process, was 2: the same batches\n" in out
    assert "train.accumulate is 2, was 1\n" in out
    assert "the weights will differ a little" in out
    assert "train.epochs is 2, was 1: the learning rate follows the new schedule from here\n" in out


def test_another_schedule_and_another_exchange_of_gradients_are_said(make_config, tmp_path, capsys):
    train(make_config(*SHORT))
    changes = "schedule.name=cosine", "schedule.warmup_steps=0", "distributed.gradient_compression=bf16"
    train(make_config(*SHORT, *changes), resume="")
    out = capsys.readouterr().out
    assert "schedule.name is cosine, was multistep: the learning rate follows the new schedule from here\n" in out
    assert "distributed.gradient_compression is bf16, was None\n" in out


def test_a_checkpoint_from_before_a_key_was_added_is_gone_on_from_where_the_key_has_its_default(make_config, tmp_path):
    train(make_config(*SHORT))
    path = tmp_path / "run" / "last.pt"
    content = torch.load(path, weights_only=True)
    for section, key in (("train", "clip_grad_norm"), ("train", "keep_every_epochs"), ("train", "channels_last")):
        del content["config"][section][key]
    for key in ("evaluation_due", "processes", "num_images", "skipped"):
        del content["training"][key]
    torch.save(content, path)
    with pytest.raises(UserError, match=r"train\.clip_grad_norm=None, the config now says 3\.0"):
        train(make_config(*SHORT, "train.epochs=2", "train.clip_grad_norm=3.0"), resume="")
    train(make_config(*SHORT, "train.epochs=2"), resume="")
    assert load_checkpoint(path).training["step"] == 2


# ---- What it refuses ----


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("finished")
    data = write_coco(folder / "data")
    train(toy_config(*SHORT, data=data, output_dir=folder / "run"))
    return SimpleNamespace(data=data, folder=folder / "run")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=0.5", r"optimizer\.lr=0\.01, the config now says 0\.5"),
        ("optimizer.name=adamw", r"optimizer\.name=sgd, the config now says adamw"),
        ("train.batch_size=3", r"train\.batch_size=7, the config now says 3"),
        ("train.ema={decay: 0.9}", r"train\.ema=None"),
        ("train.precision=bf16", r"train\.precision=float32"),
        ("data.min_size=[48, 64]", r"data\.min_size=64"),
        ("data.augmentations=[{name: vertical_flip}]", r"data\.augmentations"),
        ("model.head.box_head_dim=48", r"model\.head\.box_head_dim=\d+, the config now says 48\. "),
        ("model.head.name=cascade_rcnn", r"model\.head\.name=faster_rcnn, the config now says cascade_rcnn\. "),
        ("model.backbone.norm=bn", r"model\.backbone\.norm="),
        ("seed=3", r"seed=0, the config now says 3"),
    ],
)
def test_a_resume_with_another_config_is_refused_and_the_key_named(finished, override, message):
    config = toy_config(*SHORT, "train.epochs=2", override, data=finished.data, output_dir=finished.folder)
    before = contents(finished.folder)
    with pytest.raises(UserError, match=message):
        train(config, resume="")
    assert contents(finished.folder) == before


def test_all_that_differs_is_named_at_once(finished):
    changes = "optimizer.lr=0.5", "seed=3", "data.max_size=99"
    config = toy_config(*SHORT, *changes, data=finished.data, output_dir=finished.folder)
    with pytest.raises(UserError) as refused:
        train(config, resume="")
    assert "was trained with data.max_size=" in str(refused.value)
    assert "the config now says 99; with optimizer.lr=0.01, the config now says 0.5; with seed=0" in str(refused.value)


def test_a_folder_in_the_place_of_a_checkpoint_is_said_to_be_one(finished):
    config = toy_config(*SHORT, data=finished.data, output_dir=finished.folder)
    with pytest.raises(UserError, match=r"It is a folder: name a file in it \(.*last\.pt\), or give --resume alone"):
        train(config, resume=str(finished.folder))


def test_best_weights_cannot_be_resumed_from(finished):
    config = toy_config(*SHORT, data=finished.data, output_dir=finished.folder)
    with pytest.raises(UserError, match=r"best\.pt has weights alone; only last\.pt can be resumed from"):
        train(config, resume=str(finished.folder / "best.pt"))


def test_a_checkpoint_that_is_not_there_cannot_be_resumed_from(finished, tmp_path):
    config = toy_config(*SHORT, data=finished.data, output_dir=finished.folder)
    with pytest.raises(UserError, match="There is no checkpoint at"):
        train(config, resume=str(tmp_path / "none.pt"))


def test_an_override_taken_for_the_checkpoint_is_told_where_to_go(finished):
    config = toy_config(*SHORT, data=finished.data, output_dir=finished.folder)
    with pytest.raises(UserError, match=r"no checkpoint at train\.epochs=3\. .* put it before --resume"):
        train(config, resume="train.epochs=3")


def test_data_whose_classes_have_changed_are_refused(make_config, tmp_path):
    data = write_coco(tmp_path / "data")
    train(make_config(*SHORT, data=data))
    path = Path(data["annotations"])
    path.write_text(path.read_text().replace('"never"', '"sometimes"'))
    with pytest.raises(UserError, match=r"'never' \(id 90\) against 'sometimes' \(id 90\)"):
        train(make_config(*SHORT, "train.epochs=2", data=data), resume="")
