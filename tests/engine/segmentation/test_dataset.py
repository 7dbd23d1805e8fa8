"""engine/segmentation/dataset.py: samples, and what they depend on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from backbones.errors import UserError
from engine.segmentation.build import build_training_set, build_validation_set
from engine.segmentation.dataset import class_counts, spread_indices
from tests.engine.segmentation.conftest import BORDER, NAMES, write_maps

RANDOM = (
    "data.augmentations=[{name: horizontal_flip}, {name: color_jitter}]",
    "data.scale=[0.5, 2.0]",
    "data.min_size=[48, 64]",
    "data.crop_size=56",
)


def equal(first, second):
    return torch.equal(first[0], second[0]) and torch.equal(first[1]["labels"], second[1]["labels"])


def test_a_validation_sample_is_the_files_as_they_are(make_config, maps_data):
    dataset = build_validation_set(make_config(*RANDOM))
    assert len(dataset) == 6
    for index in range(6):
        image, target = dataset[index]
        pixels = np.asarray(Image.open(Path(maps_data["images"]) / f"{index:03}.png"))
        values = np.asarray(Image.open(Path(maps_data["labels"]) / f"{index:03}.png"))
        assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels)
        assert np.array_equal(target["labels"].numpy(), values)
        assert target["labels"].dtype == torch.uint8
        assert (int(target["image_id"]), dataset.name_of(index)) == (index + 1, f"{index:03}.png")
    assert dataset.path == Path(maps_data["labels"])
    assert [category.name for category in dataset.categories] == NAMES


def test_a_training_sample_depends_on_seed_epoch_and_index_alone(make_config):
    dataset, again, other = (build_training_set(make_config(*RANDOM, f"seed={seed}")) for seed in (0, 0, 1))
    for key in ((0, 0), (0, 3), (5, 3)):
        sample = dataset[key]
        assert sample[0].shape == (3, 56, 56)
        assert sample[1]["labels"].shape == (56, 56)
        assert equal(sample, again[key])
        assert sample[1]["seed"] == again[key][1]["seed"] != other[key][1]["seed"]
        assert not equal(sample, other[key])
    assert equal(dataset[3], dataset[0, 3])
    assert not equal(dataset[0, 3], dataset[1, 3])
    assert [int(dataset[epoch, 3][1]["image_id"]) for epoch in range(3)] == [4, 4, 4]


def test_an_error_of_the_augmentation_names_the_image(make_config):
    dataset = build_training_set(make_config("data.augmentations=[{name: albumentations/CenterCrop, height: 500, width: 500}]"))
    with pytest.raises(UserError, match=r"002\.png: an augmentation cannot take it"):
        dataset[2]


def test_batches_are_of_wide_or_of_tall_images_unless_they_are_cropped(make_config):
    assert build_training_set(make_config()).shape_groups().tolist() == [0, 1, 1, 0, 0, 1]
    assert build_training_set(make_config("data.crop_size=32")).shape_groups() is None
    assert build_validation_set(make_config()).shape_groups() is None


def test_more_than_255_classes(make_config, tmp_path):
    data = write_maps(tmp_path / "data", 2)
    for path in Path(data["labels"]).glob("*.png"):
        values = np.asarray(Image.open(path)).astype(np.uint16)
        Image.fromarray(np.where(values == 2, 300, values).astype(np.uint16)).save(path)
    names = "[" + ", ".join(f"c{k}" for k in range(301)) + "]"
    config = make_config(f"data.classes={names}", "data.ignore_index=65000", "data.crop_size=80", data=data)
    dataset = build_training_set(config)
    assert dataset.ignored == 65535
    labels = dataset[0][1]["labels"]
    assert labels.dtype == torch.int32
    assert set(labels.unique().tolist()) == {0, 1, 255, 300, 65535}


def test_pixels_are_counted_by_class(make_config, maps_data):
    dataset = build_validation_set(make_config())
    counts = class_counts(dataset, [0, 2])
    values = np.concatenate([np.asarray(Image.open(Path(maps_data["labels"]) / f"{i:03}.png")).ravel() for i in (0, 2)])
    assert counts.tolist() == [(values == value).sum() for value in (0, 1, 2, BORDER)]


@given(st.integers(1, 200), st.integers(1, 50))
def test_spread_indices_are_ordered_and_within(total, count):
    indices = spread_indices(total, count)
    assert indices == sorted(set(indices))
    assert indices[0] == 0
    assert indices[-1] < total
    assert len(indices) == min(count, total)
    assert count == 1 or indices[-1] == total - 1
