"""engine/classification/sources.py: folders against torchvision's ImageFolder, digits against scikit-learn, one's own sets."""

import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import ImageFolder

from backbones.errors import UserError
from engine.classification.sources import IMAGE_SETS, ImageArray, digits, image_folder
from engine.config_file import check_config
from tests.engine.classification.conftest import write_folders


def touch_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 5), (10, 20, 30)).save(path)


# ---- Folders ----


def test_a_folder_is_read_as_torchvision_reads_it(tmp_path):
    folder = write_folders(tmp_path / "images", classes=("green", "Blue", "n01440764"))
    touch_image(folder / "green" / "below" / "it" / "z.JPEG")
    touch_image(folder / "green" / "000.jpg")
    (folder / "green" / "boxes.txt").write_text("not an image")
    theirs = ImageFolder(str(folder))
    ours = image_folder("train", images=str(folder))
    assert ours.class_names == theirs.classes
    assert len(ours) == len(theirs) == 14
    assert sorted((ours.name_of(i), int(ours.labels[i])) for i in range(14)) == sorted(theirs.samples)
    paths = {path: i for i, (path, _) in enumerate(theirs.samples)}
    for i in range(14):
        assert (ours.read(i) == np.asarray(theirs[paths[ours.name_of(i)]][0])).all()


def test_names_of_any_letters_and_hidden_files(tmp_path):
    for name in ("chat/é 1.png", "犬/二.png", ".cache/x.png", "chat/._1.png"):
        touch_image(tmp_path / name)
    (tmp_path / ".DS_Store").touch()
    found = image_folder("val", images=str(tmp_path))
    assert found.class_names == ["chat", "犬"]
    assert [found.name_of(i) for i in range(len(found))] == [str(tmp_path / "chat/é 1.png"), str(tmp_path / "犬/二.png")]
    assert found.read(1).shape == (5, 4, 3)


def test_links_are_followed(tmp_path):
    write_folders(tmp_path / "images", count=2)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "sky").symlink_to(tmp_path / "images" / "blue")
    assert len(image_folder("train", images=str(tmp_path / "linked"))) == 2


def test_names_are_kept_in_one_array(folders):
    """A million strings would be copied by each loader process."""
    files = image_folder("train", images=str(folders))._files
    assert isinstance(files, np.ndarray)
    assert files.dtype.kind == "S"


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_folder_that_is_not_there_is_named_with_what_is_wanted(tmp_path, split):
    with pytest.raises(UserError, match=rf"data\.{split}\.images: there is no folder .*none") as caught:
        image_folder(split, images=str(tmp_path / "none"))
    assert f"{tmp_path / 'none'}/cat/0001.jpg" in str(caught.value)
    assert f"data.{split}.images=FOLDER" in str(caught.value)


def test_a_folder_without_class_folders_is_refused(tmp_path):
    with pytest.raises(UserError, match="is empty"):
        image_folder("train", images=str(tmp_path))


@pytest.mark.parametrize("name", ["photo.jpg", "notes.txt"])
def test_a_file_among_class_folders_is_refused_and_named(tmp_path, name):
    write_folders(tmp_path / "images")
    (tmp_path / "images" / name).touch()
    with pytest.raises(UserError, match=rf"{name} lies among the class folders: move it"):
        image_folder("train", images=str(tmp_path / "images"))


def test_a_class_folder_without_images_is_refused_and_named(tmp_path):
    write_folders(tmp_path / "images")
    (tmp_path / "images" / "yellow").mkdir()
    (tmp_path / "images" / "yellow" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"class folder .*yellow has no images \(\.bmp, .*\.webp\)"):
        image_folder("val", images=str(tmp_path / "images"))


def test_an_unreadable_image_is_named(tmp_path):
    write_folders(tmp_path / "images")
    (tmp_path / "images" / "red" / "000.png").write_bytes(b"\x89PNG")
    found = image_folder("train", images=str(tmp_path / "images"))
    with pytest.raises(UserError, match=r"The image .*red/000\.png cannot be read: .*take it out of the folder"):
        found.read(8)
    (tmp_path / "images" / "red" / "001.png").unlink()
    with pytest.raises(UserError, match=r"no image file .*red/001\.png"):
        found.read(9)


# ---- Arrays ----


def test_digits_are_scikit_learns(monkeypatch):
    theirs = load_digits()
    parts = [digits("train"), digits("val")]
    assert [len(part) for part in parts] == [1437, 360]
    assert (np.concatenate([part.labels for part in parts]) == theirs.target).all()
    pixels = np.stack([part.read(i) for part in parts for i in range(len(part))])
    assert (pixels == pixels[..., :1]).all()
    assert np.abs(pixels[..., 0] / 255 * 16 - theirs.images).max() < 0.04
    assert (np.bincount(parts[1].labels) >= 30).all()


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match="pip install scikit-learn"):
        digits("train")


def test_arrays_in_colour_are_given_as_they_are_and_may_be_changed(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3)).astype(np.uint8)
    pixels.setflags(write=False)
    images = ImageArray(tmp_path, ["a", "b"], np.array([0, 1, 1]), pixels)
    assert (images.read(2) == pixels[2]).all()
    assert images.read(2).flags.writeable
    assert images.name_of(2) == "00002"


# ---- Sets of one's own ----


def test_a_module_of_the_users_registers_a_set(tmp_path, monkeypatch):
    (tmp_path / "my_stripes.py").write_text(
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from engine.classification.sources import ImageArray, register_image_set\n\n\n"
        "@register_image_set('stripes')\n"
        "def stripes(split, *, count: int = 4):\n"
        "    labels = np.arange(count) % 2\n"
        "    return ImageArray(Path('stripes'), ['odd', 'even'], labels, np.zeros((count, 8, 8), np.uint8))\n"
    )
    monkeypatch.chdir(tmp_path)
    name = "my_stripes:stripes"
    try:
        assert len(IMAGE_SETS.get(name)("train", count=6)) == 6
        assert IMAGE_SETS.options(name, besides=("split",)) == {"count": int}
        content = {"job": "classification", "data": {"train": {"name": name, "count": 6}, "val": name}}
        assert check_config(content).data.train.options() == {"count": 6}
        with pytest.raises(UserError, match="no option 'number'"):
            check_config(content | {"data": {"train": {"name": name, "number": 6}, "val": name}})
        with pytest.raises(UserError, match="registers no image set 'strips' with @register_image_set"):
            IMAGE_SETS.get("my_stripes:strips")
    finally:
        IMAGE_SETS._constructors.pop("stripes", None)
        sys.modules.pop("my_stripes", None)
