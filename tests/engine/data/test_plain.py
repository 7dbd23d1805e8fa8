"""engine/data/plain.py and mask_crops.py against albumentations' own machinery on whole masks, and numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones.errors import UserError
from engine.data.augmentations import build_steps
from engine.data.mask_crops import MaskCrops
from engine.data.pipeline import Augmentation
from engine.data.resize import resize_masks
from tests.engine.data.test_pipeline import scenes, seeds, without_masks

STEPS = st.lists(
    st.sampled_from(
        [
            ("horizontal_flip", {}),
            ("vertical_flip", {"p": 0.4}),
            ("horizontal_flip", {"p": 1.0}),
            ("color_jitter", {}),
            ("blur", {}),
        ]
    ),
    max_size=4,
)


def built(steps, *, min_sizes):
    return Augmentation([s for name, options in steps for s in build_steps(name, options)], min_sizes=min_sizes, max_size=90)


def through_albumentations(augmentation, image, instances, *, seed):
    """By the stages, which any other augmentation goes through."""
    return augmentation._through((image, instances), len(augmentation._stages), seed=seed, others=None, mixed=True)


@settings(max_examples=150, deadline=None)
@given(scenes(), STEPS, st.sampled_from([None, [20], [33, 47, 80]]), st.booleans(), seeds)
def test_a_sample_comes_out_as_through_albumentations(drawn, steps, min_sizes, with_masks, seed):
    image, instances = drawn
    augmentation = built(steps, min_sizes=min_sizes)
    assert augmentation.takes_cropped_masks
    instances = instances if with_masks else without_masks(instances)
    expected_image, expected = through_albumentations(augmentation, image, instances, seed=seed)
    given_masks = {"masks": MaskCrops.of(instances["masks"])} if with_masks else {}
    new_image, columns = augmentation(image, instances | given_masks, seed=seed)
    if with_masks:
        columns["masks"] = columns["masks"].dense()
    np.testing.assert_array_equal(new_image, expected_image)
    assert columns.keys() == expected.keys()
    for key, column in columns.items():
        assert column.dtype == expected[key].dtype, key
        np.testing.assert_allclose(column, expected[key], rtol=1e-5, atol=1e-3, err_msg=key)
    if with_masks:
        np.testing.assert_array_equal(columns["masks"], expected["masks"])


@given(scenes(), seeds)
def test_boxes_that_leave_the_image_are_clipped_and_those_without_sides_go(drawn, seed):
    image, instances = drawn
    width = image.shape[1]
    outside = np.array([[-5, -5, 8, 8], [width - 4, 3, width + 9, 9], [3, 3, 3, 9], [width + 1, 2, width + 5, 6]], np.float32)
    instances = {"boxes": outside, "labels": np.arange(4), "area": np.full(4, 9, np.float32)}
    augmentation = built([("horizontal_flip", {})], min_sizes=[40])
    new_image, columns = augmentation(image, instances, seed=seed)
    assert columns["labels"].tolist() == [0, 1]
    assert (columns["boxes"] >= 0).all()
    assert (columns["boxes"] <= np.tile(new_image.shape[1::-1], 2)).all()
    expected = through_albumentations(augmentation, image, instances, seed=seed)[1]
    np.testing.assert_allclose(columns["boxes"], expected["boxes"], atol=1e-3)


@pytest.mark.parametrize("name", ["rotate90", "mosaic", "random_crop", "large_scale_jitter"])
def test_other_augmentations_take_masks_whole(name):
    assert not built([(name, {})], min_sizes=[32]).takes_cropped_masks


def test_an_augmentation_that_gives_no_bytes_is_refused():
    augmentation = built([("albumentations/ToFloat", {})], min_sizes=[32])
    with pytest.raises(UserError, match="uint8"):
        augmentation(np.zeros((8, 8, 3), np.uint8), {"boxes": np.zeros((0, 4), np.float32)}, seed=0)


# ---- Cropped masks ----

masks = st.integers(0, 2**32).map(
    lambda seed: (
        lambda rng: (rng.random((rng.integers(0, 5), *rng.integers(1, 24, 2))) < rng.choice([0, 0.02, 0.5])).astype(np.uint8)
    )(np.random.default_rng(seed))
)


@given(masks)
def test_crops_hold_the_whole_mask(whole):
    crops = MaskCrops.of(whole)
    assert len(crops) == len(whole)
    np.testing.assert_array_equal(crops.dense(), whole)
    np.testing.assert_array_equal(crops.areas(), whole.sum(axis=(1, 2)))
    columns = MaskCrops.of_columns([np.asfortranarray(mask) for mask in whole], whole.shape[1:])
    np.testing.assert_array_equal(columns.dense(), whole)
    for piece in crops.pieces:  # no smaller crop would do
        assert piece.size == 0 or (piece[[0, -1]].any(axis=1).all() and piece[:, [0, -1]].any(axis=0).all())


@given(masks, st.integers(1, 40), st.integers(1, 40))
def test_crops_are_resized_as_whole_masks_are(whole, height, width):
    resized = MaskCrops.of(whole).resized((height, width))
    np.testing.assert_array_equal(resized.dense(), resize_masks(whole, (height, width)))


@given(masks, st.sampled_from([0, 1]))
def test_crops_are_mirrored_as_whole_masks_are(whole, axis):
    np.testing.assert_array_equal(MaskCrops.of(whole).mirrored(axis=axis).dense(), np.flip(whole, axis + 1))


@given(masks, st.data())
def test_tensors_and_rows_of_crops(whole, data):
    tensors = MaskCrops.of(whole).tensors()
    assert tensors.shape == whole.shape
    np.testing.assert_array_equal(tensors.dense().numpy(), whole)
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=len(whole), max_size=len(whole))), bool)
    np.testing.assert_array_equal(MaskCrops.of(whole)[kept].dense(), whole[kept])
