"""Augmentation steps that see a whole sample, and perhaps other samples: copy-paste, mosaic, and a crop that minds its objects.

albumentations' transforms see one image, and of an object its box, mask and points; a `SampleStep` sees all its columns.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Protocol

import cv2
import numpy as np

from backbones.errors import UserError
from engine.data.instances import MEAN_COLOUR, Instances, Sample, crowds, has_sides, join, mask_areas, refreshed, take, transfer


class OtherSamples(Protocol):
    """Where partners come from: a data set, whose samples are as they are in its files."""

    def __len__(self) -> int: ...

    def raw_sample(self, index: int) -> Sample:
        """The image and its rows, with the columns that every sample of the data set has."""
        ...

    def name_of(self, index: int) -> str:
        """A short name, for messages."""
        ...


class PartnerError(UserError):
    """What is wrong with a sample that was to be mixed into another."""


class SampleStep(ABC):
    """A step that takes and gives a sample, with probability `p`.

    `partners` other samples are drawn from the data set for it, any image being as likely as any other, the sample's own
    included. Before they are handed over they go through the steps before this one, each with random choices of its own, but
    not through those that need partners themselves. All that is random comes from the sample's seed.
    """

    partners: ClassVar[int] = 0
    needs_masks: ClassVar[bool] = False

    def __init__(self, *, p: float) -> None:
        check_share("p", p)
        self.p = p

    @abstractmethod
    def __call__(self, sample: Sample, partners: Sequence[Sample], generator: np.random.Generator) -> Sample:
        """The sample changed; neither it nor the partners are written to."""


def check_share(option: str, value: float) -> None:
    """Check that an option is a share.

    Raises:
        ValueError: it is not between 0 and 1.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{option} is {value}: it must be from 0 to 1")


class CopyPaste(SampleStep):
    """Paste some objects of another image, cut out along their masks. Ghiasi et al., https://arxiv.org/abs/2012.07177.

    A random number of the other image's objects is taken, crowd regions never. What lies under them loses those pixels of its
    mask, and its box is the extent of what is left; keypoints under them are no longer labelled. Objects of which less than
    `min_visible` is left are dropped, crowd regions when nothing is. An image of another size is scaled to fit and put
    anywhere; after large-scale jitter all are of one size.
    """

    partners = 1
    needs_masks = True

    def __init__(self, *, max_objects: int | None = None, min_visible: float = 0.1, p: float = 0.5) -> None:
        super().__init__(p=p)
        if max_objects is not None and max_objects < 1:
            raise ValueError(f"max_objects is {max_objects}: it must be at least 1, or null for no limit")
        check_share("min_visible", min_visible)
        self.max_objects = max_objects
        self.min_visible = min_visible

    def __call__(self, sample: Sample, partners: Sequence[Sample], generator: np.random.Generator) -> Sample:
        image, instances = sample
        source, pasted = _fitted(partners[0], image.shape[:2], generator)
        objects = generator.permutation(np.flatnonzero(~crowds(pasted)))
        if not len(objects):
            return sample
        most = min(len(objects), self.max_objects or len(objects))
        pasted = take(pasted, np.sort(objects[: generator.integers(1, most, endpoint=True)]))
        cover: np.ndarray = np.bitwise_or.reduce(pasted["masks"], axis=0)
        return cv2.copyTo(source, cover, image.copy()), join([self._under(instances, cover), pasted])

    def _under(self, instances: Instances, cover: np.ndarray) -> Instances:
        """What is left of the rows where something was pasted on the pixels that are 1 in `cover`, (H, W) uint8."""
        rows = instances | {"masks": instances["masks"] * (1 - cover)}
        share = mask_areas(rows["masks"]) / np.maximum(mask_areas(instances["masks"]), 1)
        if "keypoints" in rows:
            height, width = cover.shape
            x, y = (rows["keypoints"][..., axis].astype(np.int64) for axis in (0, 1))
            rows["keypoints"] = rows["keypoints"] * (1 - cover[y.clip(0, height - 1), x.clip(0, width - 1)])[..., None]
        rows = refreshed(take(rows, (share >= self.min_visible) | crowds(rows)))
        return take(rows, has_sides(rows["boxes"]))


class Mosaic(SampleStep):
    """Four images around a random centre, in a square. Bochkovskiy et al., YOLOv4, https://arxiv.org/abs/2004.10934.

    Each is scaled to fit `size` x `size` pixels times a factor drawn evenly from `min_scale` to `max_scale`, a corner of it at
    the centre, and cut where its quarter ends. The centre is at least `margin` of the side away from the border. Objects of
    whose box less than `min_visible` is left are dropped.
    """

    partners = 3

    def __init__(
        self,
        *,
        size: int = 1024,
        min_scale: float = 0.5,
        max_scale: float = 1.0,
        margin: float = 0.25,
        min_visible: float = 0.1,
        p: float = 0.5,
    ) -> None:
        super().__init__(p=p)
        if size < 2:
            raise ValueError(f"size is {size}: it must be at least 2 pixels")
        if not 0 < min_scale <= max_scale:
            raise ValueError(f"min_scale {min_scale} must be above 0, and not above max_scale {max_scale}")
        if not 0 <= margin <= 0.5:
            raise ValueError(f"margin is {margin}: it must be from 0 to 0.5")
        check_share("min_visible", min_visible)
        self.size = size
        self.min_scale, self.max_scale = min_scale, max_scale
        self.margin = margin
        self.min_visible = min_visible

    def __call__(self, sample: Sample, partners: Sequence[Sample], generator: np.random.Generator) -> Sample:
        samples = [sample, *partners]
        canvas = np.full((self.size, self.size, 3), MEAN_COLOUR, np.uint8)
        centre_x, centre_y = (round(generator.uniform(self.margin, 1 - self.margin) * self.size) for _ in range(2))
        parts = []
        for quarter, number in enumerate(generator.permutation(4).tolist()):
            image = samples[number][0]
            factor = generator.uniform(self.min_scale, self.max_scale) * self.size / max(image.shape[:2])
            height, width = (max(1, round(side * factor)) for side in image.shape[:2])
            right, down = quarter % 2 == 1, quarter >= 2
            part = transfer(
                samples[number],
                canvas,
                to_size=(height, width),
                shift=(centre_x if right else centre_x - width, centre_y if down else centre_y - height),
                window=(
                    centre_x if right else 0,
                    centre_y if down else 0,
                    self.size if right else centre_x,
                    self.size if down else centre_y,
                ),
                min_visible=self.min_visible,
            )
            parts.append(part)
        return canvas, join(parts)


class RandomCrop(SampleStep):
    """Cut out a rectangle whose sides are shares of the image's, drawn evenly from `min_scale` to `max_scale`.

    Objects of whose box less than `min_visible` is left are dropped; crowd regions stay while a pixel is left. With
    `keep_object` the rectangle is placed around one of the objects, and enlarged if it must be, so that the object stays whole.
    """

    def __init__(
        self,
        *,
        min_scale: float = 0.3,
        max_scale: float = 1.0,
        min_visible: float = 0.3,
        keep_object: bool = True,
        p: float = 0.5,
    ) -> None:
        super().__init__(p=p)
        if not 0 < min_scale <= max_scale <= 1:
            raise ValueError(f"min_scale {min_scale} must be above 0, and not above max_scale {max_scale}, which is at most 1")
        check_share("min_visible", min_visible)
        self.min_scale, self.max_scale = min_scale, max_scale
        self.min_visible = min_visible
        self.keep_object = keep_object

    def __call__(self, sample: Sample, partners: Sequence[Sample], generator: np.random.Generator) -> Sample:
        image, instances = sample
        whole = np.flatnonzero(~crowds(instances))
        kept = instances["boxes"][generator.choice(whole)] if self.keep_object and len(whole) else None
        sides, starts = [], []
        for axis, length in ((1, image.shape[0]), (0, image.shape[1])):
            side = max(1, round(length * generator.uniform(self.min_scale, self.max_scale)))
            # The rectangle starts at `last` or before, and does not end before `end`.
            last, end = (length, 0) if kept is None else (int(kept[axis]), min(math.ceil(kept[axis + 2]), length))
            side = max(side, end - last)
            starts.append(int(generator.integers(max(0, end - side), min(last, length - side), endpoint=True)))
            sides.append(side)
        canvas = np.empty((*sides, 3), np.uint8)
        rows = transfer(sample, canvas, shift=(-starts[1], -starts[0]), min_visible=self.min_visible)
        return canvas, rows


def _fitted(sample: Sample, size: tuple[int, int], generator: np.random.Generator) -> Sample:
    """A sample scaled to fit an image of (height, width) pixels, at a random place in it; one of that size is left as it is."""
    height, width = sample[0].shape[:2]
    if (height, width) == size:
        return sample
    factor = min(size[0] / height, size[1] / width)
    to_size = (min(size[0], max(1, round(height * factor))), min(size[1], max(1, round(width * factor))))
    down, right = (int(generator.integers(0, room - side, endpoint=True)) for room, side in zip(size, to_size, strict=True))
    canvas = np.zeros((*size, 3), np.uint8)
    return canvas, transfer(sample, canvas, to_size=to_size, shift=(right, down))
