"""engine/data/converters/voc.py: VOC's pixels, names, sizes and difficult objects, and every mistake with its line."""

import contextlib
import io

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from backbones.errors import UserError
from engine.data.annotations import load_annotations
from engine.data.converters.classes import Classes
from engine.data.converters.voc import convert_voc


def voc_object(name="cat", box=(11, 6, 30, 25), *, more=""):
    """An object on one line."""
    tags = "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name>{more}<bndbox>{tags}</bndbox></object>"


def voc_file(*objects, size=(60, 40), file_name="a.jpg"):
    """An annotation: line 2 states the file, line 3 the size, objects begin in line 4."""
    stated = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>" if size else ""
    return "\n".join(["<annotation>", f"<filename>{file_name}</filename>", stated, *objects, "</annotation>"])


@pytest.fixture
def voc(tmp_path, add_image):
    """A function that writes `a.jpg` and the texts given as XML files, and converts them."""
    add_image("JPEGImages/a.jpg")
    (tmp_path / "Annotations").mkdir()

    def convert(*objects, text=None, files=None, **options):
        for name, content in (files or {"a.xml": text if text is not None else voc_file(*objects)}).items():
            (tmp_path / "Annotations" / name).write_text(content)
        return convert_voc(tmp_path / "JPEGImages", tmp_path / "Annotations", **options)

    return convert


def boxes(coco):
    return [annotation["bbox"] for annotation in coco.dataset["annotations"]]


def test_first_and_last_pixel_from_1_become_a_box_from_0(voc, read, tmp_path):
    picture = Image.new("L", (60, 40))
    ImageDraw.Draw(picture).rectangle((10, 5, 29, 24), fill=255)  # Pillow's last pixel is drawn, too
    rows, columns = np.nonzero(np.asarray(picture))
    coco = read(voc(voc_object(box=(columns.min() + 1, rows.min() + 1, columns.max() + 1, rows.max() + 1))))
    assert boxes(coco) == [[10, 5, 20, 20]]
    assert coco.dataset["annotations"][0]["area"] == (np.asarray(picture) > 0).sum()
    table = load_annotations(tmp_path / "written" / "coco.json")
    assert table.boxes.tolist() == [[10, 5, 30, 25]]


def test_the_whole_image_is_one_box(voc, read):
    assert boxes(read(voc(voc_object(box=(1, 1, 60, 40))))) == [[0, 0, 60, 40]]


def test_coordinates_from_0_are_taken_as_they_are(voc, read):
    assert boxes(read(voc(voc_object(box=(10, 5, 30, 25)), zero_based=True))) == [[10, 5, 20, 20]]


def test_a_box_before_pixel_1_gives_a_hint(voc):
    writer = voc(voc_object(box=(0, 0, 30, 25)))
    assert "begin before pixel 1, which VOC counts from: if a tool counted from 0 (LabelImg), convert with --zero-based" in (
        "".join(writer.summary())
    )
    assert "--zero-based" not in "".join(voc(voc_object(box=(0, 0, 30, 25)), zero_based=True).summary())


def test_parts_of_an_object_are_not_the_object(voc, read):
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    coco = read(voc(voc_object("person", (11.4, 6, 30.9, 25), more=part)))
    assert boxes(coco) == [[10.4, 5, 20.5, 20]]
    assert coco.dataset["categories"] == [{"id": 1, "name": "person"}]


@pytest.mark.parametrize(("difficult", "crowds"), [("crowd", [0, 1]), ("keep", [0, 0]), ("drop", [0])])
def test_difficult_objects(voc, read, difficult, crowds):
    hard = voc_object(box=(31, 6, 40, 25), more="<difficult>1</difficult>")
    writer = voc(voc_object(more="<difficult>0</difficult>"), hard, difficult=difficult)
    assert [annotation["iscrowd"] for annotation in read(writer).dataset["annotations"]] == crowds
    assert writer.summary()[-1].startswith("1 difficult objects ")
    assert "line 5" in writer.summary()[-1]


def test_by_default_neither_finding_nor_missing_a_difficult_object_counts(voc, read):
    """As in VOC's own scoring."""
    coco = read(voc(voc_object(), voc_object(box=(31, 6, 50, 25), more="<difficult>1</difficult>")))
    sure = {"image_id": 1, "category_id": 1, "bbox": [10, 5, 20, 20], "score": 0.5}
    hard = {"image_id": 1, "category_id": 1, "bbox": [30, 5, 20, 20], "score": 0.9}
    for results in ([sure], [sure, hard]):
        assert average_precision(coco, results) == pytest.approx(1)
    kept = read(voc(voc_object(), voc_object(box=(31, 6, 50, 25), more="<difficult>1</difficult>"), difficult="keep"))
    assert average_precision(kept, [sure]) < 0.6


def average_precision(coco: COCO, results) -> float:
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[0]


def test_classes_in_the_order_given(voc, read):
    writer = voc(voc_object("cat"), voc_object("dog"), classes=Classes({"dog": 7, "cat": 9, "cow": 11}, "as given"))
    coco = read(writer)
    assert [annotation["category_id"] for annotation in coco.dataset["annotations"]] == [9, 7]
    assert [category["id"] for category in coco.dataset["categories"]] == [7, 9, 11]
    with pytest.raises(UserError, match=r"a\.xml, line 5: the class 'cow' is not in the list"):
        voc(voc_object("cat"), voc_object("cow"), classes=Classes({"cat": 1}, "as given"))


def test_the_image_is_found_by_the_xmls_name_or_by_the_one_it_states(voc, add_image, tmp_path, read):
    add_image("JPEGImages/sub/b.png", (30, 20))
    add_image("JPEGImages/c.JPG", (20, 30))
    (tmp_path / "Annotations" / "other").mkdir()
    files = {
        "a.xml": voc_file(voc_object(), file_name="stale name.jpg"),
        "other/b.xml": voc_file(size=(30, 20), file_name=""),
        "renamed.xml": voc_file(size=(0, 0), file_name="C:\\photos\\c.JPG"),
    }
    coco = read(voc(files=files))
    assert [image["file_name"] for image in coco.dataset["images"]] == ["a.jpg", "sub/b.png", "c.JPG"]
    assert [coco.imgs[i]["width"] for i in (1, 2, 3)] == [60, 30, 20]


def test_of_two_images_of_one_name_the_stated_one_is_meant(voc, add_image, read):
    add_image("JPEGImages/a.png")
    (image,) = read(voc(voc_object())).dataset["images"]
    assert image["file_name"] == "a.jpg"
    with pytest.raises(UserError, match=r"may be of .*a\.jpg or of .*a\.png"):
        voc(text=voc_file(voc_object(), file_name="a"))


def test_images_without_an_xml_file_are_counted_and_kept_if_asked(voc, add_image):
    path = add_image("JPEGImages/b.jpg")
    writer = voc(voc_object())
    assert len(writer.images) == 1
    assert writer.summary()[-1] == f"1 images left out, for they have no XML file (first: {path})"
    assert len(voc(voc_object(), keep_unlabelled=True).images) == 2


def test_a_list_chooses(voc, add_image, tmp_path):
    for name in ("b", "c d"):
        add_image(f"JPEGImages/{name}.jpg")
    files = {f"{name}.xml": voc_file(voc_object(), file_name=f"{name}.jpg") for name in ("a", "b", "c d")}
    listed = tmp_path / "train.txt"
    listed.write_text("b  1\nc d\n\nb -1\n")
    assert [image.file_name for image in voc(files=files, listed=listed).images] == ["b.jpg", "c d.jpg"]
    listed.write_text("a\nz\n")
    with pytest.raises(UserError, match=r"train\.txt, line 2: there is no XML file named z\.xml"):
        voc(files=files, listed=listed)
    listed.write_text("\n")
    with pytest.raises(UserError, match=r"train\.txt is empty"):
        voc(files=files, listed=listed)
    with pytest.raises(UserError, match="cannot be read"):
        voc(files=files, listed=tmp_path / "none.txt")


NO_NAME = "<object><bndbox/></object>"
NO_BOX = "<object><name>cat</name></object>"
NO_XMAX = "<object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin></bndbox></object>"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (voc_file(NO_NAME), r"a\.xml, line 4: this object has no <name>"),
        (voc_file(NO_BOX), r"a\.xml, line 4: this object has no <bndbox>"),
        (voc_file(NO_XMAX), r"a\.xml, line 4: <bndbox> has no <xmax>"),
        (voc_file(voc_object(), voc_object(box=(1, 2, "x", 4))), r"a\.xml, line 5: <xmax> is 'x', which is no number"),
        (voc_file(voc_object(box=(1, 2, "nan", 4))), r"line 4: <xmax> is 'nan'"),
        (voc_file(voc_object(more="<difficult>maybe</difficult>")), r"line 4: <difficult> is 'maybe'"),
        (voc_file(voc_object(), size=(40, 60)), r"a\.xml, line 3 is for 40 x 60 pixels, but .*a\.jpg has 60 x 40.*\(EXIF\)"),
        (voc_file(voc_object(), size=(61, 40)), r"line 3 is for 61 x 40 pixels, but .* has 60 x 40\. .* put the size right\.$"),
        (voc_file(voc_object(), size=("", 40)), r"line 3: <width> is ''"),
        ("<svg/>", r"a\.xml, line 1: this is no VOC file: it holds <svg>"),
        ("<annotation>", r"a\.xml, line 1, column 13: this is no XML"),
        ("<!DOCTYPE x><annotation/>", "DOCTYPE"),
    ],
)
def test_mistakes_name_file_and_line(voc, text, message):
    with pytest.raises(UserError, match=message):
        voc(text=text)


def test_an_xml_file_without_its_image_and_two_of_one_image(voc, tmp_path):
    with pytest.raises(UserError, match=r"b\.xml: there is no image b\.\* in .*JPEGImages, nor gone\.jpg, which it states"):
        voc(files={"a.xml": voc_file(), "b.xml": voc_file(file_name="gone.jpg")})
    with pytest.raises(UserError, match=r"b\.xml and .*a\.xml are both of the image .*a\.jpg"):
        voc(files={"b.xml": voc_file(file_name="a.jpg")})


def test_folders_that_are_empty_or_not_there(tmp_path, add_image):
    add_image("images/a.jpg")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"The folder .*empty has no XML files \(\.xml\)"):
        convert_voc(tmp_path / "images", tmp_path / "empty")
    with pytest.raises(UserError, match=r"There is no folder .*nowhere of XML files"):
        convert_voc(tmp_path / "images", tmp_path / "nowhere")
    (tmp_path / "empty" / "._a.xml").write_text("of a Mac")
    (tmp_path / "empty" / "a.xml").write_text(voc_file())
    with pytest.raises(UserError, match=r"The folder .*empty has no images"):
        convert_voc(tmp_path / "empty", tmp_path / "empty")


def test_nothing_is_left_to_write(voc, tmp_path):
    writer = voc(voc_object(box=(70, 5, 90, 25)))
    with pytest.raises(UserError, match=r"no object is left .* 1 left out, for they have no width or height"):
        writer.write(tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


@pytest.mark.shared_data
@pytest.mark.parametrize("zero_based", [True, False])
def test_blood_cells_written_as_voc_come_back(shared, tmp_path, read, zero_based):
    """Real photographs: their boxes, written as VOC's XML by ElementTree, and read again."""
    from xml.etree import ElementTree

    with contextlib.redirect_stdout(io.StringIO()):
        before = COCO(str(next((shared / "data/bccd/annotations").glob("*val*.json"))))
    (tmp_path / "xml").mkdir()
    for image in before.dataset["images"]:
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "filename").text = image["file_name"]
        size = ElementTree.SubElement(root, "size")
        for side in ("width", "height"):
            ElementTree.SubElement(size, side).text = str(image[side])
        for annotation in before.imgToAnns[image["id"]]:
            element = ElementTree.SubElement(root, "object")
            ElementTree.SubElement(element, "name").text = before.cats[annotation["category_id"]]["name"]
            x, y, w, h = annotation["bbox"]
            first = 0 if zero_based else 1
            box = ElementTree.SubElement(element, "bndbox")
            for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), (x + first, y + first, x + w, y + h), strict=True):
                ElementTree.SubElement(box, tag).text = str(value)
        ElementTree.ElementTree(root).write(tmp_path / "xml" / f"{image['file_name'].rpartition('.')[0]}.xml")
    after = read(convert_voc(shared / "data/bccd/val", tmp_path / "xml", zero_based=zero_based))
    assert by_image(after) == by_image(before)
    assert len(after.anns) == 1137


def by_image(coco):
    """Each image's (class name, box), by file name."""
    return {
        image["file_name"]: sorted((coco.cats[a["category_id"]]["name"], a["bbox"]) for a in coco.imgToAnns[image["id"]])
        for image in coco.dataset["images"]
    }
