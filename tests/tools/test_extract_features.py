"""tools/extract_features.py as a user calls it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from engine.features import load_features

TOOL = "extract_features.py"
ROOT = Path(__file__).parents[2]


def assert_refused(done, *parts: object) -> None:
    """Status 2, and one message on stderr that holds all of `parts`."""
    assert done.status == 2, done.err
    assert "Traceback" not in done.err
    for part in parts:
        assert str(part) in done.err


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """Five images in the folder `photos` of the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for number in range(5):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3)).astype(np.uint8)).save(tmp_path / "photos" / f"{number}.png")
    return Path("photos")


@pytest.fixture
def weights(tmp_path) -> Path:
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "test_vit.pth")
    return Path("test_vit.pth")


@pytest.fixture
def made(tool, photos, weights):
    """`features.npz`, made of the five images."""
    done = tool(TOOL, "timm/test_vit", "--weights", weights, "photos", "--size", 32, "-o", "features.npz")
    assert (done.status, done.err) == (0, "")
    return done


def test_help_shows_examples_and_loads_no_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('torch was loaded')")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, ROOT / "tools" / TOOL, "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"python tools/{TOOL} " in done.stdout


# ---- What it does ----


def test_a_trained_detector_embeds_what_it_was_trained_on(tool, trained, tmp_path):
    checkpoint, images, place = trained.folder / "best.pt", Path(trained.data["images"]), tmp_path / "features.npz"
    done = tool(TOOL, checkpoint, images, "-o", place, "--size", 64, "--whole", "--batch-size", 2)
    assert (done.status, done.err) == (0, "")
    assert f"7 embeddings of 128 numbers each, from {checkpoint}: {place}" in done.out
    features = load_features(place)
    assert features.file_names == sorted(str(path) for path in images.iterdir())
    assert len(np.unique(features.embeddings, axis=0)) == 7
    assert (features.recipe.size, features.recipe.whole) == (64, True)
    done = tool(TOOL, place, "--query", images / "000.png", "--neighbours", 3, "-p", tmp_path / "sheet.png")
    assert (done.status, done.err) == (0, "")
    assert len(done.out.splitlines()) == 1 + 3 + 1
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 700


def test_options_reach_the_file(tool, photos, weights):
    options = ["--mean", 0.1, 0.2, 0.3, "--std", 0.4, 0.5, 0.6, "--size", 48]
    done = tool(TOOL, "-o", "f.npz", *options, "--weights", weights, "timm/test_vit", photos / "0.png", photos / "1.png")
    assert (done.status, done.err) == (0, "")
    recipe = load_features("f.npz").recipe
    assert (recipe.image_mean, recipe.image_std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (recipe.size, recipe.whole, recipe.weights) == (48, False, "test_vit.pth")


def test_neighbours_are_all_there_are_where_more_are_asked_for(tool, made):
    done = tool(TOOL, "features.npz", "--query", "photos/3.png", "--query", "photos/4.png", "--neighbours", 100)
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == ["photos/3.png", "photos/4.png"]
    assert len(lines) == 2 * (1 + 4)


def test_pairs_are_printed(tool, made):
    done = tool(TOOL, "features.npz", "--pairs", "-1")
    assert (done.status, done.err) == (0, "")
    assert len(done.out.splitlines()) == 10 + 1
    assert tool(TOOL, "features.npz", "--pairs", 0).status == 0


def test_unreadable_files_are_left_out_if_asked(tool, photos, weights):
    (photos / "notes.jpg").write_text("text")
    arguments = ["timm/test_vit", "--weights", weights, photos, "-o", "f.npz", "--size", 32]
    assert_refused(tool(TOOL, *arguments), "1 of 6 files cannot be read as images: photos/notes.jpg", "--skip-unreadable")
    assert not Path("f.npz").exists()
    done = tool(TOOL, *arguments, "--skip-unreadable")
    assert (done.status, done.err) == (0, "")
    assert "left out: The image photos/notes.jpg cannot be read" in done.out
    assert len(load_features("f.npz").file_names) == 5


# ---- What it refuses ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "SOURCE"),
        (["resnet18"], "give images and -o FILE.npz"),
        (["resnet18", "photos"], "give images and -o FILE.npz"),
        (["resnet18", "-o", "f.npz"], "give images and -o FILE.npz"),
        (["resnet18", "photos", "-o", "f.npz"], "resnet18 needs --weights"),
        (["resnet18", "photos", "-o", "f.npz", "--weights", "none.pth"], "none.pth"),
        (["resnet81", "photos", "-o", "f.npz"], "no backbone 'resnet81'"),
        (["none.pt", "photos", "-o", "f.npz"], "no checkpoint at none.pt"),
        (["photos", "photos", "-o", "f.npz"], "photos is a folder"),
        (["photos/0.png", "photos", "-o", "f.npz"], "photos/0.png"),
        (["features.npz", "photos", "-o", "f.npz"], "features.npz is a file of features"),
        (["resnet18", "none", "-o", "f.npz", "--weights", "w.pth"], "no image or folder none"),
        (["resnet18", "empty", "-o", "f.npz", "--weights", "w.pth"], "The folder empty has no images"),
        (["resnet18", "photos", "-o", "f.txt", "--weights", "w.pth"], "must be named *.npz"),
        (["resnet18", "photos", "-o", "photos/0.png/f.npz", "--weights", "w.pth"], "photos/0.png"),
        (["resnet18", "photos", "-o", "f.npz", "--size", "0"], "--size and --batch-size must be at least 1"),
        (["resnet18", "photos", "-o", "f.npz", "--neighbours", "3"], "--neighbours and -p go with --query"),
        (["features.npz", "--query", "photos/0.png", "--neighbours", "0"], "--neighbours, --size"),
        (["features.npz", "--query", "none.png"], "no image or folder none.png"),
        (["features.npz", "--query", "notes.jpg"], "notes.jpg cannot be read"),
        (["features.npz", "--query", "photos/0.png", "-o", "f.npz"], "a search takes a .npz and --query IMAGE, again for each"),
        (
            ["features.npz", "--query", "photos/0.png", "--size", "64"],
            "a search takes a .npz and --query IMAGE, again for each",
        ),
        (["features.npz", "--query", "photos/0.png", "--pairs", "0.5"], "one at a time"),
        (["features.npz", "--query", "photos/0.png", "photos/1.png"], "--query IMAGE, again for each"),
        (["features.npz", "--pairs", "1.5"], "from -1 to 1"),
        (["none.npz", "--pairs", "0.5"], "no features at none.npz"),
        (["notes.jpg", "--query", "photos/0.png"], "notes.jpg cannot be read as features"),
        (["test_vit.pth", "--query", "photos/0.png"], "test_vit.pth holds no features"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_written(tool, made, arguments, message):
    Path("notes.jpg").write_text("text")
    Path("empty").mkdir()
    before = sorted(Path().rglob("*"))
    assert_refused(tool(TOOL, *arguments), message)
    assert sorted(Path().rglob("*")) == before
