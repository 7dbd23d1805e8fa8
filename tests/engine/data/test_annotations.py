"""engine/data/annotations.py: faultless files against pycocotools, faulty ones named with file and entry."""

import contextlib
import io
import json
import math
import re
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO

from backbones.errors import UserError
from engine.data.annotations import Category, load_annotations
from engine.data.coco_json import read_coco_json
from engine.data.dataset import CocoDataset

# pycocotools' decode is not yet ready for NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

SQUARE = [[2, 2, 8, 2, 8, 8, 2, 8]]  # 6 x 6 pixels
HALF_RLE = {"size": [10, 20], "counts": [100, 100]}


def rows_of(table, image_id):
    place = table.image_ids.tolist().index(image_id)
    return slice(table.offsets[place], table.offsets[place + 1])


@pytest.fixture
def load(minimal, write_json):
    """A function that loads the minimal file, its only annotation changed, `None` taking a field away."""

    def change(**fields):
        annotation = minimal["annotations"][0] | fields
        minimal["annotations"][0] = {key: value for key, value in annotation.items() if value is not None}
        return load_annotations(write_json(minimal))

    return change


@pytest.fixture
def refusal(write_json):
    """A function that loads a content, and gives the message with which it is refused, which names the file."""

    def load(content):
        path = write_json(content)
        with pytest.raises(UserError) as caught:
            load_annotations(path)
        message = str(caught.value)
        assert str(path) in message
        assert "\n" not in message
        return message.replace(str(path), "FILE")

    return load


# ---- What a file says ----


def test_labels_count_from_one_in_the_order_of_sparse_ids(minimal, write_json):
    minimal["categories"] = [{"id": 90, "name": "c"}, {"id": 0, "name": "a"}, {"id": 17, "name": "b"}]
    minimal["annotations"] = [
        {"id": i, "image_id": 7, "category_id": c, "bbox": [1, 1, 2, 2]} for i, c in ((4, 90), (9, 0), (2, 17))
    ]
    table = load_annotations(write_json(minimal))
    assert table.categories == [Category(0, "a"), Category(17, "b"), Category(90, "c")]
    assert table.class_names == ["background", "a", "b", "c"]
    assert dict(zip(table.annotation_ids.tolist(), table.labels.tolist(), strict=True)) == {4: 3, 9: 1, 2: 2}


def test_columns_have_their_types(load):
    table = load(segmentation=SQUARE, area=36)
    assert {c: getattr(table, c).dtype for c in ("boxes", "areas")} == {"boxes": np.float32, "areas": np.float32}
    for column in ("image_ids", "heights", "widths", "offsets", "labels", "iscrowd", "annotation_ids"):
        assert getattr(table, column).dtype == np.int64, column
    assert len(table) == 1
    assert (table.heights[0], table.widths[0], table.file_name(0)) == (10, 20, "a.png")


def test_annotations_come_to_their_image_in_whatever_order_they_stand(minimal, write_json):
    minimal["images"] = [{"id": i, "file_name": f"{i}.png", "height": 50, "width": 50} for i in (30, 10, 20)]
    minimal["annotations"] = [
        {"id": i, "image_id": image, "category_id": 3, "bbox": [i, image, 1, 1]}
        for i, image in ((5, 20), (1, 30), (4, 10), (2, 20), (3, 30))
    ]
    table = load_annotations(write_json(minimal))
    assert table.image_ids.tolist() == [30, 10, 20]
    assert table.offsets.tolist() == [0, 2, 3, 5]
    for image_id, expected in ((30, [1, 3]), (10, [4]), (20, [5, 2])):
        rows = rows_of(table, image_id)
        assert table.annotation_ids[rows].tolist() == expected
        assert table.boxes[rows][:, :2].tolist() == [[i, image_id] for i in expected]


def test_images_without_annotations_stay(minimal, write_json):
    empty = {"file_name": "b.png", "height": 5, "width": 5}
    minimal["images"] = [{"id": 1, **empty}, *minimal["images"], {"id": 9, **empty}]
    table = load_annotations(write_json(minimal))
    assert len(table) == 3
    assert table.offsets.tolist() == [0, 0, 1, 1]


def test_a_file_without_any_annotation_has_empty_columns(minimal, write_json):
    table = load_annotations(write_json(minimal | {"annotations": []}))
    assert table.boxes.shape == (0, 4)
    assert table.offsets.tolist() == [0, 0]
    assert not table.has_masks


@pytest.mark.parametrize(("stated", "expected"), [(None, 0), (0, 0), (1, 1), (False, 0), (True, 1)])
def test_a_missing_crowd_flag_is_none(load, stated, expected):
    assert load(iscrowd=stated).iscrowd.tolist() == [expected]


def test_an_area_is_as_stated(load):
    assert load(area=2.5, segmentation=SQUARE).areas.tolist() == [2.5]


@pytest.mark.parametrize(("segmentation", "area"), [(None, 12), ([], 12), ([[1, 2, 3, 4]], 12), (SQUARE, 36), (HALF_RLE, 100)])
def test_a_missing_area_is_that_of_the_mask_or_else_of_the_box(load, segmentation, area):
    assert load(segmentation=segmentation).areas.tolist() == [area]


@pytest.mark.parametrize(("segmentation", "expected"), [(None, False), ([], False), (SQUARE, True), (HALF_RLE, True)])
def test_a_file_knows_whether_it_has_masks(load, segmentation, expected):
    assert load(segmentation=segmentation).has_masks is expected


def test_polygons_without_area_are_no_masks(load):
    assert not load(segmentation=[[]]).has_masks


@pytest.mark.parametrize(
    ("bbox", "clipped"),
    [
        ([-3, -4, 10, 10], [0, 0, 7, 6]),
        ([15, 5, 10, 10], [15, 5, 20, 10]),
        ([-9, -9, 99, 99], [0, 0, 20, 10]),
        ([0, 0, 20, 10], [0, 0, 20, 10]),
        ([18.5, 2.25, 1.5, 1], [18.5, 2.25, 20, 3.25]),
    ],
)
def test_boxes_are_clipped_to_their_image(load, bbox, clipped):
    table = load(bbox=bbox)
    assert table.boxes.tolist() == [clipped]
    assert table.num_dropped == 0


OUTSIDE = [[20, 0, 5, 5], [0, 10, 5, 5], [-5, 0, 5, 5], [0, -5, 5, 5], [30, 30, 5, 5]]
WITHOUT_SIZE = [[1, 2, 0, 4], [1, 2, 3, 0], [1, 2, 0, 0], [1, 2, -3, 4], [10, 2, 1e-9, 4]]


@pytest.mark.parametrize("bbox", [*OUTSIDE, *WITHOUT_SIZE])
def test_boxes_outside_or_without_size_are_dropped_and_counted(minimal, write_json, bbox):
    minimal["annotations"].append(minimal["annotations"][0] | {"id": 2, "bbox": bbox})
    table = load_annotations(write_json(minimal))
    assert table.annotation_ids.tolist() == [1]
    assert table.offsets.tolist() == [0, 1]
    assert len(table.labels) == len(table.areas) == len(table.iscrowd) == len(table.segmentations) == 1
    assert table.num_dropped == 1


quarters = st.integers(-120, 240).map(lambda number: number / 4)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 3), *[quarters] * 4), max_size=12))
def test_every_annotation_is_kept_or_counted(tmp_path_factory, rows):
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 20 + i, "width": 30 - i} for i in range(5)],
        "categories": [{"id": c, "name": str(c)} for c in (3, 1, 2)],
        "annotations": [
            {"id": i, "image_id": image, "category_id": category, "bbox": box} for i, (image, category, *box) in enumerate(rows)
        ],
    }
    path = tmp_path_factory.getbasetemp() / "kept_or_counted.json"
    path.write_text(json.dumps(content))
    table = load_annotations(path)
    assert len(table.boxes) + table.num_dropped == len(rows)
    assert (table.boxes[:, 2:] > table.boxes[:, :2]).all()
    image_of = np.repeat(np.arange(5), np.diff(table.offsets))
    assert (table.boxes >= 0).all()
    assert (table.boxes[:, 2] <= table.widths[image_of]).all()
    assert (table.boxes[:, 3] <= table.heights[image_of]).all()
    for row, annotation_id in enumerate(table.annotation_ids.tolist()):
        assert (image_of[row], table.labels[row]) == rows[annotation_id][:2]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_may_be_in_any_unicode(minimal, write_json, encoding):
    minimal["categories"][0]["name"] = "Möwe 鷗"
    content = json.dumps(minimal, ensure_ascii=False).encode(encoding)
    assert load_annotations(write_json(content)).class_names[1] == "Möwe 鷗"


# ---- Files that are no annotations ----


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=f"no annotation file at {re.escape(str(tmp_path / 'no.json'))}"):
        load_annotations(tmp_path / "no.json")


def test_what_is_not_json_is_named_with_line_and_column(refusal):
    assert "FILE, line 3, column 1: this is no JSON" in refusal(b'{"images":\n [1, 2\n}')
    assert "FILE, line 1, column 1" in refusal(b"")


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\x00\x00\x01", bytes(range(128, 256)), b"\x1f\x8b\x08\x00\xff"])
def test_a_binary_file_is_no_json(refusal, content):
    assert "no JSON" in refusal(content)


@pytest.mark.parametrize("content", [[1, 2], "text", 5, None, {}])
def test_another_kind_of_json_is_refused_with_what_is_expected(refusal, content):
    assert "FILE has no list 'images': a COCO instances file has images, annotations and categories" in refusal(content)


@pytest.mark.parametrize("name", ["images", "annotations", "categories"])
def test_each_missing_list_is_named(refusal, minimal, name):
    assert f"FILE has no list {name!r}" in refusal(minimal | {name: {"1": {}}})
    if name != "annotations":  # which a test set may not have
        assert f"FILE has no list {name!r}" in refusal({key: value for key, value in minimal.items() if key != name})


def test_a_test_set_has_no_annotations(tmp_path, minimal):
    path = tmp_path / "test.json"
    path.write_text(json.dumps({key: value for key, value in minimal.items() if key != "annotations"}))
    table = load_annotations(path)
    assert len(table) == len(minimal["images"])
    assert table.boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        *(("images", field) for field in ("id", "file_name", "height", "width")),
        *(("annotations", field) for field in ("id", "image_id", "category_id", "bbox")),
        *(("categories", field) for field in ("id", "name")),
    ],
)
def test_each_missing_field_is_named_with_its_entry(refusal, minimal, name, field):
    entry = minimal[name][0]
    del entry[field]
    which = f"id {entry['id']}" if "id" in entry else "number 0"
    assert refusal(minimal) == f"FILE: {name}[0] ({which}) has no {field!r}."


def test_an_entry_that_is_no_object_is_named(refusal, minimal):
    minimal["annotations"].append([1, 2])
    assert "FILE: annotations[1]" in refusal(minimal)


@pytest.mark.parametrize("name", ["images", "categories"])
def test_an_empty_list_of_images_or_categories_is_refused(refusal, minimal, name):
    assert f"FILE lists no {name}" in refusal(minimal | {name: [], "annotations": []})


@pytest.mark.parametrize(
    ("name", "field"),
    [("images", "id"), ("categories", "id"), *(("annotations", field) for field in ("id", "image_id", "category_id"))],
)
@pytest.mark.parametrize("value", ["7", 7.0, None, True, [7]])
def test_ids_are_whole_numbers(refusal, minimal, name, field, value):
    minimal[name][0][field] = value
    message = refusal(minimal)
    assert f"{name}[0]" in message
    assert f"{field} {value!r}" in message


@pytest.mark.parametrize("value", [0, -5, "10", 10.5, None])
@pytest.mark.parametrize("field", ["height", "width"])
def test_sizes_of_images_are_positive_whole_numbers(refusal, minimal, field, value):
    minimal["images"][0][field] = value
    assert re.search(r"images\[0\]|image 7", refusal(minimal))


@pytest.mark.parametrize("name", ["images", "annotations", "categories"])
def test_doubled_ids_are_named(refusal, minimal, name):
    number = minimal[name][0]["id"]
    minimal[name] += [minimal[name][0] | {"id": 1234}, dict(minimal[name][0])]
    assert refusal(minimal) == f"FILE: two of {name} have the id {number}. Ids must be unique."


def test_a_doubled_id_is_found_as_quickly_in_a_large_file(refusal, minimal):
    annotation = minimal["annotations"][0]
    minimal["annotations"] = [annotation | {"id": i} for i in [*range(20_000), 19_999]]
    began = time.process_time()
    assert "the id 19999" in refusal(minimal)
    assert time.process_time() - began < 2  # COCO has 860,000


@pytest.mark.parametrize("field", ["image_id", "category_id"])
def test_ids_that_name_nothing_are_named_with_their_annotation(refusal, minimal, field):
    minimal["annotations"][0] |= {"id": 55, field: 1234}
    message = refusal(minimal)
    assert "annotation 55" in message
    assert "1234" in message


NO_BOXES = [None, "x", {}, [], [1, 2, 3], [1, 2, 3, 4, 5], [1, 2, "3", 4], [1, 2, None, 4], [[1, 2, 3, 4]]]
NOT_FINITE = [[1, 2, math.nan, 4], [math.inf, 2, 3, 4], [1, 2, 3, -math.inf]]


@pytest.mark.parametrize("bbox", [*NO_BOXES, *NOT_FINITE], ids=lambda bbox: f"{bbox!r:.30}")
def test_malformed_boxes_are_named_with_their_annotation(refusal, minimal, bbox):
    minimal["annotations"][0] |= {"id": 55, "bbox": bbox}
    message = refusal(minimal)
    assert "annotation 55 has bbox" in message
    assert "[x, y, width, height]" in message
    assert len(message) < 250


@pytest.mark.parametrize("area", ["12", [12], math.nan, math.inf])
def test_an_area_is_a_number_of_pixels(refusal, minimal, area):
    minimal["annotations"][0] |= {"id": 55, "area": area}
    assert "annotation 55 has area" in refusal(minimal)


@pytest.mark.parametrize("crowd", ["0", "false"])
def test_a_crowd_flag_is_0_or_1(refusal, minimal, crowd):
    minimal["annotations"][0] |= {"id": 55, "iscrowd": crowd}
    assert "annotation 55 has iscrowd" in refusal(minimal)


@pytest.mark.parametrize("segmentation", [5, "abc", {"size": [10, 20]}, {"counts": [200]}])
def test_malformed_segmentations_are_named_with_their_annotation(refusal, minimal, segmentation):
    minimal["annotations"][0] |= {"id": 55, "segmentation": segmentation}
    assert "annotation 55 has" in refusal(minimal)


@pytest.mark.parametrize(
    "segmentation",
    [[[1, 2, 3, 4, 5]], [["a"] * 6], {"size": [20, 10], "counts": [200]}, {"size": [10, 20], "counts": [199]}],
)
def test_malformed_masks_are_named_where_their_area_is_needed(refusal, minimal, segmentation):
    minimal["annotations"][0] |= {"id": 55, "segmentation": segmentation}
    assert "annotation 55: " in refusal(minimal)


def test_a_garbled_mask_gives_no_area(refusal, minimal):
    minimal["annotations"][0] |= {"id": 55, "segmentation": {"size": [10, 20], "counts": "hello world!!"}}
    assert "annotation 55: " in refusal(minimal)


def test_reading_alone_gives_the_content_as_it_is(minimal, write_json):
    minimal["info"] = {"year": 2017}
    assert read_coco_json(write_json(minimal)) == minimal


# ---- Real data, against pycocotools ----

SETS = [
    ("coco_cc_by", "instances_train"),
    ("coco_cc_by", "instances_val"),
    ("dsb2018_small", "instances_val"),
    ("bccd", "instances_train"),
]


@pytest.mark.shared_data
@pytest.mark.parametrize(("folder", "name"), SETS)
def test_real_data_is_read_as_pycocotools_reads_it(shared, folder, name):
    path = next((shared / "data" / folder / "annotations").glob(f"{name}*.json"))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
    table = load_annotations(path)
    assert table.num_dropped == 0
    assert table.image_ids.tolist() == list(coco.imgs)
    assert [c.id for c in table.categories] == sorted(coco.cats)
    assert [c.name for c in table.categories] == [coco.cats[i]["name"] for i in sorted(coco.cats)]
    assert sorted(table.annotation_ids.tolist()) == sorted(coco.anns)
    dataset = CocoDataset(path.parent, table)
    for place, image_id in enumerate(coco.imgs):
        rows = slice(table.offsets[place], table.offsets[place + 1])
        expected = coco.imgToAnns[image_id]
        assert table.annotation_ids[rows].tolist() == [a["id"] for a in expected]
        assert [table.categories[label - 1].id for label in table.labels[rows]] == [a["category_id"] for a in expected]
        assert table.iscrowd[rows].tolist() == [a["iscrowd"] for a in expected]
        np.testing.assert_allclose(table.areas[rows], [a["area"] for a in expected], rtol=1e-6)
        boxes = np.array([a["bbox"] for a in expected]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        image = coco.imgs[image_id]
        boxes = boxes.clip(0, [image["width"], image["height"]] * 2)
        np.testing.assert_allclose(table.boxes[rows], boxes, atol=1e-4)
        dataset.with_masks = table.has_masks and place % 10 == 0
        if dataset.with_masks and expected:
            masks = np.array([coco.annToMask(a) for a in expected])
            visible = masks.any(axis=(1, 2))
            np.testing.assert_array_equal(dataset.instances(place)["masks"], masks[visible])
