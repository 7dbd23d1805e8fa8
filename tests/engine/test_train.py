"""A training run: what it leaves behind, that it learns, and that each setting does what it says."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import engine.saving
import engine.train
from backbones import build_backbone
from backbones.errors import UserError
from engine.checkpoint import load_checkpoint
from engine.config_file import load_config
from engine.detection.build import build_model
from engine.detection.coco_eval import CocoScore
from engine.detection.config import DetectionConfig
from engine.detection.evaluate import DetectionEvaluation
from engine.evaluate import run_evaluation
from engine.train import train
from tests.engine.conftest import MASKS, write_coco

PLAIN_SGD = ("optimizer.momentum=0.0", "optimizer.weight_decay=0.0", "optimizer.lr=0.125")
ONE_STEP = ("train.batch_size=7",)  # of the seven toy images


def metrics(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def trained_weights(config: DetectionConfig, name: str = "last.pt") -> dict[str, Tensor]:
    train(config)
    return load_checkpoint(Path(config.output_dir) / name).model


def initial_weights(config: DetectionConfig) -> dict[str, Tensor]:
    torch.manual_seed(config.seed)
    return build_model(config, num_classes=4, load_weights=True).state_dict()


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [key for key, value in first.items() if not torch.equal(value, second[key])] == []


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> Tensor:
    """How far each weight went."""
    return torch.cat([(after[key] - before[key]).flatten() for key in before])


# ---- What a run leaves behind ----


def test_a_run_leaves_what_the_design_says(trained):
    found = {str(path.relative_to(trained.folder)) for path in trained.folder.rglob("*") if path.is_file()}
    events = {name for name in found if name.startswith("tensorboard/events")}
    assert len(events) == 1
    assert found - events == {
        "config.yaml",
        "metrics.jsonl",
        "last.pt",
        "last.previous.pt",
        "best.pt",
        "eval/bbox_results.json",
        "eval/segm_results.json",
        "eval/scores.json",
        "predictions/000.png",
        "predictions/006.png",
    }


def test_the_config_left_behind_is_whole_and_gives_the_same_run(trained):
    text = (trained.folder / "config.yaml").read_text()
    assert load_config(trained.folder / "config.yaml") == trained.config
    assert "momentum: 0.9" in text, "defaults are written, too"


def test_every_step_is_a_line_with_losses_rate_speed_and_images(trained):
    lines = metrics(trained.folder, "train")
    assert [line["step"] for line in lines] == list(range(1, 97))
    content = json.loads(Path(trained.data["annotations"]).read_text())
    image_ids = {image["id"] for image in content["images"]}
    for line in lines:
        terms = {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}
        assert set(line) == terms | {
            "kind", "step", "time", "epoch", "loss", "lr", "images_per_second", "memory_gb", "image_ids",
        }  # fmt: skip
        assert line["loss"] == pytest.approx(sum(line[term] for term in terms))
        assert line["epoch"] == math.ceil(line["step"] / 3)
        assert line["images_per_second"] > 0
    for first in range(0, 96, 3):
        of_epoch = [image_id for line in lines[first : first + 3] for image_id in line["image_ids"]]
        assert len(of_epoch) == len(set(of_epoch)) == 6, "an epoch has no image twice"
        assert set(of_epoch) < image_ids


def test_an_evaluation_is_a_line_with_all_numbers(trained):
    (line,) = metrics(trained.folder, "eval")
    assert (line["step"], line["epoch"]) == (96, 32)
    for score in trained.scores:
        assert line[score.kind] == {**score.stats, "per_class": score.per_class}


def test_tensorboard_shows_what_the_lines_say(trained):
    events = EventAccumulator(str(trained.folder / "tensorboard")).Reload()
    losses = [(line["step"], pytest.approx(line["loss"], rel=1e-5)) for line in metrics(trained.folder, "train")]
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == losses
    assert events.Scalars("eval/segm/AP")[0].value == pytest.approx(trained.scores[1].stats["AP"], rel=1e-5)


def test_pictures_of_predictions_are_images(trained):
    for path in (trained.folder / "predictions").iterdir():
        assert np.asarray(Image.open(path)).std() > 0


def test_checkpoints_hold_config_and_categories(trained):
    for name in ("last.pt", "best.pt"):
        checkpoint = load_checkpoint(trained.folder / name)
        assert checkpoint.load_config() == trained.config
        assert [(category.id, category.name) for category in checkpoint.categories] == [
            (3, "bar"),
            (44, "square"),
            (90, "never"),
        ]
        assert (checkpoint.training is None) == (name == "best.pt")


def test_a_run_says_what_it_trains_on_and_which_stages_are_frozen(make_config, capsys):
    train(make_config("model.backbone.norm=frozen_bn", "model.backbone.trainable_layers=3", *ONE_STEP))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("faster_rcnn on resnet18, 1 process, cpu, in ")
    assert lines[1].startswith("7 training images with 12 objects of 3 classes, 2 validation images")
    frozen = [line.split()[0].rstrip(":") for line in lines if "frozen" in line]
    assert "layer1" in frozen
    assert "layer2" not in frozen


def test_the_first_step_is_logged_and_then_one_in_log_steps(make_config, tmp_path):
    train(make_config("train.log_steps=3", "train.epochs=2", "train.batch_size=1"))
    assert [line["step"] for line in metrics(tmp_path / "run", "train")] == [1, 3, 6, 9, 12]


def test_evaluation_comes_every_so_many_epochs_and_after_the_last(make_config, tmp_path):
    train(make_config("eval.every_epochs=2", "train.epochs=5", *ONE_STEP))
    assert [line["epoch"] for line in metrics(tmp_path / "run", "eval")] == [2, 4, 5]


def test_best_is_written_only_when_the_score_gets_better(make_config, monkeypatch):
    written = []
    scores = iter([0.1, 0.5, 0.3, 0.5, 0.6])
    monkeypatch.setattr(DetectionEvaluation, "score", lambda *_: [CocoScore("bbox", "AP", {"AP": next(scores)}, {})])
    monkeypatch.setattr(engine.saving, "write_checkpoint", lambda path, *_, **__: written.append(path.name))
    train(make_config("train.epochs=5", *ONE_STEP))
    # last.pt before each evaluation, which may be broken off, and after it
    better, no_better = ["last.pt", "best.pt", "last.pt"], ["last.pt", "last.pt"]
    assert written == [*better, *better, *no_better, *no_better, *better]


def test_masks_decide_which_weights_are_best_where_there_are_any(make_config, monkeypatch):
    written = []
    scores = iter([(0.1, 0.5), (0.9, 0.4), (0.2, 0.6)])
    monkeypatch.setattr(
        DetectionEvaluation,
        "score",
        lambda *_: [CocoScore(kind, "AP", {"AP": ap}, {}) for kind, ap in zip(("bbox", "segm"), next(scores), strict=True)],
    )
    monkeypatch.setattr(engine.saving, "write_checkpoint", lambda path, *_, **__: written.append(path.name))
    train(make_config("train.epochs=3", *MASKS, *ONE_STEP))
    assert written == ["last.pt", "best.pt", "last.pt", "last.pt", "last.pt", "last.pt", "best.pt", "last.pt"]


# ---- What a run does not write over ----


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_not_written_over(make_config, tmp_path):
    train(make_config(*ONE_STEP))
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"holds a run already.*--resume.*output_dir=FOLDER"):
        train(make_config("optimizer.lr=0.5", *ONE_STEP))
    assert contents(tmp_path) == before


def test_a_run_that_was_stopped_before_its_first_checkpoint_is_not_mixed_with_another(make_config, tmp_path, monkeypatch):
    monkeypatch.setattr(engine.train.Run, "_end_epoch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train(make_config(*ONE_STEP))
    monkeypatch.undo()
    try:
        train(make_config(*ONE_STEP))
    except UserError:
        return  # refused
    assert [line["step"] for line in metrics(tmp_path / "run", "train")] == [1]


def test_a_folder_that_cannot_be_made_is_refused(make_config, tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match=r"folder .*run cannot be written to"):
        train(make_config(f"output_dir={tmp_path / 'file' / 'run'}"))
    assert (tmp_path / "file").read_text() == "kept"


def test_training_and_validation_sets_of_other_classes_are_refused(make_config, toy_data, tmp_path):
    content = json.loads(Path(toy_data["annotations"]).read_text())
    content["categories"][0]["name"] = "rhombus"
    (tmp_path / "other.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"list different categories: '.+' \(id \d+\) against 'rhombus' \(id \d+\)\. A model"):
        train(make_config(f"data.val.annotations={tmp_path / 'other.json'}", f"data.val.images={toy_data['images']}"))


# ---- Learning ----


def test_a_model_learns_what_it_is_shown(trained):
    losses = [line["loss"] for line in metrics(trained.folder, "train")]
    assert np.mean(losses[-6:]) < 0.6 * np.mean(losses[:6])
    assert trained.scores[0].stats["AP50"] > 0.5
    assert trained.scores[1].stats["AP50"] > 0.5


def test_a_run_is_the_same_again_and_other_with_another_seed(make_config):
    first, again, other = (
        trained_weights(make_config(f"seed={seed}", "train.epochs=2", name=name))
        for seed, name in ((0, "first"), (0, "again"), (1, "other"))
    )
    assert_equal(first, again)
    assert moved(first, other).abs().max() > 0.01


def test_the_number_of_loader_processes_changes_nothing(make_config):
    augmentations = "data.augmentations=[{name: horizontal_flip}, {name: color_jitter, p: 1.0}]"
    overrides = (augmentations, "data.min_size=[48, 64]", "train.epochs=2", *MASKS)
    none, one = (trained_weights(make_config(f"data.num_workers={n}", *overrides, name=f"run{n}")) for n in (0, 1))
    assert_equal(none, one)


@pytest.mark.parametrize("accumulate", [2, 8])
def test_accumulated_parts_of_a_batch_train_as_the_whole_batch(make_config, square_data, accumulate):
    """Every image is padded alike, normalised alone, and gives each loss as many samples: the mean of means is the mean.

    Losses over what is positive alone (masks) are averaged over each part's own number.
    """
    overrides = ("train.batch_size=8", "optimizer.lr=0.125")
    before = initial_weights(make_config(*overrides, data=square_data))
    whole, parts = (
        trained_weights(make_config(*overrides, f"train.accumulate={n}", data=square_data, name=f"run{n}"))
        for n in (1, accumulate)
    )
    assert moved(whole, parts).norm() < 1e-4 * moved(before, whole).norm()


def test_accumulated_parts_hold_the_images_of_the_whole_batch(make_config, tmp_path):
    for n in (1, 2):
        train(make_config("train.batch_size=4", "train.epochs=3", f"train.accumulate={n}", name=f"run{n}"))
    first, second = ([line["image_ids"] for line in metrics(tmp_path / f"run{n}", "train")] for n in (1, 2))
    assert first == second


# ---- Settings ----


def test_a_clipped_step_of_sgd_is_exactly_as_long_as_the_bound(make_config):
    config = make_config("train.clip_grad_norm=0.001", *PLAIN_SGD, *ONE_STEP)
    assert moved(initial_weights(config), trained_weights(config)).norm() == pytest.approx(0.125 * 0.001, rel=1e-3)


def test_a_bound_beyond_the_gradient_clips_nothing(make_config):
    free, bound = (
        trained_weights(make_config(f"train.clip_grad_norm={value}", *PLAIN_SGD, *ONE_STEP, name=name))
        for value, name in (("null", "free"), ("1e6", "bound"))
    )
    assert_equal(free, bound)


def test_adamws_first_step_moves_every_weight_by_the_learning_rate(make_config):
    config = make_config("optimizer.name=adamw", "optimizer.weight_decay=0.0", "optimizer.lr=0.0625", *ONE_STEP)
    steps = moved(initial_weights(config), trained_weights(config)).abs()
    assert steps.max() <= 0.0625 * 1.001
    assert (steps > 0.99 * 0.0625).float().mean() > 0.5  # the others have hardly a gradient


def test_weight_decay_alone_shrinks_what_has_no_gradient(make_config):
    """Images without any object leave the box regression without a gradient."""
    config = make_config(*PLAIN_SGD, "optimizer.weight_decay=0.5", "train.clip_grad_norm=1e-9", *ONE_STEP)
    key = "roi_heads.box_predictor.bbox_pred.weight"
    before, after = initial_weights(config)[key], trained_weights(config)[key]
    torch.testing.assert_close(after, before * (1 - 0.125 * 0.5), rtol=1e-4, atol=1e-7)


def test_normalisation_can_have_a_weight_decay_of_its_own(make_config):
    overrides = ("optimizer.weight_decay=0.5", "optimizer.norm_weight_decay=0.0", "train.clip_grad_norm=1e-9")
    config = make_config(*PLAIN_SGD, *overrides, *ONE_STEP)
    after = trained_weights(config)
    torch.testing.assert_close(after["backbone.body.bn1.weight"], torch.ones(64), rtol=0, atol=1e-6)
    assert after["backbone.body.conv1.weight"].norm() < 0.95 * initial_weights(config)["backbone.body.conv1.weight"].norm()


@pytest.mark.parametrize(
    ("overrides", "factors"),
    [
        (["schedule.name=cosine"], [(1 + math.cos(math.pi * step / 5)) / 2 for step in range(5)]),
        (["schedule.milestones=[0.4, 0.8]", "schedule.gamma=0.5"], [1, 1, 0.5, 0.5, 0.25]),
        (["schedule.milestones=[3.0]"], [1, 1, 1, 0.1, 0.1]),
        (["schedule.warmup_steps=500", "schedule.warmup_factor=0.25", "schedule.milestones=[5.0]"], [0.25, 1, 1, 1, 1]),
        (["optimizer.base_batch_size=14", "schedule.milestones=[5.0]"], [0.5] * 5),
    ],
    ids=["cosine", "fractions", "epochs", "warm-up", "batch size"],
)
def test_the_learning_rate_follows_the_schedule(make_config, tmp_path, monkeypatch, overrides, factors):
    monkeypatch.setattr(engine.saving, "write_checkpoint", lambda *_, **__: None)
    train(make_config(*overrides, "train.epochs=5", "eval.every_epochs=5", "optimizer.lr=0.001", *ONE_STEP))
    rates = [line["lr"] for line in metrics(tmp_path / "run", "train")]
    assert rates == pytest.approx([0.001 * factor for factor in factors])


def test_the_learning_rate_is_what_the_weights_move_by(make_config):
    short, long = (
        make_config(
            *PLAIN_SGD, f"schedule.warmup_factor={factor}", "schedule.warmup_steps=5", "train.epochs=5", name=f"at {factor}"
        )
        for factor in (0.25, 1.0)
    )
    before = initial_weights(short)
    first_steps = []
    for config in (short, long):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine.train.Run, "_log_step", _stop)
            with pytest.raises(_Stopped) as caught:
                train(config)
        first_steps.append(moved(before, caught.value.weights))
    torch.testing.assert_close(first_steps[0] * 4, first_steps[1], rtol=1e-3, atol=1e-6)


class _Stopped(Exception):
    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.weights = weights


def _stop(run: engine.train.Run, *_: Any) -> None:
    raise _Stopped(run.model.state_dict())


def test_the_average_of_the_weights_is_what_is_used_and_both_are_kept(make_config, tmp_path):
    first = trained_weights(make_config(*ONE_STEP, name="one"))
    train(make_config("train.ema={decay: 0.9}", "train.epochs=2", *ONE_STEP))
    last, best = (load_checkpoint(tmp_path / "run" / name) for name in ("last.pt", "best.pt"))
    second = last.training["model"]
    share = 2 / 11
    for key, value in last.model.items():
        torch.testing.assert_close(value, share * first[key] + (1 - share) * second[key], msg=key)
    assert moved(last.model, second).abs().max() > 0
    evaluated = [line["bbox"]["AP"] for line in metrics(tmp_path / "run", "eval")]
    assert len(evaluated) == 2
    assert best.model.keys() == last.model.keys()


def test_the_average_is_what_is_evaluated(make_config, monkeypatch):
    evaluated = []

    def note_and_run(job, model, *arguments, **options):
        evaluated.append(model.state_dict())
        return run_evaluation(job, model, *arguments, **options)

    monkeypatch.setattr(engine.train, "run_evaluation", note_and_run)
    config = make_config("train.ema={decay: 0.9}", "train.epochs=1", "train.batch_size=2")
    assert_equal(trained_weights(config), evaluated[0])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_changes_the_losses_a_little(make_config, few_data, tmp_path, precision):
    for name in ("float32", precision):
        train(make_config(f"train.precision={name}", *MASKS, data=few_data, name=name))
    (full,), (mixed,) = (metrics(tmp_path / name, "train") for name in ("float32", precision))
    assert mixed["loss"] != full["loss"]
    assert mixed["loss"] == pytest.approx(full["loss"], rel=0.05)
    weights = load_checkpoint(tmp_path / precision / "last.pt").model
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_channels_last_changes_the_layout_and_not_the_weights(make_config):
    usual, last = (
        trained_weights(make_config(f"train.channels_last={value}", *ONE_STEP, name=value)) for value in ("false", "true")
    )
    key = "backbone.body.layer1.0.conv1.weight"
    assert (usual[key].stride(1), last[key].stride(1)) == (9, 1)
    for name, value in usual.items():
        torch.testing.assert_close(last[name], value, rtol=1e-3, atol=1e-5)


def test_frozen_stages_stay_as_they_were(make_config):
    config = make_config("model.backbone.trainable_layers=3", *PLAIN_SGD, *ONE_STEP)
    before, after = initial_weights(config), trained_weights(config)
    stays = {key for key in before if key.startswith(("backbone.body.conv1", "backbone.body.bn1", "backbone.body.layer1"))}
    assert len(stays) > 10
    unmoved = {key for key in before if torch.equal(before[key], after[key])}
    assert stays <= unmoved
    assert not any(key.startswith("backbone.body.layer2") for key in unmoved)


# ---- What happens to odd data ----


@pytest.mark.parametrize("head", [(), MASKS], ids=["faster_rcnn", "mask_rcnn"])
def test_batches_without_any_object_train_on(make_config, tmp_path, head):
    data = write_coco(tmp_path / "data")
    content = json.loads(Path(data["annotations"]).read_text())
    content["annotations"] = content["annotations"][:2]  # both on the first image
    Path(data["annotations"]).write_text(json.dumps(content))
    weights = trained_weights(make_config("train.epochs=1", "train.batch_size=1", *head, data=data))
    lines = metrics(tmp_path / "run", "train")
    assert len(lines) == 7
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert sum(line["loss_box_reg"] == 0 for line in lines) == 6
    assert all(value.isfinite().all() for value in weights.values())


def test_a_data_set_smaller_than_a_batch_trains(make_config, tmp_path):
    train(make_config("train.batch_size=16", "train.epochs=2", "eval.every_epochs=2"))
    lines = metrics(tmp_path / "run", "train")
    assert [len(line["image_ids"]) for line in lines] == [16, 16]
    assert all(len(set(line["image_ids"])) == 7 for line in lines)


def test_training_that_diverges_stops_and_says_where(make_config, tmp_path):
    with pytest.raises(UserError, match="The loss is not finite at step") as caught:
        train(make_config("optimizer.lr=1e9", "train.epochs=3"))
    message = str(caught.value)
    step = int(re.search(r"at step (\d+)", message)[1])
    lines = metrics(tmp_path / "run", "train")
    assert lines[-1]["step"] == step - 1
    image_ids = [int(number) for number in re.search(r"on images \[(.*?)\]", message)[1].split(", ")]
    content = json.loads(Path(make_config().data.train.annotations).read_text())
    assert len(image_ids) == 2
    assert set(image_ids) <= {image["id"] for image in content["images"]}
    assert "nan" in message or "inf" in message
    assert "optimizer.lr (now 1e+09)" in message
    assert "clip_grad_norm" in message


@pytest.mark.parametrize("trainable_layers", [1, 5])
def test_stages_frozen_at_random_values_are_said(trainable_layers, make_config, capsys):
    train(make_config(f"model.backbone.trainable_layers={trainable_layers}"))
    assert ("frozen at random" in capsys.readouterr().out) == (trainable_layers == 1)


def test_what_became_of_the_weights_is_said(make_config, tmp_path, capsys):
    path = tmp_path / "weights.pth"
    torch.save(build_backbone("resnet18", norm="gn").state_dict() | {"fc.weight": torch.zeros(3, 512)}, path)
    train(make_config(f"model.backbone.weights={path}"))
    out = capsys.readouterr().out
    assert f"{path}: " in out
    assert "ignored, classifier: fc.weight" in out
