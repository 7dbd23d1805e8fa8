"""engine/segmentation/job.py: a segmenter is trained, resumed, scored on any number of processes, and shown."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from backbones.errors import UserError
from engine.checkpoint import load_checkpoint
from engine.evaluate import evaluate
from engine.job import job_of
from engine.predict import predict_images
from engine.segmentation.job import SegmentationJob
from engine.segmentation.label_maps import read_label_map
from engine.show import draw_samples
from engine.train import train
from tests.engine.conftest import write_coco
from tests.engine.segmentation.conftest import NAMES, toy_config, write_maps

PYRAMID = "model.pyramid={name: fpn, out_channels: 16}"
# All that has a state: batch statistics, momentum, an average, dropout, random augmentations.
STATEFUL = (
    "model.backbone={name: resnet18, norm: bn, out_features: [c2, c3]}",
    "model.head={name: fcn, auxiliary: true}",
    "data.augmentations=[{name: horizontal_flip}, {name: color_jitter}]",
    "data.scale=[0.7, 1.4]",
    "data.crop_size=48",
    "train.epochs=3",
    "train.ema={decay: 0.9}",
    "schedule.name=poly",
    "train.checkpoint_steps=2",
)


class Killed(BaseException):
    pass


def assert_succeeded(ended: list[SimpleNamespace]) -> None:
    assert [one.status for one in ended] == [0] * len(ended), [one.output for one in ended]


def differences(first, second, path=""):
    """Where two nests of dicts, lists, tensors and numbers are not the same to the bit."""
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        return [found for key in first for found in differences(first[key], second[key], f"{path}/{key}")]
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        return [found for i, pair in enumerate(zip(first, second, strict=True)) for found in differences(*pair, f"{path}/{i}")]
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return [] if torch.equal(first, second) else [path]
    return [] if type(first) is type(second) and first == second else [path]


# ---- Losses ----


HEADS = {
    "fcn": ["model.head={name: fcn, auxiliary: true}"],
    "deeplabv3": ["model.head={name: deeplabv3, auxiliary: true}"],
    "deeplabv3plus": ["model.head={name: deeplabv3plus}"],
    "semantic_fpn": ["model.head={name: semantic_fpn, channels: 16}", PYRAMID],
}


@pytest.mark.parametrize("head", HEADS)
def test_a_batch_of_nothing_but_ignored_pixels_costs_nothing_and_reaches_every_parameter(make_config, head):
    """On one process of several it must neither hang the others nor spoil the weights."""
    job = job_of(make_config("model.backbone={name: resnet18}", *HEADS[head]))
    model = job.build_model(job.build_validation_set().categories, load_weights=False).train()
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((64, 80), (70, 64))]
    targets = [{"labels": torch.full(image.shape[1:], 255, dtype=torch.uint8)} for image in images]
    losses = job.losses(model, images, targets)
    assert list(losses) == ["loss", "loss_aux"][: len(losses)]
    assert all(loss.item() == 0 for loss in losses.values())
    sum(losses.values()).backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, gradient in trained.items() if gradient is None or not gradient.isfinite().all()] == []


def test_an_image_of_ignored_pixels_changes_no_loss(make_config):
    """Without batch statistics, what is ignored counts for nothing."""
    job = job_of(make_config("model.backbone={name: resnet18, norm: gn}", *HEADS["semantic_fpn"]))
    model = job.build_model(job.build_validation_set().categories, load_weights=False).train()
    images = [torch.randint(0, 256, (3, 40, 48), dtype=torch.uint8) for _ in range(2)]
    targets = [{"labels": torch.randint(0, 3, (40, 48), dtype=torch.uint8)}]
    alone = job.losses(model, images[:1], targets)
    both = job.losses(model, images, [*targets, {"labels": torch.full((40, 48), 255, dtype=torch.uint8)}])
    torch.testing.assert_close(alone["loss"], both["loss"])


def test_a_norm_of_one_value_is_explained(make_config):
    job = job_of(make_config("model.backbone={name: resnet18}", "model.head={name: fcn}"))
    model = job.build_model(job.build_validation_set().categories, load_weights=False).train()
    images = [torch.zeros(3, 32, 32, dtype=torch.uint8)]
    with pytest.raises(UserError, match=r"given one value a channel, by 1 image of 32 x 32 pixels: raise train\.batch_size"):
        job.losses(model, images, [{"labels": torch.zeros(32, 32, dtype=torch.uint8)}])


# ---- Training ----


def test_what_is_trained_on_is_learnt(trained):
    (score,) = trained.scores
    assert score.value > 0.8
    assert list(score.per_class) == NAMES
    lines = trained.printed.splitlines()
    assert lines[0].startswith("fcn on resnet18, 1 process, cpu, in ")
    assert lines[1:3] == [
        "6 training images with 3 classes, 6 validation images", "classes: 0 background, 1 square, 2 bar",
    ]  # fmt: skip
    assert sorted(path.name for path in (trained.folder / "eval").iterdir()) == ["confusion.csv", "scores.json"]
    assert sorted(path.name for path in (trained.folder / "predictions").iterdir()) == ["000.png", "002.png", "005.png"]


@pytest.mark.parametrize(("head", "output_stride"), [("fcn", 8), ("deeplabv3", 8), ("deeplabv3", 16), ("deeplabv3plus", 16)])
def test_dilated_backbones_train(make_config, few_maps, tmp_path, head, output_stride):
    """One step of each, whose losses and scores are numbers."""
    body = f"model.backbone={{name: resnet18, output_stride: {output_stride}}}"
    (score,) = train(make_config(body, *HEADS[head], "data.crop_size=64", data=few_maps))
    assert all(0 <= value <= 1 for value in score.stats.values())
    weights = load_checkpoint(tmp_path / "run" / "last.pt").model
    assert all(value.isfinite().all() for value in weights.values())


def test_the_semantic_pyramid_trains_in_half_precision(make_config, few_maps, tmp_path):
    train(make_config("model.backbone={name: resnet18}", *HEADS["semantic_fpn"], "train.precision=bf16", data=few_maps))
    assert all(value.isfinite().all() for value in load_checkpoint(tmp_path / "run" / "last.pt").model.values())


@pytest.fixture(scope="module")
def few_maps(tmp_path_factory):
    return write_maps(tmp_path_factory.mktemp("few"), 2)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    data = write_maps(folder / "data")
    train(toy_config(*STATEFUL, data=data, output_dir=folder / "run"))
    return SimpleNamespace(data=data, folder=folder / "run")


@pytest.mark.parametrize("step", [3, 8])
def test_stopped_and_resumed_it_ends_the_same_to_the_bit(uninterrupted, tmp_path, step, monkeypatch):
    from engine.tracking import JsonlTracker

    config = toy_config(*STATEFUL, data=uninterrupted.data, output_dir=tmp_path / "run")
    log = JsonlTracker.log

    def log_and_stop(tracker, kind, number, values):
        log(tracker, kind, number, values)
        if (kind, number) == ("train", step):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(JsonlTracker, "log", log_and_stop)
        with pytest.raises(Killed):
            train(config)
    assert load_checkpoint(tmp_path / "run" / "last.pt").training["step"] < step
    torch.manual_seed(99)
    train(config, resume="")
    for name in ("last.pt", "best.pt"):
        one, two = (load_checkpoint(folder / name) for folder in (tmp_path / "run", uninterrupted.folder))
        assert differences(one.model, two.model) == []
        assert differences(one.training, two.training) == []
    for name in ("scores.json", "confusion.csv"):
        assert (tmp_path / "run" / "eval" / name).read_text() == (uninterrupted.folder / "eval" / name).read_text()


def test_another_size_or_scale_is_another_run(uninterrupted):
    for override in ("data.scale=[0.5, 2.0]", "data.crop_size=40", "model.head={name: fcn}"):
        config = toy_config(*STATEFUL, override, data=uninterrupted.data, output_dir=uninterrupted.folder)
        with pytest.raises(UserError, match="Resume with the same"):
            train(config, resume="")


def test_two_processes_move_the_weights_as_one_does(on_processes, make_config, tmp_path):
    """Where no pixel is ignored, the mean over the processes is the mean over the batch. (FCN's head draws a dropout.)"""
    body = "model.backbone={name: resnet18, norm: gn, out_features: [c2, c3]}"
    every = ("data.ignore_index=254", "data.classes={0: background, 1: square, 2: bar, 255: border}")
    overrides = (body, *HEADS["semantic_fpn"], *every, "train.batch_size=6", "optimizer.lr=0.1", "data.crop_size=64")
    train(make_config(*overrides, name="alone"))
    assert_succeeded(on_processes(2, train, make_config(*overrides, name="two")))
    alone, two = (load_checkpoint(tmp_path / name / "last.pt").model for name in ("alone", "two"))
    job = job_of(make_config(*overrides))
    torch.manual_seed(0)
    before = job.build_model(job.build_validation_set().categories, load_weights=True).state_dict()

    def distance(first, second):
        return float(torch.cat([(first[key] - second[key]).flatten() for key in first]).norm())

    assert distance(alone, two) < 1e-4 * distance(before, alone)


# ---- Evaluation ----


@pytest.mark.parametrize(("size", "batch_size"), [(2, 1), (4, 2)])
def test_any_number_of_processes_scores_the_same(on_processes, trained, tmp_path, size, batch_size):
    source, overrides = str(trained.folder / "best.pt"), [f"eval.batch_size={batch_size}"]
    assert_succeeded(on_processes(size, evaluate, source, overrides, job="segmentation", output_dir=str(tmp_path / "shared")))
    for name in ("scores.json", "confusion.csv"):
        assert (tmp_path / "shared" / name).read_text() == (trained.folder / "eval" / name).read_text(), name


def test_the_result_does_not_depend_on_the_batch(trained, tmp_path):
    evaluate(str(trained.folder / "best.pt"), ["eval.batch_size=6"], job="segmentation", output_dir=str(tmp_path / "out"))
    assert (tmp_path / "out" / "confusion.csv").read_text() == (trained.folder / "eval" / "confusion.csv").read_text()


def test_each_pixel_of_the_original_map_is_counted_once(trained):
    rows = (trained.folder / "eval" / "confusion.csv").read_text().splitlines()[1:]
    counted = [sum(int(value) for value in row.split(",")[1:]) for row in rows]
    maps = [np.asarray(Image.open(path)) for path in Path(trained.data["labels"]).glob("*.png")]
    assert counted == [sum(int((values == label).sum()) for values in maps) for label in range(3)]


# ---- What a person sees ----


def test_predictions_are_a_picture_a_label_map_and_rows(trained, tmp_path):
    rows = predict_images(str(trained.folder / "best.pt"), [trained.data["images"]], output_dir=str(tmp_path), device="cpu")
    assert json.loads((tmp_path / "results.json").read_text()) == rows
    for number in range(6):
        name = f"{number:03}.png"
        own = [row for row in rows if row["file_name"].endswith(name)]
        labels = read_label_map(tmp_path / "predicted_labels" / name, image=Path(name))
        truth = read_label_map(Path(trained.data["labels"]) / name, image=Path(name))
        assert labels.shape == truth.shape
        assert (labels == truth)[truth != 255].mean() > 0.9
        assert {row["category_id"] for row in own} == set(np.unique(labels).tolist())
        for row in own:
            assert row["pixels"] == (labels == row["category_id"]).sum()
            assert row["share"] == pytest.approx(row["pixels"] / labels.size)
            assert (row["image_id"], row["name"]) == (number + 1, NAMES[row["category_id"]])
        assert sum(row["share"] for row in own) == pytest.approx(1)
        assert np.asarray(Image.open(tmp_path / name)).ndim == 3


def test_what_is_printed_of_a_prediction_begins_with_the_largest_class(trained, tmp_path, capsys):
    image = Path(trained.data["images"]) / "000.png"
    predict_images(str(trained.folder / "best.pt"), [str(image)], output_dir=str(tmp_path), device="cpu")
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(str(image)))
    assert line.startswith(f"{image}: background ")
    assert line.endswith(f" -> {tmp_path / '000.png'}")


def test_published_weights_predict_without_any_data_set(trained, tmp_path):
    """A config names the classes of label maps; its folders need not be there."""
    torch.save(load_checkpoint(trained.folder / "best.pt").model, tmp_path / "bare.pth")
    image = Path(trained.data["images"]) / "000.png"
    nowhere = [f"data.{split}={{images: none, labels: none}}" for split in ("train", "val")]
    found = predict_images(
        str(trained.folder / "config.yaml"),
        [str(image)],
        output_dir=str(tmp_path / "bare"),
        weights=str(tmp_path / "bare.pth"),
        overrides=nowhere,
        device="cpu",
    )
    assert found == predict_images(
        str(trained.folder / "best.pt"), [str(image)], output_dir=str(tmp_path / "own"), device="cpu"
    )


def test_classes_of_instances_are_the_data_set_s(make_config, tmp_path):
    data = write_coco(tmp_path / "data", 2)
    val = f"data.val={{images: {data['images']}, annotations: {data['annotations']}}}"
    job = job_of(make_config(val, "data.classes=[square]"))
    assert [category.name for category in job.build_classes().categories] == ["background", "square"]


def test_samples_are_drawn_and_classes_counted(make_config):
    job = job_of(make_config("data.crop_size=40"))
    assert isinstance(job, SegmentationJob)
    dataset = job.build_training_set()
    assert draw_samples(job, dataset, count=4).std() > 0
    lines = job.describe_classes(dataset)
    assert lines[0] == "share of the pixels in 6 of 6 label maps, in 3 classes:"
    assert [line.split()[0] for line in lines[1:4]] == NAMES
    shares = [float(line.split()[-1].rstrip("%")) for line in lines[1:]]
    assert sum(shares) == pytest.approx(100, abs=0.1)
    assert all(share > 0 for share in shares)


def test_notes_on_the_data_are_printed(make_config, tmp_path):
    data = write_maps(tmp_path / "data")
    (Path(data["images"]) / "003.png").unlink()
    job = job_of(make_config(data=data))
    lines = job.describe(job.build_training_set(), job.build_validation_set())
    assert lines[-1] == f"left out: 1 label maps of {data['labels']} without an image"


# ---- Real data ----


@pytest.mark.shared_data
@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_real_instances_are_trained_on_and_scored(shared, tmp_path, head):
    folder = shared / "data" / "coco_cc_by"
    data = {"images": str(folder / "val"), "annotations": str(folder / "annotations" / "instances_val.json")}
    few = tmp_path / "few.json"
    content = json.loads(Path(data["annotations"]).read_text())
    content["images"] = content["images"][:4]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [annotation for annotation in content["annotations"] if annotation["image_id"] in kept]
    few.write_text(json.dumps(content))
    weights = shared / "weights" / "resnet18_imagenet_trunk.safetensors"
    config = toy_config(
        f"model.backbone={{name: resnet18, weights: {weights}}}",
        *HEADS[head],
        "data.classes=null",
        "data.min_size=96",
        "data.crop_size=96",
        data=data | {"annotations": str(few)},
        output_dir=tmp_path / "run",
    )
    (score,) = train(config)
    assert 0 <= score.value <= 1
    assert all(value.isfinite().all() for value in load_checkpoint(tmp_path / "run" / "last.pt").model.values())
