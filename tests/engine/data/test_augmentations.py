"""engine/data/augmentations.py: names, options and what they are made of."""

import albumentations as A
import numpy as np
import pytest

from backbones.errors import UserError
from engine.data.augmentations import (
    AUGMENTATIONS,
    CHANGES_SIZE,
    RESIZING,
    build_steps,
    build_transforms,
    register_augmentation,
)
from engine.data.mixing import SampleStep
from engine.data.pipeline import Augmentation


@pytest.fixture
def own_registry(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(AUGMENTATIONS, "_constructors", dict(AUGMENTATIONS._constructors))


@pytest.mark.parametrize("name", AUGMENTATIONS.names())
def test_every_augmentation_builds_with_its_defaults(name):
    steps = build_steps(name, {})
    assert steps
    assert all(isinstance(step, A.BasicTransform | SampleStep) for step in steps)


def test_those_that_change_sizes_are_registered():
    assert set(AUGMENTATIONS.names()) >= RESIZING | CHANGES_SIZE
    assert not RESIZING & CHANGES_SIZE


@pytest.mark.parametrize(
    "name",
    ["horizontal_flip", "vertical_flip", "rotate90", "color_jitter", "blur", "random_crop", "copy_paste", "mosaic"],
)
def test_p_is_the_probability(name):
    assert [step.p for step in build_steps(name, {"p": 0.125})] == [0.125]


@pytest.mark.parametrize("name", ["random_crop", "copy_paste", "mosaic"])
def test_what_is_more_than_a_transform_is_refused_where_only_those_are_taken(name):
    with pytest.raises(UserError, match=f"{name} is one of whole objects, for detection"):
        build_transforms(name, {})


def test_options_reach_the_transform():
    (jitter,) = build_transforms("color_jitter", {"brightness": 0.5, "hue": 0.125})
    assert tuple(jitter.brightness) == (0.5, 1.5)
    assert tuple(jitter.hue) == (-0.125, 0.125)


@pytest.mark.usefixtures("own_registry")
def test_a_function_registers_an_augmentation():
    @register_augmentation("box_blur")
    def box_blur(*, size: int = 3):
        return [A.Blur(blur_limit=(size, size), p=1)]

    image = np.zeros((20, 20, 3), np.uint8)
    image[10, 10] = 250
    nothing = {"boxes": np.zeros((0, 4), np.float32)}
    out, _ = Augmentation(build_transforms("box_blur", {"size": 5}), min_sizes=[20], max_size=20)(image, nothing, seed=0)
    np.testing.assert_array_equal(out[8:13, 8:13], np.full((5, 5, 3), 10))
    with pytest.raises(UserError, match="Did you mean 'size'"):
        build_transforms("box_blur", {"sise": 5})


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UserError, match=r"no augmentation 'horizontl_flip'\. Did you mean 'horizontal_flip'"):
        build_transforms("horizontl_flip", {})


def test_an_unknown_option_suggests_the_nearest():
    with pytest.raises(UserError, match=r"'color_jitter' has no option 'brigthness'\. Did you mean 'brightness'"):
        build_transforms("color_jitter", {"brigthness": 0.1})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("horizontal_flip", {"p": 7}),
        ("color_jitter", {"brightness": -1}),
        ("large_scale_jitter", {"size": 0}),
        ("large_scale_jitter", {"size": 64, "min_scale": -1}),
        ("blur", {"min_sigma": 3.0}),
        ("blur", {"p": 2}),
        ("random_crop", {"p": -0.5}),
        ("large_scale_jitter", {"size": 10**6}),
        ("mosaic", {"size": 10**6}),
        ("random_crop", {"min_scale": 0}),
        ("random_crop", {"max_scale": 1.5}),
        ("random_crop", {"min_visible": 2}),
        ("copy_paste", {"p": 7}),
        ("copy_paste", {"max_objects": 0}),
        ("copy_paste", {"min_visible": -0.1}),
        ("mosaic", {"size": 0}),
        ("mosaic", {"margin": 0.7}),
        ("mosaic", {"min_scale": 2}),
        ("mosaic", {"min_visible": 1.5}),
    ],
)
def test_values_out_of_range_are_the_users_to_put_right(name, options):
    with pytest.raises(UserError, match=name):
        build_steps(name, options)


def test_blur_spreads_a_point_as_wide_as_its_sigma():
    image = np.zeros((41, 41, 3), np.uint8)
    image[20, 20] = 255
    (transform,) = build_transforms("blur", {"min_sigma": 1.5, "max_sigma": 1.5, "p": 1})
    spread = transform(image=image)["image"][20, :, 0].astype(float)
    places = np.arange(41)
    np.testing.assert_allclose((spread * (places - 20) ** 2).sum() / spread.sum(), 1.5**2, rtol=0.15)


# ---- albumentations' own ----


def test_albumentations_own_transforms_go_by_their_class():
    (transform,) = build_transforms("albumentations/CLAHE", {"clip_limit": [1, 3], "p": 0.25})
    assert isinstance(transform, A.CLAHE)
    assert (transform.p, transform.clip_limit) == (0.25, (1, 3))


def test_an_unknown_class_suggests_the_nearest():
    with pytest.raises(UserError, match=r"no transform 'CLAHEE'\. Did you mean 'CLAHE'"):
        build_transforms("albumentations/CLAHEE", {})


@pytest.mark.parametrize("name", ["Compose", "albumentations", "BboxParams", "np", ""])
def test_only_transforms_can_be_named(name):
    with pytest.raises(UserError, match="has no transform"):
        build_transforms(f"albumentations/{name}", {})


@pytest.mark.parametrize("options", [{"clip": 3}, {"clip_limit": "high"}, {"p": 7}, {"tile_grid_size": [0, 0]}])
def test_options_that_albumentations_refuses_are_the_users_to_put_right(options):
    with pytest.raises(UserError, match=f"refuses CLAHE.*{next(iter(options))}"):
        build_transforms("albumentations/CLAHE", options)


# ---- Large-scale jitter ----


def jitter(image, boxes, *, seed=0, **options):
    steps = Augmentation(build_transforms("large_scale_jitter", options), min_sizes=None, max_size=1)
    instances = {"boxes": np.array(boxes, np.float32), "labels": np.arange(len(boxes))}
    return steps(image, instances, seed=seed)


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (32, 32), (7, 90), (300, 20)])
def test_large_scale_jitter_gives_squares_of_its_size(shape):
    image = np.full((*shape, 3), 50, np.uint8)
    sizes = {jitter(image, [[1, 1, 6, 6]], seed=seed, size=32)[0].shape for seed in range(10)}
    assert sizes == {(32, 32, 3)}


@pytest.mark.parametrize("scale", [0.25, 0.5, 1.0])
def test_a_small_image_lies_in_the_corner_on_the_mean_colour(scale):
    image = np.full((20, 40, 3), 200, np.uint8)
    out, instances = jitter(image, [[0, 0, 40, 20], [20, 10, 40, 20]], size=80, min_scale=scale, max_scale=scale)
    height, width = int(40 * scale), int(80 * scale)
    assert (out[:height, :width] == 200).all()
    assert (out[height:] == [124, 116, 104]).all()
    assert (out[:, width:] == [124, 116, 104]).all()
    np.testing.assert_allclose(instances["boxes"], [[0, 0, width, height], [width / 2, height / 2, width, height]], atol=0.01)


def test_a_large_image_is_cropped_anywhere():
    image = np.zeros((40, 40, 3), np.uint8)
    image[:] = np.arange(40)[None, :, None] * 6
    lefts = {int(jitter(image, [], seed=seed, size=40, min_scale=2, max_scale=2)[0][0, 0, 0]) for seed in range(30)}
    assert min(lefts) < 30
    assert max(lefts) > 90
    assert len(lefts) > 8


def test_the_scale_is_drawn_evenly():
    image = np.full((16, 16, 3), 255, np.uint8)
    widths = [
        int(jitter(image, [[0, 0, 16, 16]], seed=seed, size=64, min_scale=0.25, max_scale=1.0)[1]["boxes"][0, 2])
        for seed in range(200)
    ]
    assert min(widths) >= 16
    assert max(widths) <= 64
    counts, _ = np.histogram(widths, bins=4, range=(16, 64))
    assert counts.min() > 25
