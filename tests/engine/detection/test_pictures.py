"""engine/detection/pictures.py: validation images with their truth and predictions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine.data.annotations import Category, load_annotations
from engine.data.dataset import CocoDataset
from engine.data.masks import decode_segmentation, encode_mask
from engine.detection.pictures import draw_predictions, to_instances
from tests.engine.conftest import write_coco

CATEGORIES = [Category(3, "bar"), Category(44, "square")]


@pytest.fixture(scope="module")
def dataset(toy_data) -> CocoDataset:
    return CocoDataset(Path(toy_data["images"]), load_annotations(toy_data["annotations"]))


def row(dataset: CocoDataset, index: int, score: float = 0.9) -> dict:
    image_id = int(dataset.annotations.image_ids[index])
    return {"image_id": image_id, "category_id": 44, "bbox": [4, 4, 30, 30], "score": score}


def draw(dataset: CocoDataset, rows: list[dict], folder: Path, **more) -> list[np.ndarray]:
    paths = draw_predictions(dataset, rows, folder, **{"count": 1, "score_threshold": 0.5} | more)
    return [np.asarray(Image.open(path)).astype(int) for path in paths]


@pytest.mark.parametrize(
    ("count", "names"),
    [(0, []), (1, ["000"]), (3, ["000", "003", "006"]), (50, [f"00{i}" for i in range(7)])],
)
def test_pictures_are_spread_over_the_data_set(dataset, tmp_path, count, names):
    paths = draw_predictions(dataset, [], tmp_path, count=count, score_threshold=0.5)
    assert paths == [tmp_path / f"{name}.png" for name in names]
    assert sorted(tmp_path.glob("*")) == paths


def test_truth_is_on_the_left_and_predictions_are_on_the_right(dataset, tmp_path):
    (without,), (with_one,) = draw(dataset, [], tmp_path / "a"), draw(dataset, [row(dataset, 0)], tmp_path / "b")
    changed = np.flatnonzero(np.abs(without - with_one).max(axis=(0, 2)))
    assert changed.min() > without.shape[1] // 2
    (untrue,) = draw(CocoDataset(dataset.images, _without_objects(dataset, tmp_path)), [], tmp_path / "c")
    changed = np.flatnonzero(np.abs(without - untrue).max(axis=(0, 2)))
    assert changed.max() < without.shape[1] // 2


def _without_objects(dataset: CocoDataset, folder: Path):
    content = json.loads(Path(dataset.annotations.path).read_text()) | {"annotations": []}
    (folder / "none.json").write_text(json.dumps(content))
    return load_annotations(folder / "none.json")


def test_predictions_below_the_threshold_are_not_drawn(dataset, tmp_path):
    (without,), (below,) = draw(dataset, [], tmp_path / "a"), draw(dataset, [row(dataset, 0, 0.4)], tmp_path / "b")
    assert np.array_equal(without, below)


def test_predictions_are_drawn_on_their_own_image(dataset, tmp_path):
    (without,), (elsewhere,) = draw(dataset, [], tmp_path / "a"), draw(dataset, [row(dataset, 1)], tmp_path / "b")
    assert np.array_equal(without, elsewhere)


def test_images_of_one_name_in_several_folders_have_pictures_of_their_own(tmp_path):
    data = write_coco(tmp_path / "data", 2)
    content = json.loads(Path(data["annotations"]).read_text())
    for image, folder in zip(content["images"], ("a", "b"), strict=True):
        (tmp_path / "data" / "images" / folder).mkdir()
        Path(data["images"], image["file_name"]).rename(tmp_path / "data" / "images" / folder / "same.png")
        image["file_name"] = f"{folder}/same.png"
    Path(data["annotations"]).write_text(json.dumps(content))
    dataset = CocoDataset(Path(data["images"]), load_annotations(data["annotations"]))
    paths = draw_predictions(dataset, [], tmp_path / "out", count=2, score_threshold=0.5)
    assert len(set(paths)) == 2
    assert all(path.exists() for path in paths)


def test_rows_become_instances_with_labels_by_the_order_of_category_ids():
    rows = [
        {"image_id": 1, "category_id": 44, "bbox": [1, 2, 3, 4], "score": 0.5},
        {"image_id": 1, "category_id": 3, "bbox": [0, 0, 9, 8], "score": 0.25},
    ]
    instances = to_instances(rows, CATEGORIES)
    assert instances["boxes"].tolist() == [[1, 2, 4, 6], [0, 0, 9, 8]]
    assert instances["labels"].tolist() == [2, 1]
    assert instances["scores"].tolist() == [0.5, 0.25]
    assert "masks" not in instances


def test_no_rows_become_no_instances():
    instances = to_instances([], CATEGORIES)
    assert instances["boxes"].shape == (0, 4)
    assert instances["labels"].dtype == torch.int64


def test_masks_are_drawn_as_those_that_are_decoded_all_together(dataset, tmp_path, monkeypatch):
    """Truth and predictions both have masks here."""
    size = (64, 64)
    mask = np.zeros(size, np.uint8)
    mask[8:30, 5:40] = 1
    masks = [encode_mask(mask), encode_mask(np.roll(mask, 3, 1))]
    rows = [row(dataset, 0, score) | {"segmentation": rle} for score, rle in zip((0.9, 0.8), masks, strict=True)]
    (one_at_a_time,) = draw(dataset, rows, tmp_path / "a")

    def decoded(segmentations, size):
        return torch.from_numpy(np.stack([decode_segmentation(segmentation, *size) for segmentation in segmentations]))

    monkeypatch.setattr("engine.detection.pictures.EncodedMasks", decoded)
    (together,) = draw(dataset, rows, tmp_path / "b")
    assert np.array_equal(one_at_a_time, together)


def test_the_truth_is_drawn_the_same_whether_or_not_losses_are_asked_for(dataset, tmp_path):
    """With `eval.losses` the data set gives masks, and leaves out objects without one."""
    content = json.loads(Path(dataset.annotations.path).read_text())
    first = next(entry for entry in content["annotations"] if entry["image_id"] == int(dataset.annotations.image_ids[0]))
    del first["segmentation"]
    (tmp_path / "some.json").write_text(json.dumps(content))
    table = load_annotations(tmp_path / "some.json")
    plain, with_masks = (
        draw(CocoDataset(dataset.images, table, with_masks=asked), [], tmp_path / str(asked)) for asked in (False, True)
    )
    assert np.array_equal(plain[0], with_masks[0])
