"""Mixup and CutMix: the images of a batch are mixed in pairs of neighbours, and their labels with them."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# Told apart from whatever else is drawn from a sample's seed.
STREAM = 1


def mix(
    images: Tensor, labels: Tensor, seeds: list[int], *, num_classes: int, mixup_alpha: float, cutmix_alpha: float
) -> tuple[Tensor, Tensor]:
    """Mix images 0 and 1, 2 and 3 and so on of a batch; each pair gives two images, one mostly of each.

    What is drawn for a pair comes from the seed of its first image: where processes share a batch evenly, they mix it as one
    process does. With both alphas above 0, each pair has one of the two at random.

    Zhang et al., mixup, https://arxiv.org/abs/1710.09412; Yun et al., CutMix, https://arxiv.org/abs/1905.04899

    Args:
        images: (B, C, H, W), of any floating type; B is even.
        labels: (B,) int64.
        seeds: of the B samples.
        mixup_alpha, cutmix_alpha: of the Beta distribution a pair's share is drawn from; 0 for none.

    Returns:
        The images, and the share of each class in each: (B, num_classes) float32.
    """
    assert len(images) % 2 == 0, "checked where the config meets the number of processes"
    shares = F.one_hot(labels, num_classes).float()
    partners = torch.arange(len(images), device=images.device) ^ 1
    neighbours = images[partners]
    blends = torch.ones(len(images), dtype=torch.float64)
    boxes: dict[int, tuple[int, int, int, int]] = {}
    own_shares = torch.ones(len(images), dtype=torch.float64)
    for first in range(0, len(images), 2):
        generator = np.random.default_rng([STREAM, seeds[first]])
        cuts = cutmix_alpha > 0 and (mixup_alpha == 0 or generator.random() < 0.5)
        alpha = cutmix_alpha if cuts else mixup_alpha
        share = float(generator.beta(alpha, alpha))
        if cuts:
            boxes[first] = box = draw_box(generator, share, images.shape[2], images.shape[3])
            share = 1 - (box[2] - box[0]) * (box[3] - box[1]) / (images.shape[2] * images.shape[3])
        else:
            blends[first : first + 2] = share
        own_shares[first : first + 2] = share
    blends = blends.to(images)[:, None, None, None]
    mixed = blends * images + (1 - blends) * neighbours
    for first, (left, top, right, bottom) in boxes.items():
        pair = slice(first, first + 2)
        mixed[pair, :, top:bottom, left:right] = neighbours[pair, :, top:bottom, left:right]
    own = own_shares.to(shares)[:, None]
    return mixed, own * shares + (1 - own) * shares[partners]


def draw_box(generator: np.random.Generator, share: float, height: int, width: int) -> tuple[int, int, int, int]:
    """CutMix's rectangle (left, top, right, bottom), pixels: 1 - `share` of the area, less what lies outside the image."""
    half = 0.5 * math.sqrt(1 - share)
    across, down = int(half * width), int(half * height)
    x, y = int(generator.integers(width)), int(generator.integers(height))
    return max(x - across, 0), max(y - down, 0), min(x + across, width), min(y + down, height)
