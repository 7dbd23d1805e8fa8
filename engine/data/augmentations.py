"""The augmentations a config can name. Each makes albumentations transforms, or a step of our own (engine/data/mixing.py)."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from backbones.errors import UserError, did_you_mean
from backbones.registry import Registry

if TYPE_CHECKING:
    from albumentations import BasicTransform

    from engine.data.mixing import CopyPaste, Mosaic, RandomCrop, SampleStep

# An augmentation: its options -> the albumentations transforms it is made of, or a step of our own. albumentations is imported
# when used: it takes seconds.
AUGMENTATIONS: Registry[Callable[..., "list[BasicTransform] | SampleStep"]] = Registry("augmentation")
register_augmentation = AUGMENTATIONS.register

MOST_PIXELS = 2**14  # of an image's side: a square of so many, three channels in float32, takes 3 GB

# Augmentations that bring every image to its training size themselves, so that min_size and max_size do not apply.
RESIZING = {"large_scale_jitter"}
# Those whose images are of other sizes than before, which therefore must not follow on the above.
CHANGES_SIZE = {"mosaic", "random_crop"}


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


@register_augmentation("blur")
def blur(*, min_sigma: float = 0.1, max_sigma: float = 2.0, p: float = 0.5) -> "list[BasicTransform]":
    """Blur with a Gaussian whose sigma, in pixels, is drawn evenly from min_sigma to max_sigma, with probability p."""
    import albumentations as A

    if not 0 < min_sigma <= max_sigma:
        raise ValueError(f"min_sigma {min_sigma} must be above 0, and not above max_sigma {max_sigma}")

    return [A.GaussianBlur(blur_limit=0, sigma_limit=(min_sigma, max_sigma), p=p)]


@register_augmentation("large_scale_jitter")
def large_scale_jitter(*, size: int = 1024, min_scale: float = 0.1, max_scale: float = 2.0) -> "list[BasicTransform]":
    """Scale the image to fit `size` x `size` times a random factor, then crop or pad it to `size` x `size` pixels.

    Ghiasi et al., Simple Copy-Paste, https://arxiv.org/abs/2012.07177, section 3.
    """
    import albumentations as A

    from engine.data.resize import ScaleJitter

    _check_side(size)
    if not 0 < min_scale <= max_scale:
        raise ValueError(f"min_scale {min_scale} must be above 0, and not above max_scale {max_scale}")

    return [
        ScaleJitter(size=size, min_scale=min_scale, max_scale=max_scale),
        A.RandomCrop(size, size, pad_if_needed=True, pad_position="top_left", fill=(124, 116, 104), fill_mask=0),
    ]


@register_augmentation("random_crop")
def random_crop(
    *, min_scale: float = 0.3, max_scale: float = 1.0, min_visible: float = 0.3, keep_object: bool = True, p: float = 0.5
) -> "RandomCrop":
    """Cut out a random rectangle, with probability p; objects of which a share of less than min_visible is left are dropped.

    Its sides are shares of the image's from min_scale to max_scale; with keep_object at least one object stays whole.
    """
    from engine.data.mixing import RandomCrop

    return RandomCrop(min_scale=min_scale, max_scale=max_scale, min_visible=min_visible, keep_object=keep_object, p=p)


@register_augmentation("copy_paste")
def copy_paste(*, max_objects: int | None = None, min_visible: float = 0.1, p: float = 0.5) -> "CopyPaste":
    """Paste a random number, up to max_objects, of another image's objects along their masks, with probability p.

    Objects of which less than a share of min_visible is left under them are dropped. Ghiasi et al., Simple Copy-Paste,
    https://arxiv.org/abs/2012.07177; there it follows large_scale_jitter and horizontal_flip.
    """
    from engine.data.mixing import CopyPaste

    return CopyPaste(max_objects=max_objects, min_visible=min_visible, p=p)


@register_augmentation("mosaic")
def mosaic(
    *,
    size: int = 1024,
    min_scale: float = 0.5,
    max_scale: float = 1.0,
    margin: float = 0.25,
    min_visible: float = 0.1,
    p: float = 0.5,
) -> "Mosaic":
    """Four images around a random centre in a square of `size` pixels, with probability p.

    Bochkovskiy et al., YOLOv4, https://arxiv.org/abs/2004.10934.
    """
    from engine.data.mixing import Mosaic

    _check_side(size)
    return Mosaic(size=size, min_scale=min_scale, max_scale=max_scale, margin=margin, min_visible=min_visible, p=p)


def _check_side(size: int) -> None:
    if not 1 <= size <= MOST_PIXELS:
        raise ValueError(f"size is {size}: give pixels, from 1 to {MOST_PIXELS}")


def build_steps(name: str, options: dict[str, Any]) -> "list[BasicTransform | SampleStep]":
    """The steps of a registered augmentation, or of `albumentations/<class>`.

    Raises:
        UserError: unknown name or option, or a value that is refused.
    """
    if name.startswith("albumentations/"):
        return list(_own_transform(name.removeprefix("albumentations/"), options))
    AUGMENTATIONS.check_options(name, options)
    try:
        made = AUGMENTATIONS.get(name)(**options)
    except ValueError as error:  # pydantic's, from albumentations
        raise UserError(f"The augmentation {name} cannot be made with {options}: {error}") from None
    return list(made) if isinstance(made, list) else [made]


def build_transforms(name: str, options: dict[str, Any]) -> "list[BasicTransform]":
    """The transforms of a registered augmentation, or of `albumentations/<class>`.

    Raises:
        UserError: unknown name or option, a value that is refused, or an augmentation that is no transform of an image alone.
    """
    from albumentations import BasicTransform

    steps = build_steps(name, options)
    transforms = [step for step in steps if isinstance(step, BasicTransform)]
    if len(transforms) < len(steps):
        raise UserError(f"The augmentation {name} is one of whole objects, for detection: it cannot be used here.")
    return transforms


def _own_transform(class_name: str, options: dict[str, Any]) -> "list[BasicTransform]":
    import warnings

    import albumentations as A

    known = [key for key, value in vars(A).items() if isinstance(value, type) and issubclass(value, A.BasicTransform)]
    if class_name not in known:
        raise UserError(f"albumentations has no transform {class_name!r}.{did_you_mean(class_name, known)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it warns of an unknown argument, and goes on without it
            return [getattr(A, class_name)(**options)]
    except (ValueError, TypeError, UserWarning) as error:
        raise UserError(f"albumentations refuses {class_name} with {options}: {error}") from None
