"""The augmentation of one sample: image and instances in, the same out, still aligned, at the training size."""

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

# albumentations asks a server for its newest version on import, unless told not to.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
from albumentations.augmentations.crops.transforms import CropSizeError

from backbones.errors import UserError
from engine.data.instances import Instances, Sample, box_areas, has_sides, mask_areas, refreshed
from engine.data.mask_crops import MaskCrops
from engine.data.mixing import OtherSamples, PartnerError, SampleStep
from engine.data.plain import PlainTransforms
from engine.data.resize import ResizeShorterSide

cv2.setNumThreads(0)  # a loader has a process a core; threads within them only get in each other's way


# Three points whose turn, after a transform, says whether it mirrors: right of the origin, and below it.
_FRAME = np.array([[0, 0], [1, 0], [0, 1]], np.float32)


class Augmentation:
    """Runs steps on a sample, drawing from the sample's own seed.

    Args:
        steps: albumentations transforms and steps of our own, applied in order.
        min_sizes: shorter sides to draw from, pixels; None where the steps bring images to size themselves.
        max_size: bound on the longer side, pixels.
        mirrored_keypoints: (labels, K), for each label and keypoint the place of the one it becomes in a mirror (a left hand
            the right one); None where samples have no keypoints.
        boxes_from_masks: make boxes fit the masks in the end, where there are masks: when an object is cut, what is left of it
            may be smaller than what is left of its box.
        drop_masks: give no masks, where only the steps need them.
    """

    def __init__(
        self,
        steps: Sequence[A.BasicTransform | SampleStep],
        *,
        min_sizes: Sequence[int] | None,
        max_size: int,
        mirrored_keypoints: np.ndarray | None = None,
        boxes_from_masks: bool = False,
        drop_masks: bool = False,
    ) -> None:
        self.boxes_from_masks = boxes_from_masks
        self.drop_masks = drop_masks
        resize = [] if min_sizes is None else [ResizeShorterSide(min_sizes, max_size)]
        self._stages: list[_Transforms | SampleStep] = []
        transforms: list[A.BasicTransform] = []
        for step in (*steps, *resize):
            if not isinstance(step, SampleStep):
                transforms.append(step)
                continue
            if transforms:
                self._stages.append(_Transforms(transforms, mirrored_keypoints))
            self._stages.append(step)
            transforms = []
        # Transforms also leave out what is no usable object, so a sample goes through them in any case.
        if transforms or not any(isinstance(stage, _Transforms) for stage in self._stages):
            self._stages.append(_Transforms(transforms, mirrored_keypoints))
        self._plain: PlainTransforms | None = None
        everything = [*steps, *resize]
        if mirrored_keypoints is None and PlainTransforms.are_plain(everything):
            self._plain = PlainTransforms(everything)

    @property
    def takes_cropped_masks(self) -> bool:
        """Whether `masks` may be `MaskCrops`, and come out as such."""
        return self._plain is not None and not self.boxes_from_masks

    def __call__(
        self, image: np.ndarray, instances: Instances, *, seed: int, others: OtherSamples | None = None
    ) -> tuple[np.ndarray, Instances]:
        """Augment one sample.

        Args:
            image: (H, W, 3) uint8.
            instances: columns of N rows: `boxes` (N, 4) float32 xyxy pixels, others (N, ...), perhaps `masks` (N, H, W) uint8
                and `keypoints` (N, K, 3) float32.
            seed: all that the random choices depend on.
            others: where the partners come from of the steps that mix samples.

        Returns:
            The image (H', W', 3) and the columns of the rows that are still in it. `area` follows the scale of the box or mask.
        """
        if self._plain is not None and isinstance(instances.get("masks"), MaskCrops | None):
            with _as_user_errors():
                image, instances = self._plain(image, instances, seed=seed)
            _check_bytes(image)
        else:
            image, instances = self._through((image, instances), len(self._stages), seed=seed, others=others, mixed=True)
        if self.boxes_from_masks and "masks" in instances:
            instances = refreshed(instances)
        if self.drop_masks:
            instances = {key: column for key, column in instances.items() if key != "masks"}
        return image, instances

    def _through(self, sample: Sample, end: int, *, seed: int, others: OtherSamples | None, mixed: bool) -> Sample:
        """A sample through the first `end` stages; those that need partners only where it is to be `mixed`."""
        for place, stage in enumerate(self._stages[:end]):
            own_seed = _derived(seed, place) if place else seed
            if isinstance(stage, _Transforms):
                sample = stage(*sample, seed=own_seed)
                continue
            generator = np.random.default_rng(own_seed)
            if (stage.partners and not mixed) or generator.random() >= stage.p:
                continue
            partners = []
            if stage.partners:
                assert others is not None, "a step that mixes samples needs a data set"
                for number, index in enumerate(generator.integers(len(others), size=stage.partners).tolist()):
                    try:
                        raw = others.raw_sample(index)
                    except UserError as error:
                        raise PartnerError(str(error)) from error  # it names the file
                    try:
                        partner_seed = _derived(own_seed, number)
                        partners.append(self._through(raw, place, seed=partner_seed, others=None, mixed=False))
                    except UserError as error:
                        raise PartnerError(f"with {others.name_of(index)}, which is mixed in: {error}") from error
            sample = stage(sample, partners, generator)
        return sample


class _Transforms:
    """Runs albumentations transforms on a sample, and realigns its rows."""

    def __init__(self, transforms: Sequence[A.BasicTransform], mirrored_keypoints: np.ndarray | None) -> None:
        boxes = A.BboxParams(format="pascal_voc", label_fields=["rows"], clip=True, filter_invalid_bboxes=True)
        self._mirrored = mirrored_keypoints
        # Points are kept wherever they go, so that they stay in order; those outside the image are dealt with here.
        points = None if self._mirrored is None else A.KeypointParams(format="xy", remove_invisible=False)
        if not any(isinstance(transform, A.DualTransform) for transform in transforms):
            transforms = [*transforms, A.NoOp()]  # albumentations warns where nothing moves boxes
        self._compose = A.Compose(list(transforms), bbox_params=boxes, keypoint_params=points)

    def __call__(self, image: np.ndarray, instances: Instances, *, seed: int) -> Sample:
        # One generator for all transforms: set_random_seed would give each the same one, and so the same draws.
        self._compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        boxes = instances["boxes"]
        fields: dict[str, Any] = {"image": image, "bboxes": boxes, "rows": np.arange(len(boxes))}
        has_masks = "masks" in instances
        if has_masks and len(boxes):
            fields["masks"] = instances["masks"]
        if self._mirrored is not None:
            fields["keypoints"] = np.concatenate([_FRAME, instances["keypoints"][..., :2].reshape(-1, 2)])
        with _as_user_errors():
            out = self._compose(**fields)
        _check_bytes(out["image"])

        # Boxes that fell out are gone from `bboxes`, masks never are: the row numbers say whose box is left.
        rows = np.asarray(out["rows"], dtype=np.int64)
        new_boxes = np.asarray(out["bboxes"], dtype=np.float32).reshape(-1, 4)
        height, width = out["image"].shape[:2]
        kept = has_sides(new_boxes)  # what is left of a box stays an object while it is a pixel wide and high
        rows, new_boxes = rows[kept], new_boxes[kept]
        if has_masks:
            masks = out["masks"] if len(rows) else ()
            areas = mask_areas([masks[row] for row in rows])
            visible = areas > 0
            rows, new_boxes, areas = rows[visible], new_boxes[visible], areas[visible]
            # Masks are most of a sample's memory: they are copied once, where any of them goes.
            whole = isinstance(masks, np.ndarray) and np.array_equal(rows, np.arange(len(masks)))
            kept_masks = masks if whole else np.array([masks[row] for row in rows], np.uint8).reshape(-1, height, width)
        columns = {key: value[rows] for key, value in instances.items() if key not in ("boxes", "masks")}
        if self._mirrored is not None:
            moved = np.asarray(out["keypoints"], np.float32).reshape(-1, 2)
            columns["keypoints"] = self._keypoints(moved, instances, height, width)[rows]
        columns["boxes"] = new_boxes
        if has_masks:
            columns["masks"] = kept_masks
        if "area" in columns and has_masks:
            columns["area"] = areas
        elif "area" in columns:
            columns["area"] = columns["area"] * box_areas(new_boxes) / np.maximum(box_areas(boxes[rows]), 1e-6)
        return out["image"], columns

    def _keypoints(self, moved: np.ndarray, instances: Instances, height: int, width: int) -> np.ndarray:
        """Keypoints (N, K, 3) from where the frame and they went to (3 + N * K, 2): mirrored ones change names."""
        assert self._mirrored is not None
        origin, right, down = moved[:3]
        before = instances["keypoints"]
        keypoints = np.concatenate([moved[3:].reshape(*before.shape[:2], 2), before[..., 2:]], axis=2)
        if np.linalg.det(np.stack([right - origin, down - origin])) < 0:
            keypoints = np.take_along_axis(keypoints, self._mirrored[instances["labels"]][..., None], axis=1)
        x, y, visibility = keypoints[..., 0], keypoints[..., 1], keypoints[..., 2]
        inside = (visibility > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
        return keypoints * inside[..., None]


@contextmanager
def _as_user_errors() -> Iterator[None]:
    """What albumentations says against a sample, as the user's error."""
    try:
        yield
    except (ValueError, CropSizeError) as error:
        raise UserError(f"an augmentation cannot take it: {error}") from error


def _check_bytes(image: np.ndarray) -> None:
    if image.dtype != np.uint8:
        raise UserError("an augmentation gives other than uint8 images. The model normalises them itself: leave that out.")


def _derived(seed: int, number: int) -> int:
    """A seed, 63 bits, for the part of a sample with this number."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> np.uint64(1))
