"""engine/classification/dataset.py: samples that depend on seed, epoch and index alone."""

import numpy as np
import pytest
import torch
from PIL import Image

from backbones.errors import UserError
from engine.classification.augmentations import ImageAugmentation, resize_and_crop
from engine.classification.classes import Classes
from engine.classification.dataset import ClassificationDataset, evaluation_view, to_tensor
from engine.classification.sources import ImageArray, image_folder
from engine.data.dataset import sample_seed
from engine.data.loader import BatchLoader
from engine.data.sampler import GlobalBatchSampler

CLASSES = Classes(None, ["red", "yellow", "green", "blue"])
STEPS = [("random_resized_crop", {}), ("trivial_augment", {})]


@pytest.fixture
def make_set(folders):
    def make(*, train=True, channels=3, sizes=(16, 16, 24), **options):
        augmentation = ImageAugmentation(STEPS, sizes=sizes) if train else None
        images = image_folder("train", images=str(folders))
        return ClassificationDataset(
            images, CLASSES, **{"channels": channels, "resize": 20, "size": 16, "augmentation": augmentation} | options
        )

    return make


def test_a_sample_is_an_image_with_its_label_among_the_classes(make_set):
    dataset = make_set()
    image, target = dataset[5]
    assert (image.shape, image.dtype) == ((3, 16, 16), torch.uint8)
    assert set(target) == {"label", "image_id", "seed"}
    assert (int(target["label"]), target["label"].dtype) == (2, torch.int64)  # the second folder, green
    assert (int(target["image_id"]), target["seed"]) == (5, sample_seed(0, 0, 5))
    assert [int(dataset[i][1]["label"]) for i in (0, 4, 8)] == [3, 2, 0]
    assert dataset.counts.tolist() == [4, 0, 4, 4]
    assert [category.name for category in dataset.categories] == CLASSES.names
    assert dataset.name_of(5) == "001.png"
    assert dataset.shape_groups() is None
    assert len(dataset) == 12


def test_samples_change_with_epoch_index_and_seed_and_with_nothing_else(make_set):
    first, again, other = make_set(seed=1), make_set(seed=1), make_set(seed=2)
    assert torch.equal(first[0, 3][0], first[3][0])
    assert torch.equal(first[2, 3][0], again[2, 3][0])
    assert not torch.equal(first[0, 3][0], first[1, 3][0])
    assert not torch.equal(first[0, 3][0], other[0, 3][0])
    assert first[2, 3][0].shape == (3, 24, 24)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_processes_change_nothing(make_set, num_workers):
    dataset = make_set()
    sampler = GlobalBatchSampler(len(dataset), batch_size=4, epochs=2, seed=3)
    loader = BatchLoader(dataset, sampler, num_workers=num_workers, device=torch.device("cpu"))
    for keys, (images, targets) in zip(sampler, loader, strict=True):
        for key, image, target in zip(keys, images, targets, strict=True):
            expected, expected_target = dataset[key]
            assert torch.equal(image, expected)
            assert target == expected_target | {"index": key[1]}


def test_evaluation_gives_each_image_as_it_is_looked_at(make_set):
    dataset = make_set(train=False)
    image, _ = dataset[2]
    pixels = dataset.images.read(2)
    assert pixels.shape == (18, 30, 3)
    assert torch.equal(image, evaluation_view(pixels, channels=3, resize=20, size=16))
    assert torch.equal(image, resize_and_crop(torch.from_numpy(pixels).permute(2, 0, 1), resize=20, size=16))
    assert torch.equal(dataset[7, 2][0], image), "no epoch changes it"


def test_grey_is_pillows_and_grey_files_stay_as_they_are(make_set):
    dataset = make_set(train=False, channels=1)
    assert dataset[0][0].shape == (1, 16, 16)
    pixels = dataset.images.read(0)
    assert (to_tensor(pixels, channels=1)[0].numpy() == np.asarray(Image.fromarray(pixels).convert("L"))).all()
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert (to_tensor(grey[:, :, None].repeat(3, axis=2), channels=1)[0].numpy() == grey).all()


def test_images_in_memory_are_augmented_too(tmp_path):
    images = ImageArray(tmp_path, ["red"], np.zeros(2, np.int64), np.full((2, 8, 8), 200, np.uint8))
    augmentation = ImageAugmentation([("horizontal_flip", {})], sizes=[12])
    dataset = ClassificationDataset(images, CLASSES, channels=1, resize=12, size=12, augmentation=augmentation)
    assert (dataset[1][0] == 200).all()
    assert dataset[1][0].shape == (1, 12, 12)


def test_an_augmentation_that_cannot_take_an_image_is_named_with_it(make_set):
    dataset = make_set()
    dataset.augmentation = ImageAugmentation([("torchvision/Pad", {"padding": 3})], sizes=[16])
    with pytest.raises(UserError, match=r"blue/001\.png: the augmentations end in images of 22 x 22 pixels"):
        dataset[1]


def test_a_class_that_is_not_known_is_named(folders):
    images = image_folder("train", images=str(folders))
    with pytest.raises(UserError, match=r"images has the class 'blue', which is not among the 2 classes"):
        ClassificationDataset(images, Classes(None, ["red", "green"]), channels=3, resize=8, size=8)
