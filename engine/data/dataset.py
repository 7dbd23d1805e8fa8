"""A data set in COCO's format: index -> (image, target), augmented by choices that depend on (seed, epoch, index) alone."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from backbones.errors import UserError
from engine.data.annotations import Annotations
from engine.data.image_cache import ImageCache
from engine.data.instances import Instances
from engine.data.mask_crops import MaskCrops
from engine.data.masks import decode_segmentation
from engine.data.pipeline import Augmentation
from engine.data.sampling import repeat_factors

Sample = tuple[Tensor, dict[str, Any]]


class CocoDataset(Dataset[Sample]):
    """Images and their instances.

    `dataset[index]` is the sample of epoch 0, `dataset[epoch, index]` that of another epoch, `dataset[epoch, index, n]` that of
    the image's n-th return within an epoch: image uint8 (3, H, W), and torchvision's target: boxes (N, 4) float32 xyxy pixels,
    labels (N,) int64 from 1, image_id, area (N,), iscrowd (N,); if asked for, masks (N, H, W) uint8 and keypoints (N, K, 3)
    float32 (x, y in pixels, visibility); and `seed`, from which the heads draw what they sample in this image.

    Args:
        images: the folder the file names are in.
        annotations: what to read from it.
        augmentation: applied to each sample; None gives the image as it is.
        with_masks: whether samples carry masks; objects without one go.
        cropped_masks: masks come as `heads.cropped_masks.CroppedMasks`, in place of a tensor: less to send and to hold.
        boxes_as_masks: what has no mask gets one that fills its box, in place of going.
        with_keypoints: whether targets carry keypoints.
        seed: of the random choices.
        aspect_ratio_grouping: whether batches are to hold only wide or only tall images.
        repeat_threshold: the share of images below which a class is rare, whose images then come more often; None: all once.
        image_cache: where decoded images are kept for the next time.
        left_out: lines that say what of the files is not in it.
    """

    def __init__(
        self,
        images: Path,
        annotations: Annotations,
        *,
        augmentation: Augmentation | None = None,
        with_masks: bool = False,
        cropped_masks: bool = False,
        boxes_as_masks: bool = False,
        with_keypoints: bool = False,
        seed: int = 0,
        aspect_ratio_grouping: bool = False,
        repeat_threshold: float | None = None,
        image_cache: ImageCache | None = None,
        left_out: Sequence[str] = (),
    ) -> None:
        self.images = images
        self.annotations = annotations
        self.augmentation = augmentation
        self.with_masks = with_masks
        self.cropped_masks = cropped_masks
        self.boxes_as_masks = boxes_as_masks
        self.with_keypoints = with_keypoints
        self.seed = seed
        self.categories = annotations.categories
        self.path = annotations.path
        self.aspect_ratio_grouping = aspect_ratio_grouping
        self.repeat_threshold = repeat_threshold
        self.image_cache = image_cache
        self.left_out = list(left_out)

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, key: int | tuple[int, ...]) -> Sample:
        epoch, index, *repeat = key if isinstance(key, tuple) else (0, key)
        seed = sample_seed(self.seed, epoch, index, *repeat)
        goes_cropped = self.augmentation is not None and self.augmentation.takes_cropped_masks
        image, instances = self.read_image(index), self._columns(index, cropped=goes_cropped)
        if self.augmentation is not None:
            try:
                image, instances = self.augmentation(image, instances, seed=seed, others=self)
            except UserError as error:
                raise UserError(f"{self.images / self.annotations.file_name(index)}: {error}") from error
        target: dict[str, Any] = {
            key: torch.from_numpy(np.ascontiguousarray(column))
            for key, column in instances.items()
            if key not in ("rows", "masks")
        }
        if "masks" in instances:
            target["masks"] = self._as_target(instances["masks"])
        target["image_id"] = torch.tensor(self.annotations.image_ids[index])
        target["seed"] = seed
        return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1), target  # no copy: the model makes one anyway

    def raw_sample(self, index: int) -> tuple[np.ndarray, Instances]:
        """Image `index` and its columns, as `read_image` and `instances` give them.

        Raises:
            UserError: as these.
        """
        return self.read_image(index), self.instances(index)

    def name_of(self, index: int) -> str:
        """The name of image `index`, without its folders."""
        return Path(self.annotations.file_name(index)).name

    def shape_groups(self) -> np.ndarray | None:
        """(I,) 1 for images wider than high, 0 for the others; None where batches may mix them."""
        table = self.annotations
        return (table.widths > table.heights).astype(np.int64) if self.aspect_ratio_grouping else None

    def repeat_factors(self) -> np.ndarray | None:
        """(I,) how often each image comes in an epoch on average; crowd regions, of which nothing is learned, do not count."""
        if self.repeat_threshold is None:
            return None
        table = self.annotations
        images = np.repeat(np.arange(len(table)), np.diff(table.offsets))
        objects = table.iscrowd == 0
        return repeat_factors(table.labels[objects], images[objects], num_images=len(table), threshold=self.repeat_threshold)

    def read_image(self, index: int) -> np.ndarray:
        """Image `index` as (H, W, 3) uint8 RGB.

        Raises:
            UserError: the file is missing, truncated, not an image, or not of the size the annotations state.
        """
        if self.image_cache is not None and (cached := self.image_cache.get(index)) is not None:
            return cached
        path = self.images / self.annotations.file_name(index)
        image = read_image(path)
        stated = (int(self.annotations.heights[index]), int(self.annotations.widths[index]))
        if image.shape[:2] != stated:
            height, width = image.shape[:2]
            raise UserError(
                f"{path} is {width} x {height} pixels, but {self.annotations.path} says {stated[1]} x {stated[0]} "
                f"(image {self.annotations.image_ids[index]}). Its boxes would be misplaced: put one of them right."
            )
        if self.image_cache is not None:
            self.image_cache.put(index, image)
        return image

    def instances(self, index: int) -> Instances:
        """The columns of image `index`: boxes, labels, area, iscrowd; masks (objects without one go), keypoints if asked for.

        Raises:
            UserError: a mask is malformed; the message names the annotation.
        """
        return self._columns(index, cropped=False)

    def _columns(self, index: int, *, cropped: bool) -> Instances:
        table = self.annotations
        rows = np.arange(table.offsets[index], table.offsets[index + 1])
        if self.with_masks:
            size = int(table.heights[index]), int(table.widths[index])
            crops = MaskCrops.of_columns((self._mask(index, row) for row in rows), size)
            there = crops.areas() > 0
            rows, crops = rows[there], crops[there]
        columns: Instances = {
            "boxes": table.boxes[rows],
            "labels": table.labels[rows],
            "area": table.areas[rows],
            "iscrowd": table.iscrowd[rows],
        }
        if self.with_masks:
            columns["masks"] = crops if cropped else crops.dense()
        if self.with_keypoints:
            columns["keypoints"] = table.keypoints[rows]
        return columns

    def _as_target(self, masks: Any) -> Any:
        """Masks as the augmentation gives them -> as they are asked for."""
        if self.cropped_masks:
            return (masks if isinstance(masks, MaskCrops) else MaskCrops.of(masks)).tensors()
        return torch.from_numpy(np.ascontiguousarray(masks.dense() if isinstance(masks, MaskCrops) else masks))

    def _mask(self, index: int, row: int) -> np.ndarray:
        table = self.annotations
        try:
            mask = decode_segmentation(table.segmentation(row), int(table.heights[index]), int(table.widths[index]))
        except ValueError as error:
            raise UserError(f"{table.path}: annotation {table.annotation_ids[row]}: {error}.") from None
        if self.boxes_as_masks and not mask.any():
            left, top, right, bottom = table.boxes[row]
            mask[int(top) : math.ceil(bottom), int(left) : math.ceil(right)] = 1
        return mask


def read_image(path: Path, *, listed_in: str = "the annotations") -> np.ndarray:
    """An image file as (H, W, 3) uint8 RGB, as its pixels are stored (EXIF rotation is not applied, as in COCO's tools).

    Args:
        listed_in: what names it, for the message.

    Raises:
        UserError: the file is missing, truncated, or not an image.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I;16"):  # Pillow would cut its values off at 255
                grey = (np.asarray(image) // 256).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2)
            if image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")  # type: ignore[assignment]
            return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except FileNotFoundError:
        raise UserError(f"There is no image file {path}.") from None
    # Pillow's errors for broken files, and for ones so large that they look like an attack.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"The image {path} cannot be read: {error}. Replace it, or take it out of {listed_in}.") from None


def sample_seed(seed: int, epoch: int, index: int, *repeat: int) -> int:
    """A 63-bit number for one sample of one epoch, and for each of its returns within the epoch, unlike that of any other."""
    high, low = np.random.SeedSequence([seed, epoch, index, *repeat]).generate_state(2, np.uint32)
    return (int(high) << 31) ^ int(low)
