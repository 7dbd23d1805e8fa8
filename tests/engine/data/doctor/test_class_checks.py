"""What is said of classes: rare, missing, in one split alone."""

import pytest

from engine.data.doctor.class_checks import check_classes


def content(crowds=0, **counts):
    categories = [{"id": 10 * number, "name": name} for number, name in enumerate(["cat", "dog", "cow"], start=1)]
    annotations = [
        {"category_id": category["id"], "iscrowd": 0} for category in categories for _ in range(counts.get(category["name"], 0))
    ]
    annotations += [{"category_id": 10, "iscrowd": 1}] * crowds
    return {"categories": categories, "annotations": annotations}


@pytest.mark.parametrize(
    ("train", "val", "expected"),
    [
        (content(cat=20, dog=20, cow=20), content(cat=1, dog=1, cow=1), set()),
        (content(cat=20, dog=20, cow=20), None, set()),
        (content(cat=20, dog=20), content(cat=1, dog=1), {("train", "class_without_objects", "cow")}),
        (content(cat=20, dog=20), content(cat=1, dog=1, cow=1), {("val", "class_in_val_only", "cow")}),
        (content(cat=20, dog=20, cow=20), content(cat=1, dog=1), {("train", "class_in_train_only", "cow")}),
        (content(cat=20, dog=20, cow=9), None, {("train", "rare_class", "cow")}),
        (content(cat=2000, dog=20, cow=20), None, set()),
        (content(cat=2001, dog=20, cow=20), None, {("train", "class_imbalance", "cat")}),
        (content(crowds=5, dog=20, cow=20), None, {("train", "class_without_objects", "cat")}),
    ],
)
def test_numbers_of_objects(train, val, expected):
    assert {(f.split, f.kind, f.file) for f in check_classes(train, val)} == expected


def test_only_the_classes_that_are_trained_on_count():
    assert list(check_classes(content(cat=20), content(cat=1), classes=["cat"])) == []


def test_categories_that_differ_are_an_error():
    other = content(cat=20, dog=20, cow=20)
    other["categories"][0] = {"id": 10, "name": "lion"}
    (finding,) = check_classes(content(cat=20, dog=20, cow=20), other)
    assert (finding.kind, finding.severity) == ("categories_differ", "error")
    assert "lion" in finding.message
