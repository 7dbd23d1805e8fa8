"""engine/classification/job.py: the training step against torch's own, classes from wherever they are said, and whole runs."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import v2

from backbones.errors import UserError
from engine.checkpoint import load_checkpoint
from engine.classification.classes import Classes
from engine.classification.config import ClassificationConfig
from engine.classification.job import ClassificationJob
from engine.classification.mixing import mix
from engine.data.annotations import Category
from engine.distributed import World
from engine.evaluate import evaluate
from engine.train import Run, train
from heads.classifier import Classifier
from tests.engine.classification.conftest import write_folders

CPU = torch.device("cpu")
MIXED = ("train.mixup_alpha=0.2", "train.cutmix_alpha=1.0", "train.label_smoothing=0.1")


def batch_of(dataset: Any, size: int) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    """Samples of changing classes."""
    samples = [dataset[index * 5 % 12] for index in range(size)]
    return [image for image, _ in samples], [target for _, target in samples]


def names(job: ClassificationJob) -> list[str]:
    return [category.name for category in job.build_validation_set().categories]


# ---- The step ----


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_normalised_as_torchvision_normalises_them(make_config, channels):
    job = ClassificationJob(make_config(f"data.channels={channels}"))
    images, _ = batch_of(job.build_training_set(), 3)
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) if channels == 3 else ([0.449], [0.226])
    theirs = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])
    torch.testing.assert_close(job._normalise(images), torch.stack([theirs(image) for image in images]))


def test_the_constants_of_the_normalisation_may_be_given(make_config):
    job = ClassificationJob(make_config("model.head.image_mean=[0.5, 0.5, 0.0]", "model.head.image_std=[0.5, 1.0, 1.0]"))
    images = [torch.full((3, 4, 4), 255, dtype=torch.uint8)]
    assert job._normalise(images)[0, :, 0, 0].tolist() == [1.0, 0.5, 1.0]


def test_channels_last_is_a_layout_of_the_batch_alone(make_config):
    images = [torch.randint(0, 256, (3, 5, 6), dtype=torch.uint8)]
    plain, last = (
        ClassificationJob(make_config(f"train.channels_last={flag}"))._normalise(images) for flag in ("false", "true")
    )
    assert torch.equal(plain, last)
    assert last.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("overrides", [(), ("train.label_smoothing=0.1",), MIXED])
def test_the_loss_is_the_cross_entropy_with_the_smoothed_and_mixed_labels(make_config, overrides):
    job = ClassificationJob(make_config(*overrides))
    dataset = job.build_training_set()
    model = job.build_model(dataset.categories, load_weights=False)
    images, targets = batch_of(dataset, 8)
    losses = job.losses(model, images, targets)
    batch, shares = job._normalise(images), F.one_hot(torch.tensor([int(t["label"]) for t in targets]), 3).float()
    if overrides == MIXED:
        seeds = [target["seed"] for target in targets]
        batch, shares = mix(batch, shares.argmax(1), seeds, num_classes=3, mixup_alpha=0.2, cutmix_alpha=1.0)
        assert ((shares > 0) & (shares < 1)).any()
    smoothing = 0.1 if overrides else 0.0
    shares = (1 - smoothing) * shares + smoothing / 3
    expected = -(shares * model(batch).log_softmax(1)).sum(1).mean()
    assert set(losses) == {"loss_cross_entropy"}
    torch.testing.assert_close(losses["loss_cross_entropy"], expected)


def test_the_loss_is_computed_in_float32_whatever_the_precision(make_config):
    job = ClassificationJob(make_config())
    dataset = job.build_training_set()
    model = job.build_model(dataset.categories, load_weights=False)
    with torch.autocast("cpu", torch.bfloat16):
        losses = job.losses(model, *batch_of(dataset, 4))
        predicted = job.predict(model, batch_of(dataset, 4)[0])
    assert losses["loss_cross_entropy"].dtype == predicted[0].dtype == torch.float32


def test_every_trained_parameter_gets_a_gradient(make_config, train_step):
    job = ClassificationJob(make_config(*MIXED, "model.head.dropout=0.2"))
    dataset = job.build_training_set()
    model = job.build_model(dataset.categories, load_weights=False)

    class Losses(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, images, targets):
            return job.losses(self.model, images, targets)

    train_step(Losses(), *batch_of(dataset, 4))


def test_predictions_are_log_probabilities_and_prepare_is_the_validation_view(make_config):
    job = ClassificationJob(make_config("data.eval_resize=20", "data.eval_size=12"))
    dataset = job.build_validation_set()
    model = job.build_model(dataset.categories, load_weights=False).eval()
    images = [dataset[i][0] for i in range(3)]
    for i, predicted in enumerate(job.predict(model, images)):
        assert torch.equal(job.prepare(dataset.images.read(i)), images[i])
        assert images[i].shape == (3, 12, 12)
        assert float(predicted.detach().exp().sum()) == pytest.approx(1)


@pytest.mark.parametrize(("size", "accumulate", "multiple"), [(1, 2, 4), (2, 1, 4), (3, 1, 6)])
def test_pairs_that_would_be_parted_are_refused(make_config, size, accumulate, multiple):
    batch_size = size * accumulate * 3
    config = make_config(f"train.batch_size={batch_size}", f"train.accumulate={accumulate}", "train.cutmix_alpha=1.0")
    with pytest.raises(UserError, match=rf"mixup and cutmix mix pairs: give a multiple of {multiple}"):
        ClassificationJob(config).build_training_set(World(0, size, CPU) if size == 1 else _OfSize(size))
    even = make_config(f"train.batch_size={2 * batch_size}", f"train.accumulate={accumulate}", "train.cutmix_alpha=1.0")
    ClassificationJob(even).build_training_set(_OfSize(size))


class _OfSize:
    """A world whose processes need not wait for each other."""

    def __init__(self, size: int) -> None:
        self.size, self.rank, self.is_main = size, 0, True

    def barrier(self) -> None:
        """Nobody to wait for."""


# ---- Classes ----


def test_classes_are_the_training_sets_and_a_validation_set_may_lack_some(make_config, tmp_path):
    val = write_folders(tmp_path / "val", classes=("green",))
    job = ClassificationJob(make_config(val=val))
    training = job.build_training_set()
    assert names(job) == ["blue", "green", "red"]
    lines = job.describe(training, job.build_validation_set())
    assert lines[0] == "classifier on cifar_resnet"
    assert "12 training images of 3 classes, 4 validation images" in lines
    assert "without validation images: 2 classes, such as blue, red" in lines


def test_a_validation_class_that_is_not_trained_on_is_named(make_config, tmp_path):
    val = write_folders(tmp_path / "val", classes=("green", "yellow"))
    job = ClassificationJob(make_config(val=val))
    job.build_training_set()
    with pytest.raises(UserError, match=r"val has the class 'yellow', which is not among the 3 classes of .*images"):
        job.build_validation_set()


def test_classes_may_be_named_in_another_order_and_lack_images(make_config, tmp_path):
    (tmp_path / "classes.txt").write_text("red\nyellow\ngreen\nblue\n")
    for given in ("[red, yellow, green, blue]", tmp_path / "classes.txt"):
        job = ClassificationJob(make_config(f"data.classes={given}"))
        training = job.build_training_set()
        assert names(job) == ["red", "yellow", "green", "blue"]
        assert int(training[0][1]["label"]) == 3
        assert job.build_classes().categories == training.categories
        assert "without training images: 1 classes, such as yellow" in job.describe(training, job.build_validation_set())


def test_imagenets_folders_go_by_id_and_by_name(make_config, tmp_path):
    folder = write_folders(tmp_path / "images", classes=("n07920052", "tench"), count=1)
    job = ClassificationJob(make_config("data.classes=imagenet", train=folder))
    training = job.build_training_set()
    assert [int(training[i][1]["label"]) for i in range(2)] == [967, 0]
    assert training.categories[967] == Category(967, "espresso")
    assert len(training.categories) == 1000


def test_a_checkpoint_knows_the_classes_that_neither_folder_nor_file_says(make_config, tmp_path):
    val = write_folders(tmp_path / "val", classes=("green",))
    categories = Classes(None, ["blue", "green", "red"]).categories
    for overrides in ((), ("data.classes=gone.txt",)):
        job = ClassificationJob(make_config(*overrides, val=val))
        job.take_classes(categories)
        assert names(job) == ["blue", "green", "red"]
    assert names(ClassificationJob(make_config(val=val))) == ["green"]
    with pytest.raises(UserError, match=r"no file gone\.txt"):
        names(ClassificationJob(make_config("data.classes=gone.txt")))


def test_classes_are_counted_and_samples_named(make_config):
    job = ClassificationJob(make_config())
    dataset = job.build_training_set()
    assert [line.split() for line in job.describe_classes(dataset)] == [
        ["12", "images", "in", "3", "classes:"], ["blue", "4"], ["green", "4"], ["red", "4"],
    ]  # fmt: skip
    picture = job.draw_sample(dataset, *dataset[0])
    assert picture.dtype == np.uint8
    assert min(picture.shape[:2]) > 300


# ---- Whole runs ----

# All that has a state: batch statistics, momentum, an average, random augmentations, mixing, dropout, sides that change.
STATEFUL = (
    *MIXED,
    "model.backbone.norm=bn",
    "model.head.dropout=0.3",
    "data.augmentations=[{name: random_resized_crop}, {name: rand_augment}, {name: random_erasing, p: 0.5}]",
    "data.long_side_schedule=[[0, 8], [0.5, 12], [0.9, 16]]",
    "train.epochs=4",
    "train.ema={decay: 0.9}",
    "train.checkpoint_steps=2",
    "optimizer={name: sgd, lr: 0.05}",
    "schedule.name=cosine",
)


class Stopped(BaseException):
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


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let a run be stopped once it has done so many steps."""
    one_step = Run._train_step

    def step_or_stop(run: Run, batches: Any) -> Any:
        if run.state.step == step:
            raise Stopped
        return one_step(run, batches)

    monkeypatch.setattr(Run, "_train_step", step_or_stop)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_stopped_within_an_epoch_and_resumed_it_ends_the_same_to_the_bit(make_config, tmp_path, monkeypatch, num_workers):
    train(make_config(*STATEFUL, name="whole"))
    stopped = make_config(*STATEFUL, f"data.num_workers={num_workers}", name="stopped")
    with monkeypatch.context() as patch:
        stop_after(patch, 5)  # of twelve, in the second epoch
        with pytest.raises(Stopped):
            train(stopped)
    assert load_checkpoint(tmp_path / "stopped" / "last.pt").training["step"] == 4
    train(stopped, resume="")
    for name in ("last.pt", "best.pt"):
        one, two = (load_checkpoint(tmp_path / run / name) for run in ("whole", "stopped"))
        assert differences(one.model, two.model) == []
        assert differences(one.training, two.training) == []
    for name in ("scores.json", "predictions.json"):
        assert (tmp_path / "whole" / "eval" / name).read_text() == (tmp_path / "stopped" / "eval" / name).read_text()


def test_the_schedule_of_sides_is_part_of_what_a_resume_must_keep(make_config):
    train(make_config(*STATEFUL, "train.epochs=1"))
    with pytest.raises(UserError, match=r"data\.long_side_schedule="):
        train(make_config(*STATEFUL, "data.long_side_schedule=[[0, 8]]"), resume="")
    with pytest.raises(UserError, match=r"train\.mixup_alpha=0\.2, the config now says 0\.4"):
        train(make_config(*STATEFUL, "train.mixup_alpha=0.4"), resume="")


def assert_succeeded(ended: list[Any]) -> None:
    assert [one.status for one in ended] == [0] * len(ended), [one.output for one in ended]


def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    return float(torch.cat([(first[key] - second[key]).flatten() for key in first]).norm())


def test_two_processes_move_the_weights_as_one_does_mixing_included(on_processes, make_config, tmp_path):
    overrides = (*MIXED, "train.batch_size=8", "train.epochs=2", "optimizer={name: sgd, lr: 0.05}")
    torch.manual_seed(0)
    before = ClassificationJob(make_config()).build_model([Category(i, str(i)) for i in range(3)], load_weights=False)
    train(make_config(*overrides, name="alone"))
    assert_succeeded(on_processes(2, train, make_config(*overrides, name="two")))
    assert_succeeded(on_processes(2, train, make_config(*overrides, "train.accumulate=2", name="parts")))
    alone, two, parts = (load_checkpoint(tmp_path / name / "last.pt").model for name in ("alone", "two", "parts"))
    moved = distance(before.state_dict(), alone)
    assert distance(alone, two) < 1e-4 * moved
    assert distance(alone, parts) < 1e-4 * moved


@pytest.fixture(scope="module")
def trained(folders, tmp_path_factory) -> Path:
    """The folder of a run that has learnt the colours."""
    from tests.engine.classification.conftest import toy_config

    folder = tmp_path_factory.mktemp("trained")
    learning = ("train.epochs=8", "eval.every_epochs=8", "train.ema={decay: 0.5}")
    (score,) = train(toy_config(*learning, train=folders, output_dir=folder / "run"))
    assert score.stats["top1"] > 0.9
    return folder / "run"


@pytest.mark.parametrize("size", [2, 3])
def test_any_number_of_processes_scores_the_same(on_processes, trained, tmp_path, size):
    source = str(trained / "best.pt")
    evaluate(source, [], job="classification", output_dir=str(tmp_path / "alone"))
    ended = on_processes(size, evaluate, source, [], job="classification", output_dir=str(tmp_path / "shared"))
    assert_succeeded(ended)
    for name in ("scores.json", "predictions.json"):
        assert (tmp_path / "shared" / name).read_text() == (tmp_path / "alone" / name).read_text(), name
        assert (tmp_path / "shared" / name).read_text() == (trained / "eval" / name).read_text(), name
    assert ended[0].output.count("\n top1 ") == 1
    assert [one.output for one in ended[1:]] == [""] * (size - 1)


def test_a_checkpoint_is_scored_where_neither_its_training_set_nor_all_classes_are(trained, tmp_path):
    val = write_folders(tmp_path / "val", classes=("red",), seed=1)
    (score,) = evaluate(str(trained / "best.pt"), [f"data.val.images={val}", "data.train.images=gone"], job="classification")
    assert score.per_class["red"] == score.stats["top1"] > 0.5
    assert score.per_class["blue"] == -1
    val = write_folders(tmp_path / "other", classes=("yellow",))
    with pytest.raises(UserError, match="has the class 'yellow', which is not among the 3 classes of the checkpoint"):
        evaluate(str(trained / "best.pt"), [f"data.val.images={val}"], job="classification")


def test_a_run_leaves_scores_pictures_and_a_checkpoint_that_says_its_classes(make_config, tmp_path):
    train(make_config("eval.pictures=2"))
    checkpoint = load_checkpoint(tmp_path / "run" / "best.pt")
    assert [(c.id, c.name) for c in checkpoint.categories] == list(enumerate(["blue", "green", "red"]))
    assert checkpoint.job == "classification"
    assert isinstance(checkpoint.build_model(checkpoint.load_config()), Classifier)
    assert len(list((tmp_path / "run" / "predictions").glob("*.png"))) == 2
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert set(lines[-1]["classification"]) == {"top1", "top5", "loss", "per_class"}


def test_present_names_the_five_best_and_draws_the_image(make_config, tmp_path):
    job = ClassificationJob(make_config())
    categories = [Category(i, name) for i, name in enumerate("abcdefg")]
    prediction = torch.tensor([0.02, 0.5, 0.03, 0.25, 0.1, 0.06, 0.04]).log()
    image = np.full((30, 40, 3), 90, np.uint8)
    said, rows = job.present(image, prediction, categories, picture=tmp_path / "a.png", score_threshold=0.99)
    assert said == f"b 0.50, d 0.25, e 0.10, f 0.06, g 0.04 -> {tmp_path / 'a.png'}"
    assert [(entry["class"], entry["category_id"]) for entry in rows[0]["top"]] == [
        ("b", 1), ("d", 3), ("e", 4), ("f", 5), ("g", 6),
    ]  # fmt: skip
    assert (tmp_path / "a.png").is_file()


def test_sources_of_all_kinds_train_together(make_config, tmp_path):
    """Digits, in grey, with options that only they have."""
    config = make_config("data.train=digits", "data.val=digits", "data.channels=1", "train.batch_size=64", "data.size=8")
    assert isinstance(config, ClassificationConfig)
    (score,) = train(config)
    assert score.stats["top1"] > 0.12
    assert list(itertools.islice(score.per_class, 3)) == ["0", "1", "2"]
    shutil.rmtree(tmp_path / "run")
