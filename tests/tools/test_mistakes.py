"""What a user may do wrong in front of a tool: each ends with status 2 and a message that names what it is about."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tools.test_tools import ROOT, assert_refused


def outcome(done, *parts):
    assert_refused(done, *parts)
    assert len(done.err.splitlines()) <= 12, done.err


def on(toy, **changed):
    """Overrides by which a config reads other files."""
    return [f"data.{split}.{key}={value}" for split in ("train", "val") for key, value in changed.items()]


@pytest.mark.parametrize("content", ["[]", "", "{}", "3", '{"images": [], "annotations": [], "categories": []}'])
def test_annotations_that_hold_no_data_set(tool, toy, content):
    toy.annotations.write_text(content)
    outcome(tool("train_det.py", toy.config), toy.annotations)
    assert not toy.run.exists()


def test_a_folder_in_place_of_a_file_and_the_other_way_round(tool, toy, tmp_path):
    outcome(tool("train_det.py", tmp_path), tmp_path)
    outcome(tool("train_det.py", toy.config, *on(toy, annotations=toy.images)), toy.images)
    outcome(tool("train_det.py", toy.config, *on(toy, images=toy.annotations)), toy.annotations)
    outcome(tool("eval_det.py", toy.config, "--weights", tmp_path), tmp_path)
    outcome(tool("train_det.py", toy.config, "--resume", tmp_path), tmp_path)


def test_an_image_in_place_of_a_config(tool, toy):
    for name in ("train_det.py", "check_data.py", "show_data.py"):
        outcome(tool(name, toy.image), toy.image)


def test_the_images_of_another_data_set(tool, toy, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    outcome(tool("train_det.py", toy.config, *on(toy, images=other)), other)


def test_a_run_folder_that_is_a_file(tool, toy, tmp_path):
    outcome(tool("train_det.py", toy.config, f"output_dir={toy.annotations}"), toy.annotations)
    assert json.loads(toy.annotations.read_text())["images"]


def test_a_checkpoint_cut_short(tool, toy, trained, tmp_path):
    cut = tmp_path / "cut.pt"
    content = (trained.folder / "best.pt").read_bytes()
    for share in (0.3, 0.999):
        cut.write_bytes(content[: int(len(content) * share)])
        outcome(tool("eval_det.py", cut), cut)
        outcome(tool("predict.py", cut, toy.image, "-o", tmp_path / "out"), cut)
        outcome(tool("train_det.py", toy.config, "--resume", cut), cut)
    assert not (tmp_path / "out").exists()


def test_weights_of_another_architecture(tool, toy, trained):
    best = trained.folder / "best.pt"
    outcome(tool("eval_det.py", toy.config, "--weights", best, "model.backbone.name=resnet34"), best, "does not fit")
    outcome(tool("eval_det.py", toy.config, "--weights", best, "model.head.name=keypoint_rcnn"), "keypoint")


def test_going_on_from_a_run_of_another_model_or_other_classes(tool, toy):
    assert tool("train_det.py", toy.config).status == 0
    last = toy.run / "last.pt"
    other = f"output_dir={toy.run.parent / 'other'}"
    outcome(tool("train_det.py", toy.config, other, "model.backbone.name=resnet34", "--resume", last), last, "resnet34")
    toy.annotations.write_text(toy.annotations.read_text().replace('"bar"', '"stick"'))
    outcome(tool("train_det.py", toy.config, other, "--resume", last), last, "'bar'", "'stick'")
    assert not (toy.run.parent / "other").exists()


def test_a_config_without_weights_cannot_be_scored_or_predict(tool, toy, tmp_path):
    outcome(tool("eval_det.py", toy.config), "--weights")
    outcome(tool("predict.py", toy.config, toy.image, "-o", tmp_path / "out"), "--weights")


def test_a_folder_without_images(tool, trained, tmp_path):
    (tmp_path / "empty").mkdir()
    outcome(tool("predict.py", trained.folder / "best.pt", tmp_path / "empty", "-o", tmp_path / "out"), tmp_path / "empty")


def test_other_categories_in_validation(tool, toy, tmp_path):
    other = tmp_path / "val.json"
    other.write_text(toy.annotations.read_text().replace('"bar"', '"stick"'))
    outcome(tool("train_det.py", toy.config, f"data.val.annotations={other}"), toy.annotations, other, "categories")


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("data.num_workers=-1", ["data.num_workers", "greater than or equal to 0"]),
        ("train.accumulate=3", ["train.batch_size 2", "train.accumulate 3"]),
        ("data.min_size=1000000", ["data.min_size", "16384"]),
        ("model.head.box_nms_thresh=50", ["box_nms_thresh is 50"]),
        ("model.head.rpn_post_nms_top_n_train=0", ["rpn_post_nms_top_n_train is 0"]),
        ("data.classes=[nothing]", ["nothing"]),
    ],
)
def test_settings_out_of_range(tool, toy, override, parts):
    outcome(tool("train_det.py", toy.config, override), *parts)
    assert not toy.run.exists()


def test_folders_and_files_that_are_no_reports_features_or_results(tool, toy, tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("a\n")
    outcome(tool("replay.py", tmp_path), tmp_path)
    outcome(tool("replay.py", text), text)
    outcome(tool("extract_features.py", "resnet18", text, "-o", tmp_path / "f.npz"), text)
    outcome(tool("extract_features.py", text, "--query", toy.image), text)
    outcome(tool("eval_det.py", "--results", text, "--annotations", toy.annotations), text)
    assert not (tmp_path / "f.npz").exists()


def test_coco_into_a_place_that_is_a_file(tool, toy):
    outcome(tool("get_coco.py", toy.annotations, "--url", "http://127.0.0.1:9"), toy.annotations)


def test_labels_of_another_format(tool, toy, tmp_path):
    for form in ("voc", "yolo", "masks", "labelme"):
        done = tool("convert_to_coco.py", form, toy.images, toy.annotations.parent, "-o", tmp_path / "out.json")
        outcome(done)
        assert not (tmp_path / "out.json").exists(), form


def test_a_checkpoint_of_something_else(tool, toy, tmp_path):
    for number, content in enumerate(({"a": 1}, [1, 2], torch.ones(3), {"model": 3}, {})):
        path = tmp_path / f"{number}.pt"
        torch.save(content, path)
        outcome(tool("eval_det.py", path), path)


@pytest.mark.parametrize(
    ("command", "part"),
    [
        (["check_data.py", "nothing.yaml"], "nothing.yaml"),
        (["predict.py", "nothing.pt", "nothing.jpg", "-o", "out"], "nothing.jpg"),
        (["replay.py", "nothing"], "nothing"),
    ],
)
def test_a_real_process_ends_with_status_2_and_one_line(tmp_path, command, part):
    whole = [sys.executable, str(ROOT / "tools" / command[0]), *command[1:]]
    done = subprocess.run(whole, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert part in done.stderr
    assert list(Path(tmp_path).iterdir()) == []
