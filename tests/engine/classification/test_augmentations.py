"""engine/classification/augmentations.py: drawn from the seed alone, ended in the right size; torchvision's under that seed."""

import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.models import ResNet50_Weights
from torchvision.transforms import v2

from backbones.errors import UserError
from engine.classification.augmentations import (
    IMAGE_AUGMENTATIONS,
    ImageAugmentation,
    build_image_transforms,
    resize_and_crop,
)

EVERY = IMAGE_AUGMENTATIONS.names()
RECIPE = [("random_resized_crop", {}), ("horizontal_flip", {}), ("trivial_augment", {}), ("random_erasing", {"p": 0.5})]


@pytest.fixture
def photo() -> torch.Tensor:
    """Noise, smoothed so that it has shapes, (3, 60, 47)."""
    generator = torch.Generator().manual_seed(1)
    small = torch.rand((1, 3, 6, 5), generator=generator)
    return (torch.nn.functional.interpolate(small, (60, 47), mode="bicubic")[0].clamp(0, 1) * 255).to(torch.uint8)


def augment(image, *steps, size=24, seed=0, epoch=0):
    steps = [(step, {}) if isinstance(step, str) else step for step in steps]
    return ImageAugmentation(steps, sizes=[size])(image, epoch=epoch, seed=seed)


# ---- Any of them ----


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", EVERY)
def test_an_augmentation_depends_on_the_seed_alone_and_ends_in_size(name, channels, photo):
    image = photo[:channels]
    before = image.clone()
    found = []
    for seed in [2**62 + i for i in range(12)] * 2:
        found.append(augment(image, name, seed=seed))
        torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
        assert found[-1].shape == (channels, 24, 24)
        assert found[-1].dtype == torch.uint8
        assert found[-1].is_contiguous()
    for first, second in zip(found[:12], found[12:], strict=True):
        assert torch.equal(first, second)
    assert len({image.numpy().tobytes() for image in found}) >= 2
    assert torch.equal(image, before)


def test_no_generator_is_moved(photo):
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    for name in EVERY:
        augment(photo, name)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # noqa: NPY002


def test_the_generator_comes_back_where_an_augmentation_fails(photo):
    state = torch.get_rng_state()
    with pytest.raises(UserError, match="end in images of 10 x 12 pixels"):
        augment(photo, "horizontal_flip", ("torchvision/CenterCrop", {"size": [12, 10]}))
    assert torch.equal(torch.get_rng_state(), state)


def test_other_types_than_bytes_are_refused(photo):
    with pytest.raises(UserError, match=r"of type torch\.float32"):
        augment(photo, ("torchvision/ToDtype", {"dtype": torch.float32}))


def test_it_can_be_handed_to_loader_processes_that_are_not_forked(photo):
    augmentation = ImageAugmentation([(name, {}) for name in EVERY], sizes=[24, 32])
    again = pickle.loads(pickle.dumps(augmentation))
    for epoch in (0, 1):
        assert torch.equal(augmentation(photo, epoch=epoch, seed=3), again(photo, epoch=epoch, seed=3))


def test_images_have_the_size_of_their_epoch(photo):
    augmentation = ImageAugmentation(RECIPE, sizes=[16, 16, 24])
    sides = [tuple(augmentation(photo, epoch=epoch, seed=0).shape) for epoch in range(5)]
    assert sides == [(3, 16, 16), (3, 16, 16), (3, 24, 24), (3, 24, 24), (3, 24, 24)]


# ---- Each is what it says ----


def under_seed(seed, *transforms):
    def run(image):
        torch.manual_seed(seed)
        for transform in transforms:
            image = transform(image)
        return image

    return run


def test_the_recipe_is_torchvisions_under_the_same_seed(photo):
    bilinear = v2.InterpolationMode.BILINEAR
    theirs = [
        v2.RandomResizedCrop(24, antialias=True),
        v2.RandomHorizontalFlip(0.5),
        v2.TrivialAugmentWide(interpolation=bilinear),
    ]
    for seed in range(30):
        assert torch.equal(augment(photo, *RECIPE[:3], seed=seed), under_seed(seed, *theirs)(photo))
    for ours, other in (
        (("rand_augment", {"num_ops": 3, "magnitude": 12}), v2.RandAugment(3, 12, interpolation=bilinear)),
        ("auto_augment", v2.AutoAugment(interpolation=bilinear)),
        (("random_crop", {"padding": 3, "mode": "reflect"}), v2.RandomCrop(24, padding=3, padding_mode="reflect")),
        (("torchvision/GaussianBlur", {"kernel_size": 3}), v2.GaussianBlur(3)),
    ):
        square = photo[:, :24, :24].contiguous()
        for seed in range(10):
            assert torch.equal(augment(square, ours, seed=seed), under_seed(seed, other)(square)), ours


def test_what_is_erased_is_of_the_mean_colour_and_within_its_share(photo):
    shares = []
    for seed in range(60):
        erased = augment(photo, ("random_erasing", {"p": 0.5, "min_scale": 0.1, "max_scale": 0.2}), seed=seed)
        changed = (erased != resize_and_crop(photo, resize=24, size=24)).any(0)
        assert (erased[:, changed] == torch.tensor([124, 116, 104], dtype=torch.uint8)[:, None]).all()
        shares.append(float(changed.double().mean()))
    erased = [share for share in shares if share > 0]
    assert 15 < len(erased) < 45
    assert 0.08 < min(erased) <= max(erased) < 0.22
    grey = augment(photo[:1], ("random_erasing", {"p": 1.0}))
    assert (grey == 114).sum() > 5


def test_flips_flip_half_of_the_time(photo):
    plain = resize_and_crop(photo, resize=24, size=24)
    for name, axis in (("horizontal_flip", 2), ("vertical_flip", 1)):
        found = [augment(photo, name, seed=seed) for seed in range(60)]
        flipped = [torch.equal(image, plain.flip(axis)) for image in found]
        assert all(is_flipped or torch.equal(image, plain) for is_flipped, image in zip(flipped, found, strict=True))
        assert 15 < sum(flipped) < 45


# ---- Size ----


@given(st.integers(1, 40), st.integers(1, 40), st.integers(2, 40), st.integers(0, 10))
def test_any_image_is_brought_to_any_size(height, width, size, more):
    image = torch.full((3, height, width), 77, dtype=torch.uint8)
    found = resize_and_crop(image, resize=size + more, size=size)
    assert found.shape == (3, size, size)
    assert (found == 77).all()


def test_images_are_looked_at_as_torchvisions_classifiers_look_at_them(photo):
    theirs = ResNet50_Weights.IMAGENET1K_V2.transforms()
    assert (theirs.crop_size, theirs.resize_size) == ([224], [232])
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    ours = v2.functional.normalize(resize_and_crop(photo, resize=232, size=224).float() / 255, mean, std)
    torch.testing.assert_close(ours, theirs(photo), rtol=0, atol=1.01 / 255 / min(std))  # one of 256 steps, from rounding
    # And nearly as Pillow does it, which is what they were published with.
    pixels = np.asarray(Image.fromarray(photo.permute(1, 2, 0).numpy()).resize((30, 38), Image.Resampling.BILINEAR))
    ours = resize_and_crop(photo, resize=30, size=30).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(ours - pixels[4:34]).max() <= 2


# ---- Mistakes ----


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (("blur", {}), "no augmentation 'blur'"),
        (("horizontal_flip", {"q": 1}), "no option 'q'"),
        (("horizontal_flip", {"p": 1.5}), r"horizontal_flip cannot be made .*: p is 1\.5: give a probability from 0 to 1"),
        (("random_resized_crop", {"min_scale": 0.5, "max_scale": 0.2}), "min_scale is 0.5 and max_scale 0.2"),
        (("random_resized_crop", {"max_scale": 1.5}), "above 0 and up to 1, the smaller first"),
        (("random_erasing", {"min_scale": 0.0}), "min_scale is 0.0"),
        (("random_crop", {"padding": -1}), "padding is -1"),
        (("rand_augment", {"magnitude": 31}), "magnitude is 31: give 0 to 30"),
        (("trivial_augment", {"num_magnitude_bins": 0}), "num_magnitude_bins is 0"),
        (("random_affine", {"degrees": -3.0}), "random_affine cannot be made"),
        (("random_affine", {"translate": 3.0}), "random_affine cannot be made"),
        (("color_jitter", {"hue": 3.0}), "color_jitter cannot be made"),
        (("torchvision/GausianBlur", {}), r"no transform 'GausianBlur'\. Did you mean 'GaussianBlur'"),
        (("torchvision/GaussianBlur", {}), "torchvision/GaussianBlur cannot be made"),
        (("torchvision/GaussianBlur", {"kernel_size": 2}), "torchvision/GaussianBlur cannot be made"),
    ],
)
def test_mistakes_are_named(step, message):
    with pytest.raises(UserError, match=message):
        ImageAugmentation([step], sizes=[16])


def test_each_augmentation_says_what_it_does():
    for name in EVERY:
        assert IMAGE_AUGMENTATIONS.get(name).__doc__, name
        assert len(build_image_transforms(name, {}, size=8)) == 1
