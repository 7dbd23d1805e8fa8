"""The augmentations a config can name. Each makes albumentations transforms; geometry is theirs, alignment is ours."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from backbones.errors import UserError, did_you_mean
from backbones.registry import Registry

if TYPE_CHECKING:
    from albumentations import BasicTransform

# An augmentation: its options -> the albumentations transforms it is made of. Imported when used: it takes seconds.
AUGMENTATIONS: Registry[Callable[..., "list[BasicTransform]"]] = Registry("augmentation")
register_augmentation = AUGMENTATIONS.register

# Augmentations that bring every image to its training size themselves, so that min_size and max_size do not apply.
RESIZING = {"large_scale_jitter"}


@register_augmentation("horizontal_flip")
def horizontal_flip(*, p: float = 0.5) -> "list[BasicTransform]":
    """Mirror left and right with probability p."""
    import albumentations as A

    return [A.HorizontalFlip(p=p)]


@register_augmentation("vertical_flip")
def vertical_flip(*, p: float = 0.5) -> "list[BasicTransform]":
    """Mirror top and bottom with probability p; for images without an up, as under a microscope or from above."""
    import albumentations as A

    return [A.VerticalFlip(p=p)]


@register_augmentation("rotate90")
def rotate90(*, p: float = 0.5) -> "list[BasicTransform]":
    """Turn by 0, 90, 180 or 270 degrees with probability p."""
    import albumentations as A

    return [A.RandomRotate90(p=p)]


@register_augmentation("color_jitter")
def color_jitter(
    *, brightness: float = 0.2, contrast: float = 0.2, saturation: float = 0.2, hue: float = 0.02, p: float = 0.5
) -> "list[BasicTransform]":
    """Change brightness, contrast, saturation and hue by up to these fractions with probability p."""
    import albumentations as A

    return [A.ColorJitter(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue, p=p)]


@register_augmentation("large_scale_jitter")
def large_scale_jitter(*, size: int = 1024, min_scale: float = 0.1, max_scale: float = 2.0) -> "list[BasicTransform]":
    """Scale the image to fit `size` x `size` times a random factor, then crop or pad it to `size` x `size` pixels.

    Ghiasi et al., Simple Copy-Paste, https://arxiv.org/abs/2012.07177, section 3.
    """
    import albumentations as A

    from engine.data.resize import ScaleJitter

    if not 0 < min_scale <= max_scale:
        raise ValueError(f"min_scale {min_scale} must be above 0, and not above max_scale {max_scale}")

    return [
        ScaleJitter(size=size, min_scale=min_scale, max_scale=max_scale),
        A.RandomCrop(size, size, pad_if_needed=True, pad_position="top_left", fill=(124, 116, 104), fill_mask=0),
    ]


def build_transforms(name: str, options: dict[str, Any]) -> "list[BasicTransform]":
    """The transforms of a registered augmentation, or of `albumentations/<class>`.

    Raises:
        UserError: unknown name or option, or a value albumentations refuses.
    """
    if not name.startswith("albumentations/"):
        AUGMENTATIONS.check_options(name, options)
        try:
            return AUGMENTATIONS.get(name)(**options)
        except ValueError as error:  # pydantic's, from albumentations
            raise UserError(f"The augmentation {name} cannot be made with {options}: {error}") from None

    import warnings

    import albumentations as A

    class_name = name.removeprefix("albumentations/")
    known = [key for key, value in vars(A).items() if isinstance(value, type) and issubclass(value, A.BasicTransform)]
    if class_name not in known:
        raise UserError(f"albumentations has no transform {class_name!r}.{did_you_mean(class_name, known)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it warns of an unknown argument, and goes on without it
            return [getattr(A, class_name)(**options)]
    except (ValueError, TypeError, UserWarning) as error:
        raise UserError(f"albumentations refuses {class_name} with {options}: {error}") from None
