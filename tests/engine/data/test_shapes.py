"""The embedded data set: the same bytes everywhere, true annotations, and a cache that several processes may share."""

import hashlib
import json
import multiprocessing
import shutil
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from backbones.errors import UserError
from engine.data import shapes
from engine.data.shapes import CATEGORY_IDS, IMAGE_COUNTS, render_shapes

# pycocotools 2.0's decode is not yet ready for NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

SPLITS = ("train", "val")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache_dir = tmp_path_factory.mktemp("cache") / "not" / "there yet"
    render_shapes("train", cache_dir=cache_dir)
    return cache_dir


@pytest.fixture(scope="module", params=SPLITS)
def coco(request: pytest.FixtureRequest, cache: Path) -> dict[str, Any]:
    _, annotations = render_shapes(request.param, cache_dir=cache)
    content: dict[str, Any] = json.loads(annotations.read_text())
    return content


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make rendering instant, for tests that look at the folder alone."""
    monkeypatch.setattr(shapes, "IMAGE_COUNTS", {"train": 3, "val": 2})


def ordinary(coco: dict[str, Any]) -> list[dict[str, Any]]:
    return [annotation for annotation in coco["annotations"] if not annotation["iscrowd"]]


def decode(annotation: dict[str, Any], image: dict[str, Any]) -> np.ndarray:
    """(H, W) bool, through the reference decoder, whichever of COCO's three forms the annotation has."""
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list) or isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, image["height"], image["width"])
    mask = coco_mask.decode(segmentation)
    return (mask.max(axis=-1) if mask.ndim == 3 else mask).astype(bool)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_racing_processes_leave_one_complete_folder_with_the_same_bytes(cache: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        racers = [pool.submit(render_shapes, split, cache_dir=tmp_path) for split in SPLITS]
        for split, racer in zip(SPLITS, racers, strict=True):
            images, annotations = racer.result(timeout=120)
            assert images == tmp_path / "shapes-v2" / split
            assert annotations == tmp_path / "shapes-v2" / f"instances_{split}.json"
    assert [path.name for path in tmp_path.iterdir()] == ["shapes-v2"]
    assert digests(tmp_path / "shapes-v2") == digests(cache / "shapes-v2")


def test_images_are_where_and_as_large_as_stated(coco: dict[str, Any], cache: Path) -> None:
    split = "train" if len(coco["images"]) == IMAGE_COUNTS["train"] else "val"
    folder, _ = render_shapes(split, cache_dir=cache)
    assert sorted(path.name for path in folder.iterdir()) == [image["file_name"] for image in coco["images"]]
    for image in coco["images"]:
        pixels = cv2.imread(str(folder / image["file_name"]), cv2.IMREAD_UNCHANGED)
        assert pixels is not None
        assert pixels.shape == (image["height"], image["width"], 3)
        assert max(pixels.shape) == 96
    assert len({(image["height"], image["width"]) for image in coco["images"]}) > 3


def test_boxes_and_areas_are_those_of_the_masks(coco: dict[str, Any]) -> None:
    images = {image["id"]: image for image in coco["images"]}
    for annotation in coco["annotations"]:
        mask = decode(annotation, images[annotation["image_id"]])
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        width, height = columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1
        assert annotation["bbox"] == [columns[0], rows[0], width, height], annotation["id"]
        assert annotation["area"] == mask.sum(), annotation["id"]


def test_instances_of_an_image_share_no_pixel(coco: dict[str, Any]) -> None:
    covered = {image["id"]: np.zeros((image["height"], image["width"]), int) for image in coco["images"]}
    images = {image["id"]: image for image in coco["images"]}
    for annotation in coco["annotations"]:
        covered[annotation["image_id"]] += decode(annotation, images[annotation["image_id"]])
    assert max(count.max() for count in covered.values()) == 1


def test_every_class_is_well_represented(coco: dict[str, Any]) -> None:
    names = {category["id"]: category["name"] for category in coco["categories"]}
    assert names == {number: name for name, number in CATEGORY_IDS.items()}
    counts = Counter(names[annotation["category_id"]] for annotation in ordinary(coco))
    assert set(counts) == set(CATEGORY_IDS)
    assert min(counts.values()) > 0.14 * counts.total()


def test_there_are_negatives_and_crowds(coco: dict[str, Any]) -> None:
    total = len(coco["images"])
    crowds = [annotation for annotation in coco["annotations"] if annotation["iscrowd"]]
    assert 0.05 * total < total - len({annotation["image_id"] for annotation in coco["annotations"]}) < 0.09 * total
    assert 0.06 * total < len({annotation["image_id"] for annotation in crowds}) == len(crowds) < 0.1 * total
    for crowd in crowds:
        assert all(isinstance(count, int) for count in crowd["segmentation"]["counts"])
        assert crowd["bbox"][2] > 24
        assert crowd["area"] < 0.9 * crowd["bbox"][2] * crowd["bbox"][3]


def test_objects_are_small_to_medium_but_never_slivers(coco: dict[str, Any]) -> None:
    boxes = [annotation["bbox"] for annotation in ordinary(coco)]
    sides = [min(box[2:]) for box in boxes]
    assert min(sides) >= 10
    assert sum(side <= 16 for side in sides) > 20
    assert 40 < max(max(box[2:]) for box in boxes) < 54
    assert min(annotation["area"] for annotation in ordinary(coco)) >= 40
    assert max(Counter(annotation["image_id"] for annotation in ordinary(coco)).values()) <= 4


def test_masks_come_as_polygons_and_as_compressed_rle(coco: dict[str, Any]) -> None:
    polygons = [item for item in ordinary(coco) if isinstance(item["segmentation"], list)]
    rles = [item for item in ordinary(coco) if isinstance(item["segmentation"], dict)]
    assert all(isinstance(item["segmentation"]["counts"], str) for item in rles)
    assert min(len(polygons), len(rles)) > 0.2 * len(ordinary(coco))
    assert CATEGORY_IDS["ring"] not in {item["category_id"] for item in polygons}


def test_rings_have_a_hole(coco: dict[str, Any]) -> None:
    images = {image["id"]: image for image in coco["images"]}
    seen = 0
    for annotation in ordinary(coco):
        x, y, width, height = annotation["bbox"]
        # A ring that is as wide as high is seen whole, or nearly: its middle is then the hole's.
        if annotation["category_id"] == CATEGORY_IDS["ring"] and width == height:
            mask = decode(annotation, images[annotation["image_id"]])
            assert not mask[y + height // 2, x + width // 2]
            seen += 1
    assert seen > 10


def test_objects_stand_out_from_what_is_around_them(coco: dict[str, Any], cache: Path) -> None:
    split = "train" if len(coco["images"]) == IMAGE_COUNTS["train"] else "val"
    folder, _ = render_shapes(split, cache_dir=cache)
    images = {image["id"]: image for image in coco["images"]}
    kernel = np.ones((7, 7), np.uint8)
    weak = 0
    for annotation in ordinary(coco):
        image = images[annotation["image_id"]]
        pixels = cv2.imread(str(folder / image["file_name"])).astype(float)
        mask = decode(annotation, image)
        around = cv2.dilate(mask.astype(np.uint8), kernel).astype(bool) & ~mask
        weak += np.linalg.norm(np.median(pixels[mask], axis=0) - np.median(pixels[around], axis=0)) < 50
    assert weak < 0.02 * len(ordinary(coco))  # a neighbour drawn later may come close in colour, rarely


def test_ids_run_from_one_and_the_licence_is_stated(coco: dict[str, Any]) -> None:
    assert [annotation["id"] for annotation in coco["annotations"]] == list(range(1, len(coco["annotations"]) + 1))
    assert all(a["image_id"] <= b["image_id"] for a, b in pairwise(coco["annotations"]))
    assert "generated by Vertebra" in coco["info"]["description"]
    assert "CC0" in coco["licenses"][0]["name"]


def test_a_complete_folder_is_reused(cache: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    render_shapes("train", cache_dir=cache)
    render_shapes("val", cache_dir=cache)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before


@pytest.mark.usefixtures("few_images")
def test_a_folder_that_lost_files_is_rendered_again(tmp_path: Path) -> None:
    images, annotations = render_shapes("val", cache_dir=tmp_path)
    whole = digests(tmp_path)
    annotations.unlink()
    (images / "000002.png").unlink()
    render_shapes("train", cache_dir=tmp_path)
    assert digests(tmp_path) == whole


@pytest.mark.usefixtures("few_images")
def test_an_interrupted_rendering_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shapes, "_annotate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            render_shapes("train", cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert render_shapes("train", cache_dir=tmp_path)[1].is_file()


@pytest.mark.usefixtures("few_images")
def test_the_loser_of_a_race_keeps_the_winners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    winner = tmp_path / "winner"
    render_shapes("train", cache_dir=winner)
    cache_dir = tmp_path / "cache"
    write_split = shapes._write_split

    def write_while_another_finishes(split: str, images_dir: Path, annotation_file: Path) -> None:
        write_split(split, images_dir, annotation_file)
        if split == "val":
            shutil.move(winner / "shapes-v2", cache_dir / "shapes-v2")

    monkeypatch.setattr(shapes, "_write_split", write_while_another_finishes)
    inode = (winner / "shapes-v2").stat().st_ino
    render_shapes("train", cache_dir=cache_dir)
    assert [path.name for path in cache_dir.iterdir()] == ["shapes-v2"]
    assert (cache_dir / "shapes-v2").stat().st_ino == inode


@pytest.mark.usefixtures("few_images")
def test_the_environment_chooses_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VERTEBRA_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert render_shapes("val")[0] == tmp_path / "home/.cache/vertebra/shapes-v2/val"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert render_shapes("val")[0] == tmp_path / "xdg/vertebra/shapes-v2/val"
    monkeypatch.setenv("VERTEBRA_CACHE", str(tmp_path / "own"))
    assert render_shapes("val")[0] == tmp_path / "own/shapes-v2/val"


@pytest.mark.usefixtures("few_images")
def test_a_cache_that_cannot_be_written_is_the_users_to_put_right(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"file/cache/shapes-v2 .*VERTEBRA_CACHE"):
        render_shapes("train", cache_dir=tmp_path / "file" / "cache")


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train and val, not 'test'"):
        render_shapes("test", cache_dir=tmp_path)  # type: ignore[arg-type]
