"""A step that is not finite: taken by no process, reported with its images, and run again from the report."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import engine.job
import engine.nonfinite
from backbones.errors import UserError
from engine.checkpoint import load_checkpoint
from engine.cli import run_tool
from engine.config import RunConfig
from engine.config_file import apply_overrides
from engine.data.dataset import CocoDataset
from engine.detection.job import DetectionJob
from engine.replay import load_parts, replay, save_parts
from engine.train import Run, train
from heads.cropped_masks import CroppedMasks
from tests.engine.conftest import MASKS, write_coco

CPU = torch.device("cpu")
NAME = "tests.engine.test_nonfinite:PoisonedJob"


class PoisonedJob(DetectionJob):
    """A detector's job whose losses are not finite where an image with one of these ids is in the batch."""

    ids: tuple[int, ...] = ()
    gradient_alone = False

    def losses(self, model: Any, images: list[Tensor], targets: list[dict[str, Any]]) -> dict[str, Tensor]:
        losses = super().losses(model, images, targets)
        if any(int(target["image_id"]) in _poisoned_ids() for target in targets):
            if _job().gradient_alone:
                zero = losses["loss_box_reg"] * 0
                losses["loss_box_reg"] = losses["loss_box_reg"] + zero.sqrt()  # 0, and its slope is infinite
            else:
                losses["loss_box_reg"] = losses["loss_box_reg"] + math.nan  # a term whose own gradient is finite
        return losses


def _job() -> type[PoisonedJob]:
    return engine.job.job_class("detection")  # type: ignore[return-value]


def _poisoned_ids() -> tuple[int, ...]:
    return _job().ids


@pytest.fixture
def data(tmp_path: Path) -> dict[str, str]:
    return write_coco(tmp_path / "data", 8, sizes=((64, 64),))


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch, data: dict[str, str]) -> Callable[..., int]:
    """A function that makes one image, or all, lead to what is not finite; gives the id of the one."""

    def make(*, gradient_alone: bool = False, every: bool = False) -> int:
        images = json.loads(Path(data["annotations"]).read_text())["images"]
        (bad,) = (image["id"] for image in images if image["file_name"] == "003.png")
        monkeypatch.setitem(engine.job.JOBS, "detection", NAME)
        monkeypatch.setattr(_job(), "ids", tuple(image["id"] for image in images) if every else (bad,))
        monkeypatch.setattr(_job(), "gradient_alone", gradient_alone)
        return int(bad)

    return make


def report_of(run: Path, *, rank: int = 0) -> Path:
    return min((run / "nonfinite").glob(f"step_*_rank{rank}"))


def content_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def lines_of(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


# ---- Stopping ----


def test_the_report_names_the_image_and_the_replay_reproduces(poisoned, make_config, data, tmp_path, capsys):
    bad = poisoned()
    with pytest.raises(UserError, match=rf"loss is not finite at step \d+ .*of which \[{bad}\] lead to it alone") as caught:
        train(make_config("train.batch_size=4", data=data))
    folder = report_of(tmp_path / "run")
    assert f"python tools/replay.py {folder}" in str(caught.value)
    report = content_of(folder)
    assert report["alone"] == [bad]
    assert {"id": bad, "file": "003.png", "part": 1} in report["images"]
    assert len(report["images"]) == 4
    assert report["losses"][0]["loss_box_reg"] == "nan"
    assert isinstance(report["losses"][0]["loss_classifier"], float)
    assert report["precision"] == "float32"
    assert {path.stem for path in (folder / "pictures").iterdir()} == {Path(i["file"]).stem for i in report["images"]}
    capsys.readouterr()
    assert replay(folder, device="cpu")
    out = capsys.readouterr().out
    assert "reproduced" in out
    assert f"{bad} (003.png)" in out


def test_the_replays_losses_are_the_steps(poisoned, make_config, data, tmp_path, capsys):
    poisoned()
    with pytest.raises(UserError):
        train(make_config("train.batch_size=4", "model.backbone.norm=bn", "train.accumulate=2", data=data))
    folder = report_of(tmp_path / "run")
    assert len(content_of(folder)["losses"]) == 2
    replay(folder, device="cpu")
    terms = [line.split(": ")[1] for line in capsys.readouterr().out.splitlines() if line.startswith("losses of part")]
    assert len(terms) == 2
    for term in ", ".join(terms).split(", "):
        now, then = term.rstrip(")").split(" (then ")
        assert now.split()[1] == then


def snapshots(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """What training changes, before and after each step that is tried."""
    whole_step, taken = Run._train_step, list[tuple[dict[str, Any], dict[str, Any]]]()

    def now(run: Run) -> dict[str, Any]:
        average = None if run.state.average is None else run.state.average.state_dict()
        optimizer = [run.state.optimizer.state.get(parameter, {}) for parameter in run.model.parameters()]
        return copy.deepcopy({"model": run.model.state_dict(), "average": average, "optimizer": optimizer})

    def step(run: Run, batches: Any) -> Any:
        before = now(run)
        taken.append((before, {}))
        given = whole_step(run, batches)
        taken[-1] = (before, now(run))
        return given

    monkeypatch.setattr(Run, "_train_step", step)
    return taken


def test_the_state_is_the_one_before_the_step(poisoned, make_config, data, tmp_path, monkeypatch):
    """Weights and batch statistics are those after the steps before it."""
    bad = poisoned()
    taken = snapshots(monkeypatch)
    with pytest.raises(UserError, match=rf"on images \[{bad}\]"):
        train(make_config("train.batch_size=1", "model.backbone.norm=bn", data=data))
    folder = report_of(tmp_path / "run")
    assert content_of(folder)["step"] == len(taken) > 1, "the seed puts another image first"
    state = load_checkpoint(folder / "state.pt").model
    before = taken[-1][0]["model"]
    assert any("running_mean" in key for key in before)
    assert equal(state, before)
    assert not equal(state, taken[-2][0]["model"])


def test_a_gradient_that_alone_is_not_finite_is_found(poisoned, make_config, data, tmp_path, capsys):
    bad = poisoned(gradient_alone=True)
    with pytest.raises(UserError, match=rf"gradient is not finite at step .*{bad}"):
        train(make_config("train.batch_size=4", data=data))
    report = content_of(report_of(tmp_path / "run"))
    assert report["alone"] == [bad]
    assert report["num_parameters"] > 0
    assert all(isinstance(value, float) for value in report["losses"][0].values())
    capsys.readouterr()
    assert replay(report_of(tmp_path / "run"), device="cpu")
    assert "parameters whose gradient is not finite" in capsys.readouterr().out


def test_a_box_that_is_not_a_number_is_found_and_drawn_around(make_config, data, tmp_path, monkeypatch):
    """As a data set of one's own may let it through."""
    whole = CocoDataset.__getitem__

    def without_number(self: CocoDataset, key: Any) -> Any:
        image, target = whole(self, key)
        if self.name_of(key[1]) == "003.png":
            target["boxes"][0, 2] = math.nan
        return image, target

    monkeypatch.setattr(CocoDataset, "__getitem__", without_number)
    with pytest.raises(UserError, match="not finite at step 1 "):
        train(make_config("train.batch_size=8", data=data))
    report = content_of(report_of(tmp_path / "run"))
    assert report["alone"] == [image["id"] for image in report["images"] if image["file"] == "003.png"]
    assert report["notes"] == []
    assert replay(report_of(tmp_path / "run"), device="cpu")


def test_the_module_that_gave_it_is_named(make_config, data, tmp_path, monkeypatch, capsys):
    """A layer overflows: its weights are out of bounds from a step on."""
    whole_step = Run._train_step

    def step(run: Run, batches: Any) -> Any:
        if run.state.step == 2:
            with torch.no_grad():
                run.model.backbone.body.layer2[0].conv1.weight.fill_(3e38)
        return whole_step(run, batches)

    monkeypatch.setattr(Run, "_train_step", step)
    with pytest.raises(UserError, match="not finite at step 3"):
        train(make_config(data=data))
    folder = report_of(tmp_path / "run")
    assert content_of(folder)["first_output"] == "backbone.body.layer2.0.conv1"
    capsys.readouterr()
    assert replay(folder, device="cpu")
    assert "first output that is not finite: backbone.body.layer2.0.conv1" in capsys.readouterr().out


def test_a_report_that_cannot_be_written_does_not_hide_the_message(poisoned, make_config, data, tmp_path, monkeypatch):
    bad = poisoned()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine.nonfinite, "save_parts", full)
    with pytest.raises(UserError, match=rf"(?s)loss is not finite.*{bad}.*No space left on device"):
        train(make_config("train.batch_size=4", data=data))
    assert list((tmp_path / "run" / "nonfinite").iterdir()) == [], "nothing half-written"


COMMON: dict[str, Any] = {
    "train": {"batch_size": 2, "epochs": 1},
    "schedule": {"warmup_steps": 0},
    "eval": {"pictures": 0},
    "device": "cpu",
}


def segmentation_config(tmp_path: Path) -> RunConfig:
    files = write_coco(tmp_path / "data", 4, sizes=((64, 64),))
    model = {"backbone": {"name": "resnet18", "norm": "gn"}, "head": {"name": "fcn"}}
    data = {"train": files, "val": files, "min_size": 64, "num_workers": 0}
    return apply_overrides(
        {"job": "segmentation", "model": model, "data": data, **COMMON, "output_dir": str(tmp_path / "run")},
        [],
        origin="a test",
    )


def classification_config(tmp_path: Path) -> RunConfig:
    data = {"train": "digits", "val": "digits", "size": 32, "num_workers": 0}
    model = {"backbone": {"name": "resnet18", "norm": "gn"}}
    return apply_overrides(
        {"job": "classification", "model": model, "data": data, **COMMON, "output_dir": str(tmp_path / "run")},
        [],
        origin="a test",
    )


@pytest.mark.parametrize("make", [segmentation_config, classification_config])
def test_other_jobs_are_replayed_too(make, tmp_path, monkeypatch, capsys):
    config = make(tmp_path)
    own = type(engine.job.job_of(config))
    losses = own.losses

    def infinite(self: Any, model: Any, images: Any, targets: Any) -> dict[str, Tensor]:
        return {name: value + math.inf for name, value in losses(self, model, images, targets).items()}

    monkeypatch.setattr(own, "losses", infinite)
    with pytest.raises(UserError, match="loss is not finite at step 1 "):
        train(config)
    folder = report_of(tmp_path / "run")
    assert len(list((folder / "pictures").glob("*.png"))) == 2
    assert replay(folder, device="cpu")
    monkeypatch.setattr(own, "losses", losses)
    capsys.readouterr()
    assert not replay(folder, device="cpu")
    assert "not reproduced" in capsys.readouterr().out


# ---- Leaving out ----


def test_a_step_that_is_left_out_changes_nothing_and_is_counted(poisoned, make_config, data, tmp_path, monkeypatch, capsys):
    """Not the weights, not the average, not the momentum, not the batch statistics: as if the step had not been."""
    bad = poisoned()
    taken = snapshots(monkeypatch)
    options = ("train.batch_size=1", "model.backbone.norm=bn", "train.ema={decay: 0.5}", "train.on_nonfinite=skip")
    train(make_config(*options, data=data))
    out = capsys.readouterr().out
    (line,) = (line for line in out.splitlines() if "left out, the 1st of this run" in line)
    assert f"on images [{bad}]" in line
    step = content_of(report_of(tmp_path / "run"))["step"]
    assert [number for number, (before, after) in enumerate(taken, start=1) if equal(before, after)] == [step]
    assert load_checkpoint(tmp_path / "run" / "last.pt").training["skipped"] == [1, 0]
    skipped = [(one["step"], one["image_ids"], one["skipped"]) for one in lines_of(tmp_path / "run", "nonfinite")]
    assert skipped == [(step, [bad], 1)]
    losses = [one["loss"] for one in lines_of(tmp_path / "run", "train")]
    assert len(losses) == 7
    assert all(map(math.isfinite, losses))


def equal(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(equal(a, b) for a, b in zip(first, second, strict=True))
    return bool(first == second)


def test_too_many_in_a_row_stop_and_the_disk_is_not_filled(poisoned, make_config, data, tmp_path):
    poisoned(every=True)
    with pytest.raises(UserError, match=r"It is the 7th step in a row to be left out\.$"):
        train(make_config("train.batch_size=1", "train.on_nonfinite=skip", "train.max_skipped=7", data=data))
    kept = sorted(path.name for path in (tmp_path / "run" / "nonfinite").iterdir())
    assert kept == [f"step_{step:06}_rank0" for step in range(1, 6)]


def test_the_advice_comes_once_and_follows_from_the_images(poisoned, make_config, data, capsys):
    poisoned(every=True)
    options = ("train.batch_size=4", "train.on_nonfinite=skip", "train.max_skipped=2")
    with pytest.raises(UserError) as caught:
        train(make_config(*options, data=data))
    said = capsys.readouterr().out
    assert "The step is left out, the 1st of this run.\n  To run it again" in said
    assert "optimizer.lr" not in said, "the advice is for the end"
    assert "\n  4 of 4 images lead to it alone, so it is the weights that have diverged: use a lower optimizer.lr" in str(
        caught.value
    )
    assert "on_nonfinite=skip" not in str(caught.value)
    assert "No checkpoint had been saved yet." in str(caught.value)


def test_a_checkpoint_from_before_is_spoken_of_where_there_is_one(poisoned, make_config, data):
    train(make_config("train.epochs=1", data=data))
    poisoned(every=True)
    with pytest.raises(UserError, match=r"The last checkpoint in \S*run is from before\."):
        train(make_config("train.epochs=2", data=data), resume="")


@pytest.mark.parametrize("size", [1e20, 1.5e19], ids=["of one", "of all"])
def test_gradients_whose_norm_alone_overflows_are_reported_too(make_config, data, tmp_path, monkeypatch, size):
    def losses(self: DetectionJob, model: Any, images: list[Tensor], targets: list[dict[str, Any]]) -> dict[str, Tensor]:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return {"loss": sum(parameter.flatten()[0] * size for parameter in trained)}

    monkeypatch.setattr(DetectionJob, "losses", losses)
    with pytest.raises(UserError, match=r"gradient is not finite at step 1 \(norm inf, \S+ for one"):
        train(make_config("train.batch_size=4", data=data))
    assert replay(report_of(tmp_path / "run"), device="cpu")


def test_of_a_large_batch_some_images_are_named():
    assert engine.nonfinite._ids([3, 1]) == "[3, 1]"
    assert engine.nonfinite._ids(range(20)) == f"{list(range(16))} and 4 more"


def test_an_overflow_of_fp16_is_the_scalers(make_config, data, tmp_path, monkeypatch):
    """Gradients overflow at a large scale: the scaler leaves the step out and halves it, and nothing is reported."""
    whole_step = Run._train_step
    scales = []

    def step(run: Run, batches: Any) -> Any:
        if run.state.step == 0:
            run.state.scaler._init_scale = float(2**120)
        given = whole_step(run, batches)
        scales.append(run.state.scaler.get_scale())
        return given

    monkeypatch.setattr(Run, "_train_step", step)
    train(make_config("train.precision=fp16", data=data))
    assert scales[0] == 2**119, "it overflowed"
    assert not (tmp_path / "run" / "nonfinite").exists()


def test_a_loss_that_is_not_finite_is_reported_under_fp16_too(poisoned, make_config, data, tmp_path):
    bad = poisoned()
    with pytest.raises(UserError, match=rf"loss is not finite .*of which \[{bad}\]"):
        train(make_config("train.precision=fp16", "train.batch_size=4", data=data))
    report = content_of(report_of(tmp_path / "run"))
    assert (report["precision"], report["loss_scale"]) == ("fp16", 65536)
    assert replay(report_of(tmp_path / "run"), device="cpu")


# ---- On two processes ----


def train_poisoned(config: RunConfig, bad: int) -> None:
    engine.job.JOBS["detection"] = NAME
    _job().ids = (bad,)
    train(config)


@pytest.mark.parametrize("how", ["stop", "skip"])
def test_two_processes_decide_alike_and_name_the_image_of_one(on_processes, make_config, data, tmp_path, how):
    """The bad image is in the second process's half, and what it adds to the loss has a finite gradient."""
    train(make_config("train.batch_size=8", data=data, name="order"))
    order = lines_of(tmp_path / "order", "train")[0]["image_ids"]
    bad, half = order[5], order[4:]
    # Each epoch is one step, of all images: a run that skips ends at the second.
    config = make_config("train.batch_size=8", "train.epochs=3", f"train.on_nonfinite={how}", "train.max_skipped=2", data=data)
    ended = on_processes(2, train_poisoned, config, bad)
    assert [one.status for one in ended] == [2, 2], [one.output for one in ended]
    together = ended[0].output + ended[1].output
    assert f"in process 1, on images {half}, of which [{bad}] lead" in together
    written = sorted(path.name for path in (tmp_path / "run" / "nonfinite").iterdir())
    assert "step_000001_rank1" in written
    assert len(written) == (1 if how == "stop" else 2)
    assert ("left out, the 1st of this run" in ended[0].output) == (how == "skip")
    assert "Traceback" not in together


def test_two_processes_go_on_alike_after_a_step_that_was_left_out(on_processes, make_config, data, tmp_path):
    options = ("train.batch_size=4", "train.epochs=2", "train.on_nonfinite=skip", "optimizer.lr=0.125")
    train(make_config(*options, data=data, name="order"))
    order = [line["image_ids"] for line in lines_of(tmp_path / "order", "train")]
    bad = order[0][3]
    ended = on_processes(2, train_poisoned, make_config(*options, data=data), bad)
    assert [one.status for one in ended] == [0, 0], [one.output for one in ended]
    skipped = [line["step"] for line in lines_of(tmp_path / "run", "nonfinite")]
    assert skipped == [number for number, ids in enumerate(order, start=1) if bad in ids]
    assert len(lines_of(tmp_path / "run", "train")) == 4 - len(skipped)
    assert all(value.isfinite().all() for value in load_checkpoint(tmp_path / "run" / "last.pt").model.values())


# ---- The files ----


def test_batches_of_every_kind_come_back_as_they_were(tmp_path):
    masks = CroppedMasks(torch.ones(6, dtype=torch.uint8), [(1, 2, 3, 5)], (8, 9))
    boxes = torch.tensor([[math.nan, 1, 2, 3]])
    target = {"boxes": boxes, "masks": masks, "image_id": torch.tensor(7), "seed": 2**62, "a": "b"}
    image = torch.randint(0, 256, (3, 8, 9), dtype=torch.uint8)
    save_parts([([image], [target])], tmp_path / "batch.pt")
    ((images, (loaded,)),) = load_parts(tmp_path / "batch.pt", CPU)
    assert torch.equal(images[0], image)
    assert torch.equal(loaded["masks"].dense(), masks.dense())
    torch.testing.assert_close(loaded["boxes"], boxes, equal_nan=True, rtol=0, atol=0)
    assert (loaded["seed"], loaded["a"], int(loaded["image_id"])) == (2**62, "b", 7)


def test_masks_are_reported_and_drawn(poisoned, make_config, data, tmp_path):
    poisoned()
    with pytest.raises(UserError, match="not finite"):
        train(make_config("train.batch_size=8", *MASKS, data=data))
    folder = report_of(tmp_path / "run")
    assert content_of(folder)["notes"] == []
    assert len(list((folder / "pictures").glob("*.png"))) == 8
    assert replay(folder, device="cpu")


def test_what_is_no_report_is_refused(tmp_path, capsys):
    with pytest.raises(UserError, match="is no report of a step"):
        replay(tmp_path)
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(SystemExit) as ended:
        run_tool(lambda: replay(tmp_path) and None)
    assert ended.value.code == 2
    assert "is no report" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("images"),
        lambda content: content.pop("channels_last"),
        lambda content: content.update(losses=[]),
        lambda content: content.update(losses=[{"another": 1.0}, {}]),
        lambda content: content.update(precision="fp7"),
        lambda content: content.update(step_seed=10**30),
        lambda content: content.update(notes=None),
    ],
)
def test_a_report_that_was_changed_is_refused(poisoned, make_config, data, tmp_path, change):
    poisoned()
    with pytest.raises(UserError, match="loss is not finite"):
        train(make_config("train.batch_size=4", data=data))
    folder = report_of(tmp_path / "run")
    content = json.loads((folder / "report.json").read_text())
    change(content)
    (folder / "report.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"is no report of a step|are of different steps"):
        replay(folder, device="cpu")
