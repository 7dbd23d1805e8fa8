"""The front doors of segmentation: what they print and write, and how they refuse what is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from engine.config_file import dump_config
from tests.engine.conftest import toy_config as toy_detector
from tests.engine.segmentation.conftest import NAMES, toy_config, train_once, write_maps

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A finished run (`folder`, `config`, `data`, `scores`, `printed`); not to be written to."""
    return train_once(tmp_path_factory)


@pytest.fixture
def toy(tmp_path):
    """Two images, their label maps, a config file of the toy segmenter, and the folder of its run: all to be broken."""
    data = write_maps(tmp_path / "data", 2)
    config = tmp_path / "toy.yaml"
    config.write_text(dump_config(toy_config(data=data, output_dir=tmp_path / "run")))
    images, labels = Path(data["images"]), Path(data["labels"])
    return SimpleNamespace(
        config=config, images=images, labels=labels, image=images / "001.png", map=labels / "001.png", run=tmp_path / "run"
    )


def numbers(text):
    """The lines of the numbers and of the table of classes."""
    return [line for line in text.splitlines() if line.startswith((" mIoU", " pixel_", " mean_", " fwIoU", "│"))]


def assert_refused(done, *parts):
    """Status 2, and one message on stderr that holds all of `parts`."""
    assert done.status == 2, done.err
    assert "Traceback" not in done.err
    assert done.err.endswith("\n")
    for part in parts:
        assert str(part) in done.err


# ---- What they do ----


@pytest.mark.parametrize("name", ["train_seg.py", "eval_seg.py"])
def test_help_shows_examples_and_loads_no_torch(name, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('torch was loaded')")
    command = [sys.executable, ROOT / "tools" / name, "--help"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: {name}" in done.stdout
    assert f"python tools/{name} " in done.stdout


def test_training_leaves_a_run_that_says_how_it_went_and_goes_on(tool, toy):
    done = tool("train_seg.py", toy.config, "train.epochs=2", "optimizer.lr=1e-3", "eval.pictures=1")
    assert (done.status, done.err) == (0, "")
    assert "fcn on resnet18, 1 process, cpu" in done.out
    assert "classes: 0 background, 1 square, 2 bar" in done.out
    assert len(numbers(done.out)) == 2 * 4 + len(NAMES)
    assert sorted(path.name for path in toy.run.iterdir()) == [
        "best.pt", "config.yaml", "eval", "last.previous.pt", "last.pt", "metrics.jsonl", "predictions", "tensorboard",
    ]  # fmt: skip
    lines = [json.loads(line) for line in (toy.run / "metrics.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["train", "eval"] * 2
    assert lines[-1]["semantic"].keys() == {"mIoU", "pixel_accuracy", "mean_accuracy", "fwIoU", "per_class"}
    assert tool("train_seg.py", toy.config, "train.epochs=3", "optimizer.lr=1e-3", "--resume").status == 0


def test_evaluating_a_checkpoint_prints_what_training_printed(tool, trained, tmp_path):
    done = tool("eval_seg.py", trained.folder / "best.pt", "-o", tmp_path / "out")
    assert done.status == 0
    assert numbers(done.out) == numbers(trained.printed)
    assert len(numbers(done.out)) == 4 + len(NAMES)
    for name in ("scores.json", "confusion.csv"):
        assert (tmp_path / "out" / name).read_text() == (trained.folder / "eval" / name).read_text()


def test_evaluating_a_config_with_weights_prints_what_training_printed(tool, trained, tmp_path):
    done = tool("eval_seg.py", trained.folder / "config.yaml", "--weights", trained.folder / "best.pt")
    assert done.status == 0
    assert numbers(done.out) == numbers(trained.printed)
    weights = torch.load(trained.folder / "best.pt", weights_only=True)["model"]
    torch.save(weights, tmp_path / "bare.pth")
    done = tool("eval_seg.py", trained.folder / "config.yaml", "--weights", tmp_path / "bare.pth")
    assert numbers(done.out) == numbers(trained.printed)


def test_predicting_writes_pictures_label_maps_and_results(tool, trained, toy, tmp_path):
    done = tool("predict.py", trained.folder / "best.pt", toy.images, "-o", tmp_path / "out")
    assert (done.status, done.err) == (0, "")
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*"))
    assert found == ["000.png", "001.png", "predicted_labels/000.png", "predicted_labels/001.png", "results.json"]
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {Path(row["file_name"]).name for row in rows} == {"000.png", "001.png"}
    labels = np.asarray(Image.open(tmp_path / "out" / "predicted_labels" / "000.png"))
    assert set(np.unique(labels)) <= {0, 1, 2}
    again = f"data.val={{images: {toy.images}, labels: {tmp_path / 'out' / 'predicted_labels'}}}"
    done = tool("eval_seg.py", trained.folder / "best.pt", again)
    assert " mIoU           1.0000" in done.out, "the predictions are a data set, and the model agrees with itself"


def test_showing_data_writes_the_sheet_and_counts_pixels(tool, toy, tmp_path):
    done = tool("show_data.py", toy.config, "data.crop_size=48", "-o", tmp_path / "sheet.png", "--count", "2", "--epoch", "3")
    assert (done.status, done.err) == (0, "")
    assert np.asarray(Image.open(tmp_path / "sheet.png")).std() > 0
    assert "share of the pixels in 2 of 2 label maps, in 3 classes:" in done.out
    assert "(no class)" in done.out


# ---- What they refuse ----


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.epoch=3", ["train.epoch: unknown key", "Did you mean 'epochs'?"]),
        ("data.crop_sise=3", ["data.crop_sise: unknown key", "Did you mean 'crop_size'?"]),
        ("model.head.name=fnc", ["no segmenter 'fnc'", "'fcn'"]),
        ("model.head={name: semantic_fpn}", ["semantic_fpn is built on a pyramid"]),
        ("model.pyramid={name: fpn}", ["fcn takes the backbone's maps as they are"]),
        ("model.head={name: deeplabv3plus}", ["The backbone gives 1 map (c2), and 2 are needed"]),
        ("model.backbone.output_stride=12", ["output_stride"]),
        ("data.classes=[background, square]", ["has the value 2 at row", "data.ignore_index"]),
        ("data.classes=null", ["data.classes is needed", "the values 0, 1, 2, 255"]),
        ("data.augmentations=[{name: horizontal_flop}]", ["no augmentation 'horizontal_flop'"]),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_refused_by_its_name(tool, toy, override, parts):
    assert_refused(tool("train_seg.py", toy.config, override), *parts)
    assert not toy.run.exists()


def test_one_image_a_pass_is_refused_before_anything_is_written(tool, toy):
    arguments = ("model.head={name: deeplabv3}", "model.backbone.out_features=null", "train.batch_size=1")
    assert_refused(
        tool("train_seg.py", toy.config, *arguments), "deeplabv3 pools each image to one pixel", "model.head.norm=gn"
    )
    assert not toy.run.exists()


@pytest.mark.parametrize("name", ["train_seg.py", "show_data.py"])
def test_data_that_is_wrong_is_refused_and_the_file_named(tool, toy, name):
    Image.new("RGB", (64, 48)).save(toy.map)
    assert_refused(tool(name, toy.config), toy.map, "is in colour (RGB)")
    Image.new("L", (64, 49)).save(toy.map)
    assert_refused(tool(name, toy.config), toy.image, toy.map, "64 x 49")
    toy.map.write_bytes(toy.map.read_bytes()[:40])
    assert_refused(tool(name, toy.config), toy.map, "cannot be read")
    toy.map.unlink()
    assert_refused(tool(name, toy.config), "1 of 2 images have no label map", toy.image, toy.map)
    for path in toy.images.iterdir():
        path.unlink()
    assert_refused(tool(name, toy.config), toy.images, "has no images")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_that_breaks_is_refused_and_named(tool, toy, num_workers):
    toy.image.write_bytes(toy.image.read_bytes()[:100])
    done = tool("train_seg.py", toy.config, f"data.num_workers={num_workers}")
    assert_refused(done, f"The image {toy.image} cannot be read")
    assert len(done.err.splitlines()) == 1


def test_a_set_of_nothing_but_ignored_pixels_is_refused_in_evaluation(tool, toy, trained):
    for path in toy.labels.iterdir():
        Image.fromarray(np.full_like(np.asarray(Image.open(path)), 255)).save(path)
    done = tool("eval_seg.py", trained.folder / "best.pt", f"data.val={{images: {toy.images}, labels: {toy.labels}}}")
    assert_refused(done, f"all 2 images in {toy.labels} have no class", "nothing to score")
    assert_refused(tool("train_seg.py", toy.config), "have no class", "nothing to learn")


def test_a_checkpoint_of_other_classes_is_refused_and_they_are_named(tool, toy, trained):
    done = tool("eval_seg.py", trained.folder / "best.pt", "data.classes=[background, square, stick]")
    assert_refused(done, trained.folder / "best.pt", "'bar' (id 2)", "'stick' (id 2)")
    done = tool("eval_seg.py", toy.config, "data.classes=[background, square, stick]", "--weights", trained.folder / "best.pt")
    assert_refused(done, "'bar' (id 2)", "'stick' (id 2)")


def test_what_is_of_another_job_is_for_another_tool(tool, toy, trained, tmp_path):
    assert_refused(tool("eval_det.py", trained.folder / "best.pt"), "of the job segmentation", "tools/eval_seg.py")
    assert_refused(tool("train_det.py", toy.config), "of the job segmentation", "tools/train_seg.py")
    detector = tmp_path / "detector.yaml"
    detector.write_text(dump_config(toy_detector(data={"images": "i", "annotations": "a"}, output_dir=tmp_path / "run")))
    assert_refused(tool("train_seg.py", detector), "of the job detection", "tools/train_det.py")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train_seg.py"], "CONFIG"),
        (["train_seg.py", "none.yaml"], "There is no config at none.yaml"),
        (["eval_seg.py"], "CONFIG_OR_CHECKPOINT"),
        (["eval_seg.py", "none.pt"], "There is no checkpoint at none.pt"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(tool, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert_refused(tool(*arguments), message)
    assert list(tmp_path.iterdir()) == []


def test_a_config_without_weights_cannot_be_evaluated(tool, toy):
    assert_refused(tool("eval_seg.py", toy.config), "has no trained weights: add --weights PATH")


@pytest.mark.parametrize("config", ["seg_deeplabv3_r50_voc", "seg_fpn_r50_ade20k"])
def test_where_data_is_missing_its_layout_and_the_way_without_are_shown(tool, tmp_path, monkeypatch, config):
    monkeypatch.chdir(tmp_path)
    done = tool("train_seg.py", ROOT / "configs" / f"{config}.yaml")
    assert_refused(done, "data.train.images: there is no folder data/", "JPEGImages", "seg_shapes.yaml needs no download")
    assert list(tmp_path.iterdir()) == []
