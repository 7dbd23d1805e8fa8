"""engine/data/converters/labelme.py: shapes against what scikit-image draws, groups, and mistakes by file and shape."""

import json

import numpy as np
import pytest
from skimage.draw import disk, polygon2mask

from backbones.errors import UserError
from engine.data.annotations import load_annotations
from engine.data.converters.classes import Classes
from engine.data.converters.labelme import convert_labelme

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

SQUARE = [[10, 5], [30, 5], [30, 25], [10, 25]]


def shape(label="cat", points=SQUARE, kind="polygon", **more):
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}, **more}


@pytest.fixture
def labelme(tmp_path, add_image):
    """A function that writes `photos/a.jpg` and the shapes of `photos/a.json`, and converts them."""
    add_image("photos/a.jpg")

    def convert(*shapes, text=None, fields=(), **options):
        content = {"version": "5.4.1", "imagePath": "a.jpg", "imageWidth": 60, "imageHeight": 40, "imageData": None}
        content |= {"shapes": list(shapes), **dict(fields)}
        (tmp_path / "photos/a.json").write_text(json.dumps(content) if text is None else text)
        return convert_labelme(tmp_path / "photos", **options)

    return convert


def overlap(ours, theirs):
    return (ours & theirs).sum() / (ours | theirs).sum()


def test_polygons_rectangles_and_circles(labelme, read, tmp_path):
    points = [[5.5, 3.2], [40.1, 8.7], [33.0, 35.9], [12.4, 30.3]]
    coco = read(
        labelme(
            shape("a", points),
            shape("b", [[30, 25], [10, 5]], "rectangle"),
            shape("b", SQUARE, "rectangle"),
            shape("c", [[30, 20], [42, 20]], "circle"),
        )
    )
    masks = [coco.annToMask(annotation).astype(bool) for annotation in coco.dataset["annotations"]]
    drawn = polygon2mask((40, 60), [[y - 0.5, x - 0.5] for x, y in points])
    assert overlap(masks[0], drawn) > 0.97
    square = np.zeros((40, 60), bool)
    square[5:25, 10:30] = True
    assert (masks[1] == square).all()
    assert (masks[2] == square).all()
    circle = np.zeros((40, 60), bool)
    circle[disk((19.5, 29.5), 12, shape=(40, 60))] = True
    assert overlap(masks[3], circle) > 0.97
    boxes = [annotation["bbox"] for annotation in coco.dataset["annotations"]]
    assert boxes[0] == pytest.approx([5.5, 3.2, 34.6, 32.7])
    assert boxes[1] == boxes[2] == [10, 5, 20, 20]
    assert boxes[3] == pytest.approx([18, 8, 24, 24], abs=0.3)
    assert [annotation["area"] for annotation in coco.dataset["annotations"]] == [mask.sum() for mask in masks]
    table = load_annotations(tmp_path / "written/coco.json")
    assert table.class_names == ["background", "a", "b", "c"]
    assert table.labels.tolist() == [1, 2, 2, 3]


@pytest.mark.parametrize("radius", [0.6, 3, 100])
def test_a_circle_stays_within_a_tenth_of_a_pixel(radius):
    from engine.data.converters.labelme import _circle

    corners = np.array(_circle(50, 50, radius)).reshape(-1, 2)
    assert np.hypot(*(corners - 50).T) == pytest.approx(radius)
    middles = (corners + np.roll(corners, 1, axis=0)) / 2
    assert np.hypot(*(middles - 50).T).min() >= radius - 0.1


def test_shapes_of_a_group_are_one_object_in_pieces(labelme, read):
    other = [[40, 30], [50, 30], [50, 38], [40, 38]]
    coco = read(labelme(shape(group_id=1), shape(points=other, group_id=1), shape("dog", group_id=1), shape(), shape()))
    annotations = coco.dataset["annotations"]
    assert [coco.cats[annotation["category_id"]]["name"] for annotation in annotations] == ["cat", "dog", "cat", "cat"]
    assert annotations[0]["bbox"] == [10, 5, 40, 33]
    assert annotations[0]["area"] == 20 * 20 + 10 * 8 == coco.annToMask(annotations[0]).sum()


def test_other_shapes_and_degenerate_ones_are_left_out_and_counted(labelme):
    writer = labelme(
        shape(),
        shape(points=[[1, 1]], kind="point"),
        shape(points=[[1, 1], [5, 5]], kind="line"),
        shape(points=[[2, 2]], kind="point"),
        shape(points=[[1, 1], [5, 5]]),
        shape(points=[[9, 9], [9, 9]], kind="circle"),
        shape(points=[[70, 9], [80, 19]], kind="rectangle"),
    )
    assert len(writer.objects) == 1
    lines = writer.summary()[2:]
    assert [line.partition(" (first")[0] for line in lines] == [
        "2 shapes of the type 'point' left out",
        "1 shapes of the type 'line' left out",
        "1 left out, for their polygon has fewer than three points",
        "2 left out, for they have no width or height within their image",
    ]
    assert "a.json: shapes[1]" in lines[0]


def test_files_of_old_versions_say_less(labelme):
    old = {"label": "cat", "points": SQUARE, "line_color": None}
    writer = labelme(text=json.dumps({"shapes": [old], "imagePath": "..\\somewhere\\a.jpg", "imageData": "aGk="}))
    assert len(writer.objects) == 1


def test_images_without_a_json_file(labelme, add_image):
    add_image("photos/b.jpg")
    assert len(labelme(shape()).images) == 1
    assert "1 images left out, for they have no JSON file" in labelme(shape()).summary()[-1]
    assert len(labelme(shape(), keep_unlabelled=True).images) == 2


def test_labels_in_a_folder_of_their_own_and_the_output_among_them(tmp_path, add_image, labelme):
    labelme(shape()).write(tmp_path / "photos/coco.json")
    assert len(convert_labelme(tmp_path / "photos", output=tmp_path / "photos/coco.json").objects) == 1
    with pytest.raises(UserError, match=r"coco\.json is no LabelMe file: it has no list `shapes`"):
        convert_labelme(tmp_path / "photos")
    (tmp_path / "labels").mkdir()
    (tmp_path / "photos/a.json").rename(tmp_path / "labels/a.json")
    assert len(convert_labelme(tmp_path / "photos", tmp_path / "labels").objects) == 1


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([shape(), "square"], r"a\.json: shapes\[1\] is no shape but 'square'"),
        ([shape(label="")], r"shapes\[0\] has no label"),
        ([shape(label=3)], r"shapes\[0\] has no label"),
        ([shape(points=[[1, 2], [3]])], r"shapes\[0\]: its points must be pairs of numbers"),
        ([shape(points=[[1, 2], [3, "x"]])], "pairs of numbers"),
        ([shape(points=[[1, 2], [3, float("nan")]])], "pairs of numbers"),
        ([shape(points=None)], "pairs of numbers"),
        ([shape(points=[[1, 2]], kind="circle")], r"shapes\[0\] is a circle of 1 points; it should have 2"),
        ([shape(points=SQUARE[:3], kind="rectangle")], "is a rectangle of 3 points"),
    ],
)
def test_mistakes_name_file_and_shape(labelme, shapes, message):
    with pytest.raises(UserError, match=message):
        labelme(*shapes)


def test_a_class_that_is_not_in_the_list(labelme):
    classes = Classes({"cat": 1, "dog": 2}, "as given")
    with pytest.raises(UserError, match=r"a\.json: shapes\[1\]: the class 'dgo' is not in the list .* Did you mean 'dog'"):
        labelme(shape(), shape("dgo"), classes=classes)
    assert len(labelme(shape(" dog "), classes=classes).objects) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"shapes": [\n1,\n', r"a\.json, line 3, column 1: this is no JSON"),
        ("[]", "is no LabelMe file"),
        ('{"shapes": {}}', "is no LabelMe file"),
        ("[" * 100_000, r"a\.json cannot be read as JSON"),
    ],
)
def test_files_that_are_malformed(labelme, text, message):
    with pytest.raises(UserError, match=message):
        labelme(text=text)


def test_an_image_of_another_size_or_none(labelme, tmp_path):
    with pytest.raises(UserError, match=r"a\.json is for 61 x 40 pixels, but .*a\.jpg has 60 x 40"):
        labelme(shape(), fields={"imageWidth": 61})
    (tmp_path / "photos/b.json").write_text(json.dumps({"shapes": [], "imagePath": "gone.png"}))
    with pytest.raises(UserError, match=r"b\.json: there is no image b\.\* in .*photos, nor gone\.png, which it states"):
        labelme(shape())
    (tmp_path / "photos/b.json").write_text(json.dumps({"shapes": [], "imagePath": "a.jpg"}))
    with pytest.raises(UserError, match="are both of the image"):
        labelme(shape())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty has no JSON files"):
        convert_labelme(tmp_path / "empty")
