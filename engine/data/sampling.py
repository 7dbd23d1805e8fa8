"""How often an image is trained on in an epoch: repeat factors, by the rarity of what is in it."""

from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class RepeatsImages(Protocol):
    """A data set that has some images trained on more often than others."""

    def repeat_factors(self) -> np.ndarray | None:
        """(I,) how often each image comes in an epoch on average, at least 1; None: each once."""
        ...


def repeat_factors(labels: np.ndarray, images: np.ndarray, *, num_images: int, threshold: float) -> np.ndarray:
    """How often each image should come in an epoch, (I,) float64, at least 1.

    A class that is in a share f of the images is to be repeated r = max(1, sqrt(threshold / f)) times, and an image as often
    as its rarest class; one without objects comes once. LVIS, https://arxiv.org/abs/1908.03195, appendix B.

    Args:
        labels: (N,) the class of each object, from 1.
        images: (N,) the place of its image, from 0.
        num_images: number of images.
        threshold: the share of images below which a class is rare, 0.001 in LVIS.
    """
    factors = np.ones(num_images)
    if len(labels):
        labels, images = np.divmod(np.unique(labels * num_images + images), num_images)  # a class counts once in an image
        frequency = np.bincount(labels) / num_images
        np.maximum.at(factors, images, np.sqrt(threshold / frequency[labels]))
    return factors


def epoch_length(factors: np.ndarray) -> int:
    """The least number of samples that `draw_repeats` gives for an epoch: the sum of the factors, rounded down."""
    return int(np.floor(factors).sum()) + int((factors % 1).sum())


def draw_repeats(factors: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """How often each image comes in one epoch, (I,) int64: its factor rounded up or down at random, so that the mean is exact.

    Rounding each by itself, as detectron2 does, changes the length of an epoch from one to the next by the square root of the
    number of images. Here the fractions are laid end to end, in a random order, along a ruler that starts at a random place
    within its unit; those on which a mark falls are rounded up. An image is as likely to be rounded up as before, and the sum
    is that of the factors, rounded (systematic sampling).
    """
    whole, fractions = np.floor(factors), factors % 1
    start = generator.random()
    order = generator.permutation(len(factors))
    total = int(fractions.sum() + start)  # summed as in `epoch_length`: another order would round otherwise
    marks = np.minimum(np.floor(np.cumsum(fractions[order]) + start), total).astype(np.int64)
    marks[-1:] = total
    repeats = whole.astype(np.int64)
    repeats[order] += np.diff(marks, prepend=0)
    return repeats
