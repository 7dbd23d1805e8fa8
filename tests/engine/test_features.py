"""The features of a folder: what is in the file, that it does not depend on processes or batches, and what is refused."""

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from backbones.errors import UserError
from engine import features as module
from engine.data.dataset import read_image
from engine.distributed import World
from engine.embedder import Recipe, build_embedder
from engine.features import Features, extract_features, load_features, save_features

SIZES = [(50, 70), (64, 40), (33, 33), (70, 50), (90, 30)]  # (height, width), pixels


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """Weights of a classifier."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    return path


@pytest.fixture
def recipe(weights) -> Recipe:
    return Recipe("resnet18", str(weights), size=32)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Eleven images of several sizes, some in a folder below."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(11):
        pixels = rng.integers(0, 256, (*SIZES[number % len(SIZES)], 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / ("below" if number % 4 == 1 else ".") / f"{number:02}.png")
    return folder


def extract(recipe: Recipe, *inputs: Path, output: Path, **options) -> Features:
    options = {"batch_size": 3, "device": "cpu"} | options
    features = extract_features(recipe, [str(path) for path in inputs], output=str(output), **options)
    assert features is not None
    return features


def assert_same(left: Features, right: Features) -> None:
    for ours, theirs in zip((left.embeddings, left.probe), (right.embeddings, right.probe), strict=True):
        assert ours.dtype == theirs.dtype == np.float32
        np.testing.assert_array_equal(ours, theirs)
    assert left.file_names == right.file_names
    assert left.recipe == right.recipe


# ---- What is in the file ----


def test_the_file_holds_each_images_embedding_and_name(recipe, photos, tmp_path, capsys):
    features = extract(recipe, photos, output=tmp_path / "out" / "features.npz")
    with np.load(tmp_path / "out" / "features.npz", allow_pickle=False) as file:
        content = dict(file)
    names = content["file_names"].tolist()
    assert names == sorted(str(path) for path in photos.rglob("*.png"))
    assert (content["embeddings"].shape, content["embeddings"].dtype) == ((11, 512), np.float32)
    assert str(content["source"]) == "resnet18"
    assert str(content["weights"]) == recipe.weights
    embedder = build_embedder(recipe)
    for name, embedding in zip(names, content["embeddings"], strict=True):
        alone = embedder.embed([embedder.prepare(read_image(Path(name)))])[0]
        np.testing.assert_allclose(embedding, alone, rtol=1e-4, atol=1e-5)
    assert_same(features, load_features(tmp_path / "out" / "features.npz"))
    assert features.recipe == embedder.recipe
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["features.npz"]
    assert "11 embeddings of 512 numbers each, from resnet18 with weights" in capsys.readouterr().out


@pytest.mark.parametrize("whole", [False, True])
def test_neither_batches_nor_order_matter(recipe, photos, tmp_path, whole):
    recipe = replace(recipe, whole=whole)
    one = extract(recipe, photos, output=tmp_path / "one.npz", batch_size=1)
    many = extract(recipe, photos, output=tmp_path / "many.npz", batch_size=100)
    backwards = extract(recipe, *reversed([Path(name) for name in one.file_names]), output=tmp_path / "backwards.npz")
    assert one.file_names == many.file_names == backwards.file_names[::-1]
    for other in (many.embeddings, backwards.embeddings[::-1]):
        np.testing.assert_allclose(one.embeddings, other, rtol=1e-4, atol=1e-5)


def test_a_file_that_is_there_is_replaced(recipe, photos, tmp_path):
    extract(recipe, photos, output=tmp_path / "f.npz")
    extract(recipe, photos / "00.png", output=tmp_path / "f.npz")
    assert load_features(tmp_path / "f.npz").file_names == [str(photos / "00.png")]


@given(st.lists(st.text(st.characters(exclude_characters="\0/"), min_size=1), min_size=1, max_size=4))
def test_names_of_every_script_and_odd_bytes_are_kept(tmp_path_factory, names):
    place = tmp_path_factory.getbasetemp() / "names.npz"
    recipe = Recipe("a", None, 3, True, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    features = Features(np.ones((len(names), 2), np.float32), names, recipe, np.zeros(2, np.float32))
    save_features(features, place)
    assert_same(features, load_features(place))


# ---- Processes ----


def test_several_processes_write_what_one_does(on_processes, recipe, photos, tmp_path):
    """Two batches: of three processes one has none."""
    alone = extract(recipe, photos, output=tmp_path / "alone.npz", batch_size=6)
    shared = {"output": str(tmp_path / "shared.npz"), "batch_size": 6, "device": "cpu"}
    ended = on_processes(3, extract_features, recipe, [str(photos)], **shared)
    assert [one.status for one in ended] == [0] * 3, [one.output for one in ended]
    assert_same(alone, load_features(tmp_path / "shared.npz"))
    assert sum("embeddings of" in one.output for one in ended) == 1


def test_several_processes_name_what_they_leave_out(on_processes, recipe, photos, tmp_path):
    for name in ("03.png", "10.png"):
        cut_off(photos / name)
    shared = {"output": str(tmp_path / "shared.npz"), "batch_size": 3, "device": "cpu"}
    ended = on_processes(2, extract_features, recipe, [str(photos)], skip_unreadable=True, **shared)
    assert [one.status for one in ended] == [0, 0], [one.output for one in ended]
    lines = [line for line in ended[0].output.splitlines() if line.startswith("left out: ")]
    assert ["03.png" in lines[0], "10.png" in lines[1], len(lines)] == [True, True, 2]
    assert ended[1].output == ""
    alone = extract(recipe, photos, output=tmp_path / "alone.npz", skip_unreadable=True)
    assert_same(alone, load_features(tmp_path / "shared.npz"))


def test_each_process_embeds_its_own_share(recipe, photos, tmp_path, monkeypatch):
    sent = []

    class Second(World):
        def gather(self, value):
            sent.append(value)
            return []

        def barrier(self):
            pass

    monkeypatch.setattr(module, "start_world", lambda device: contextlib.nullcontext(Second(1, 2, torch.device("cpu"))))
    options = {"output": str(tmp_path / "f.npz"), "batch_size": 3}
    assert extract_features(recipe, [str(photos)], **options) is None
    (batches,) = sent
    assert {start: len(part.file_names) for start, part in batches.items()} == {3: 3, 9: 2}
    assert not (tmp_path / "f.npz").exists()


# ---- Images that cannot be read ----


def cut_off(path: Path) -> None:
    """Leave an image its first half: it begins as one."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_files_that_are_no_images_are_all_named_before_the_work(recipe, photos, tmp_path, monkeypatch):
    (photos / "07.png").write_text("<html>not found</html>")
    (photos / "below" / "05.png").write_bytes(b"")
    monkeypatch.setattr(module, "build_embedder", lambda recipe: pytest.fail("the backbone is built"))
    with pytest.raises(UserError, match=r"2 of 11 files cannot be read as images: .*07\.png, .*05\.png\..*--skip-unreadable"):
        extract(recipe, photos, output=tmp_path / "features.npz")
    assert not (tmp_path / "features.npz").exists()


def test_an_image_that_breaks_off_is_named_and_nothing_is_written(recipe, photos, tmp_path):
    cut_off(photos / "07.png")
    with pytest.raises(UserError, match=r"07\.png cannot be read.*--skip-unreadable"):
        extract(recipe, photos, output=tmp_path / "out" / "features.npz")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_cannot_be_read_is_left_out_and_named_if_asked(recipe, photos, tmp_path, capsys):
    whole = extract(recipe, photos, output=tmp_path / "whole.npz")
    cut_off(photos / "07.png")
    (photos / "below" / "05.png").write_text("text")
    capsys.readouterr()
    features = extract(recipe, photos, output=tmp_path / "features.npz", skip_unreadable=True)
    printed = capsys.readouterr().out
    assert f"left out: The image {photos / '07.png'} cannot be read" in printed
    assert f"left out: The image {photos / 'below' / '05.png'} cannot be read" in printed
    kept = [number for number, name in enumerate(whole.file_names) if Path(name).name not in ("05.png", "07.png")]
    assert features.file_names == [whole.file_names[number] for number in kept]
    np.testing.assert_allclose(features.embeddings, whole.embeddings[kept], rtol=1e-4, atol=1e-5)


def test_nothing_but_unreadable_images_is_refused(recipe, photos, tmp_path):
    cut_off(photos / "07.png")
    with pytest.raises(UserError, match="None of the images can be read"):
        extract(recipe, photos / "07.png", output=tmp_path / "features.npz", skip_unreadable=True)
    assert not (tmp_path / "features.npz").exists()


# ---- What else is refused ----


@pytest.mark.parametrize("name", ["features.pt", "features", "folder.npz", "file/features.npz", "photos/00.png"])
def test_an_output_that_cannot_be_is_refused(recipe, photos, tmp_path, name):
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "file").write_text("kept")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"must be named \*\.npz|is a folder|cannot be written"):
        extract(recipe, photos, output=tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "kept"


def test_a_write_that_fails_leaves_the_old_file_and_no_other(recipe, photos, tmp_path, monkeypatch):
    extract(recipe, photos / "00.png", output=tmp_path / "f.npz")
    before = (tmp_path / "f.npz").read_bytes()

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UserError, match=r"f\.npz \(No space left on device\)"):
        extract(recipe, photos, output=tmp_path / "f.npz")
    assert (tmp_path / "f.npz").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"f.npz", "photos"}


def test_embeddings_that_are_not_finite_are_refused(recipe, photos, tmp_path, monkeypatch):
    def embed(self, images):
        return np.full((len(images), 512), np.float32("inf"))

    monkeypatch.setattr(module.Embedder, "probe", lambda self: np.zeros(512, np.float32))
    monkeypatch.setattr(module.Embedder, "embed", embed)
    with pytest.raises(UserError, match=r"The embedding of .*00\.png is not finite"):
        extract(recipe, photos, output=tmp_path / "f.npz")


@pytest.mark.parametrize("batch_size", [0, 1.5])
def test_a_batch_size_that_is_none_is_refused(recipe, photos, tmp_path, batch_size):
    with pytest.raises(UserError, match=r"batch_size is .* whole number"):
        extract(recipe, photos, output=tmp_path / "f.npz", batch_size=batch_size)


# ---- Files that are not ours ----


@pytest.fixture(scope="session")
def good_bytes(tmp_path_factory) -> bytes:
    place = tmp_path_factory.mktemp("good") / "good.npz"
    recipe = Recipe("a", "b", 3, False, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    save_features(Features(np.ones((2, 2), np.float32), ["c", "d"], recipe, np.zeros(2, np.float32)), place)
    return place.read_bytes()


@given(st.data())
def test_damage_is_refused_or_without_effect(tmp_path_factory, good_bytes, data):
    """Truncated, or a byte changed."""
    place = tmp_path_factory.getbasetemp() / "damaged.npz"
    position = data.draw(st.integers(0, len(good_bytes) - 1))
    if data.draw(st.booleans()):
        content = good_bytes[:position]
    else:
        content = good_bytes[:position] + bytes([data.draw(st.integers(0, 255))]) + good_bytes[position + 1 :]
    place.write_bytes(content)
    with contextlib.suppress(UserError):
        loaded = load_features(place)
        assert (loaded.file_names, loaded.recipe.source, loaded.embeddings.tolist()) == (["c", "d"], "a", [[1, 1], [1, 1]])


def rewrite(good_bytes: bytes, place: Path, **changes) -> None:
    place.write_bytes(good_bytes)
    with np.load(place) as file:
        content = dict(file) | changes
    np.savez(place, **{key: value for key, value in content.items() if value is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embeddings": None, "probe": None}, "without embeddings, probe"),
        ({"file_names": np.array([1, 2])}, "file_names"),
        ({"embeddings": np.ones((3, 2), np.float32)}, r"shape \(3, 2\) for 2 file names"),
        ({"embeddings": np.ones(2, np.float32)}, "without embeddings"),
        ({"format": np.array(2)}, "format 2; this version reads 1"),
        ({"size": np.array(0)}, "size is 0"),
        ({"size": np.array([1, 2])}, "size"),
        ({"file_names": np.array([["c"], ["d"]])}, "file_names"),
        ({"file_names": np.array(["c", "d"], object)}, "cannot be read as features"),
    ],
)
def test_another_npz_is_refused(good_bytes, tmp_path, changes, message):
    rewrite(good_bytes, tmp_path / "f.npz", **changes)
    with pytest.raises(UserError, match=message) as caught:
        load_features(tmp_path / "f.npz")
    assert str(tmp_path / "f.npz") in str(caught.value)


def test_files_of_other_kinds_are_refused(tmp_path):
    np.save(tmp_path / "lone.npy", np.ones(3))
    (tmp_path / "lone.npy").rename(tmp_path / "lone.npz")
    torch.save({"a": torch.ones(3)}, tmp_path / "checkpoint.npz")
    (tmp_path / "text.npz").write_text("text")
    (tmp_path / "empty.npz").write_bytes(b"")
    for name in ("lone", "checkpoint", "text", "empty", "none", "."):
        path = tmp_path / (name if name == "." else f"{name}.npz")
        with pytest.raises(UserError, match=r"There are no features at|cannot be read as features|holds no features"):
            load_features(path)
