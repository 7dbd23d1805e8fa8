"""engine/segmentation/sources.py: label maps read, and instances painted as pycocotools' masks say."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_api

from backbones.errors import UserError
from engine.data.annotations import Category, load_annotations
from engine.segmentation.classes import label_classes
from engine.segmentation.sources import LabelMapFiles, PaintedInstances

# pycocotools warns of its own use of numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

CATEGORIES = [{"id": 9, "name": "cup"}, {"id": 4, "name": "table"}, {"id": 70, "name": "cat"}]
IGNORED = 255


def rle(mask):
    encoded = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def box_mask(box, height, width):
    left, top, w, h = box
    mask = np.zeros((height, width), bool)
    mask[top : top + h, left : left + w] = True
    return mask


@pytest.fixture
def painted(tmp_path):
    """A function from rows of (category id, box, more fields) to the painted map of one image of 40 x 30 pixels."""

    def paint(rows, *, keep=None, categories=CATEGORIES):
        height, width = 30, 40
        annotations = []
        for i, (category_id, box, more) in enumerate(rows):
            annotation = {"id": i, "image_id": 3, "category_id": category_id, "bbox": box, "iscrowd": 0}
            mask = box_mask([int(side) for side in box], height, width)
            annotations.append(annotation | {"segmentation": rle(mask)} | more)
        content = {
            "images": [{"id": 3, "file_name": "a.png", "height": height, "width": width}],
            "annotations": annotations,
            "categories": categories,
        }
        (tmp_path / "a.json").write_text(json.dumps(content))
        Image.new("RGB", (width, height)).save(tmp_path / "a.png")
        table = load_annotations(tmp_path / "a.json")
        kept = None if keep is None else [c for name in keep for c in table.categories if c.name == name]
        return PaintedInstances(tmp_path, table, keep=kept)

    return paint


def ids(source):
    return [(category.id, category.name) for category in source.categories]


# ---- Instances ----


def test_labels_are_the_background_and_the_categories_by_id(painted):
    source = painted([(9, [0, 0, 5, 5], {}), (4, [10, 10, 6, 6], {})])
    assert ids(source) == [(0, "background"), (4, "table"), (9, "cup"), (70, "cat")]
    labels = source.read_labels(0)
    assert (labels.shape, labels.dtype) == ((30, 40), np.uint8)
    assert (labels[:5, :5] == 2).all()
    assert (labels[10:16, 10:16] == 1).all()
    assert (labels > 0).sum() == 25 + 36


@pytest.mark.parametrize("order", [1, -1])
def test_smaller_objects_lie_on_larger_ones(painted, order):
    rows = [(4, [0, 0, 30, 20], {}), (9, [5, 5, 4, 4], {}), (70, [7, 7, 10, 10], {})]
    labels = painted(rows[::order]).read_labels(0)
    assert (labels[5:9, 5:9] == 2).all()
    assert (labels[9:17, 9:17] == 3).all()
    assert (labels == 1).sum() == 600 - 16 - 100 + 4


def test_a_crowd_is_no_example_but_where_an_object_is(painted):
    rows = [(9, [2, 2, 3, 3], {}), (9, [0, 0, 20, 20], {"iscrowd": 1})]
    labels = painted(rows).read_labels(0)
    assert (labels[2:5, 2:5] == 2).all()
    assert (labels == IGNORED).sum() == 400 - 9
    assert (labels[20:] == 0).all()


def test_the_box_of_an_object_without_a_mask_is_no_example(painted):
    labels = painted([(9, [2.5, 2, 3, 3], {"segmentation": []}), (4, [4, 4, 20, 20], {})]).read_labels(0)
    assert (labels[2:4, 2:6] == IGNORED).all()
    assert (labels[4:24, 4:24] == 1).all()
    assert (labels == IGNORED).sum() == 3 * 4 - 2


def test_categories_that_are_not_kept_are_background_even_where_they_hide_what_is(painted):
    """As if all were painted and theirs then made background."""
    rows = [
        (4, [0, 0, 30, 20], {}),
        (9, [5, 5, 4, 4], {}),
        (9, [20, 10, 20, 20], {"iscrowd": 1}),
        (9, [32, 0, 5, 5], {"segmentation": []}),
        (70, [7, 7, 10, 10], {}),
    ]
    every, source = painted(rows), painted(rows, keep=["cat", "table"])
    assert ids(source) == [(0, "background"), (70, "cat"), (4, "table")]
    assert source.notes == ["1 of 3 categories are background"]
    expected = every.read_labels(0)
    crowd, box = slice(20, 30), expected[:5, 32:37]
    assert (box == IGNORED).all()
    wanted = np.select([expected == 1, expected == 3], [2, 1], 0)
    assert np.array_equal(source.read_labels(0), wanted)
    assert (source.read_labels(0)[crowd, 20:] == 0).all()


def test_a_category_0_leaves_the_background_another_id(painted):
    source = painted([(0, [0, 0, 5, 5], {})], categories=[{"id": 0, "name": "cell"}, {"id": 7, "name": "other"}])
    assert ids(source) == [(8, "background"), (0, "cell"), (7, "other")]
    assert "the background has the id 8" in source.notes[0]
    assert source.read_labels(0)[0, 0] == 1


def test_more_than_255_classes_take_16_bits(painted):
    categories = [{"id": i, "name": f"c{i}"} for i in range(1, 400)]
    source = painted([(399, [0, 0, 5, 5], {}), (1, [10, 0, 5, 5], {"iscrowd": 1})], categories=categories)
    labels = source.read_labels(0)
    assert labels.dtype == np.uint16
    assert (labels[0, 0], labels[0, 10], source.ignored) == (399, 65535, 65535)


def test_a_broken_mask_is_named(painted):
    source = painted([(9, [0, 0, 5, 5], {}), (4, [0, 0, 5, 5], {"segmentation": {"size": [30, 40], "counts": "02"}})])
    with pytest.raises(UserError, match=r"a\.json: annotation 1: the RLE's counts add up to"):
        source.read_labels(0)


def test_random_instances_are_painted_as_pycocotools_masks_by_size(painted):
    rng = np.random.default_rng(5)
    rows = []
    for _ in range(25):
        left, top = int(rng.integers(0, 30)), int(rng.integers(0, 20))
        mask = box_mask([left, top, int(rng.integers(1, 10)), int(rng.integers(1, 10))], 30, 40) & (rng.random((30, 40)) < 0.8)
        mask[top, left] = True
        rows.append(
            (int(rng.choice([4, 9, 70])), [left, top, 10, 10], {"segmentation": rle(mask), "iscrowd": int(rng.random() < 0.2)})
        )
    expected = np.zeros((30, 40), int)
    label_of = {4: 1, 9: 2, 70: 3}
    decoded = [(category, mask_api.decode(more["segmentation"]), more["iscrowd"]) for category, _, more in rows]
    for _, mask, crowd in decoded:
        expected[(mask > 0) & (crowd == 1)] = IGNORED
    for category, mask, crowd in sorted(decoded, key=lambda row: -int(row[1].sum())):
        expected[(mask > 0) & (crowd == 0)] = label_of[category]
    assert np.array_equal(painted(rows).read_labels(0), expected)


def test_an_image_of_another_size_than_stated_is_named(painted, tmp_path):
    source = painted([(9, [0, 0, 5, 5], {})])
    Image.new("RGB", (7, 5)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png is 7 x 5 pixels, but image 3 in .*a\.json is 40 x 30"):
        source.read(0)
    assert source.sizes().tolist() == [[30, 40]]


@pytest.mark.shared_data
def test_real_instances_are_painted_whole(shared):
    folder = shared / "data" / "coco_cc_by"
    source = PaintedInstances(folder / "val", load_annotations(folder / "annotations" / "instances_val.json"))
    assert len(source.categories) == 81
    seen = np.zeros(256, int)
    for index in range(len(source)):
        seen += np.bincount(source.read(index)[1].ravel(), minlength=256)
    assert (seen[1:81] > 0).sum() >= 55
    assert seen[IGNORED] > 0
    assert seen[81:255].sum() == 0


# ---- Files ----


@pytest.fixture
def files(tmp_path):
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    Image.fromarray(np.array([[0, 1, 2, 255, 0, 0]] * 4, np.uint8)).save(tmp_path / "m.png")
    classes = label_classes({0: "background", 1: "x", 2: "y"}, {255})
    return LabelMapFiles([(tmp_path / "a.png", tmp_path / "m.png")], folder=tmp_path, classes=classes)


def test_a_map_is_read_with_its_image(files):
    image, labels = files.read(0)
    assert image.shape == (4, 6, 3)
    assert labels[0].tolist() == [0, 1, 2, 255, 0, 0]
    assert files.categories[2] == Category(2, "y")
    assert (files.image_ids, files.sizes().tolist(), len(files)) == ([1], [[4, 6]], 1)


def test_a_map_of_another_size_than_its_image_is_named(files):
    Image.new("RGB", (6, 5)).save(files.image_paths[0])
    with pytest.raises(
        UserError, match=r"a\.png is 6 x 5 pixels, but its label map .*m\.png is 6 x 4\. .*put one of them right"
    ):
        files.read(0)


def test_a_value_without_a_name_is_named(files):
    Image.fromarray(np.full((4, 6), 7, np.uint8)).save(files.label_paths[0])
    with pytest.raises(UserError, match=r"m\.png has the value 7"):
        files.read(0)


def test_sizes_of_broken_images_are_left_to_the_reader(files):
    Path(files.image_paths[0]).write_bytes(b"no image")
    assert files.sizes().tolist() == [[0, 0]]
    with pytest.raises(UserError, match=r"a\.png cannot be read"):
        files.read(0)
