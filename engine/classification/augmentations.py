"""What training images go through, by name: transforms of torchvision's v2, which draw from the sample's seed alone."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from backbones.errors import UserError, did_you_mean
from backbones.registry import Registry
from heads.transform import IMAGENET_MEAN

ImageTransform = Callable[[Tensor], Tensor]  # uint8 (C, H, W) -> the same, perhaps of another height and width
# An augmentation: the side an image ends with, in pixels, and its options -> the transforms it is made of.
IMAGE_AUGMENTATIONS: Registry[Callable[..., list[ImageTransform]]] = Registry("augmentation")
register_image_augmentation = IMAGE_AUGMENTATIONS.register
# Those that take an image of any size and give size x size pixels. Without one, images are brought to size first of all.
CROPPING = {"random_resized_crop"}
# Given in a call, not in a config.
STANDARD_OPTIONS = ("size",)


@register_image_augmentation("random_resized_crop")
def random_resized_crop(
    size: int, *, min_scale: float = 0.08, max_scale: float = 1.0, min_ratio: float = 3 / 4, max_ratio: float = 4 / 3
) -> list[ImageTransform]:
    """Cut out a share of the area, of an aspect ratio (width / height), both drawn, and resize it to size x size pixels.

    Szegedy et al., Going Deeper with Convolutions, https://arxiv.org/abs/1409.4842, section 6.
    """
    from torchvision.transforms import v2

    _check_range("scale", min_scale, max_scale, 0, 1)
    _check_range("ratio", min_ratio, max_ratio, 0, float("inf"))
    return [v2.RandomResizedCrop(size, scale=(min_scale, max_scale), ratio=(min_ratio, max_ratio), antialias=True)]


@register_image_augmentation("random_crop")
def random_crop(
    size: int, *, padding: int = 4, mode: Literal["constant", "reflect", "edge"] = "constant"
) -> list[ImageTransform]:
    """Pad each side by `padding` pixels, with black in mode constant, and cut out size x size pixels anywhere; as for CIFAR."""
    from torchvision.transforms import v2

    if padding < 0:
        raise ValueError(f"padding is {padding}: give pixels, 0 or more")
    return [v2.RandomCrop(size, padding=padding, padding_mode=mode)]


@register_image_augmentation("horizontal_flip")
def horizontal_flip(size: int, *, p: float = 0.5) -> list[ImageTransform]:
    """Mirror left and right with probability p."""
    from torchvision.transforms import v2

    return [v2.RandomHorizontalFlip(_probability(p))]


@register_image_augmentation("vertical_flip")
def vertical_flip(size: int, *, p: float = 0.5) -> list[ImageTransform]:
    """Mirror top and bottom with probability p; for images without an up, as under a microscope or from above."""
    from torchvision.transforms import v2

    return [v2.RandomVerticalFlip(_probability(p))]


@register_image_augmentation("random_affine")
def random_affine(
    size: int,
    *,
    degrees: float = 10.0,
    translate: float = 0.1,
    min_scale: float = 0.9,
    max_scale: float = 1.1,
    shear: float = 0.0,
) -> list[ImageTransform]:
    """Turn by up to `degrees`, shift by up to a share `translate` of a side, scale, and shear by up to `shear` degrees."""
    from torchvision.transforms import v2

    _check_range("scale", min_scale, max_scale, 0, float("inf"))
    return [
        v2.RandomAffine(
            degrees,
            translate=(translate, translate),
            scale=(min_scale, max_scale),
            shear=shear or None,
            interpolation=v2.InterpolationMode.BILINEAR,
        )
    ]


@register_image_augmentation("color_jitter")
def color_jitter(
    size: int, *, brightness: float = 0.4, contrast: float = 0.4, saturation: float = 0.4, hue: float = 0.0, p: float = 1.0
) -> list[ImageTransform]:
    """Change brightness, contrast, saturation and hue by up to these fractions, with probability p."""
    from torchvision.transforms import v2

    return [v2.RandomApply([v2.ColorJitter(brightness, contrast, saturation, hue)], _probability(p))]


@register_image_augmentation("rand_augment")
def rand_augment(size: int, *, num_ops: int = 2, magnitude: int = 9, num_magnitude_bins: int = 31) -> list[ImageTransform]:
    """`num_ops` operations drawn from 14, each at `magnitude` of `num_magnitude_bins`.

    Cubuk et al., RandAugment, https://arxiv.org/abs/1909.13719
    """
    from torchvision.transforms import v2

    if not 0 <= magnitude < num_magnitude_bins:
        raise ValueError(f"magnitude is {magnitude}: give 0 to {num_magnitude_bins - 1}, or more num_magnitude_bins")
    return [v2.RandAugment(num_ops, magnitude, num_magnitude_bins, interpolation=v2.InterpolationMode.BILINEAR)]


@register_image_augmentation("trivial_augment")
def trivial_augment(size: int, *, num_magnitude_bins: int = 31) -> list[ImageTransform]:
    """One operation drawn from 14, at a magnitude that is drawn, too; the wide ranges.

    Müller and Hutter, TrivialAugment, https://arxiv.org/abs/2103.10158
    """
    from torchvision.transforms import v2

    if num_magnitude_bins < 1:
        raise ValueError(f"num_magnitude_bins is {num_magnitude_bins}: give at least 1")
    return [v2.TrivialAugmentWide(num_magnitude_bins, interpolation=v2.InterpolationMode.BILINEAR)]


@register_image_augmentation("auto_augment")
def auto_augment(size: int, *, policy: Literal["imagenet", "cifar10", "svhn"] = "imagenet") -> list[ImageTransform]:
    """A pair of operations drawn from those that were found best on a data set.

    Cubuk et al., AutoAugment, https://arxiv.org/abs/1805.09501
    """
    from torchvision.transforms import v2

    return [v2.AutoAugment(v2.AutoAugmentPolicy(policy), interpolation=v2.InterpolationMode.BILINEAR)]


@register_image_augmentation("random_erasing")
def random_erasing(size: int, *, p: float = 0.1, min_scale: float = 0.02, max_scale: float = 0.33) -> list[ImageTransform]:
    """With probability p, paint a rectangle of a share of the area, drawn, in ImageNet's mean colour.

    Zhong et al., Random Erasing Data Augmentation, https://arxiv.org/abs/1708.04896
    """
    from torchvision.transforms import v2

    _check_range("scale", min_scale, max_scale, 0, 1)
    mean = [round(255 * value) for value in IMAGENET_MEAN]
    grey = [round(255 * sum(IMAGENET_MEAN) / 3)]
    return [
        _ByChannels(
            {len(value): v2.RandomErasing(_probability(p), scale=(min_scale, max_scale), value=value) for value in (mean, grey)}
        )
    ]


class _ByChannels:
    """The transform for as many channels as an image has. A class, for loader processes may be handed it in a pickle."""

    def __init__(self, transforms: dict[int, ImageTransform]) -> None:
        self._transforms = transforms

    def __call__(self, image: Tensor) -> Tensor:
        return self._transforms[len(image)](image)


def _probability(p: float) -> float:
    if not 0 <= p <= 1:
        raise ValueError(f"p is {p}: give a probability from 0 to 1")
    return p


def _check_range(what: str, low: float, high: float, least: float, most: float) -> None:
    if not least < low <= high <= most:
        bounds = f"above {least}" + ("" if most == float("inf") else f" and up to {most}")
        raise ValueError(f"min_{what} is {low} and max_{what} {high}: give numbers {bounds}, the smaller first")


class ImageAugmentation:
    """Brings training images to the side of their epoch, through augmentations that draw from the sample's own seed.

    Args:
        steps: name and options of each augmentation, in order.
        sizes: the side of the images of each epoch, pixels; past its end, the last.

    Raises:
        UserError: unknown name or option, or a value that a transform refuses.
    """

    def __init__(self, steps: Sequence[tuple[str, dict[str, Any]]], *, sizes: Sequence[int]) -> None:
        self.sizes = list(sizes)
        crops = any(name in CROPPING for name, _ in steps)
        self._brings_to_size_first = not crops
        self._transforms = {
            size: [transform for name, options in steps for transform in build_image_transforms(name, options, size=size)]
            for size in dict.fromkeys(sizes)
        }

    def size_of(self, epoch: int) -> int:
        """The side of the images of an epoch, pixels."""
        return self.sizes[min(epoch, len(self.sizes) - 1)]

    def __call__(self, image: Tensor, *, epoch: int, seed: int) -> Tensor:
        """Image uint8 (C, H, W) -> (C, size, size), by choices that depend on `seed` alone.

        Raises:
            UserError: the transforms end in another size or type.
        """
        size = self.size_of(epoch)
        if self._brings_to_size_first:
            image = resize_and_crop(image, resize=size, size=size)
        # torchvision draws from the global generator, which belongs to training. Only the CPU's: torch.manual_seed would seed
        # that of the GPU as well.
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(seed)
        try:
            for transform in self._transforms[size]:
                image = transform(image)
        finally:
            torch.set_rng_state(state)
        if image.dtype != torch.uint8 or image.shape[1:] != (size, size):
            raise UserError(
                f"the augmentations end in images of {image.shape[2]} x {image.shape[1]} pixels of type {image.dtype}, not in "
                f"{size} x {size} of torch.uint8: leave the one out that changes it."
            )
        return image.contiguous()


def resize_and_crop(image: Tensor, *, resize: int, size: int) -> Tensor:
    """Bring an image's shorter side to `resize` pixels, antialiased, and cut the middle out: (C, H, W) -> (C, size, size).

    It is how torchvision's published classifiers look at an image.
    """
    from torchvision.transforms.v2 import functional as F

    if min(image.shape[1:]) != resize:
        image = F.resize(image, [resize], antialias=True)
    return F.center_crop(image, [size, size]).contiguous()


def build_image_transforms(name: str, options: dict[str, Any], *, size: int) -> list[ImageTransform]:
    """The transforms of a registered augmentation, or of `torchvision/<class>` of its transforms.v2.

    Raises:
        UserError: unknown name or option, or a value torchvision refuses.
    """
    if not name.startswith("torchvision/"):
        IMAGE_AUGMENTATIONS.check_options(name, options, besides=STANDARD_OPTIONS)
        make: Callable[..., list[ImageTransform]] = IMAGE_AUGMENTATIONS.get(name)
        options = {"size": size, **options}
    else:
        from torchvision.transforms import v2

        class_name = name.removeprefix("torchvision/")
        known = [key for key, value in vars(v2).items() if isinstance(value, type) and issubclass(value, v2.Transform)]
        if class_name not in known:
            raise UserError(f"torchvision.transforms.v2 has no transform {class_name!r}.{did_you_mean(class_name, known)}")

        def make(**options: Any) -> list[ImageTransform]:
            return [getattr(v2, class_name)(**options)]

    try:
        return make(**options)
    except (ValueError, TypeError) as error:
        raise UserError(f"The augmentation {name} cannot be made as it is configured: {str(error).rstrip('.')}.") from None
