"""The front doors of classification: what they print and write, and how they refuse what is wrong."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from engine.checkpoint import load_checkpoint
from engine.config_file import dump_config
from tests.engine.classification.conftest import toy_config, write_folders, write_mnist
from tests.engine.conftest import write_coco
from tests.tools.test_tools import assert_refused

ROOT = Path(__file__).parents[2]
# ResNet-18 with the widths of a toy, so that a detector can be built on it.
RESNET18 = "model.backbone={name: resnet18, width: 8, norm: bn}"


@pytest.fixture
def toy(tmp_path: Path) -> SimpleNamespace:
    """Folders of images, a config file of a toy classifier, and the folder of its run: all to be broken."""
    train, val = write_folders(tmp_path / "train", count=4), write_folders(tmp_path / "val", count=2, seed=1)
    config = tmp_path / "toy.yaml"
    config.write_text(dump_config(toy_config(train=train, val=val, output_dir=tmp_path / "run")))
    return SimpleNamespace(config=config, train=train, val=val, run=tmp_path / "run")


def scores(text: str) -> list[str]:
    """The lines of numbers and of the table of classes."""
    return [line for line in text.splitlines() if line.startswith((" top", " loss", "│"))]


# ---- What they do ----


def test_from_training_to_a_photograph(tool, toy, tmp_path):
    done = tool("train_cls.py", toy.config, "train.epochs=6", "eval.every_epochs=6", "eval.pictures=3")
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(f"classifier on cifar_resnet, 1 process, cpu, in {toy.run}\n12 training images of 3 classes")
    assert sorted(path.name for path in (toy.run / "eval").iterdir()) == ["predictions.json", "scores.json"]
    assert len(list((toy.run / "predictions").iterdir())) == 3

    checked = tool("eval_cls.py", toy.run / "best.pt", "-o", tmp_path / "scores")
    assert (checked.status, checked.err) == (0, "")
    assert scores(checked.out) == scores(done.out)
    assert len(scores(checked.out)) == 3 + 3
    for name in ("scores.json", "predictions.json"):
        assert (tmp_path / "scores" / name).read_text() == (toy.run / "eval" / name).read_text()

    images = toy.val / "red"
    said = tool("predict.py", toy.run / "best.pt", images, "-o", tmp_path / "out")
    assert (said.status, said.err) == (0, "")
    assert re.search(rf"^{images / '000.png'}: (\w+ [01]\.\d\d(, )?){{3}} -> \S+000\.png$", said.out, re.MULTILINE)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["000.png", "001.png", "results.json"]
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["image_id"] for row in rows] == [1, 2]
    evaluated = {row["file_name"]: row["top"] for row in json.loads((tmp_path / "scores" / "predictions.json").read_text())}
    for row in rows:
        assert [entry["class"] for entry in row["top"]] == [entry["class"] for entry in evaluated[row["file_name"]]]
        assert sum(entry["probability"] for entry in row["top"]) == pytest.approx(1, abs=1e-4)

    again = tool("train_cls.py", toy.config, "train.epochs=7", "eval.every_epochs=6", "--resume")
    assert "resumed at step 18 of 21" in again.out


def test_a_config_with_weights_predicts_as_its_checkpoint(tool, toy, tmp_path):
    assert tool("train_cls.py", toy.config).status == 0
    best, image = toy.run / "best.pt", toy.val / "blue" / "001.png"
    first = tool("predict.py", best, image, "-o", tmp_path / "one")
    second = tool("predict.py", toy.config, image, "-o", tmp_path / "two", "--weights", best)
    assert second.status == 0, second.err
    assert f"{best}: " in second.out  # what became of the weights
    assert (tmp_path / "one" / "results.json").read_text() == (tmp_path / "two" / "results.json").read_text()
    said = first.out.partition(" -> ")[0]
    assert f"{said} -> " in second.out
    settings = ("--set", "data.eval_size=12", "--set", "data.eval_resize=20")
    closer = tool("predict.py", best, image, "-o", tmp_path / "three", *settings)
    assert closer.out.partition(" -> ")[0] != said
    assert_refused(tool("predict.py", toy.config, image, "-o", tmp_path / "four"), "has no trained weights: add --weights PATH")


def test_showing_data_writes_the_sheet_and_counts_the_classes(tool, toy, tmp_path):
    done = tool("show_data.py", toy.config, "-o", tmp_path / "sheet.png", "--count", "4", "--epoch", "2")
    assert (done.status, done.err) == (0, "")
    assert np.asarray(Image.open(tmp_path / "sheet.png")).std() > 0
    assert "12 images in 3 classes:\n  blue " in done.out


@pytest.mark.slow
def test_torchrun_trains_on_the_batches_of_one_process_and_scores_the_same(tool, toy, tmp_path):
    mixed = ("train.mixup_alpha=0.2", "train.cutmix_alpha=1.0", "train.epochs=2")
    assert tool("train_cls.py", toy.config, *mixed).status == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    options = {"env": os.environ | {"OMP_NUM_THREADS": "1"}, "capture_output": True, "text": True, "timeout": 300}
    two = tmp_path / "two"
    command = [*torchrun, ROOT / "tools" / "train_cls.py", toy.config, *mixed, f"output_dir={two}"]
    done = subprocess.run(command, **options)
    assert done.returncode == 0, done.stderr
    assert "classifier on cifar_resnet, 2 processes, cpu" in done.stdout
    alone, shared = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (toy.run, two)
    )
    for one, other in zip(alone, shared, strict=True):
        if one["kind"] == "train":
            assert one["image_ids"] == other["image_ids"]
    assert shared[0]["loss"] == pytest.approx(alone[0]["loss"], rel=1e-5)
    command = [*torchrun, ROOT / "tools" / "eval_cls.py", toy.run / "best.pt", "-o", tmp_path / "scores"]
    done = subprocess.run(command, **options)
    assert done.returncode == 0, done.stderr
    for name in ("scores.json", "predictions.json"):
        assert (tmp_path / "scores" / name).read_text() == (toy.run / "eval" / name).read_text()


# ---- From a classifier to a detector ----


@pytest.mark.parametrize("channels", [3, 1])
def test_a_detector_starts_from_a_classifier_and_every_tensor_is_accounted_for(tool, toy, tmp_path, channels):
    assert tool("train_cls.py", toy.config, RESNET18, f"data.channels={channels}").status == 0
    classifier = load_checkpoint(toy.run / "best.pt").model
    data = write_coco(tmp_path / "coco", 2)
    done = tool(
        "train_det.py",
        ROOT / "configs" / "frcnn_r18.yaml",
        f"model.backbone={{name: resnet18, width: 8, weights: {toy.run / 'best.pt'}, norm: frozen_bn, trainable_layers: 0}}",
        "model.pyramid.out_channels=8",
        "model.head.box_head_dim=8",
        *(f"data.{split}.{key}={value}" for split in ("train", "val") for key, value in data.items()),
        *("data.min_size=64", "data.max_size=96", "data.num_workers=0", "train.batch_size=2", "train.epochs=1"),
        *("eval.pictures=0", f"output_dir={tmp_path / 'detector'}", "device=cpu"),
    )
    assert done.status == 0, done.err
    report = done.out[done.out.index(f"{toy.run / 'best.pt'}: ") :].split("epoch ")[0]
    assert "\n  ignored, classifier: fc.weight, fc.bias\n" in report
    assert "missing" not in report
    assert ("conv1.weight adapted from 1 to 3 channels" in report) == (channels == 1)
    used = int(re.match(r".*: (\d+) tensors used", report)[1])
    named, more = re.search(r"\n  ignored, batch counters: (.*?)(?: and (\d+) more)?\n", report).groups()
    assert used + len(named.split(", ")) + int(more or 0) + 2 == len(classifier)
    # All of it is frozen: the detector has the classifier's weights still.
    detector = load_checkpoint(tmp_path / "detector" / "last.pt").model
    backbone = [key for key in classifier if key.startswith("backbone.") and not key.endswith("num_batches_tracked")]
    assert len(backbone) == used
    for key in backbone:
        theirs = detector[key.replace("backbone.", "backbone.body.", 1)]
        if channels == 1 and key == "backbone.conv1.weight":
            theirs = theirs.sum(dim=1, keepdim=True)
        torch.testing.assert_close(theirs, classifier[key])


# ---- The configs ----


def test_fashion_mnist_trains_on_files_as_they_are_published(tool, tmp_path, monkeypatch):
    """Gzipped files for training where torchvision keeps them; the others raw, in a folder that is named."""
    monkeypatch.chdir(tmp_path)
    write_mnist(Path("data/FashionMNIST/raw"), suffix=".gz")
    write_mnist(Path("elsewhere"))
    small = ("model.backbone.width=8", "train.batch_size=10", "train.epochs=2", "data.num_workers=0", "device=cpu")
    done = tool("train_cls.py", ROOT / "configs" / "cls_r18_fashion_mnist.yaml", *small, "data.val.root=elsewhere")
    assert (done.status, done.err) == (0, "")
    assert "20 training images of 10 classes, 10 validation images" in done.out
    assert "│ Ankle boot " in done.out
    assert (tmp_path / "runs" / "cls_r18_fashion_mnist" / "best.pt").is_file()


@pytest.mark.parametrize("name", ["train_cls.py", "show_data.py"])
def test_where_fashion_mnist_is_missing_its_files_and_where_they_are_to_be_had_are_said(tool, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nobody answers there
    monkeypatch.setattr(urllib.request, "_opener", None)  # which keeps the proxies that it met first
    done = tool(name, ROOT / "configs" / "cls_r18_fashion_mnist.yaml", "device=cpu")
    assert_refused(
        done,
        "the files of FashionMNIST are not there, and cannot be downloaded",
        "data/FashionMNIST/raw/train-images-idx3-ubyte.gz",
        "data/FashionMNIST/raw/t10k-labels-idx1-ubyte.gz",
        "https://github.com/zalandoresearch/fashion-mnist",
        "data.train.root=FOLDER data.val.root=FOLDER",
        "configs/cls_digits.yaml",
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_digits_are_learnt(tool, tmp_path):
    """The config as it is, which takes a minute."""
    done = tool("train_cls.py", ROOT / "configs" / "cls_digits.yaml", f"output_dir={tmp_path / 'run'}", "device=cpu")
    assert (done.status, done.err) == (0, "")
    best = tool("eval_cls.py", tmp_path / "run" / "best.pt", "-o", tmp_path / "scores")
    assert best.status == 0
    stats = json.loads((tmp_path / "scores" / "scores.json").read_text())["classification"]["stats"]
    assert stats["top1"] >= 0.97


def test_imagenet_where_it_is_not_says_how_it_is_laid_out(tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = tool("train_cls.py", ROOT / "configs" / "cls_r50_imagenet.yaml", "device=cpu")
    assert_refused(
        done, "there is no folder data/imagenet/train", "data/imagenet/train/cat/0001.jpg", "data.train.images=FOLDER"
    )


# ---- What they refuse ----


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("data.size=0", ["data.size: ", "greater than or equal to 2, not 0", "the override 'data.size=0'"]),
        ("train.label_smoothing=1.5", ["train.label_smoothing: ", "less than 1, not 1.5"]),
        ("train.mixup=0.2", ["train.mixup: unknown key", "'mixup_alpha'"]),
        ("data.train=cifar", ["data.train", "There is no image set 'cifar'"]),
        ("data.train=digts", ["Did you mean 'digits'?"]),
        ("data.augmentations=[{name: trivialaugment}]", ["no augmentation 'trivialaugment'", "'trivial_augment'"]),
        ("data.augmentations=[{name: horizontal_flip, p: 2.0}]", ["horizontal_flip cannot be made", "p is 2.0"]),
        ("data.augmentations=[{name: torchvision/Pad, padding: 2}]", ["end in images of 20 x 20 pixels", "not in 16 x 16"]),
        ("data.long_side_schedule=[[0.5, 8], [0.2, 16]]", ["data.long_side_schedule", "Put them in order"]),
        ("data.classes=none.txt", ["data.classes: there is no file none.txt"]),
        ("data.classes=[red, green]", ["has the class 'blue', which is not among the 2 classes of data.classes"]),
        ("data.classes=[red, green, blue, red]", ["data.classes.3: the class 'red' is named twice"]),
        ("data.train.images=none", ["data.train.images: there is no folder none", "none/cat/0001.jpg"]),
        ("train.batch_size=3", ["train.batch_size 3 gives 1 processes", "give a multiple of 2"]),
        ("model.backbone.name=resnet51", ["no backbone 'resnet51'"]),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_refused_by_its_name(tool, toy, override, parts):
    assert_refused(tool("train_cls.py", toy.config, "train.mixup_alpha=0.2", override), *parts)
    assert not (toy.run / "last.pt").exists()


def break_image(toy):
    (toy.train / "red" / "002.png").write_bytes((toy.train / "red" / "002.png").read_bytes()[:60])


def empty_class(toy):
    (toy.train / "yellow").mkdir()


def file_among_folders(toy):
    (toy.val / "notes.txt").touch()


def unknown_class(toy):
    (toy.val / "red").rename(toy.val / "crimson")


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (break_image, ["train/red/002.png cannot be read", "take it out of the folder"]),
        (empty_class, ["the class folder", "train/yellow has no images"]),
        (file_among_folders, ["val/notes.txt lies among the class folders"]),
        (unknown_class, ["val has the class 'crimson', which is not among the 3 classes of", "train. "]),
    ],
)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_data_that_are_wrong_are_refused_and_named(tool, toy, spoil, parts, num_workers):
    spoil(toy)
    done = tool("train_cls.py", toy.config, f"data.num_workers={num_workers}", "data.on_fault=stop")
    assert_refused(done, *parts)
    assert not (toy.run / "last.pt").exists()


def test_a_checkpoint_of_another_job_is_refused_and_the_right_tools_named(tool, toy, trained):
    done = tool("eval_cls.py", trained.folder / "best.pt")
    assert_refused(done, "is of the job detection, and this tool is for classification: use tools/train_det.py")
    assert_refused(tool("train_det.py", toy.config), "is of the job classification", "tools/train_cls.py")
    done = tool("eval_cls.py", toy.config, "--weights", trained.folder / "best.pt")
    assert_refused(done, "is of the job detection, and this tool is for classification")


def test_a_config_without_weights_and_weights_of_another_net_are_refused(tool, toy, tmp_path):
    assert_refused(tool("eval_cls.py", toy.config), "has no trained weights: add --weights PATH")
    torch.save({"conv1.weight": torch.ones(4, 3, 7, 7)}, tmp_path / "other.pth")
    assert_refused(tool("eval_cls.py", toy.config, "--weights", tmp_path / "other.pth"), tmp_path / "other.pth")
