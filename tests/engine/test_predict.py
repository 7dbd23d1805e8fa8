"""engine/predict.py: what a model says of image files of no data set."""

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backbones.errors import UserError
from engine.predict import find_images, predict_images


@pytest.fixture
def photos(tmp_path, trained) -> Path:
    """Two images that the trained model has seen, one in a folder below."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    shutil.copy(Path(trained.data["images"]) / "000.png", folder / "one.png")
    shutil.copy(Path(trained.data["images"]) / "001.png", folder / "below" / "two.PNG")
    return folder


@pytest.fixture
def predict(trained, tmp_path):
    def run(*inputs: Path, out: Path = tmp_path / "out", score: float = 0.5):
        checkpoint, names = str(trained.folder / "best.pt"), [str(path) for path in inputs]
        return predict_images(checkpoint, names, output_dir=str(out), score_threshold=score, device="cpu")

    return run


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


# ---- Which files ----


def test_folders_are_searched_through_for_images_in_order(tmp_path):
    names = ["b.jpg", "a.PNG", "below/c.tif", "notes.txt", ".hidden"]
    b, a, c, *_ = [touch(tmp_path / "in" / name) for name in names]
    (tmp_path / "in" / "folder.png").mkdir()
    assert find_images([str(tmp_path / "in")]) == [a, b, c]


def test_an_image_named_twice_is_taken_once_and_the_order_is_kept(tmp_path):
    a, b = touch(tmp_path / "a.jpg"), touch(tmp_path / "b.jpg")
    assert find_images([str(b), str(tmp_path), str(a)]) == [b, a]


def test_a_file_that_is_named_is_taken_whatever_its_suffix(tmp_path):
    assert find_images([str(touch(tmp_path / "photo"))]) == [tmp_path / "photo"]


@pytest.mark.parametrize(("name", "message"), [("none.jpg", "There is no image or folder"), ("empty", "has no images")])
def test_what_is_not_there_is_named(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message) as caught:
        find_images([str(tmp_path / name)])
    assert name in str(caught.value)


# ---- What is found ----


def test_a_folder_gives_a_picture_an_image_and_one_results_file(predict, photos, tmp_path, capsys):
    rows = predict(photos)
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["one.png", "results.json", "two.png"]
    assert json.loads((out / "results.json").read_text()) == rows
    assert {row["file_name"] for row in rows} == {str(photos / "one.png"), str(photos / "below" / "two.PNG")}
    assert {row["category_id"] for row in rows} == {3, 44}
    printed = capsys.readouterr().out
    assert f"{photos / 'one.png'}: " in printed
    assert f"{len(rows)} rows in {out / 'results.json'}" in printed


def test_detections_are_those_of_the_evaluation(predict, photos, trained):
    """Image by image, the numbers that training wrote to eval/."""
    rows = predict(photos / "one.png", photos / "below" / "two.PNG")
    content = json.loads(Path(trained.data["annotations"]).read_text())
    for number, name in enumerate(("000.png", "001.png"), start=1):
        (image_id,) = (image["id"] for image in content["images"] if image["file_name"] == name)
        for file, field in (("bbox_results.json", "bbox"), ("segm_results.json", "segmentation")):
            expected = [row for row in json.loads((trained.folder / "eval" / file).read_text()) if row["image_id"] == image_id]
            found = [row for row in rows if row["image_id"] == number]
            assert len(found) == len(expected) > 0
            assert [row[field] for row in found] == [row[field] for row in expected]
            assert [row["score"] for row in found] == [row["score"] for row in expected]


def test_the_threshold_is_for_the_pictures_alone(predict, photos, tmp_path):
    low = predict(photos / "one.png", out=tmp_path / "low", score=0.0)
    high = predict(photos / "one.png", out=tmp_path / "high", score=1.0)
    assert low == high
    drawn, plain = (np.asarray(Image.open(tmp_path / name / "one.png")).astype(int) for name in ("low", "high"))
    assert drawn.shape == plain.shape
    assert np.abs(drawn - plain).max() > 50


def test_images_of_one_name_have_pictures_of_their_own(predict, photos, tmp_path):
    paths = [tmp_path / name for name in ("a_3.png", "x/a.png", "y/a.png", "z/a_3.png")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        shutil.copy(photos / "one.png", path)
    predict(*paths)
    assert len(list((tmp_path / "out").glob("*.png"))) == 4


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16"])
def test_images_of_every_kind_are_taken(predict, tmp_path, mode):
    path = tmp_path / "image.png"
    pixels = np.linspace(0, 255, 64 * 48).reshape(64, 48)
    image = Image.fromarray((pixels * 257).astype(np.uint16)) if mode == "I;16" else Image.fromarray(pixels.astype(np.uint8))
    (image if mode == "I;16" else image.convert(mode)).save(path)
    assert isinstance(predict(path), list)
    assert (tmp_path / "out" / "image.png").exists()


def test_an_image_without_objects_gives_a_picture_and_an_empty_list(predict, tmp_path):
    Image.fromarray(np.full((50, 50, 3), 110, np.uint8)).save(tmp_path / "grey.png")
    rows = predict(tmp_path / "grey.png")
    assert [row for row in rows if row["score"] > 0.5] == []
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == rows
    assert (tmp_path / "out" / "grey.png").exists()


def test_what_another_job_says_is_printed_and_written(toy_run, tmp_path, capsys):
    for name, grey in (("a", 40), ("b", 160)):
        Image.fromarray(np.full((20, 32, 3), grey, np.uint8)).save(tmp_path / f"{name}.png")
    inputs = [str(tmp_path / f"{name}.png") for name in ("b", "a")]
    rows = predict_images(str(toy_run.folder / "last.pt"), inputs, output_dir=str(tmp_path / "out"), device="cpu")
    assert rows == [
        {"image_id": 1, "category_id": 20, "file_name": inputs[0]},
        {"image_id": 2, "category_id": 10, "file_name": inputs[1]},
    ]
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == rows
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png", "results.json"]
    assert capsys.readouterr().out.splitlines() == [
        f"{inputs[0]}: bright", f"{inputs[1]}: dark", f"2 rows in {tmp_path / 'out' / 'results.json'}",
    ]  # fmt: skip


# ---- What goes wrong ----


def test_the_images_themselves_are_never_written_over(predict, photos):
    before = (photos / "one.png").read_bytes()
    with contextlib.suppress(UserError):
        predict(photos / "one.png", out=photos)
    assert (photos / "one.png").read_bytes() == before


def test_a_broken_image_is_named(predict, photos):
    content = (photos / "one.png").read_bytes()
    (photos / "one.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"The image .*one\.png cannot be read"):
        predict(photos / "one.png")


def test_a_file_that_is_no_image_is_named(predict, tmp_path):
    (tmp_path / "notes.jpg").write_text("not an image")
    with pytest.raises(UserError, match=r"The image .*notes\.jpg cannot be read"):
        predict(tmp_path / "notes.jpg")


def test_a_folder_that_cannot_be_written_to_is_refused(predict, photos, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        predict(photos / "one.png", out=tmp_path / "file")


# ---- A config with weights ----


def test_a_config_with_weights_sees_what_its_checkpoint_sees(predict, photos, trained, tmp_path):
    """Its classes are those of the validation set."""
    expected = predict(photos)
    source, weights = str(trained.folder / "config.yaml"), str(trained.folder / "best.pt")
    rows = predict_images(source, [str(photos)], output_dir=str(tmp_path / "other"), device="cpu", weights=weights)
    assert rows == expected
    with pytest.raises(UserError, match="no trained weights: add --weights PATH"):
        predict_images(source, [str(photos)], output_dir=str(tmp_path / "other"), device="cpu")


def test_settings_of_a_checkpoint_may_be_given(predict, photos, trained, tmp_path):
    overrides = ["model.head.box_detections_per_img=1"]
    rows = predict_images(
        str(trained.folder / "best.pt"), [str(photos)], output_dir=str(tmp_path / "one"), device="cpu", overrides=overrides
    )
    assert len(rows) == 2 < len(predict(photos))


def test_a_checkpoints_classes_cannot_be_renamed(trained, photos, tmp_path):
    with pytest.raises(UserError, match=r"best\.pt was trained on classes of its own.*leave out data\.classes"):
        predict_images(
            str(trained.folder / "best.pt"), [str(photos)], output_dir=str(tmp_path / "out"), overrides=["data.classes=[a, b]"]
        )
