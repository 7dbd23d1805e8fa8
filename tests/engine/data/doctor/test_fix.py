"""What a cleaned copy leaves out, changes, and says."""

import copy

from engine.data.doctor.findings import Finding
from engine.data.doctor.fix import clean

CONTENT = {
    "info": {"year": 2020},
    "images": [{"id": 1, "file_name": "a"}, {"id": 2, "file_name": "b"}],
    "categories": [{"id": 1, "name": "x"}],
    "annotations": [
        {"id": 5, "image_id": 1, "segmentation": [[1]], "area": "x"},
        {"id": 5, "image_id": 2, "segmentation": []},
        {"id": 9, "image_id": 2, "segmentation": [[2]]},
        "no annotation",
    ],
}


def finding(kind, name, place, field=""):
    return Finding("train", kind, "", place=(name, place), field=field)


def test_each_remedy_does_what_it_says_and_is_counted():
    before = copy.deepcopy(CONTENT)
    findings = [
        finding("missing_image", "images", 1),
        finding("malformed_mask", "annotations", 0),
        finding("malformed_area", "annotations", 0, "area"),
        finding("duplicate_annotation_id", "annotations", 0),
        finding("malformed_entry", "annotations", 3),
        finding("grey_image", "images", 0),
        Finding("train", "categories_differ", ""),
    ]
    cleaned, changes = clean(CONTENT, findings)
    assert before == CONTENT
    assert cleaned == {
        "info": {"year": 2020},
        "images": [{"id": 1, "file_name": "a"}],
        "categories": [{"id": 1, "name": "x"}],
        "annotations": [{"id": 10, "image_id": 1, "segmentation": []}],
    }
    assert changes.lines() == [
        "1 images dropped: missing image",
        "1 annotations dropped: malformed entry",
        "2 annotations dropped with their images",
        "1 annotations lost their mask: malformed mask",
        "1 annotations lost a field: malformed area",
        "1 annotations got a new id: duplicate annotation id",
        "1 left as they are, for you to decide: categories differ",
    ]


def test_an_image_listed_twice_keeps_its_objects():
    content = CONTENT | {"images": [CONTENT["images"][0], CONTENT["images"][0], CONTENT["images"][1]]}
    cleaned, _ = clean(content, [finding("repeated_image_entry", "images", 1), finding("malformed_entry", "annotations", 3)])
    assert [entry["id"] for entry in cleaned["images"]] == [1, 2]
    assert len(cleaned["annotations"]) == 3


def test_what_is_at_fault_twice_goes_once():
    faults = [finding("unknown_image_id", "annotations", 0), finding("unknown_category_id", "annotations", 0)]
    _, changes = clean(CONTENT, [*faults, finding("malformed_entry", "annotations", 3)])
    assert sum(changes.annotations.values()) == 2
