"""Images and label maps: index -> (image, target), augmented by choices that depend on (seed, epoch, index) alone."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from backbones.errors import UserError
from engine.data.dataset import Sample, sample_seed
from engine.segmentation.classes import unique_names
from engine.segmentation.sources import LabelSource

if TYPE_CHECKING:
    from engine.segmentation.augmentation import LabelledAugmentation  # it loads albumentations, which takes seconds


class SegmentationDataset(Dataset[Sample]):
    """Images and their label maps.

    `dataset[index]` is the sample of epoch 0, `dataset[epoch, index]` that of another epoch: image uint8 (3, H, W), and a
    target: `labels` (H, W) uint8 (int32 where there are more than 255 classes), in which `ignored` is no example, `image_id`,
    and `seed`.

    Args:
        source: where the images and maps come from.
        augmentation: applied to each sample; None gives the image as it is.
        seed: of the random choices.
        group_shapes: whether batches are to hold only wide or only tall images, which saves padding.
    """

    def __init__(
        self,
        source: LabelSource,
        *,
        augmentation: "LabelledAugmentation | None" = None,
        seed: int = 0,
        group_shapes: bool = False,
    ) -> None:
        self.source = source
        self.augmentation = augmentation
        self.seed = seed
        self.group_shapes = group_shapes
        self.categories = source.categories
        self.ignored = source.ignored
        self.path = source.path

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        seed = sample_seed(self.seed, epoch, index)
        image, labels = self.source.read(index)
        if self.augmentation is not None:
            try:
                image, labels = self.augmentation(image, labels, seed=seed)
            except UserError as error:
                raise UserError(f"{self.source.image_paths[index]}: {error}") from error
        target: dict[str, Any] = {
            # torch can do little with uint16.
            "labels": torch.from_numpy(np.ascontiguousarray(labels if labels.dtype == np.uint8 else labels.astype(np.int32))),
            "image_id": torch.tensor(self.source.image_ids[index]),
            "seed": seed,
        }
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), target

    @property
    def class_names(self) -> list[str]:
        """Names by label, no two alike."""
        return unique_names(self.categories)

    def name_of(self, index: int) -> str:
        """The name of image `index`, without its folders."""
        return self.source.image_paths[index].name

    def shape_groups(self) -> np.ndarray | None:
        """(N,) 1 for images wider than high, 0 for the others; None where batches may mix them."""
        if not self.group_shapes:
            return None
        sizes = self.source.sizes()
        return (sizes[:, 1] > sizes[:, 0]).astype(np.int64)


def spread_indices(total: int, count: int) -> list[int]:
    """At most `count` of the indices below `total`, spread evenly, the first and the last among them."""
    return np.unique(np.linspace(0, total - 1, num=min(count, total), dtype=int)).tolist()


def class_counts(dataset: SegmentationDataset, indices: list[int]) -> np.ndarray:
    """(K + 1,) int64: pixels of each class in some label maps, and, last, of no class.

    Raises:
        UserError: a label map cannot be read.
    """
    counts = np.zeros(65536, np.int64)
    for index in indices:
        counts += np.bincount(dataset.source.read_labels(index).ravel(), minlength=65536)
    return np.append(counts[: len(dataset.categories)], counts[dataset.ignored])
