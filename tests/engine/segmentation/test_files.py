"""engine/segmentation/files.py: which image has which label map."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from backbones.errors import UserError
from engine.segmentation.config import ImageFiles
from engine.segmentation.files import find_pairs


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2)).save(folder / name)


@pytest.fixture
def folders(tmp_path):
    """Three images and their label maps."""
    put(tmp_path / "images", "b.jpg", "a.jpg", "deep/c.jpg")
    put(tmp_path / "labels", "a.png", "b.png", "deep/c.png")
    return tmp_path


def pairs(folder, **more):
    files = ImageFiles(images=str(folder / "images"), labels=str(folder / "labels"), **more)
    found, notes = find_pairs(files, split="train")
    for image, labels in found:
        assert image.is_file()
        assert labels.is_file()
    return [(str(i.relative_to(folder / "images")), str(m.relative_to(folder / "labels"))) for i, m in found], notes


def refused(folder, message, **more):
    with pytest.raises(UserError, match=message):
        pairs(folder, **more)


def test_images_and_maps_meet_by_name_in_order(folders):
    assert pairs(folders) == ([("a.jpg", "a.png"), ("b.jpg", "b.png"), ("deep/c.jpg", "deep/c.png")], [])


def test_a_list_names_which_in_which_order(folders):
    """As PASCAL VOC's ImageSets/Segmentation/train.txt, where images without a map are many."""
    put(folders / "images", "unlabelled.jpg")
    (folders / "train.txt").write_text("deep/c\na\n\n")
    assert pairs(folders, list=str(folders / "train.txt"))[0] == [("deep/c.jpg", "deep/c.png"), ("a.jpg", "a.png")]


def test_names_may_have_endings_of_their_own(tmp_path):
    """Cityscapes."""
    put(tmp_path / "images", "aachen/1_leftImg8bit.png", "bonn/2_leftImg8bit.png")
    put(
        tmp_path / "labels", "aachen/1_gtFine_labelTrainIds.png", "aachen/1_gtFine_color.png", "bonn/2_gtFine_labelTrainIds.png"
    )
    found, notes = pairs(tmp_path, image_suffix="_leftImg8bit.png", label_suffix="_gtFine_labelTrainIds.png")
    assert found == [
        ("aachen/1_leftImg8bit.png", "aachen/1_gtFine_labelTrainIds.png"),
        ("bonn/2_leftImg8bit.png", "bonn/2_gtFine_labelTrainIds.png"),
    ]
    assert notes == []


def test_images_and_maps_may_share_a_folder(tmp_path):
    put(tmp_path, "a.jpg", "a.png", "b.jpg", "b.png")
    files = ImageFiles(images=str(tmp_path), labels=str(tmp_path), image_suffix=".jpg")
    assert [(i.name, m.name) for i, m in find_pairs(files, split="val")[0]] == [("a.jpg", "a.png"), ("b.jpg", "b.png")]
    with pytest.raises(UserError, match=r"a\.jpg and .*a\.png have the same name .*data\.val\.image_suffix=\.png"):
        find_pairs(ImageFiles(images=str(tmp_path), labels=str(tmp_path)), split="val")


def test_maps_in_a_folder_within_that_of_the_images_are_no_images(tmp_path):
    put(tmp_path, "a.jpg", "labels/a.png")
    files = ImageFiles(images=str(tmp_path), labels=str(tmp_path / "labels"))
    assert len(find_pairs(files, split="val")[0]) == 1


def test_maps_without_an_image_are_left_out_and_counted(folders):
    put(folders / "labels", "x.png", "y.png")
    found, notes = pairs(folders)
    assert len(found) == 3
    assert notes == [f"left out: 2 label maps of {folders / 'labels'} without an image"]


def test_an_image_without_a_map_is_named(folders):
    (folders / "labels" / "b.png").unlink()
    refused(
        folders, r"1 of 3 images have no label map; the first is .*b\.jpg, and there is no .*b\.png.*data\.train\.list=FILE"
    )


def test_maps_of_another_ending_are_pointed_at(folders):
    refused(folders, r"3 of 3 images .*no file that ends in \.tif: data\.train\.label_suffix", label_suffix=".tif")


@pytest.mark.parametrize("name", ["images", "labels"])
def test_a_missing_folder_is_named_and_a_layout_shown(folders, name):
    shutil.rmtree(folders / name)
    refused(folders, rf"(?s)data\.train\.{name}: there is no folder .*{name}.*JPEGImages.*seg_shapes\.yaml")


def test_a_folder_without_images_is_refused(folders):
    for path in (folders / "images").rglob("*.jpg"):
        path.rename(path.with_suffix(".txt"))
    refused(folders, r"data\.train\.images: the folder .*images has no images \(\.bmp")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nb\na\n", r"train\.txt, line 3: a stands in line 1 already"),
        ("a\nnone\n", r"train\.txt, line 2: there is no image 'none' in .*Each line is a name without ending"),
        ("a.jpg\n", r"line 1: there is no image 'a\.jpg' in .*Names stand without ending: a\."),
        ("a 1\n", r"line 1: there is no image 'a 1'"),
        ("\n \n", r"data\.train\.list: .*train\.txt names no image"),
    ],
)
def test_a_list_that_is_wrong_is_refused_with_the_line(folders, text, message):
    (folders / "train.txt").write_text(text)
    refused(folders, message, list=str(folders / "train.txt"))


def test_a_list_that_is_not_there_is_refused(folders):
    refused(folders, r"data\.train\.list: there is no file .*none\.txt", list=str(folders / "none.txt"))
