"""engine/data/pipeline.py: through every augmentation, the columns of an instance stay together, and with the image."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from backbones.errors import UserError
from engine.data.augmentations import AUGMENTATIONS, RESIZING, build_steps
from engine.data.pipeline import Augmentation

GEOMETRY = [
    ("horizontal_flip", {}),
    ("vertical_flip", {}),
    ("rotate90", {}),
    ("large_scale_jitter", {"size": 48, "min_scale": 0.5}),
    ("albumentations/RandomCrop", {"height": 24, "width": 24, "p": 0.7}),
    ("albumentations/Affine", {"rotate": [-30, 30], "shear": [-10, 10], "scale": [0.7, 1.3], "translate_percent": [-0.2, 0.2]}),
]
COLOUR = [("color_jitter", {}), ("blur", {}), ("albumentations/CLAHE", {"p": 0.5})]
ALL = [*GEOMETRY, *COLOUR]

seeds = st.integers(0, 2**63 - 1)


def augmentation(*steps, min_sizes=None, max_size=1000):
    built = [step for name, options in steps for step in build_steps(name, options)]
    return Augmentation(built, min_sizes=min_sizes, max_size=max_size)


def scene(height, width, boxes):
    """An image and its instances: crosses as wide and high as their boxes, the first painted in grey level 20, then 40, ..."""
    image = np.zeros((height, width, 3), np.uint8)
    masks = np.zeros((len(boxes), height, width), np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[(2 * top + bottom) // 3 : (top + 2 * bottom + 2) // 3, left:right] = 1
        mask[top:bottom, (2 * left + right) // 3 : (left + 2 * right + 2) // 3] = 1
    for number, mask in enumerate(masks, start=1):
        image[mask > 0] = 20 * number
    numbers = np.arange(1, len(boxes) + 1)
    return image, {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "labels": numbers,
        "iscrowd": numbers % 2,
        "area": masks.sum(axis=(1, 2)).astype(np.float32),
        "pairs": np.stack([10 * numbers, 100 * numbers], axis=1),
        "masks": masks,
    }


def without_masks(instances):
    return {key: value for key, value in instances.items() if key != "masks"}


@st.composite
def scenes(draw, max_boxes=5):
    height, width = draw(st.integers(26, 60)), draw(st.integers(26, 60))
    boxes = []
    for _ in range(draw(st.integers(0, max_boxes))):
        w, h = draw(st.integers(6, width)), draw(st.integers(6, height))
        left, top = draw(st.integers(0, width - w)), draw(st.integers(0, height - h))
        boxes.append([left, top, left + w, top + h])
    return scene(height, width, boxes)


def assert_aligned(image, out, before):
    """What holds after any augmentation: rows that were together are together, boxes and masks lie within the image."""
    height, width = image.shape[:2]
    assert image.dtype == np.uint8
    assert out.keys() == before.keys()
    count = len(out["boxes"])
    assert {len(column) for column in out.values()} == {count}
    assert {key: column.dtype for key, column in out.items()} == {key: column.dtype for key, column in before.items()}
    numbers = out["labels"]
    assert numbers.tolist() == sorted(set(numbers.tolist()))
    assert set(numbers) <= set(before["labels"])
    np.testing.assert_array_equal(out["iscrowd"], numbers % 2)
    np.testing.assert_array_equal(out["pairs"], np.stack([10 * numbers, 100 * numbers], axis=1))
    assert out["boxes"].shape == (count, 4)
    assert (out["boxes"] >= 0).all()
    assert (out["boxes"] <= [width, height, width, height]).all()
    assert (out["boxes"][:, 2:] - out["boxes"][:, :2] >= 1).all()
    assert (out["area"] > 0).all()
    if "masks" in before:
        assert out["masks"].shape == (count, height, width)
        assert set(np.unique(out["masks"])) <= {0, 1}
        assert out["masks"].any(axis=(1, 2)).all()


def assert_boxes_hold_their_masks(out, *, tightly, slack=2):
    for box, mask in zip(out["boxes"], out["masks"], strict=True):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        extent = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        assert (box[:2] <= extent[:2] + slack).all(), (box, extent)
        assert (box[2:] >= extent[2:] - slack).all(), (box, extent)
        if tightly:
            np.testing.assert_allclose(box, extent, atol=2)


# ---- Whatever the augmentation ----


def test_every_registered_augmentation_is_tried_here():
    here = {name for name, _ in ALL if "/" not in name}
    assert here | {"copy_paste", "mosaic", "random_crop"} == set(AUGMENTATIONS.names())  # those: test_mixing.py
    assert {name for name, _ in ALL} > RESIZING


@pytest.mark.parametrize("step", ALL, ids=lambda step: step[0])
@settings(max_examples=25)
@given(scenes(), seeds)
def test_columns_stay_together_through_each_augmentation(step, drawn, seed):
    image, before = drawn
    for instances in (before, without_masks(before)):
        sizes = None if step[0] in RESIZING else [30]
        assert_aligned(*augmentation(step, min_sizes=sizes)(image, instances, seed=seed), instances)


@settings(max_examples=50)
@given(scenes(), st.lists(st.sampled_from(ALL), min_size=2, max_size=4), st.booleans(), seeds)
def test_columns_stay_together_through_any_combination(drawn, steps, with_masks, seed):
    image, before = drawn
    if not with_masks:
        before = without_masks(before)
    run = augmentation(*steps, ("albumentations/Crop", {"x_max": 20, "y_max": 20, "p": 0.1}), min_sizes=[20, 31], max_size=60)
    image, out = run(image, before, seed=seed)
    assert_aligned(image, out, before)
    assert min(image.shape[:2]) in (19, 20, 30, 31) or max(image.shape[:2]) in (59, 60)  # the rule rounds down
    if with_masks:
        # A mask is rounded to whole pixels at each size it goes through, and later steps may enlarge that fourfold.
        assert_boxes_hold_their_masks(out, tightly=False, slack=5)


@pytest.mark.parametrize("step", GEOMETRY, ids=lambda step: step[0])
@settings(max_examples=25)
@given(scenes(), seeds)
def test_boxes_hold_their_masks_afterwards(step, drawn, seed):
    _, out = augmentation(step)(*drawn, seed=seed)
    # A cross that is cut or turned no longer fills its box.
    assert_boxes_hold_their_masks(out, tightly=step[0] in ("horizontal_flip", "vertical_flip", "rotate90"))


@pytest.mark.parametrize("step", ALL, ids=lambda step: step[0])
@pytest.mark.parametrize("with_masks", [False, True])
def test_an_image_without_objects_goes_through(step, with_masks):
    image, before = scene(40, 50, [])
    if not with_masks:
        before = without_masks(before)
    for seed in range(4):
        out_image, out = augmentation(step, min_sizes=[30], max_size=60)(image, before, seed=seed)
        assert_aligned(out_image, out, before)
        assert len(out["boxes"]) == 0


@pytest.mark.parametrize("step", GEOMETRY, ids=lambda step: step[0])
@settings(max_examples=15)
@given(st.integers(0, 2**32))
def test_masks_stay_on_what_they_mark_in_the_image(step, seed):
    image, before = scene(40, 56, [[3, 4, 20, 24], [28, 6, 50, 20], [10, 26, 40, 38]])
    image, out = augmentation(step)(image, before, seed=seed)
    for number, mask in zip(out["labels"], out["masks"], strict=True):
        inner = mask.copy()  # without its edge, where an interpolated image is mixed
        for axis, shift in ((0, 1), (0, -1), (1, 1), (1, -1)):
            inner &= np.roll(mask, shift, axis)
        if inner.sum() > 20:
            assert abs(np.median(image[inner > 0]) - 20 * number) <= 1


@pytest.mark.parametrize("name", ["Normalize", "ToFloat"])
def test_an_augmentation_that_gives_no_bytes_is_refused(name):
    with pytest.raises(UserError, match="uint8"):  # the model normalises: it would, once more
        augmentation((f"albumentations/{name}", {"p": 1.0}), min_sizes=[20])(*scene(40, 50, [[5, 5, 30, 30]]), seed=0)


# ---- Random choices ----


@pytest.mark.parametrize("step", ALL, ids=lambda step: step[0])
def test_a_seed_decides_all(step):
    rng = np.random.default_rng(0)
    image, before = rng.integers(0, 256, (40, 50, 3), np.uint8), scene(40, 50, [[5, 5, 30, 30], [20, 10, 45, 35]])[1]
    run = augmentation(step, min_sizes=[36, 40, 44, 48])
    first = [run(image, before, seed=seed) for seed in range(8)]
    for seed in reversed(range(8)):
        again, out = augmentation(step, min_sizes=[36, 40, 44, 48])(image, before, seed=seed)
        np.testing.assert_array_equal(again, first[seed][0])
        for key in before:
            np.testing.assert_array_equal(out[key], first[seed][1][key])
    assert len({result[0].tobytes() for result in first}) > 3


def test_two_transforms_fire_independently():
    image = np.zeros((12, 12, 3), np.uint8)
    image[0, 0] = 255
    run = augmentation(("horizontal_flip", {"p": 0.5}), ("vertical_flip", {"p": 0.5}))
    nothing = without_masks(scene(12, 12, [])[1])
    corners = Counter(tuple(np.argwhere(run(image, nothing, seed=seed)[0][..., 0])[0].tolist()) for seed in range(200))
    assert set(corners) == {(0, 0), (0, 11), (11, 0), (11, 11)}
    assert min(corners.values()) > 30


def test_the_size_and_the_flip_are_drawn_independently():
    image, before = scene(40, 40, [[0, 0, 10, 40]])
    run = augmentation(("horizontal_flip", {}), min_sizes=[20, 80])
    seen = Counter()
    for seed in range(200):
        out_image, out = run(image, before, seed=seed)
        seen[len(out_image), bool(out["boxes"][0, 0] > 0)] += 1
    assert set(seen) == {(20, False), (20, True), (80, False), (80, True)}
    assert min(seen.values()) > 30


def test_the_input_is_left_as_it_was():
    image, before = scene(40, 50, [[5, 5, 30, 30]])
    kept = image.copy(), {key: value.copy() for key, value in before.items()}
    image.flags.writeable = False  # as Pillow gives it
    run = augmentation(*ALL, min_sizes=[30])
    for seed in range(5):
        run(image, before, seed=seed)
    np.testing.assert_array_equal(image, kept[0])
    for key, value in before.items():
        np.testing.assert_array_equal(value, kept[1][key])


# ---- Geometry whose answer is known ----


@settings(max_examples=30)
@given(scenes(), st.sampled_from(["horizontal_flip", "vertical_flip"]))
def test_a_flip_is_the_exact_mirror(drawn, name):
    image, before = drawn
    height, width = image.shape[:2]
    axis, side = (1, width) if name == "horizontal_flip" else (0, height)
    out_image, out = augmentation((name, {"p": 1.0}))(image, before, seed=0)
    np.testing.assert_array_equal(out_image, np.flip(image, axis))
    np.testing.assert_array_equal(out["masks"], np.flip(before["masks"], axis + 1))
    low, high = (0, 2) if axis == 1 else (1, 3)
    expected = before["boxes"].copy()
    expected[:, [low, high]] = side - before["boxes"][:, [high, low]]
    np.testing.assert_allclose(out["boxes"], expected, atol=1e-4)
    np.testing.assert_array_equal(out["area"], before["area"])


def test_a_quarter_turn_takes_all_four_directions_and_the_boxes_along():
    image, before = scene(30, 50, [[2, 3, 22, 13]])
    seen = set()
    for seed in range(40):
        out_image, out = augmentation(("rotate90", {}))(image, before, seed=seed)
        turns = next(k for k in range(4) if np.array_equal(np.rot90(image, k), out_image))
        np.testing.assert_array_equal(out["masks"][0], np.rot90(before["masks"][0], turns))
        expected = {0: [2, 3, 22, 13], 1: [3, 28, 13, 48], 2: [28, 17, 48, 27], 3: [17, 2, 27, 22]}[turns]
        np.testing.assert_allclose(out["boxes"], [expected], atol=1e-4)
        seen.add(turns)
    assert seen == {0, 1, 2, 3}


@settings(max_examples=60)
@given(scenes(), st.data())
def test_a_crop_takes_all_of_an_instance_that_falls_out(drawn, data):
    image, before = drawn
    height, width = image.shape[:2]
    left, top = data.draw(st.integers(0, width - 4)), data.draw(st.integers(0, height - 4))
    right, bottom = data.draw(st.integers(left + 4, width)), data.draw(st.integers(top + 4, height))
    crop = ("albumentations/Crop", {"x_min": left, "y_min": top, "x_max": right, "y_max": bottom})
    masks = before["masks"][:, top:bottom, left:right]
    boxes = before["boxes"].clip([left, top] * 2, [right, bottom] * 2) - np.array([left, top] * 2, np.float32)
    inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    assume(not (boxes[inside, 2:] - boxes[inside, :2] == 1).any())  # too fine a line for float32

    out = augmentation(crop)(image, without_masks(before), seed=0)[1]
    assert out["labels"].tolist() == before["labels"][inside].tolist()
    np.testing.assert_allclose(out["boxes"], boxes[inside], atol=1e-3)

    inside &= masks.any(axis=(1, 2))  # the box reaches in, the cross may not
    out_image, out = augmentation(crop)(image, before, seed=0)
    assert_aligned(out_image, out, before)
    assert out["labels"].tolist() == before["labels"][inside].tolist()
    np.testing.assert_array_equal(out["masks"], masks[inside])
    np.testing.assert_array_equal(out["area"], masks[inside].sum(axis=(1, 2)))


def test_colours_change_and_geometry_does_not():
    image, before = scene(40, 50, [[5, 5, 30, 30], [20, 10, 45, 35]])
    out_image, out = augmentation(("color_jitter", {"brightness": 0.5, "p": 1.0}), min_sizes=[40])(image, before, seed=0)
    assert not np.array_equal(out_image, image)
    for key, value in before.items():
        np.testing.assert_allclose(out[key], value, atol=1e-4)


# ---- Area ----


@pytest.mark.parametrize("with_masks", [False, True])
def test_the_area_follows_the_scale(with_masks):
    image, before = scene(30, 40, [[4, 6, 20, 22]])
    if not with_masks:
        before = without_masks(before)
    out = augmentation(min_sizes=[90])(image, before, seed=0)[1]
    np.testing.assert_allclose(out["area"], 9 * before["area"], rtol=0.01)


@given(scenes(), st.integers(13, 120))
@settings(max_examples=30)
def test_with_masks_the_area_is_that_of_the_mask(drawn, min_size):
    out = augmentation(("horizontal_flip", {}), min_sizes=[min_size])(*drawn, seed=0)[1]
    np.testing.assert_array_equal(out["area"], out["masks"].sum(axis=(1, 2)))


def test_without_masks_the_area_shrinks_with_what_is_left_of_the_box():
    image, before = scene(40, 40, [[0, 0, 20, 20]])
    before = without_masks(before) | {"area": np.array([300], np.float32)}
    crop = ("albumentations/Crop", {"x_min": 0, "y_min": 0, "x_max": 10, "y_max": 40})
    assert augmentation(crop)(image, before, seed=0)[1]["area"].tolist() == [150]


# ---- Objects that get too small ----


def test_an_object_that_shrinks_below_a_pixel_is_gone_with_its_row():
    image, before = scene(60, 60, [[0, 0, 6, 6], [10, 10, 50, 50]])
    for instances in (before, without_masks(before)):
        out = augmentation(min_sizes=[6])(image, instances, seed=0)[1]
        assert out["labels"].tolist() == [2]
        assert {len(column) for column in out.values()} == {1}


def test_a_thin_object_is_judged_by_its_size_in_the_end():
    image = np.zeros((40, 60, 3), np.uint8)
    thin = {"boxes": np.array([[3.25, 3, 3.75, 30]], np.float32), "labels": np.array([1])}
    counts = [len(augmentation(*steps, min_sizes=[400])(image, thin, seed=0)[1]["boxes"]) for steps in ([], [GEOMETRY[0]])]
    assert counts == [1, 1]  # 5 pixels wide, whether or not there is a flip on the way
