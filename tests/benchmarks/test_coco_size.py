"""benchmarks/coco_size.py: a small file has the statistics that the large one is to have, and loads without a complaint."""

import json

import numpy as np
import pytest

from benchmarks.coco_size import CATEGORY_IDS, write_coco
from engine.data.annotations import load_annotations
from engine.data.masks import to_rle


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("coco") / "instances.json"
    write_coco(path, images=500, annotations=3600)
    return path


def test_equal_seeds_write_equal_bytes(path, tmp_path):
    for seed, equal in ((0, True), (1, False)):
        write_coco(tmp_path / "again.json", images=500, annotations=3600, seed=seed)
        assert ((tmp_path / "again.json").read_bytes() == path.read_bytes()) is equal


def test_it_is_like_coco(path):
    content = json.loads(path.read_bytes())
    images, annotations = content["images"], content["annotations"]
    assert (len(images), len(annotations)) == (500, 3600)
    assert [category["id"] for category in content["categories"]] == CATEGORY_IDS
    assert (len(CATEGORY_IDS), min(CATEGORY_IDS), max(CATEGORY_IDS)) == (80, 1, 90)
    crowds = [annotation for annotation in annotations if annotation["iscrowd"]]
    assert 0.006 < len(crowds) / len(annotations) < 0.02
    objects = [annotation["segmentation"] for annotation in annotations if not annotation["iscrowd"]]
    assert 1.1 < np.mean([len(parts) for parts in objects]) < 1.3
    assert 20 < np.mean([sum(len(part) / 2 for part in parts) for parts in objects]) < 26
    numbers = [number for parts in objects for part in parts for number in part]
    assert all(round(number, 2) == number for number in numbers)
    with_objects = len({annotation["image_id"] for annotation in annotations})
    assert 0 < len(images) - with_objects < 100
    # 426 MB by 860,001 annotations are 496 bytes; here is an image for every seven, as there
    assert 400 < path.stat().st_size / 3600 < 700


def test_it_is_faultless(path):
    table = load_annotations(path)
    assert len(table.boxes) + table.num_dropped == 3600
    assert table.num_dropped < 10  # outlines of which only an edge is in the image
    for index in range(len(table)):
        for row in range(table.offsets[index], table.offsets[index + 1]):
            assert to_rle(table.segmentation(row), int(table.heights[index]), int(table.widths[index])) is not None
