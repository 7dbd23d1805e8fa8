"""Labelled images as training and evaluation are given them; what is random depends on (seed, epoch, index) alone."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from backbones.errors import UserError
from engine.classification.augmentations import ImageAugmentation, resize_and_crop
from engine.classification.classes import Classes
from engine.classification.sources import LabelledImages
from engine.data.dataset import Sample, sample_seed


class ClassificationDataset(Dataset[Sample]):
    """Images with one label each.

    `dataset[index]` is the sample of epoch 0, `dataset[epoch, index]` that of another epoch: image uint8 (channels, side, side)
    and {"label": its class, from 0; "image_id": `index`; "seed": what is drawn at random for this sample comes from it}.

    Args:
        images: where they are stored.
        classes: what the labels count.
        channels: 3 for colour, 1 for grey.
        resize, size: what an image is looked at as in evaluation; see `evaluation_view`.
        augmentation: what it goes through in place of that, in training.
        seed: of the random choices.

    Raises:
        UserError: a class of the images is not among `classes`.
    """

    def __init__(
        self,
        images: LabelledImages,
        classes: Classes,
        *,
        channels: int,
        resize: int,
        size: int,
        augmentation: ImageAugmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.images = images
        self.labels = classes.labels_of(images.class_names, of=images.path)[images.labels]
        self.categories = classes.categories
        self.channels = channels
        self.resize = resize
        self.size = size
        self.augmentation = augmentation
        self.seed = seed

    @property
    def path(self) -> Path:
        """The file or folder the images come from."""
        return self.images.path

    @property
    def counts(self) -> np.ndarray:
        """(classes,) The number of images of each class."""
        return np.bincount(self.labels, minlength=len(self.categories))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        seed = sample_seed(self.seed, epoch, index)
        pixels = self.images.read(index)
        if self.augmentation is None:
            image = evaluation_view(pixels, channels=self.channels, resize=self.resize, size=self.size)
        else:
            try:
                image = self.augmentation(to_tensor(pixels, channels=self.channels), epoch=epoch, seed=seed)
            except UserError as error:
                raise UserError(f"{self.images.name_of(index)}: {error}") from error
        target: dict[str, Any] = {
            "label": torch.tensor(self.labels[index]),
            "image_id": torch.tensor(index),
            "seed": seed,
        }
        return image, target

    def name_of(self, index: int) -> str:
        """A file's name without its folders, or an image's number."""
        return Path(self.images.name_of(index)).name

    def shape_groups(self) -> None:
        """All images of an epoch have one size."""
        return


def to_tensor(pixels: np.ndarray, *, channels: int) -> Tensor:
    """Pixels (H, W, 3) uint8 RGB -> (channels, H, W); grey as Pillow weighs colours (ITU-R 601)."""
    if channels == 1:
        return torch.from_numpy(np.array(Image.fromarray(pixels).convert("L")))[None]
    return torch.from_numpy(pixels).permute(2, 0, 1)


def evaluation_view(pixels: np.ndarray, *, channels: int, resize: int, size: int) -> Tensor:
    """What the model is given of an image (H, W, 3) uint8 in evaluation and prediction: (channels, size, size) uint8.

    Its shorter side is brought to `resize` pixels, and the middle cut out.
    """
    return resize_and_crop(to_tensor(pixels, channels=channels), resize=resize, size=size)
