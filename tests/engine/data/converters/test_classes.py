"""engine/data/converters/classes.py: names as they are given, and files of them."""

import json

import pytest

from backbones.errors import UserError
from engine.data.converters.classes import names_in_yaml, read_classes

THREE = {"cat": 1, "dog": 2, "a bird": 3}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.txt", "cat\ndog\n a bird \n\n"),
        ("obj.names", "\ufeffcat\r\ndog\r\na bird"),
        ("data.yaml", "names: [cat, dog, a bird]\nnc: 3\n"),
        ("data.yml", "names:\n  1: dog\n  0: cat\n  2: a bird\n"),
    ],
)
def test_files_of_names(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    found = read_classes([str(tmp_path / name)])
    assert (found.ids, found.names) == (THREE, list(THREE))
    assert found.source.endswith(name)


def test_names_as_they_are_given():
    assert read_classes(["cat", "dog", "a bird"]).ids == THREE
    assert read_classes(["cat"]).ids == {"cat": 1}


def test_a_coco_files_categories_keep_their_ids(tmp_path):
    categories = [{"id": 90, "name": "dog"}, {"id": 3, "name": "cat", "supercategory": "animal"}]
    (tmp_path / "train.json").write_text(json.dumps({"categories": categories}))
    found = read_classes([str(tmp_path / "train.json")])
    assert list(found.ids.items()) == [("cat", 3), ("dog", 90)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "is empty"),
        ("a.txt", "cat\n\ndog\n", "Class number 2 .* has no name: take the empty line out"),
        ("a.txt", "cat\ndog\ncat\n", "names 'cat' twice"),
        ("a.yaml", "nc: 3\n", "no list `names`"),
        ("a.yaml", "names: []\n", "no list `names`"),
        ("a.yaml", "names: {0: cat, 2: dog}\n", "from 0 without a gap"),
        ("a.yaml", "a: [\nb", r"line 2: this is no YAML"),
        ("a.yaml", "- cat", "no keys"),
        ("a.json", "{}", "no COCO file"),
        ("a.json", "[1]", "no COCO file"),
        ("a.json", '{"categories": [{"id": 1}]}', "no COCO file"),
        ("a.json", '{"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}', "names 'a' twice"),
    ],
)
def test_mistakes_name_the_file(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_classes([str(tmp_path / name)])
    assert name in str(caught.value)


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(UserError, match=r"no file of classes at .*none\.txt"):
        read_classes([str(tmp_path / "none.txt")])
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match="no text in UTF-8"):
        read_classes([str(tmp_path / "a.txt")])
    with pytest.raises(UserError, match="twice"):
        read_classes(["cat", "cat"])


def test_numbers_as_names_are_texts(tmp_path):
    assert names_in_yaml({"names": [1, True, "a"]}, tmp_path) == ["1", "True", "a"]
