"""engine/data/converters/coco_writer.py: conventions, what is dropped, and that a shell and YAML take the arguments printed."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as mask_api

from backbones.errors import UserError
from engine.config_file import load_config
from engine.data.annotations import load_annotations
from engine.data.converters.classes import Classes
from engine.data.converters.coco_writer import CocoWriter, data_arguments, write_json

# Of pycocotools under NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

CLASSES = Classes({"cat": 1, "dog": 2}, "as given")


@pytest.fixture
def writer(tmp_path, add_image):
    """A writer with one image of 60 x 40 pixels, whose entry is `writer.images[0]`."""
    writer = CocoWriter(tmp_path, classes=CLASSES)
    writer.add_image(add_image("a/b.png"))
    return writer


def test_what_is_written_is_what_the_loader_reads(writer, tmp_path, add_image):
    (image,) = writer.images
    empty = writer.add_image(add_image("a/c.png", (30, 20)))
    writer.add_box(image, "dog", (10, 5, 30.5, 25), where="first")
    writer.add_box(image, "cat", (1, 1, 3, 3), where="second", iscrowd=1)
    path = tmp_path / "out" / "coco.json"
    writer.write(path)
    content = json.loads(path.read_text())
    assert content["images"] == [
        {"id": 1, "file_name": "a/b.png", "width": 60, "height": 40},
        {"id": 2, "file_name": "a/c.png", "width": 30, "height": 20},
    ]
    assert content["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert content["annotations"][0] == {
        "id": 1,
        "image_id": 1,
        "category_id": 2,
        "bbox": [10, 5, 20.5, 20],
        "area": 410,
        "iscrowd": 0,
        "segmentation": [],
    }
    table = load_annotations(path)
    assert table.boxes.tolist() == [[10, 5, 30.5, 25], [1, 1, 3, 3]]
    assert (table.labels.tolist(), table.iscrowd.tolist(), table.areas.tolist()) == ([2, 1], [0, 1], [410, 4])
    assert table.image_ids.tolist() == [1, empty.id]
    assert table.offsets.tolist() == [0, 2, 2]
    assert writer.summary() == ["2 images, 1 of them without objects; 2 objects:", "         1 cat", "         1 dog"]


def test_without_a_list_the_names_that_occur_are_sorted(tmp_path, add_image, read):
    writer = CocoWriter(tmp_path)
    image = writer.add_image(add_image("a.png"))
    for name in ("zebra", "ant", "zebra", "cow"):
        writer.add_box(image, name, (0, 0, 5, 5), where=name)
    assert read(writer).dataset["categories"] == [
        {"id": 1, "name": "ant"},
        {"id": 2, "name": "cow"},
        {"id": 3, "name": "zebra"},
    ]


def test_boxes_are_cut_at_the_border_and_those_outside_dropped(writer, read):
    (image,) = writer.images
    for number, box in enumerate(
        [(-5, -5, 10, 10), (50, 30, 99, 99), (60, 0, 70, 10), (5, 5, 5, 9), (9, 5, 5, 9), (5, 5, 5.0001, 9)]
    ):
        writer.add_box(image, "cat", box, where=f"box {number}")
    assert [annotation["bbox"] for annotation in read(writer).dataset["annotations"]] == [[0, 0, 10, 10], [50, 30, 10, 10]]
    assert writer.summary()[-2:] == [
        "2 cut at their image's border (first: box 0)",
        "4 left out, for they have no width or height within their image (first: box 2)",
    ]


def test_polygons_give_box_area_and_mask(writer, read):
    (image,) = writer.images
    writer.add_polygons(image, "cat", [[10, 10, 20, 10, 20, 20, 10, 20], [30, 5, 40, 5, 40, 8, 30, 8]], where="pieces")
    coco = read(writer)
    (annotation,) = coco.dataset["annotations"]
    expected = np.zeros((40, 60), np.uint8)
    expected[10:20, 10:20] = expected[5:8, 30:40] = 1
    assert (coco.annToMask(annotation) == expected).all()
    assert annotation["bbox"] == [10, 5, 30, 15]
    assert annotation["area"] == expected.sum()


@pytest.mark.parametrize("polygon", [[-20, -20, 30, -20, 30, 60, -20, 60], [10, -5, 90, -5, 90, 70, 10, 70]])
def test_a_polygon_beyond_the_border_covers_what_is_within(writer, read, polygon):
    (image,) = writer.images
    writer.add_polygons(image, "cat", [polygon], where="large")
    coco = read(writer)
    (annotation,) = coco.dataset["annotations"]
    x, y, w, h = annotation["bbox"]
    expected = np.zeros((40, 60), np.uint8)
    expected[int(y) : int(y + h), int(x) : int(x + w)] = 1
    assert (coco.annToMask(annotation) == expected).all()
    assert annotation["area"] == w * h


def test_a_polygon_that_covers_no_pixel_is_dropped_and_counted(writer):
    writer.add_polygons(writer.images[0], "cat", [[5.1, 5.1, 5.2, 5.1, 5.2, 5.2]], where="speck")
    assert writer.summary()[-1] == "1 left out, for their outline covers no pixel (first: speck)"
    with pytest.raises(UserError, match="nothing to write"):
        CocoWriter(Path()).write("never.json")


@given(st.data())
def test_a_mask_comes_back_pixel_for_pixel(data):
    height, width = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    bits = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    mask = np.array(bits, np.uint8).reshape(height, width) * 255
    writer = CocoWriter(Path(), classes=CLASSES)
    image = SimpleImage(width, height)
    writer.add_mask(image, "cat", mask, where="mask")
    if not mask.any():
        assert not writer.objects
        return
    (found,) = writer.objects
    assert (mask_api.decode(found["segmentation"]) == mask // 255).all()
    assert found["bbox"] == mask_api.toBbox(found["segmentation"]).tolist()
    assert found["area"] == mask_api.area(found["segmentation"])


class SimpleImage:
    """What a writer asks of an image."""

    id = 1

    def __init__(self, width, height):
        self.width, self.height = width, height


def test_a_class_that_is_not_in_the_list_is_named_with_its_place(writer):
    with pytest.raises(
        UserError, match=r"a\.xml, line 3: the class 'Dog' is not in the list \(as given\)\. Did you mean 'dog'"
    ):
        writer.add_box(writer.images[0], "Dog", (0, 0, 5, 5), where="a.xml, line 3")


def test_images_that_are_none_or_not_there_are_named(writer, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"bad\.jpg cannot be read as an image"):
        writer.add_image(tmp_path / "bad.jpg")
    with pytest.raises(UserError, match=r"no image .*none\.jpg"):
        writer.add_image(tmp_path / "none.jpg")


def test_pixels_are_not_read(writer, tmp_path, add_image):
    path = add_image("whole.jpg", (300, 200))
    path.write_bytes(path.read_bytes()[:700])  # the header is whole, the pixels are not
    entry = writer.add_image(path)
    assert (entry.width, entry.height) == (300, 200)


def test_an_image_that_a_viewer_turns_is_told_of(writer, add_image):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = add_image("turned.jpg", (30, 20), exif=exif)
    entry = writer.add_image(path)
    assert (entry.width, entry.height) == (30, 20)
    writer.add_image(add_image("upright.jpg"))
    assert writer.summary()[-1].startswith("1 with an EXIF rotation, which training does not apply")
    assert str(path) in writer.summary()[-1]


def test_files_of_others_are_not_replaced(writer, tmp_path):
    writer.add_box(writer.images[0], "cat", (1, 1, 3, 3), where="box")
    path = tmp_path / "coco.json"
    for text in ('{"shapes": []}', '{"images": [], "annotations": []}', "x" * 9000):
        path.write_text(text)
        with pytest.raises(UserError, match=r"coco\.json is there, and was not written by this tool"):
            writer.write(path)
        assert path.read_text() == text
    path.write_text("")
    writer.write(path)
    writer.write(path)
    assert load_annotations(path).boxes.tolist() == [[1, 1, 3, 3]]


def test_what_cannot_be_written_is_said(tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        write_json(tmp_path, {})
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_json(tmp_path / "file" / "out.json", {})
    write_json(tmp_path / "new" / "out.json", {"a": 1})
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.json"]


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\n\r"), min_size=1, max_size=20))
def test_the_arguments_printed_give_the_paths_back(name):
    path = Path(name)
    arguments = data_arguments("val", path, Path("a.json"))
    config = load_config("configs/frcnn_r50.yaml", shlex.split(arguments))
    assert (config.data.val.images, config.data.val.annotations) == (str(path), "a.json")
