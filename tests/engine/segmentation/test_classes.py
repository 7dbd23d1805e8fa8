"""engine/segmentation/classes.py: pixel values, names and labels."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backbones.errors import UserError
from engine.data.annotations import Category
from engine.segmentation.classes import class_names, label_classes, named_values, span, unique_names
from engine.segmentation.config import SegmentationDataConfig

PATH = Path("map.png")


def classes(**keys):
    found = named_values(SegmentationDataConfig(train="shapes", val="shapes", **keys))
    assert found is not None
    return found


def ids(found):
    return [(category.id, category.name) for category in found.categories]


def test_names_are_those_of_the_values_from_0_up():
    found = classes(classes=["background", "cat", "dog"])
    assert ids(found) == [(0, "background"), (1, "cat"), (2, "dog")]
    labels = found.to_labels(np.array([[0, 2], [255, 1]], np.uint8), PATH)
    assert labels.tolist() == [[0, 2], [255, 1]]
    assert labels.dtype == np.uint8


def test_where_0_is_no_class_names_begin_with_1():
    """ADE20K."""
    found = classes(classes=["wall", "sky"], ignore_index=0)
    assert ids(found) == [(1, "wall"), (2, "sky")]
    assert found.to_labels(np.array([[0, 1, 2]], np.uint8), PATH).tolist() == [[255, 0, 1]]


def test_several_values_may_be_no_class():
    found = classes(classes=["a", "b", "c"], ignore_index=[1, 255])
    assert ids(found) == [(0, "a"), (2, "b"), (3, "c")]
    assert found.to_labels(np.array([[0, 1, 2, 3, 255]], np.uint8), PATH).tolist() == [[0, 255, 1, 2, 255]]


def test_values_may_be_named_one_by_one():
    """A mask of 0 and 255."""
    found = classes(classes={"255": "nucleus", "0": "background"}, ignore_index=None)
    assert ids(found) == [(0, "background"), (255, "nucleus")]
    assert found.to_labels(np.array([[0, 255]], np.uint8), PATH).tolist() == [[0, 1]]


def test_a_named_value_cannot_be_ignored():
    with pytest.raises(UserError, match=r"the value 255 \('nucleus'\).*data\.ignore_index=null"):
        classes(classes={"0": "background", "255": "nucleus"})


def test_names_may_stand_in_a_file(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("background\nkæt\n\n")
    assert ids(classes(classes=str(path))) == [(0, "background"), (1, "kæt")]
    path.write_text("background\n\ncat\n")
    with pytest.raises(UserError, match=r"names\.txt, line 2: this line is empty"):
        class_names(str(path))
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match="cannot be read as text"):
        class_names(str(path))
    with pytest.raises(UserError, match=r"no file .*none\.txt"):
        class_names(str(tmp_path / "none.txt"))


def test_one_class_is_not_enough():
    with pytest.raises(UserError, match="names 1 class"):
        classes(classes=["cell"])


def test_a_value_without_a_name_is_named_with_its_file_and_place():
    found = classes(classes=["a", "b", "c"])
    values = np.zeros((4, 5), np.uint8)
    values[2, 3] = 17
    with pytest.raises(
        UserError, match=r"map\.png has the value 17 at row 2, column 3, .* 3 values, 0 to 2.*data\.ignore_index"
    ):
        found.to_labels(values, PATH)


def test_more_than_255_classes_take_16_bits_and_255_is_one_of_them():
    found = classes(classes=[f"class {k}" for k in range(300)], ignore_index=999)
    assert found.ignored == 65535
    labels = found.to_labels(np.array([[255, 299, 999]], np.uint16), PATH)
    assert labels.tolist() == [[255, 299, 65535]]
    assert labels.dtype == np.uint16


@given(st.sets(st.integers(0, 65535), min_size=2, max_size=40), st.sets(st.integers(0, 65535), max_size=5), st.data())
def test_a_label_is_the_place_of_its_value_among_those_that_are_named(values, ignored, data):
    ignored -= values
    found = label_classes({value: str(value) for value in values}, ignored)
    drawn = data.draw(st.lists(st.sampled_from(sorted(values | ignored)), min_size=1, max_size=20))
    labels = found.to_labels(np.array([drawn], np.uint16), PATH)[0]
    assert [found.categories[label].id if label != found.ignored else None for label in labels] == [
        None if value in ignored else value for value in drawn
    ]


def test_names_that_are_alike_are_told_apart_by_their_ids():
    assert unique_names([Category(3, "screen"), Category(7, "door"), Category(9, "screen")]) == [
        "screen (id 3)", "door", "screen (id 9)",
    ]  # fmt: skip


def test_values_are_shown_as_a_span_where_none_is_left_out():
    assert span([0, 1, 2, 3]) == "0 to 3"
    assert span([0, 255]) == "0, 255"
    assert span(list(range(0, 60, 2))).endswith("20, 22, ...")
