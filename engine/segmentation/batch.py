"""Between the loader's images and the model: sizes, normalisation, padding, and class maps at each image's own size."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.transform import IMAGENET_MEAN, IMAGENET_STD

# Logits at an image's own size are made for as many classes at a time as fit in this many numbers.
_LOGITS_AT_ONCE = 1 << 26


def scaled_shape(height: int, width: int, *, min_size: int | None, max_size: int, factor: float = 1.0) -> tuple[int, int]:
    """(height, width) whose shorter side is min_size, or less where the longer would pass max_size, all times a factor.

    Args:
        min_size: pixels; None for the image's own.
    """
    shorter, longer = sorted((height, width))
    scale = factor * min((min_size or shorter) / shorter, max_size / longer)
    return max(1, round(height * scale)), max(1, round(width * scale))


def normalise(image: Tensor) -> Tensor:
    """uint8 (3, H, W) -> float32, with torchvision's mean and standard deviation taken out."""
    mean = torch.tensor(IMAGENET_MEAN, device=image.device)[:, None, None]
    std = torch.tensor(IMAGENET_STD, device=image.device)[:, None, None]
    return (image.float() / 255 - mean) / std


def training_batch(images: Sequence[Tensor], labels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Images uint8 (3, H_i, W_i) and label maps (H_i, W_i), uint8 or int32 -> (B, 3, H, W) float32 and (B, H, W) int64.

    What is smaller than the largest is padded on the right and below: images with the mean colour, maps with the label of
    pixels that are no example, 255 in uint8, 65535 in int32 (`heads.segmentation.ignored_label`).
    """
    ignored = 255 if labels[0].dtype == torch.uint8 else 65535
    height = max(image.shape[1] for image in images)
    width = max(image.shape[2] for image in images)
    batch = torch.zeros(len(images), 3, height, width, device=images[0].device)
    maps = torch.full((len(images), height, width), ignored, dtype=torch.int64, device=images[0].device)
    for place, (image, its_labels) in enumerate(zip(images, labels, strict=True)):
        batch[place, :, : image.shape[1], : image.shape[2]] = normalise(image)
        maps[place, : image.shape[1], : image.shape[2]] = its_labels
    return batch, maps


def predict_labels(model: nn.Module, image: Tensor, *, min_size: int | None, max_size: int) -> Tensor:
    """The most likely class of each pixel of one image: uint8 (3, H, W) -> (H, W) int64.

    The model sees the image by itself, resized as given, never padded; its logits are brought to the image's own size before
    the best is taken.
    """
    height, width = image.shape[1:]
    shape = scaled_shape(height, width, min_size=min_size, max_size=max_size)
    batch = normalise(image)[None]
    if shape != (height, width):
        batch = F.interpolate(batch, size=shape, mode="bilinear", align_corners=False)
    return best_class(model(batch)["out"], (height, width))[0]


def best_class(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, K, h, w) logits, brought to (H, W) -> (B, H, W) int64, the class of the largest; of equals the first.

    The classes are gone through a few at a time: 150 of them at the size of a photograph would take gigabytes.
    """
    batch_size, num_classes = logits.shape[:2]
    step = max(1, _LOGITS_AT_ONCE // (batch_size * size[0] * size[1]))
    best: Tensor | None = None
    winner: Tensor | None = None
    for first in range(0, num_classes, step):
        some = logits[:, first : first + step].float()
        if some.shape[-2:] != size:
            some = F.interpolate(some, size=size, mode="bilinear", align_corners=False)
        value, place = some.max(dim=1)
        if best is None or winner is None:
            best, winner = value, place
        else:
            better = value > best
            best, winner = torch.where(better, value, best), torch.where(better, place + first, winner)
    assert winner is not None
    return winner
