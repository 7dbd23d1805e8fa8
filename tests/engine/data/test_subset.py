"""engine/data/subset.py: some classes of a file are what a file of these classes alone would be."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backbones.errors import UserError
from engine.data.annotations import load_annotations
from engine.data.subset import select

COLUMNS = ("image_ids", "heights", "widths", "offsets", "boxes", "labels", "areas", "iscrowd", "annotation_ids", "keypoints")
CATEGORIES = [
    {"id": 9, "name": "cat", "keypoints": ["nose", "tail"]},
    {"id": 2, "name": "dog", "keypoints": ["nose", "left ear", "right ear"]},
    {"id": 5, "name": "stone"},
]


@st.composite
def contents(draw):
    """The content of an annotation file of three classes; crowd regions and images without objects are among it."""
    num_images = draw(st.integers(1, 5))
    images = [{"id": 10 * i + 3, "file_name": f"f/{i} é.png", "height": 20, "width": 30} for i in range(num_images)]
    annotations = []
    for number in range(draw(st.integers(0, 10))):
        category = draw(st.sampled_from(CATEGORIES))
        row = {
            "id": number, "image_id": draw(st.sampled_from(images))["id"], "category_id": category["id"],
            "bbox": [number, 1, 5, 6], "iscrowd": draw(st.integers(0, 1)), "area": 30 + number,
            "segmentation": draw(st.sampled_from([[], [[1, 1, 6, 1, 6, 7.25]]])),
            "keypoints": [number + 1, 2, 2] * len(category.get("keypoints", [])),
        }  # fmt: skip
        annotations.append(row)
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def load(content, folder):
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return load_annotations(path)


def assert_alike(one, other):
    assert one.categories == other.categories
    assert one.has_masks == other.has_masks
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
        assert getattr(one, name).dtype == getattr(other, name).dtype, name
    assert [one.file_name(i) for i in range(len(one))] == [other.file_name(i) for i in range(len(other))]
    rows = range(len(one.boxes))
    assert [one.segmentation(row) for row in rows] == [other.segmentation(row) for row in rows]
    np.testing.assert_array_equal(one.mirrored_keypoints, other.mirrored_keypoints)


@given(content=contents(), classes=st.sets(st.sampled_from(["cat", "dog", "stone"]), min_size=1), drop_empty=st.booleans())
def test_it_is_what_a_file_of_those_classes_would_be(tmp_path_factory, content, classes, drop_empty):
    folder = tmp_path_factory.getbasetemp()
    subset = select(load(content, folder), classes=sorted(classes), drop_empty=drop_empty)
    ids = {category["id"] for category in CATEGORIES if category["name"] in classes}
    content["categories"] = [category for category in CATEGORIES if category["id"] in ids]
    content["annotations"] = [row for row in content["annotations"] if row["category_id"] in ids]
    if drop_empty:
        filled = {row["image_id"] for row in content["annotations"] if not row["iscrowd"]}
        content["images"] = [image for image in content["images"] if image["id"] in filled]
        content["annotations"] = [row for row in content["annotations"] if row["image_id"] in filled]
    if content["images"]:
        assert_alike(subset, load(content, folder))
    else:
        assert len(subset) == len(subset.boxes) == 0


@given(content=contents())
def test_all_of_it_is_the_file_itself(tmp_path_factory, content):
    annotations = load(content, tmp_path_factory.getbasetemp())
    assert select(annotations) is annotations
    assert_alike(select(annotations, classes=["stone", "cat", "dog"]), annotations)


@pytest.mark.parametrize("stored_from", [0, 10**9])
def test_another_process_gets_the_same(tmp_path, stored_from):
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 9, "width": 9} for i in range(3)],
        "annotations": [
            {"id": i, "image_id": i % 2, "category_id": (9, 5)[i % 2], "bbox": [1, 1, 4, 4]} for i in range(6)
        ],
        "categories": CATEGORIES,
    }  # fmt: skip
    load(content, tmp_path)
    annotations = load_annotations(tmp_path / "instances.json", stored_from=stored_from)
    subset = select(annotations, classes=["stone"], drop_empty=True)
    assert_alike(pickle.loads(pickle.dumps(subset)), subset)
    assert subset.image_ids.tolist() == [1]
    assert subset.labels.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["cat", "dgo"], r"data\.classes: .*instances\.json has no class 'dgo'\. Did you mean 'dog'\?"),
        (["horse"], r"has no class 'horse'\. Known: cat, dog, stone\."),
        (["cat", "dog", "cat"], "'cat' is given twice"),
        (["cta", "sotne"], r"'cta'.*'sotne'"),
    ],
)
def test_mistakes_in_the_names_are_named(tmp_path, classes, message):
    content = {"images": [{"id": 1, "file_name": "a", "height": 9, "width": 9}], "annotations": [], "categories": CATEGORIES}
    with pytest.raises(UserError, match=message):
        select(load(content, tmp_path), classes=classes)
