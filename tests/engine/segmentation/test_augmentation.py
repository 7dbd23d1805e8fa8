"""engine/segmentation/augmentation.py: an image and its label map stay aligned whatever is done to them."""

import itertools

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones.errors import UserError
from engine.segmentation.augmentation import MEAN_COLOUR, LabelledAugmentation, RandomCrop, ScaledResize, build_augmentation
from engine.segmentation.config import SegmentationDataConfig

IGNORED = 255
COLOURS = np.array([(20, 30, 40), (230, 60, 10), (20, 210, 90), (240, 240, 30), (70, 80, 250)], np.uint8)


def augmentation(ignored=IGNORED, **keys):
    keys = {"augmentations": [], "min_size": None} | keys
    return build_augmentation(SegmentationDataConfig(train="shapes", val="shapes", **keys), ignored=ignored)


def patches(seed, height, width, *, dtype=np.uint8):
    """An image whose colours are its labels', in patches large enough to be seen after resizing."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, len(COLOURS), (-(-height // 32), -(-width // 32)))
    labels = np.kron(coarse, np.ones((32, 32), int))[:height, :width].astype(dtype)
    return COLOURS[labels], labels


def pixels_aligned(image, labels, *, ignored=IGNORED):
    """Pixels well within a patch, each of which has been seen to have its label's colour: an edge is blurred when enlarged."""
    assert image.shape[:2] == labels.shape
    assert image.dtype == np.uint8
    shifts = itertools.product(range(-5, 6), range(-5, 6))
    inside = np.all([np.roll(labels, shift, axis=(0, 1)) == labels for shift in shifts], axis=0) & (labels != ignored)
    inside[:5] = inside[-5:] = inside[:, :5] = inside[:, -5:] = False
    difference = np.abs(image[inside].astype(int) - COLOURS[labels[inside]])
    assert difference.size == 0 or difference.max() <= 3
    return int(inside.sum())


STEPS = {
    "flips": [{"name": "horizontal_flip"}, {"name": "vertical_flip"}],
    "rotate90": [{"name": "rotate90", "p": 1.0}],
    "affine": [{"name": "albumentations/Affine", "rotate": [-40, 40], "scale": [0.7, 1.4], "translate_percent": 0.2, "p": 1.0}],
    "perspective": [{"name": "albumentations/Perspective", "p": 1.0}],
    "large_scale_jitter": [{"name": "large_scale_jitter", "size": 96, "min_scale": 0.6, "max_scale": 1.6}],
}


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
@given(
    seed=st.integers(0, 2**32), height=st.integers(40, 120), width=st.integers(40, 120), crop=st.sampled_from([None, 64, 100])
)
@settings(max_examples=12)
def test_labels_stay_on_what_they_label(steps, seed, height, width, crop):
    resizes = "large_scale_jitter" in steps[0]["name"]
    keys = {} if resizes else {"min_size": 72, "max_size": 150, "scale": [0.6, 1.6]}
    image, labels = augmentation(augmentations=steps, crop_size=crop, **keys)(*patches(seed, height, width), seed=seed)
    pixels_aligned(image, labels)
    if crop is not None:
        assert image.shape == (crop, crop, 3)


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_there_is_something_to_align(steps):
    keys = {} if "large_scale_jitter" in steps[0]["name"] else {"min_size": 120}
    aligned = augmentation(augmentations=steps, **keys)
    assert sum(pixels_aligned(*aligned(*patches(seed, 100, 100), seed=seed)) for seed in range(5)) > 5000


@given(seed=st.integers(0, 2**32), height=st.integers(20, 200), width=st.integers(20, 200), factor=st.floats(0.2, 3.0))
@settings(max_examples=60)
def test_a_resized_label_lies_within_a_pixel_of_where_the_image_does(seed, height, width, factor):
    """The label is its column, and so is the colour: the nearest label is at most half a pixel off the interpolated colour."""
    columns = np.tile(np.arange(width, dtype=np.uint8), (height, 1))
    image = np.repeat(columns[..., None], 3, axis=2)
    resize = ScaledResize([None], 10_000, low=factor, high=factor)
    out, labels = LabelledAugmentation([resize], ignored=IGNORED)(image, columns, seed=seed)
    assert labels.shape == (max(1, round(height * factor)), max(1, round(width * factor)))
    assert np.abs(out[..., 0].astype(int) - labels).max() <= 1


def test_opencvs_usual_nearest_would_be_off():
    """What the test above is there for."""
    columns = np.tile(np.arange(200, dtype=np.uint8), (48, 1))
    linear, nearest, exact = (
        cv2.resize(columns, (25, 6), interpolation=how).astype(int)
        for how in (cv2.INTER_LINEAR, cv2.INTER_NEAREST, cv2.INTER_NEAREST_EXACT)
    )
    assert np.abs(linear - nearest).max() >= 3
    assert np.abs(linear - exact).max() <= 1


@given(seed=st.integers(0, 2**32), height=st.integers(1, 90), width=st.integers(1, 90), size=st.integers(1, 80))
@settings(max_examples=60)
def test_a_crop_is_a_part_of_the_image_padded_with_the_mean_colour_and_no_class(seed, height, width, size):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, (height, width)).astype(np.uint8)
    image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    crop = RandomCrop(size, max_share=1.0, ignored=IGNORED)
    out, new = LabelledAugmentation([crop], ignored=IGNORED)(image, labels, seed=seed)
    assert out.shape == (size, size, 3)
    kept = min(height, size), min(width, size)
    places = [
        (top, left)
        for top in range(max(1, height - size + 1))
        for left in range(max(1, width - size + 1))
        if np.array_equal(image[top : top + kept[0], left : left + kept[1]], out[: kept[0], : kept[1]])
        and np.array_equal(labels[top : top + kept[0], left : left + kept[1]], new[: kept[0], : kept[1]])
    ]
    assert places
    padding = np.ones((size, size), bool)
    padding[: kept[0], : kept[1]] = False
    assert (out[padding] == MEAN_COLOUR).all()
    assert (new == IGNORED)[padding].all()


def test_crops_reach_every_place():
    labels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    image = np.repeat(labels[..., None], 3, axis=2)
    crop = augmentation(crop_size=2)
    corners = {int(crop(image, labels, seed=seed)[1][0, 0]) for seed in range(200)}
    assert corners == {0, 1, 2, 4, 5, 6, 8, 9, 10}


def test_a_crop_of_one_class_is_drawn_again():
    labels = np.zeros((64, 64), np.uint8)
    labels[40:, 40:] = 1
    image = np.repeat(labels[..., None], 3, axis=2)
    mixed = augmentation(crop_size=16, crop_max_share=0.75)
    shares = [np.bincount(mixed(image, labels, seed=seed)[1].ravel()).max() / 256 for seed in range(60)]
    plain = [np.bincount(augmentation(crop_size=16)(image, labels, seed=seed)[1].ravel()).max() / 256 for seed in range(60)]
    assert sum(share <= 0.75 for share in shares) > 3 * sum(share <= 0.75 for share in plain) > 0


def test_pixels_of_no_class_do_not_count_in_the_share():
    labels = np.full((8, 8), IGNORED, np.uint8)
    labels[0, 0], labels[0, 1] = 1, 2
    crop = RandomCrop(8, max_share=0.5, ignored=IGNORED)
    assert crop._is_mixed(labels)
    labels[0, 2] = 2
    assert not crop._is_mixed(labels)
    assert not crop._is_mixed(np.full((8, 8), IGNORED, np.uint8))


@pytest.mark.parametrize("steps", [STEPS["affine"], STEPS["large_scale_jitter"], [{"name": "albumentations/Rotate", "p": 1.0}]])
def test_what_a_turn_uncovers_has_no_class(steps):
    image, labels = np.full((64, 64, 3), 200, np.uint8), np.full((64, 64), 3, np.uint8)
    uncovered = 0
    for seed in range(8):
        out, new = augmentation(augmentations=steps)(image, labels, seed=seed)
        assert set(np.unique(new)) <= {3, IGNORED}
        assert (out[new == 3] > 90).all()
        uncovered += (new == IGNORED).sum()
    assert uncovered > 100


def test_what_fills_a_map_can_be_said():
    steps = [{"name": "albumentations/Pad", "padding": 4, "fill_mask": 2, "p": 1.0}]
    labels = np.full((8, 8), 2, np.uint8)
    _, new = augmentation(augmentations=steps)(np.zeros((8, 8, 3), np.uint8), labels, seed=0)
    assert (new == 2).all()
    assert new.shape == (16, 16)


def test_choices_depend_on_the_seed_alone():
    steps = [{"name": "horizontal_flip"}, {"name": "color_jitter", "p": 1.0}, *STEPS["affine"]]
    keys = {"augmentations": steps, "min_size": [60, 90], "scale": [0.5, 2.0], "crop_size": 64}
    first, second = augmentation(**keys), augmentation(**keys)
    sample = patches(0, 80, 100)
    second(*sample, seed=99)
    for seed in range(5):
        for one, two in zip(first(*sample, seed=seed), second(*sample, seed=seed), strict=True):
            assert np.array_equal(one, two)
    assert len({first(*sample, seed=seed)[0].tobytes() for seed in range(8)}) == 8


def test_sizes_are_drawn_from_all_and_bounded():
    sizes = augmentation(min_size=[40, 50], max_size=60)
    shapes = {sizes(*patches(0, 32, 48), seed=seed)[1].shape for seed in range(40)}
    assert shapes == {(40, 60)}
    assert {sizes(*patches(0, 48, 48), seed=seed)[1].shape for seed in range(40)} == {(40, 40), (50, 50)}


def test_maps_of_16_bits_go_the_same_way():
    steps = [*STEPS["affine"], *STEPS["flips"]]
    keys = {"augmentations": steps, "min_size": 72, "scale": [0.8, 1.2], "crop_size": 90}
    image, labels = patches(4, 64, 80)
    narrow = augmentation(**keys)(image, labels, seed=11)
    wide = augmentation(ignored=65535, **keys)(image, labels.astype(np.uint16), seed=11)
    assert np.array_equal(narrow[0], wide[0])
    assert wide[1].dtype == np.uint16
    assert np.array_equal(np.where(narrow[1] == 255, 65535, narrow[1].astype(int)), wide[1])


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            {"name": "albumentations/Rotate", "mask_interpolation": 1, "limit": [30, 30], "p": 1.0},
            "labels that were not in the map",
        ),
        ({"name": "albumentations/Normalize", "p": 1.0}, "other than uint8"),
        ({"name": "albumentations/CenterCrop", "height": 500, "width": 500}, "an augmentation cannot take it"),
    ],
)
def test_transforms_that_spoil_a_sample_are_refused(step, message):
    labels = np.kron(np.array([[0, 200], [90, 30]]), np.ones((20, 20), int)).astype(np.uint8)
    with pytest.raises(UserError, match=message):
        augmentation(augmentations=[step])(np.zeros((40, 40, 3), np.uint8), labels, seed=0)
