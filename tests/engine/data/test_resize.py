"""engine/data/resize.py against torchvision's GeneralizedRCNNTransform, which resizes in evaluation."""

from collections import Counter

import cv2
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from engine.data.pipeline import Augmentation
from engine.data.resize import resize_masks, resized_shape


def resize(image, instances=None, *, min_sizes, max_size=10_000, seed=0):
    instances = instances or {"boxes": np.zeros((0, 4), np.float32)}
    return Augmentation([], min_sizes=min_sizes, max_size=max_size)(image, instances, seed=seed)


def torchvision_resize(image, target=None, *, min_size, max_size=10_000):
    """(H, W, 3) uint8 -> torchvision's (H', W', 3) float, in grey levels, and its target."""
    transform = GeneralizedRCNNTransform(min_size, max_size, [0.0] * 3, [1.0] * 3).eval()
    resized, target = transform.resize(torch.from_numpy(image.copy()).permute(2, 0, 1).float(), target)
    return resized.permute(1, 2, 0).numpy(), target


def extent(mask):
    """(left, top, right, bottom) of a rectangle, which has no holes."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


@settings(max_examples=300)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 1000), st.integers(1, 1400))
def test_the_size_is_torchvisions(height, width, min_size, max_size):
    scale = min(min_size / min(height, width), max_size / max(height, width))
    assume(min(height, width) * scale >= 1)  # torchvision makes no image that is empty
    assume(height * width * scale**2 < 3e6)
    expected = interpolate(torch.empty(1, 1, height, width), scale_factor=scale, recompute_scale_factor=True).shape[-2:]
    assert resized_shape(height, width, min_size=min_size, max_size=max_size) == tuple(expected)


@settings(max_examples=60)
@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 60), st.integers(1, 90))
def test_the_transform_in_the_model_gives_the_same_size(height, width, min_size, max_size):
    assume(min(height, width) * min(min_size / min(height, width), max_size / max(height, width)) >= 1)
    image = np.zeros((height, width, 3), np.uint8)
    resized, _ = resize(image, min_sizes=[min_size], max_size=max_size)
    assert resized.shape == torchvision_resize(image, min_size=min_size, max_size=max_size)[0].shape


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((480, 640), (800, 1066)), ((640, 480), (1066, 800)), ((427, 640), (800, 1199)), ((200, 800), (333, 1333))],
)
def test_cocos_usual_sizes(shape, expected):
    assert resized_shape(*shape, min_size=800, max_size=1333) == expected


def test_an_extreme_image_keeps_a_pixel():
    assert resized_shape(1, 5000, min_size=800, max_size=1000) == (1, 1000)


@pytest.mark.parametrize("min_size", [17, 30, 41, 90])
@pytest.mark.parametrize("shape", [(40, 60), (61, 33)])
def test_pixels_are_torchvisions_within_a_grey_level(shape, min_size):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    resized, _ = resize(image, min_sizes=[min_size])
    expected, _ = torchvision_resize(image, min_size=min_size)
    assert resized.dtype == np.uint8
    np.testing.assert_allclose(resized, expected, atol=1.01)


@settings(max_examples=30)
@given(st.integers(10, 50), st.integers(10, 50), st.integers(8, 100), st.integers(0, 2**32))
def test_boxes_and_masks_are_torchvisions(height, width, min_size, seed):
    rng = np.random.default_rng(seed)
    masks = np.zeros((3, height, width), np.uint8)
    boxes = []
    for mask in masks:
        left, top = rng.integers(0, width - 6), rng.integers(0, height - 6)
        right, bottom = rng.integers(left + 5, width), rng.integers(top + 5, height)
        mask[top:bottom, left:right] = 1
        boxes.append([left, top, right, bottom])
    instances = {"boxes": np.array(boxes, np.float32), "masks": masks}
    image = np.zeros((height, width, 3), np.uint8)
    _, out = resize(image, instances, min_sizes=[min_size])
    target = {"boxes": torch.from_numpy(instances["boxes"]), "masks": torch.from_numpy(masks)}
    _, expected = torchvision_resize(image, target, min_size=min_size)
    assume((expected["boxes"][:, 2:] - expected["boxes"][:, :2] > 1.01).all())  # smaller ones are dropped here
    np.testing.assert_allclose(out["boxes"], expected["boxes"], atol=1e-3)
    assert out["masks"].shape == tuple(expected["masks"].shape)
    for mask, other in zip(out["masks"], expected["masks"].numpy(), strict=True):  # where two are as near, either is taken
        np.testing.assert_allclose(extent(mask), extent(other), atol=1)


def test_every_size_of_a_list_occurs_about_as_often():
    image = np.zeros((10, 20, 3), np.uint8)
    sizes = [5, 7, 11, 13]
    counts = Counter(resize(image, min_sizes=sizes, seed=seed)[0].shape[0] for seed in range(200))
    assert set(counts) == set(sizes)
    assert min(counts.values()) > 25


def test_the_longer_side_is_bounded_whichever_size_is_drawn():
    image = np.zeros((10, 40, 3), np.uint8)
    shapes = {resize(image, min_sizes=[10, 20, 30], max_size=60, seed=seed)[0].shape[:2] for seed in range(30)}
    assert shapes == {(10, 40), (15, 60)}


def test_an_image_of_the_right_size_is_left_alone():
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    np.testing.assert_array_equal(resize(image, min_sizes=[30])[0], image)


@settings(max_examples=100, deadline=None)
@given(st.tuples(*[st.integers(1, 40)] * 4), st.integers(0, 5))
def test_masks_are_resized_as_opencv_does_each(sides, seed):
    height, width, new_height, new_width = sides
    random = np.random.default_rng(seed)
    masks = np.zeros((4, height, width), np.uint8)
    masks[0] = random.random((height, width)) < 0.1
    masks[1, height // 3 : height // 2 + 1, width // 4 : width // 2 + 1] = 1
    masks[2] = 1
    found = resize_masks(masks, (new_height, new_width))
    for mask, resized in zip(masks, found, strict=True):
        expected = cv2.resize(mask, (new_width, new_height), interpolation=cv2.INTER_NEAREST)
        np.testing.assert_array_equal(resized, expected)
