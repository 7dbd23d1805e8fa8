"""engine/data/converters/yolo.py: boxes and outlines there and back, where labels and names are found, mistakes by line."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

from backbones.errors import UserError
from engine.data.annotations import load_annotations
from engine.data.converters.classes import Classes
from engine.data.converters.coco_writer import CocoWriter
from engine.data.converters.yolo import _read_labels, convert_yolo

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

CLASSES = Classes({"cat": 1, "dog": 2}, "as given")


@pytest.fixture
def yolo(tmp_path, add_image):
    """A function that writes `images/a.png` of 60 x 40 pixels and its label file, and converts them."""
    add_image("images/a.png")
    (tmp_path / "labels").mkdir()

    def convert(text, **options):
        (tmp_path / "labels" / "a.txt").write_text(text)
        return convert_yolo(tmp_path / "images", tmp_path / "labels", **{"classes": CLASSES} | options)

    return convert


def lines_of(box, size, label=0):
    """A box (x, y, width, height) in pixels as a line of YOLO's."""
    (x, y, w, h), (width, height) = box, size
    return f"{label} {(x + w / 2) / width:.6f} {(y + h / 2) / height:.6f} {w / width:.6f} {h / height:.6f}\n"


class OneImage:
    """What a writer asks of an image."""

    id = 1

    def __init__(self, width, height):
        self.width, self.height = width, height


@given(st.data())
def test_a_box_comes_back(tmp_path_factory, data):
    width, height = data.draw(st.integers(1, 4000)), data.draw(st.integers(1, 4000))
    x1, y1 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x2, y2 = data.draw(st.integers(x1 + 1, width)), data.draw(st.integers(y1 + 1, height))
    box = [x1, y1, x2 - x1, y2 - y1]
    label = data.draw(st.integers(0, 1))
    file = tmp_path_factory.getbasetemp() / "one.txt"
    file.write_text(lines_of(box, (width, height), label))
    writer = CocoWriter(file.parent, classes=CLASSES)
    _read_labels(writer, OneImage(width, height), file, CLASSES)
    (found,) = writer.objects
    # Six digits of a share of 4,000 pixels: half a unit of the last in the centre, and half of that in half the width.
    assert np.allclose(found["bbox"], box, rtol=0, atol=max(width, height) * 0.75e-6 + 1e-3)
    assert found["name"] == ("cat", "dog")[label]
    assert found["segmentation"] == []
    assert 0 <= found["bbox"][0] <= found["bbox"][0] + found["bbox"][2] <= width


def test_pixels_that_were_drawn_are_the_box(yolo, read, tmp_path):
    picture = Image.new("L", (60, 40))
    ImageDraw.Draw(picture).rectangle((12, 7, 35, 28), fill=255)
    rows, columns = np.nonzero(np.asarray(picture))
    box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    coco = read(yolo(lines_of(box, (60, 40), label=1)))
    (annotation,) = coco.dataset["annotations"]
    assert annotation["bbox"] == pytest.approx(box, abs=1e-3)
    assert annotation["category_id"] == 2
    assert load_annotations(tmp_path / "written/coco.json").boxes[0] == pytest.approx([12, 7, 36, 29], abs=1e-3)


def test_an_outline_is_a_mask(yolo, read):
    points = [(6, 4), (30, 4), (30, 36), (6, 36)]
    coco = read(yolo("1 " + " ".join(f"{x / 60} {y / 40}" for x, y in points)))
    (annotation,) = coco.dataset["annotations"]
    expected = np.zeros((40, 60), np.uint8)
    expected[4:36, 6:30] = 1
    assert (coco.annToMask(annotation) == expected).all()
    assert (annotation["bbox"], annotation["area"]) == ([6, 4, 24, 32], expected.sum())


def test_four_points_of_a_turned_box_and_a_triangle_are_outlines(yolo, read):
    coco = read(yolo("0 0.5 0.1 0.9 0.5 0.5 0.9 0.1 0.5\n0 .1 .1 .5 .1 .5 .5\n"))
    assert [len(annotation["segmentation"][0]) for annotation in coco.dataset["annotations"]] == [8, 6]


def test_empty_lines_and_files_byte_order_marks_and_doubled_lines(yolo):
    writer = yolo("\ufeff0 .5 .5 .2 .2\n\n  \n1.0 .5 .5 .2 .2\n0 .5 .5 .2 .2\n")
    assert [found["name"] for found in writer.objects] == ["cat", "dog"]
    assert "1 objects left out, for the same line stands twice" in writer.summary()[-1]
    assert "line 5" in writer.summary()[-1]
    assert yolo("").images


def test_images_without_a_label_file_have_no_objects(yolo, add_image):
    add_image("images/b.png")
    assert len(yolo("0 .5 .5 .2 .2").images) == 2
    assert len(yolo("0 .5 .5 .2 .2", keep_unlabelled=False).images) == 1
    assert "b.png" in yolo("0 .5 .5 .2 .2").summary()[-1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 .5 .5 .2", r"has 4 fields\. A box has 5"),
        ("0 .5 .5 .2 .2 .9", r"has 6 fields\. .*The sixth may be a detector's score"),
        ("0 .5 .5 .2 .2 .9 .9 .1", "has 8 fields"),
        ("0", "has 1 fields"),
        ("0 .5 .5 .2 1.01", r"1\.01 is not from 0 to 1.*not pixels"),
        ("0 -0.5 .5 .2 .2", r"-0\.5 is not from 0 to 1"),
        ("0 30 20 12 8", "30 is not from 0 to 1"),
        ("0 .1 .1 .5 .1 .5 1.5", r"1\.5 is not from 0 to 1"),
        ("0 .5 x .2 .2", "'x' is no number"),
        ("0 .5 nan .2 .2", "'nan' is no number"),
        ("0,.5,.5,.2,.2", "has 1 fields"),
        ("cat .5 .5 .2 .2", "the class 'cat' is no whole number"),
        ("0.5 .5 .5 .2 .2", r"the class '0\.5' is no whole number"),
        ("2 .5 .5 .2 .2", r"there is no class 2: the list \(as given\) numbers 0 to 1"),
        ("-1 .5 .5 .2 .2", "there is no class -1"),
    ],
)
def test_mistakes_name_file_and_line(yolo, line, message):
    with pytest.raises(UserError, match=rf"a\.txt, line 2.*{message}"):
        yolo(f"0 .5 .5 .2 .2\n{line}\n")


def test_rounding_beyond_the_border_is_no_mistake(yolo, read):
    (annotation,) = read(yolo("0 0.5 0.5 1.0000005 1.0000004")).dataset["annotations"]
    assert annotation["bbox"] == [0, 0, 60, 40]


def test_a_box_without_width_is_dropped_and_counted(yolo):
    assert "1 left out, for they have no width or height" in yolo("0 .5 .5 0 .2\n1 .5 .5 .2 .2").summary()[-1]


def test_a_label_file_without_its_image(yolo, tmp_path):
    (tmp_path / "labels" / "b.txt").write_text("")
    with pytest.raises(UserError, match=r"b\.txt: there is no image b\.\* in .*images"):
        yolo("0 .5 .5 .2 .2")


def test_no_label_files_at_all(tmp_path, add_image):
    add_image("images/a.png")
    (tmp_path / "labels").mkdir()
    with pytest.raises(UserError, match=r"labels has no label files \(\.txt\)"):
        convert_yolo(tmp_path / "images", tmp_path / "labels", classes=CLASSES)
    with pytest.raises(UserError, match=r"images has no label files|no label file"):
        convert_yolo(tmp_path / "images", tmp_path / "images", classes=CLASSES)
    (tmp_path / "labels" / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"a\.txt cannot be read as text"):
        convert_yolo(tmp_path / "images", tmp_path / "labels", classes=CLASSES)


# ---- Where things are looked for ----


@pytest.fixture
def data_set(tmp_path, add_image, monkeypatch):
    """A data set in a folder `set`, in the layout of Ultralytics, worked on from beside it."""
    for split, count in (("train", 2), ("val", 1)):
        for i in range(count):
            add_image(f"set/images/{split}/{i}.jpg")
            label = tmp_path / f"set/labels/{split}/{i}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(f"{i} .5 .5 .2 .2\n")
    monkeypatch.chdir(tmp_path)

    def describe(**content):
        (tmp_path / "set/data.yaml").write_text(yaml.safe_dump({"names": ["cat", "dog"]} | content))
        return tmp_path / "set/data.yaml"

    return describe


@pytest.mark.parametrize(
    "content",
    [
        {"train": "images/train"},
        {"train": "../images/train"},
        {"train": ["images/train"]},
        {"path": ".", "train": "images/train"},
        {"path": "../somewhere/else", "train": "images/train"},
    ],
)
def test_a_yaml_file_names_images_and_classes(data_set, content):
    writer = convert_yolo(data_set(**content))
    assert writer.root.name == "train"
    assert [image.file_name for image in writer.images] == ["0.jpg", "1.jpg"]
    assert [found["name"] for found in writer.objects] == ["cat", "dog"]


def test_the_split_is_chosen(data_set):
    assert len(convert_yolo(data_set(train="images/train", val="images/val"), split="val").images) == 1
    with pytest.raises(UserError, match=r"data\.yaml names no images for 'test'\. It has: train, val"):
        convert_yolo(data_set(train="images/train", val="images/val", test=None), split="test")


def test_lists_of_folders_and_of_files(data_set, tmp_path):
    writer = convert_yolo(data_set(train=["images/train", "images/val"]))
    assert (writer.root.name, [image.file_name for image in writer.images]) == (
        "images",
        ["train/0.jpg", "train/1.jpg", "val/0.jpg"],
    )
    (tmp_path / "set/train.txt").write_text("./images/train/1.jpg\nimages/val/0.jpg\n\n")
    writer = convert_yolo(data_set(train="train.txt"))
    assert [image.file_name for image in writer.images] == ["train/1.jpg", "val/0.jpg"]
    assert [found["name"] for found in writer.objects] == ["dog", "cat"]


def test_lists_with_absolute_paths_and_images_named_twice(data_set, tmp_path):
    (tmp_path / "set/list.txt").write_text(f"{tmp_path}/set/images/val/0.jpg\nimages/train/0.jpg\n")
    data_set(train=["images/train", "list.txt"])
    writer = convert_yolo(Path("set/data.yaml"))  # named by a relative path
    assert [image.file_name for image in writer.images] == ["train/0.jpg", "train/1.jpg", "val/0.jpg"]
    assert len(writer.objects) == 3


def test_mistakes_in_the_yaml_file(data_set):
    with pytest.raises(UserError, match=r"data\.yaml: train names pictures, but there is neither"):
        convert_yolo(data_set(train="pictures"))
    with pytest.raises(UserError, match=r"keypoints \(kpt_shape\)"):
        convert_yolo(data_set(train="images/train", kpt_shape=[17, 3]))
    with pytest.raises(UserError, match="no list `names`"):
        convert_yolo(data_set(train="images/train", names=None))
    path = data_set(train="images/train")
    path.unlink()
    with pytest.raises(UserError, match=r"There is no file .*data\.yaml"):
        convert_yolo(path)


def test_an_image_that_a_list_names_and_is_not_there(data_set, tmp_path):
    (tmp_path / "set/train.txt").write_text("images/train/0.jpg\nimages/train/7.jpg\n")
    with pytest.raises(UserError, match=r"There is no image .*7\.jpg"):
        convert_yolo(data_set(train="train.txt"))


def test_labels_are_found_beside_the_folder_images_and_names_above_it(data_set, tmp_path):
    data_set()
    for images in (Path("set/images/train"), tmp_path / "set/images/train"):
        writer = convert_yolo(images)
        assert [found["name"] for found in writer.objects] == ["cat", "dog"]
        assert writer.root == images


def test_labels_may_lie_beside_the_images(tmp_path, add_image):
    """The layout of Darknet and of LabelImg: all in one folder."""
    add_image("flat/a.png")
    (tmp_path / "flat/a.txt").write_text("1 .5 .5 .2 .2")
    with pytest.raises(UserError, match=r"The classes' names are not known: .*Give --classes"):
        convert_yolo(tmp_path / "flat")
    (tmp_path / "flat/classes.txt").write_text("cat\ndog\n")
    assert [found["name"] for found in convert_yolo(tmp_path / "flat").objects] == ["dog"]


@pytest.mark.shared_data
def test_blood_cells_written_as_yolo_come_back(shared, tmp_path, read):
    with contextlib.redirect_stdout(io.StringIO()):
        before = COCO(str(next((shared / "data/bccd/annotations").glob("*val*.json"))))
    names = [category["name"] for category in before.dataset["categories"]]
    for image in before.dataset["images"]:
        objects = before.imgToAnns[image["id"]]
        size = (image["width"], image["height"])
        lines = [lines_of(a["bbox"], size, names.index(before.cats[a["category_id"]]["name"])) for a in objects]
        (tmp_path / f"{image['file_name'].rpartition('.')[0]}.txt").write_text("".join(lines))
    classes = Classes({name: number for number, name in enumerate(names, start=1)}, "as given")
    after = read(convert_yolo(shared / "data/bccd/val", tmp_path, classes=classes))
    assert len(after.anns) == len(before.anns)
    place = {image["file_name"]: image["id"] for image in before.dataset["images"]}
    for image in after.dataset["images"]:
        theirs, ours = before.imgToAnns[place[image["file_name"]]], after.imgToAnns[image["id"]]
        assert [after.cats[a["category_id"]]["name"] for a in ours] == [before.cats[a["category_id"]]["name"] for a in theirs]
        for mine, other in zip(ours, theirs, strict=True):
            assert mine["bbox"] == pytest.approx(other["bbox"], abs=2e-3)
