"""The tools that get data: what they print is what training takes, and a killed download goes on."""

import json
import shlex
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_api

from engine.data.annotations import load_annotations
from tests.engine.data.web_server import serve

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def labelled(tmp_path):
    """Eight images of a bright square each, in folders whose names need quotes; labelled in all four formats."""
    folder = tmp_path / "my data: #1"
    for part in ("images", "labels", "masks", "xml"):
        (folder / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(8):
        x, y, w, h = (int(value) for value in (*rng.integers(0, 40, 2), *rng.integers(12, 24, 2)))
        pixels = rng.integers(0, 60, (64, 64, 3)).astype(np.uint8)
        pixels[y : y + h, x : x + w] = 230
        Image.fromarray(pixels).save(folder / f"images/{i}.png")
        mask = np.zeros((64, 64), np.uint8)
        mask[y : y + h, x : x + w] = 1
        Image.fromarray(mask).save(folder / f"masks/{i}.png")
        (folder / f"labels/{i}.txt").write_text(f"0 {(x + w / 2) / 64} {(y + h / 2) / 64} {w / 64} {h / 64}\n")
        corners = f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
        (folder / f"xml/{i}.xml").write_text(
            f"<annotation><object><name>square</name><bndbox>{corners}</bndbox></object></annotation>"
        )
        shape = {"label": "square", "points": [[x, y], [x + w, y + h]], "shape_type": "rectangle"}
        (folder / f"images/{i}.json").write_text(json.dumps({"shapes": [shape], "imagePath": f"{i}.png"}))
    (folder / "data.yaml").write_text("train: images\nnames: [square]\n")
    return folder


def test_four_formats_of_the_same_squares_give_the_same_data_set(tool, labelled):
    calls = {
        "voc": ["voc", labelled / "images", labelled / "xml"],
        "yolo": ["yolo", labelled / "data.yaml"],
        "masks": ["masks", labelled / "images", labelled / "masks", "--classes", "square"],
        "labelme": ["labelme", labelled / "images"],
    }
    tables, contents = [], []
    for name, call in calls.items():
        done = tool("convert_to_coco.py", *call, "-o", labelled / f"{name}.json")
        assert (done.status, done.err) == (0, "")
        assert done.out.splitlines()[:2] == ["8 images, 0 of them without objects; 8 objects:", "         8 square"]
        tables.append(load_annotations(labelled / f"{name}.json"))
        contents.append(json.loads((labelled / f"{name}.json").read_text()))
    for table in tables[1:]:
        np.testing.assert_allclose(table.boxes, tables[0].boxes, atol=1e-3)
        np.testing.assert_allclose(table.areas, tables[0].areas, rtol=1e-3)
        assert table.class_names == ["background", "square"]
    for drawn, masked in zip(contents[3]["annotations"], contents[2]["annotations"], strict=True):
        polygon = mask_api.decode(mask_api.frPyObjects(drawn["segmentation"], 64, 64))[:, :, 0]
        assert (polygon == mask_api.decode(masked["segmentation"])).all()


def test_the_arguments_printed_train(tool, labelled, tmp_path):
    """From a user's labels to a trained model, by what the tool says."""
    arguments = []
    for split in ("train", "val"):
        out = labelled / f"{split}.json"
        done = tool("convert_to_coco.py", "masks", labelled / "images", labelled / "masks", "-o", out, "--split", split)
        arguments += shlex.split(done.out.splitlines()[-1])
    assert [argument.partition("=")[0] for argument in arguments] == [
        f"data.{split}.{key}" for split in ("train", "val") for key in ("images", "annotations")
    ]
    small = ["data.min_size=64", "data.max_size=64", "data.num_workers=0", "train.batch_size=4", "train.epochs=1", "device=cpu"]
    small += ["model.backbone={name: resnet18, weights: null, norm: gn}", "eval.pictures=0", f"output_dir={tmp_path / 'run'}"]
    done = tool("train_det.py", "configs/mrcnn_r50.yaml", *arguments, *small)
    assert (done.status, done.err) == (0, "")
    assert "8 training images with 8 objects of 1 classes" in done.out
    assert (tmp_path / "run/last.pt").is_file()


def test_the_classes_of_the_first_split_go_into_the_second(tool, labelled):
    tool("convert_to_coco.py", "labelme", labelled / "images", "-o", labelled / "train.json", "--classes", "circle", "square")
    done = tool(
        "convert_to_coco.py", "voc", labelled / "images", labelled / "xml", "-o", labelled / "val.json",
        "--classes", labelled / "train.json", "--list", labelled / "list.txt",
    )  # fmt: skip
    assert done.status == 2
    assert "list.txt cannot be read" in done.err
    done = tool(
        "convert_to_coco.py", "voc", labelled / "images", labelled / "xml", "-o", labelled / "val.json",
        "--classes", labelled / "train.json",
    )  # fmt: skip
    assert "         0 circle\n         8 square\n" in done.out
    first, second = (json.loads((labelled / f"{split}.json").read_text())["categories"] for split in ("train", "val"))
    assert first == second


def test_a_mistake_is_one_message_and_nothing_is_written(tool, labelled):
    (labelled / "labels/3.txt").write_text("0 .5 .5 .2 .2\n0 32 32 12 12\n")
    done = tool("convert_to_coco.py", "yolo", labelled / "data.yaml", "-o", labelled / "out.json")
    assert (done.status, done.out) == (2, "")
    assert "3.txt, line 2: 32 is not from 0 to 1" in done.err
    assert "Traceback" not in done.err
    assert not (labelled / "out.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["yolo", "images", "-o", "x.json", "--difficult", "keep"], "--difficult is no option of yolo"),
        (["voc", "images", "-o", "x.json", "--values", "classes"], "--values is no option of voc"),
        (["voc", "images", "-o", "x.json", "--ignore-value", "0"], "--ignore-value is no option of voc"),
        (["voc", "images"], "-o/--output"),
        (["pascal", "images", "-o", "x.json"], "invalid choice"),
    ],
)
def test_options_that_do_not_fit(tool, arguments, message):
    done = tool("convert_to_coco.py", *arguments)
    assert done.status == 2
    assert message in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mini", "0"], "--mini must be at least 1"),
        (["--mini", "5", "--splits", "test2017"], "annotations of test2017 are not published"),
        (["--splits", "val"], "invalid choice"),
        (["--url", "ftp://mirror"], "'ftp://mirror/annotations/annotations_trainval2017.zip' is no address"),
        (["--url", "http://127.0.0.1:9/"], "127.0.0.1:9 cannot be reached"),
    ],
)
def test_get_coco_refuses_what_cannot_be(tool, tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr("engine.data.download.WAITS", ())
    monkeypatch.setattr("time.sleep", lambda _: None)
    done = tool("get_coco.py", tmp_path, *arguments)
    assert done.status == 2
    assert message in done.err
    assert "Traceback" not in done.err


def test_a_killed_download_goes_on_where_it_was(tmp_path):
    """The tool itself, killed half-way as by a power cut, and started again."""
    photos = tmp_path / "photos.zip"
    with zipfile.ZipFile(photos, "w") as archive:
        for i in range(30):
            archive.writestr(f"val2017/{i:012}.jpg", np.random.default_rng(i).bytes(100_000))
    annotations = tmp_path / "annotations.zip"
    with zipfile.ZipFile(annotations, "w") as archive:
        archive.writestr("annotations/instances_val2017.json", "{}")
    files = {"/zips/val2017.zip": photos.read_bytes(), "/annotations/annotations_trainval2017.zip": annotations.read_bytes()}
    part = tmp_path / "coco/val2017.zip.part"
    command = [sys.executable, "tools/get_coco.py", tmp_path / "coco", "--splits", "val2017", "--url"]
    with serve(files) as server:
        server.seconds_a_piece = 0.2
        process = subprocess.Popen([*command, server.url], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while not (part.is_file() and part.stat().st_size > 1_000_000) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        got = part.stat().st_size
        assert 0 < got < len(files["/zips/val2017.zip"])
        server.seconds_a_piece = 0.0
        server.requests.clear()
        done = subprocess.run([*command, server.url], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
        assert [wanted for method, path, wanted in server.requests if method == "GET"] == [f"bytes={got}-"]
    assert len(list((tmp_path / "coco/val2017").glob("*.jpg"))) == 30
    assert "annotations: there already" in done.stdout
    assert sorted(path.name for path in (tmp_path / "coco").glob("[!.]*")) == ["annotations", "val2017"]
