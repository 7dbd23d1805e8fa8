"""Images found by their features: copies first, the query itself never; the backbone as it was; real photographs."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from backbones.errors import UserError
from engine.embedder import Recipe
from engine.features import Features, extract_features, save_features
from engine.neighbours import nearest_neighbours
from engine.retrieval import find_pairs, find_similar


@pytest.fixture
def weights(tmp_path) -> Path:
    """Weights of a very small network; to be broken."""
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "test_vit.pth")
    return tmp_path / "test_vit.pth"


@pytest.fixture
def photos(tmp_path) -> Path:
    """Six images, of which 5 is a copy of 2 and 4 nearly one."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3)).astype(np.uint8)).save(folder / f"{number}.png")
    pixels = np.array(Image.open(folder / "2.png"))
    Image.fromarray(pixels).save(folder / "5.png")
    pixels[:4] = 0
    Image.fromarray(pixels).save(folder / "4.png")
    return folder


@pytest.fixture
def features(weights, photos, tmp_path, capsys) -> str:
    """The file of the images' features."""
    place = str(tmp_path / "features.npz")
    extract_features(Recipe("timm/test_vit", str(weights), size=32), [str(photos)], output=place, device="cpu")
    capsys.readouterr()
    return place


def find(features: str, *queries: Path, **options):
    return find_similar(features, [str(query) for query in queries], device="cpu", **options)


# ---- Neighbours ----


def test_the_most_alike_are_found_and_printed(features, photos, capsys):
    found = find(features, photos / "2.png", count=3)
    printed = capsys.readouterr().out
    (neighbours,) = found.values()
    assert [Path(name).name for name, _ in neighbours[:2]] == ["5.png", "4.png"]
    assert neighbours[0][1] == 1
    assert printed.splitlines() == [
        str(photos / "2.png"),
        *(f"  {similarity:6.3f}  {name}" for name, similarity in neighbours),
    ]


def test_an_image_is_not_its_own_neighbour_by_whatever_path(features, photos, monkeypatch):
    monkeypatch.chdir(photos)
    (neighbours,) = find(features, Path("../photos/2.png"), count=10).values()
    assert sorted(Path(name).name for name, _ in neighbours) == ["0.png", "1.png", "3.png", "4.png", "5.png"]


def test_a_query_from_elsewhere_has_as_many_neighbours(features, photos, tmp_path):
    shutil.copy(photos / "2.png", tmp_path / "elsewhere.png")
    (neighbours,) = find(features, tmp_path / "elsewhere.png", count=3).values()
    assert [Path(name).name for name, _ in neighbours] == ["2.png", "5.png", "4.png"]
    (neighbours,) = find(features, tmp_path / "elsewhere.png", count=100).values()
    assert len(neighbours) == 6


def test_a_folder_of_queries_is_gone_through(features, photos):
    found = find(features, photos, count=1)
    nearest = {Path(query).name: Path(neighbours[0][0]).name for query, neighbours in found.items()}
    assert len(nearest) == 6
    assert (nearest["2.png"], nearest["5.png"], nearest["4.png"]) == ("5.png", "2.png", "2.png")


def test_one_image_alone_has_no_neighbour(features, photos, weights, tmp_path):
    place = str(tmp_path / "one.npz")
    extract_features(Recipe("timm/test_vit", str(weights), size=32), [str(photos / "0.png")], output=place, device="cpu")
    assert find(place, photos / "0.png", picture=str(tmp_path / "sheet.png")) == {str(photos / "0.png"): []}


# ---- Pairs ----


def test_pairs_are_printed_the_most_alike_first(features, photos, capsys):
    found = find_pairs(features, threshold=1)
    assert [(Path(left).name, Path(right).name, value) for left, right, value in found] == [("2.png", "5.png", 1)]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f" 1.000  {photos / '2.png'}  {photos / '5.png'}"
    assert lines[-1] == "1 pair among 6 images has a similarity of at least 1"
    assert len(find_pairs(features, threshold=-1)) == 15
    assert capsys.readouterr().out.splitlines()[-1] == "15 pairs among 6 images have a similarity of at least -1"


# ---- Pictures ----


def test_a_sheet_shows_each_query_and_its_neighbours_in_a_row(features, photos, tmp_path):
    find(features, photos / "2.png", photos / "0.png", count=2, picture=str(tmp_path / "sheets" / "sheet.png"))
    two_rows = np.array(Image.open(tmp_path / "sheets" / "sheet.png"))
    find(features, photos / "2.png", count=2, picture=str(tmp_path / "sheets" / "one.png"))
    one_row = np.array(Image.open(tmp_path / "sheets" / "one.png"))
    assert two_rows.shape[1] == one_row.shape[1]
    assert two_rows.shape[0] > 1.9 * one_row.shape[0]
    np.testing.assert_array_equal(two_rows[: len(one_row) - 10], one_row[:-10])
    # Query and its copy: the same pixels, a cell apart.
    cell = one_row.shape[1] // 3
    middle = one_row[60:150]
    np.testing.assert_array_equal(middle[:, 20:200], middle[:, cell + 18 : cell + 198])


def test_a_picture_that_cannot_be_written_is_refused_at_once(features, photos, tmp_path, capsys):
    (tmp_path / "file").touch()
    for picture in (tmp_path / "file" / "sheet.png", tmp_path):
        with pytest.raises(UserError, match=r"cannot be written|is a folder"):
            find(features, photos / "0.png", picture=str(picture))
    assert capsys.readouterr().out == ""


def test_images_that_have_moved_since_are_named(features, photos, tmp_path):
    query = shutil.copy(photos / "2.png", tmp_path / "query.png")
    photos.rename(tmp_path / "moved")
    assert len(find(features, query)[str(query)]) == 5
    with pytest.raises(UserError, match=r"no image file .*2\.png.*call from the folder"):
        find(features, query, picture=str(tmp_path / "sheet.png"))


# ---- What is refused ----


def test_weights_that_have_changed_since_are_refused(features, photos, weights):
    """Training on has written over the checkpoint: what it sees now cannot be compared."""
    state = torch.load(weights, weights_only=True)
    torch.save({key: value + 0.02 * torch.randn_like(value) for key, value in state.items()}, weights)
    with pytest.raises(UserError, match=rf"{re.escape(features)} was made with.*Extract the features again"):
        find(features, photos / "0.png")
    torch.save({key: value * (1 + 1e-6) for key, value in state.items()}, weights)
    assert find(features, photos / "0.png")


def test_weights_that_have_gone_are_named(features, photos, weights):
    weights.unlink()
    with pytest.raises(UserError, match=rf"was made with timm/test_vit with weights.*\. .*{re.escape(str(weights))}"):
        find(features, photos / "0.png")


@pytest.mark.parametrize("count", [0, -1])
def test_a_count_that_is_none_is_refused(features, photos, count):
    with pytest.raises(UserError, match=f"{count} neighbours"):
        find(features, photos / "0.png", count=count)


def test_a_query_that_is_no_image_is_named(features, photos, tmp_path):
    (tmp_path / "notes.jpg").write_text("text")
    with pytest.raises(UserError, match=r"notes\.jpg cannot be read"):
        find(features, tmp_path / "notes.jpg")
    with pytest.raises(UserError, match="no image or folder"):
        find(features, tmp_path / "none.jpg")


def test_features_of_another_kind_of_backbone_are_refused(features, photos, weights, tmp_path):
    recipe = Recipe("timm/test_vit", str(weights), 32, False, (0.5,) * 3, (0.5,) * 3)
    other = Features(np.ones((2, 5), np.float32), ["a", "b"], recipe, np.ones(5, np.float32))
    save_features(other, tmp_path / "other.npz")
    with pytest.raises(UserError, match="no longer what"):
        find(str(tmp_path / "other.npz"), photos / "0.png")


# ---- Real photographs ----


@pytest.mark.shared_data
@pytest.mark.slow
def test_flipped_and_cropped_photographs_are_nearest_to_their_originals(shared, tmp_path):
    """An ImageNet backbone finds each of 20 altered photographs among 57."""
    recipe = Recipe("resnet50_v1", str(shared / "weights" / "resnet50_v1_imagenet.safetensors"))
    folder = shared / "data" / "coco_cc_by" / "val"
    originals = extract_features(recipe, [str(folder)], output=str(tmp_path / "originals.npz"), device="cpu")
    assert len(originals.file_names) == 57
    chosen = originals.file_names[:40:2]
    for name in ("flipped", "cropped"):
        (tmp_path / name).mkdir()
    for number, path in enumerate(chosen):
        image = Image.open(path).convert("RGB")
        width, height = image.size
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "flipped" / f"{number:02}.jpg")
        box = (0.08 * width, 0.05 * height, 0.97 * width, 0.94 * height)
        image.crop(tuple(map(round, box))).save(tmp_path / "cropped" / f"{number:02}.jpg")
    for name in ("flipped", "cropped"):
        altered = extract_features(recipe, [str(tmp_path / name)], output=str(tmp_path / f"{name}.npz"), device="cpu")
        indices, similarities = nearest_neighbours(altered.embeddings, originals.embeddings, count=2)
        assert [originals.file_names[index] for index in indices[:, 0]] == chosen
        assert similarities[:, 0].min() > 0.85
        assert (similarities[:, 0] - similarities[:, 1]).min() > 0.1
