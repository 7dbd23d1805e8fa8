"""The front doors: what they print and write, and how they refuse what is wrong."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backbones import build_backbone

ROOT = Path(__file__).parents[2]
TOOLS = sorted(path.name for path in (ROOT / "tools").glob("*.py"))


def numbers(text: str) -> list[str]:
    """The lines of COCO's numbers and of the table of classes."""
    return [line for line in text.splitlines() if line.startswith((" Average", "│"))]


def assert_refused(done, *parts: object) -> None:
    """Status 2, and one message on stderr that holds all of `parts`."""
    assert done.status == 2, done.err
    assert "Traceback" not in done.err
    assert done.err.endswith("\n")
    for part in parts:
        assert str(part) in done.err


# ---- Help ----


@pytest.mark.parametrize("name", TOOLS)
def test_help_shows_examples_and_loads_no_torch(name, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('torch was loaded')")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, ROOT / "tools" / name, "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: {name}" in done.stdout
    assert f"python tools/{name} " in done.stdout
    without = subprocess.run([sys.executable, "-c", "import torch"], env=environment, capture_output=True, text=True)
    assert "torch was loaded" in without.stderr, "the trap is not set"


# ---- What they do ----


def test_training_from_the_command_line_leaves_a_run_that_says_how_it_went(tool, toy):
    done = tool("train_det.py", toy.config, "train.epochs=2", "optimizer.lr=1e-3")
    assert (done.status, done.err) == (0, "")
    assert "epoch 1/2  step 1/2  loss " in done.out
    assert len(numbers(done.out)) == 2 * 12 + 3
    assert "lr: 0.001" in (toy.run / "config.yaml").read_text()
    assert tool("train_det.py", toy.config, "train.epochs=3", "optimizer.lr=1e-3", "--resume").status == 0
    steps = [json.loads(line)["step"] for line in (toy.run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 1, 2, 2, 3, 3]


def test_evaluating_a_checkpoint_prints_what_training_printed(tool, trained):
    done = tool("eval_det.py", trained.folder / "best.pt")
    assert done.status == 0
    assert numbers(done.out) == numbers(trained.printed)
    assert len(numbers(done.out)) == 2 * 12 + 3


def test_evaluating_a_config_with_weights_prints_what_training_printed(tool, trained, tmp_path):
    arguments = (trained.folder / "config.yaml", "eval.batch_size=1", "--weights", trained.folder / "best.pt")
    done = tool("eval_det.py", *arguments, "-o", tmp_path / "out", "--backend", "pycocotools")
    assert done.status == 0
    assert numbers(done.out) == numbers(trained.printed)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "bbox_results.json", "scores.json", "segm_results.json",
    ]  # fmt: skip


@pytest.mark.parametrize(("kind", "start"), [("bbox", 0), ("segm", 12)])
def test_scoring_a_results_file_prints_what_training_printed(tool, trained, kind, start):
    results = trained.folder / "eval" / f"{kind}_results.json"
    done = tool("eval_det.py", "--results", results, "--annotations", trained.data["annotations"], "--type", kind)
    assert done.status == 0
    assert numbers(done.out) == numbers(trained.printed)[start : start + 12]


def test_predicting_on_a_folder_writes_pictures_and_results(tool, trained, toy, tmp_path):
    done = tool("predict.py", trained.folder / "best.pt", toy.images, "-o", tmp_path / "out", "--score", "0.2")
    assert (done.status, done.err) == (0, "")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["000.png", "001.png", "results.json"]
    assert np.asarray(Image.open(tmp_path / "out" / "000.png")).ndim == 3
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {Path(row["file_name"]).name for row in rows} == {"000.png", "001.png"}
    assert len(re.findall(r": (\d+ objects?|0 of \d+ objects .*) -> .*\.png$", done.out, re.MULTILINE)) == 2


def test_showing_data_writes_the_sheet(tool, toy, tmp_path):
    done = tool("show_data.py", toy.config, "-o", tmp_path / "sheet.png", "--count", "2", "--epoch", "3")
    assert (done.status, done.err) == (0, "")
    assert np.asarray(Image.open(tmp_path / "sheet.png")).std() > 0
    assert f"2 of 2 training samples, as in epoch 3: {tmp_path / 'sheet.png'}" in done.out


# ---- What they refuse: the config ----


def test_a_missing_config_is_refused_and_a_near_one_named(tool, monkeypatch):
    monkeypatch.chdir(ROOT)
    for name in ("train_det.py", "show_data.py"):
        assert_refused(
            tool(name, "configs/frcnn_r5.yaml"), "no config at configs/frcnn_r5.yaml", "Did you mean 'configs/frcnn_r50"
        )


def test_a_real_process_ends_with_status_2_and_one_line(tmp_path):
    command = [sys.executable, ROOT / "tools" / "train_det.py", "nothing.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("There is no config at nothing.yaml.")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["train_det.py", "show_data.py"])
def test_where_coco_is_missing_its_layout_and_the_way_without_are_shown(tool, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    done = tool(name, ROOT / "configs" / "frcnn_r50.yaml")
    assert_refused(
        done,
        "data.train.annotations: there is no file data/coco/annotations/instances_train2017.json",
        "data/coco/train2017/000000000009.jpg",
        "data/coco/annotations/instances_val2017.json",
        "https://cocodataset.org",
        "data.train.images=FOLDER data.train.annotations=FILE",
        "configs/quickstart.yaml",
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.epoch=3", ["train.epoch: unknown key", "Did you mean 'epochs'?", "the override 'train.epoch=3'"]),
        ("tran.epochs=3", ["tran: unknown key", "Did you mean 'train'?"]),
        ("train.epochs=three", ["train.epochs: ", "valid integer", "'three'"]),
        ("train.epochs=2.0", ["train.epochs: ", "valid integer"]),
        ("train.epochs=0", ["train.epochs: ", "greater than or equal to 1"]),
        ("optimizer.lr=fast", ["optimizer.lr: ", "valid number", "'fast'"]),
        ("train.channels_last=1", ["train.channels_last: ", "valid boolean"]),
        ("model.backbone.name=resnet51", ["no backbone 'resnet51'", "Did you mean 'resnet5"]),
        ("model.head.name=faster_rcn", ["no head 'faster_rcn'", "Did you mean 'faster_rcnn'?"]),
        ("model.head.box_head_dims=3", ["no option 'box_head_dims'", "Did you mean 'box_head_dim'?"]),
        ("model.head.box_head_dim=wide", ["'box_head_dim'", "'wide'", "valid integer"]),
        ("model.pyramid.name=fpnn", ["no pyramid 'fpnn'", "'fpn'"]),
        ("data.augmentations=[{name: horizontal_flop}]", ["no augmentation 'horizontal_flop'", "'horizontal_flip'"]),
        ("data.train=shape", ["data.train", "no embedded data set 'shape'", "'shapes'"]),
        ("optimizer.name=adam", ["optimizer.name: ", "'sgd' or 'adamw'"]),
        ("train.epochs", ["'train.epochs' is no override", "key=value"]),
        ("train.batch_size=[1", ["is no YAML"]),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_refused_by_its_name(tool, toy, override, parts):
    assert_refused(tool("train_det.py", toy.config, override), *parts)
    assert not toy.run.exists()


def test_wrong_lines_of_a_file_are_all_named_at_once(tool, toy):
    lines = toy.config.read_text().splitlines()
    epochs = next(number for number, line in enumerate(lines, start=1) if "epochs:" in line)
    lines[epochs - 1] = lines[epochs - 1].replace("epochs: 1", "epochs: one").replace("accumulate:", "acumulate:")
    toy.config.write_text("\n".join([*lines, "optimiser: {lr: 0.1}"]))
    done = tool("train_det.py", toy.config)
    assert_refused(done, "3 problems", "train.epochs: ", "train.acumulate: unknown key", "optimiser: unknown key")
    assert_refused(done, f"{toy.config}, line {len(lines) + 1}: optimiser")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused(tool, toy):
    assert_refused(tool("train_det.py", toy.config, "device=cuda"), "device is cuda", "device=cpu")


# ---- What they refuse: another job's ----

JOBS = {"detection": "det", "segmentation": "seg", "classification": "cls"}


def test_every_job_has_its_tools():
    assert {f"{verb}_{short}.py" for verb in ("train", "eval") for short in JOBS.values()} <= set(TOOLS)


@pytest.mark.parametrize("verb", ["train", "eval"])
@pytest.mark.parametrize(("named", "wanted"), [(named, wanted) for named in JOBS for wanted in JOBS if named != wanted])
def test_a_config_of_another_job_is_refused_and_its_tools_named(tool, tmp_path, monkeypatch, verb, named, wanted):
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(f"job: {named}\nmodel: {{}}\n")
    weights = ["--weights", "none.pth"] if verb == "eval" else []
    done = tool(f"{verb}_{JOBS[wanted]}.py", "run.yaml", *weights)
    assert_refused(done, f"run.yaml is of the job {named}, and this tool is for {wanted}")
    assert_refused(done, f"use tools/train_{JOBS[named]}.py or tools/eval_{JOBS[named]}.py")
    assert len(done.err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


@pytest.mark.parametrize("wanted", ["segmentation", "classification"])
def test_a_detectors_run_is_refused_by_the_tools_of_other_jobs(tool, toy, trained, tmp_path, wanted):
    reason = f"is of the job detection, and this tool is for {wanted}: use tools/train_det.py or tools/eval_det.py"
    checkpoint = trained.folder / "last.pt"
    assert_refused(tool(f"eval_{JOBS[wanted]}.py", checkpoint, "-o", tmp_path / "out"), f"{checkpoint} {reason}")
    assert_refused(tool(f"train_{JOBS[wanted]}.py", toy.config, "--resume", checkpoint), f"{toy.config} {reason}")
    assert not (tmp_path / "out").exists()
    assert not toy.run.exists()


@pytest.mark.parametrize("name", ["train_det.py", "eval_seg.py", "show_data.py"])
def test_a_job_that_there_is_not_is_refused_with_its_line(tool, toy, name):
    toy.config.write_text(toy.config.read_text().replace("job: detection", "job: detectoin"))
    done = tool(name, toy.config)
    assert_refused(done, f"{toy.config}, line 1: job: There is no job 'detectoin'. Did you mean 'detection'?")
    assert len(done.err.splitlines()) == 1


# ---- What they refuse: the data ----


def test_annotations_that_are_no_json_are_refused_and_the_place_named(tool, toy):
    toy.annotations.write_text('{"images": [],\n "annotations": }')
    assert_refused(tool("train_det.py", toy.config), f"{toy.annotations}, line 2, column 17", "no JSON")
    toy.annotations.write_bytes(b"\x89PNG\xff")
    assert_refused(tool("show_data.py", toy.config), toy.annotations, "no JSON")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_missing_image_is_refused_and_named(tool, toy, num_workers):
    toy.image.unlink()
    done = tool("train_det.py", toy.config, f"data.num_workers={num_workers}")
    assert_refused(done, f"there is no file {toy.image}")
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("share", [0, 0.5, 0.9])
def test_a_truncated_image_is_refused_and_named(tool, toy, num_workers, share):
    content = toy.image.read_bytes()
    toy.image.write_bytes(content[: int(len(content) * share)])
    done = tool("train_det.py", toy.config, f"data.num_workers={num_workers}")
    assert_refused(done, f"{toy.image} cannot be read")
    assert len(done.err.splitlines()) == 1


def test_a_broken_image_is_refused_in_evaluation_and_in_pictures_too(tool, toy, trained, tmp_path):
    toy.image.write_bytes(b"\x89PNG")
    val = [f"data.val.images={toy.images}", f"data.val.annotations={toy.annotations}"]
    assert_refused(tool("eval_det.py", trained.folder / "best.pt", *val), f"{toy.image} cannot be read")
    show = ["show_data.py", toy.config, "-o", tmp_path / "sheet.png"]
    assert_refused(tool(*show, "data.on_fault=stop"), f"{toy.image} cannot be read")
    assert not (tmp_path / "sheet.png").exists()
    shown = tool(*show)
    assert shown.status == 0
    assert re.search(rf"left out: 1 training images, unreadable image: image \d+ \(.*{toy.image.name}\)", shown.out)
    assert (tmp_path / "sheet.png").exists()


def test_an_image_of_another_size_than_stated_is_refused(tool, toy):
    Image.new("RGB", (20, 30)).save(toy.image)
    assert_refused(tool("train_det.py", toy.config), f"{toy.image} is 20 x 30 pixels", "say 64 x 48")


# ---- What they refuse: weights and checkpoints ----


def test_weights_that_do_not_fit_are_refused_and_the_keys_named(tool, toy, tmp_path):
    state_dict = build_backbone("resnet18", norm="gn", out_features=["c2", "c3"]).state_dict()
    del state_dict["bn1.weight"]
    torch.save(state_dict | {"conv1.weight": torch.ones(8, 3, 7, 7)}, tmp_path / "other.pth")
    done = tool("train_det.py", toy.config, f"model.backbone.weights={tmp_path / 'other.pth'}")
    assert_refused(done, f"{tmp_path / 'other.pth'} does not fit", "missing bn1.weight", "conv1.weight is 8x3x7x7")
    assert not toy.run.exists()


def test_weights_that_are_not_there_are_refused(tool, toy, tmp_path):
    done = tool("train_det.py", toy.config, f"model.backbone.weights={tmp_path / 'none.pth'}")
    assert_refused(done, f"no weight file at {tmp_path / 'none.pth'}")


def test_weights_that_cannot_be_downloaded_are_refused_with_the_way_to_pass_a_file(tool, toy, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no cache"))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody answers there
    done = tool("train_det.py", toy.config, "model.backbone.weights=IMAGENET1K_V1")
    assert_refused(done, "IMAGENET1K_V1 of resnet18 could not be downloaded", "model.backbone.weights=PATH")
    assert_refused(tool("train_det.py", toy.config, "model.backbone.weights=IMAGENET1K_V9"), "no weights 'IMAGENET1K_V9'")


def test_a_checkpoint_of_other_classes_is_refused_and_they_are_named(tool, toy, trained):
    toy.annotations.write_text(toy.annotations.read_text().replace('"bar"', '"stick"'))
    val = [f"data.val.images={toy.images}", f"data.val.annotations={toy.annotations}"]
    done = tool("eval_det.py", trained.folder / "best.pt", *val)
    assert_refused(done, trained.folder / "best.pt", toy.annotations, "'bar' (id 3)", "'stick' (id 3)")
    done = tool("eval_det.py", toy.config, "--weights", trained.folder / "best.pt")
    assert_refused(done, "'bar' (id 3)", "'stick' (id 3)")


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 cut off"])
def test_a_file_that_is_no_checkpoint_is_refused_by_every_tool(tool, toy, tmp_path, content):
    (tmp_path / "bad.pt").write_bytes(content)
    assert_refused(tool("eval_det.py", tmp_path / "bad.pt"), tmp_path / "bad.pt")
    assert_refused(tool("predict.py", tmp_path / "bad.pt", toy.image, "-o", tmp_path / "out"), tmp_path / "bad.pt")
    assert_refused(tool("train_det.py", toy.config, "--resume", tmp_path / "bad.pt"), tmp_path / "bad.pt")
    assert not (tmp_path / "out").exists()


def test_a_run_is_not_started_over_another(tool, toy):
    assert tool("train_det.py", toy.config).status == 0
    assert_refused(tool("train_det.py", toy.config), f"{toy.run} holds a run already", "--resume", "output_dir=FOLDER")


# ---- What they refuse: arguments ----


def test_prediction_refuses_images_that_are_not_there(tool, trained, tmp_path):
    done = tool("predict.py", trained.folder / "best.pt", tmp_path / "none.jpg", "-o", tmp_path / "out")
    assert_refused(done, f"no image or folder {tmp_path / 'none.jpg'}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval_det.py"], "give a config, a checkpoint, or --results and --annotations"),
        (["eval_det.py", "--results", "r.json"], "--results needs --annotations"),
        (["eval_det.py", "a.pt", "--results", "r.json", "--annotations", "a.json"], "leave out CONFIG_OR_CHECKPOINT"),
        (["eval_det.py", "a.pt", "--annotations", "a.json"], "--annotations goes with --results"),
        (["eval_det.py", "--results", "none.json", "--annotations", "a.json"], "There is no results file at none.json"),
        (["eval_det.py", "none.pt"], "There is no checkpoint at none.pt"),
        (["eval_det.py", "none.yaml"], "There is no config at none.yaml"),
        (["predict.py", "a.pt", "b.jpg"], "-o/--output"),
        (["predict.py", "a.pt", "b.jpg", "-o", "out", "--score", "1.5"], "--score 1.5 is not from 0 to 1"),
        (["show_data.py", "a.yaml", "--count", "0"], "--count must be at least 1"),
        (["train_det.py"], "CONFIG"),
        (["train_det.py", "a.yaml", "--resum3"], "--resum3"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(tool, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert_refused(tool(*arguments), message)
    assert list(tmp_path.iterdir()) == []


def test_results_that_are_malformed_are_refused_and_the_row_named(tool, toy, tmp_path):
    results = tmp_path / "results.json"
    image_id = json.loads(toy.annotations.read_text())["images"][0]["id"]
    row = {"image_id": image_id, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}
    for change, part in (({"image_id": 1}, "image 1,"), ({"bbox": [1, 2, 3]}, "bbox"), ({"score": "high"}, "'high'")):
        results.write_text(json.dumps([row, row | change]))
        assert_refused(
            tool("eval_det.py", "--results", results, "--annotations", toy.annotations), f"{results}: result 1", part
        )


@pytest.mark.parametrize("name", ["predict.py", "show_data.py", "eval_det.py", "train_det.py"])
def test_an_output_that_cannot_be_written_is_refused(tool, toy, trained, tmp_path, name):
    (tmp_path / "file").write_text("kept")
    out = tmp_path / "file" / "out.png"
    arguments = {
        "predict.py": (trained.folder / "best.pt", toy.image, "-o", out),
        "show_data.py": (toy.config, "-o", out),
        "eval_det.py": (trained.folder / "best.pt", "-o", out),
        "train_det.py": (toy.config, f"output_dir={out}"),
    }
    assert_refused(tool(name, *arguments[name]), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"
