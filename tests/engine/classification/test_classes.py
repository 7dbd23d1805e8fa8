"""engine/classification/classes.py: lists, files and ImageNet's thousand."""

from pathlib import Path

import pytest
import timm.data
import torchvision
from hypothesis import given
from hypothesis import strategies as st

from backbones.errors import UserError
from engine.classification.classes import Classes, imagenet_classes, read_classes
from engine.data.annotations import Category

HERE = Path("data/val")


def test_categories_are_the_names_with_their_labels_as_ids():
    assert Classes(HERE, ["b", "a"]).categories == [Category(0, "b"), Category(1, "a")]


def test_a_file_and_a_list_say_the_same(tmp_path):
    (tmp_path / "classes.txt").write_text("tabby cat\n  dog \nÉtoile\n\n\n", encoding="utf-8")
    names = ["tabby cat", "dog", "Étoile"]
    assert read_classes(str(tmp_path / "classes.txt")).names == read_classes(names).names == names


@given(st.permutations(["a", "b", "c", "d"]), st.sets(st.sampled_from("abcd")))
def test_labels_are_places_among_the_classes(order, some):
    names = sorted(some)
    labels = Classes(HERE, order).labels_of(names, of=HERE)
    assert [order[label] for label in labels] == names


def test_imagenets_classes_are_in_wordnets_order_with_torchvisions_names():
    classes = imagenet_classes()
    ids = timm.data.ImageNetInfo().label_names()
    assert ids == sorted(ids)
    theirs = torchvision.models.ResNet50_Weights.IMAGENET1K_V2.meta["categories"]
    assert len(classes.names) == len(set(classes.names)) == 1000
    for ours, name in zip(classes.names, theirs, strict=True):
        assert ours == name or ours.startswith(f"{name} (n")
    assert classes.labels_of(ids, of=HERE).tolist() == list(range(1000))
    assert classes.labels_of(classes.names, of=HERE).tolist() == list(range(1000))
    assert classes.labels_of(["n07920052", "tench", "n02123045"], of=HERE).tolist() == [967, 0, 281]


def test_classes_of_one_name_are_told_apart_by_their_ids(monkeypatch):
    """As `crane`, the bird and the machine, in torchvision before it told them apart itself."""
    meta = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta
    monkeypatch.setitem(meta, "categories", ["crane" if i in (134, 517) else f"name {i}" for i in range(1000)])
    classes = imagenet_classes()
    assert (classes.names[134], classes.names[517]) == ("crane (n02012849)", "crane (n03126707)")
    with pytest.raises(UserError, match="has the class 'crane', which is not among the 1000 classes"):
        classes.labels_of(["crane"], of=HERE)


@pytest.mark.parametrize(
    ("given_classes", "message"),
    [
        (["a", "b", "a"], r"data\.classes\.2: the class 'a' is named twice, first at data\.classes\.0"),
        (["a", " "], r"data\.classes\.1: a class needs a name"),
        ([], "names no class"),
        ("none.txt", r"there is no file none\.txt\. Give a text file .* or imagenet"),
    ],
)
def test_lists_that_make_no_sense_are_refused(given_classes, message):
    with pytest.raises(UserError, match=message):
        read_classes(given_classes)


def test_files_that_make_no_sense_are_refused_and_the_line_named(tmp_path):
    path = tmp_path / "classes.txt"
    for content, message in (("a\n\nb\n", "line 2: a class needs a name"), ("a\nb\nb", r"line 3: .*'b' is named twice")):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            read_classes(str(path))
    path.write_text("\n\n")
    with pytest.raises(UserError, match=r"classes\.txt names no class"):
        read_classes(str(path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read as text"):
        read_classes(str(path))
    with pytest.raises(UserError, match="cannot be read as text"):
        read_classes(str(tmp_path))


def test_a_class_that_is_not_among_them_is_named_with_the_nearest():
    with pytest.raises(UserError, match=r"data/val has the class 'zebr', .* 2 classes of data/train.* Did you mean 'zebra'"):
        Classes(Path("data/train"), ["zebra", "horse"]).labels_of(["horse", "zebr"], of=HERE)


def test_two_folders_of_one_class_are_refused():
    with pytest.raises(UserError, match="has 'n01440764' and 'tench', which are the same class"):
        imagenet_classes().labels_of(["n01440764", "tench"], of=HERE)
