"""The one place that turns a detector's config into objects."""

from functools import partial

import numpy as np
from torch import nn

from backbones.errors import UserError
from engine.build import build_pyramid, find_data, read_annotations
from engine.data.augmentations import RESIZING, build_steps
from engine.data.dataset import CocoDataset
from engine.data.doctor.training import check_for_validation, load_for_training
from engine.data.image_cache import ImageCache
from engine.data.mixing import SampleStep
from engine.data.pipeline import Augmentation
from engine.data.subset import select
from engine.detection.coco_eval import IouType
from engine.detection.config import DetectionConfig
from engine.distributed import World
from heads import build_detector
from heads.registry import besides_boxes


def build_model(config: DetectionConfig, *, num_classes: int, load_weights: bool, num_keypoints: int = 0) -> nn.Module:
    """The detector of a config.

    Args:
        num_classes: number of classes, the background counted.
        num_keypoints: keypoints of an object, for heads that predict them.
        load_weights: whether to load the backbone's weights; a checkpoint brings its own.

    Raises:
        UserError: weights that cannot be had or do not fit.
    """
    backbone = build_pyramid(config.model.backbone, config.model.pyramid, load_weights=load_weights)
    return build_detector(
        config.model.head.name,
        backbone,
        num_classes,
        min_size=evaluation_size(config),
        max_size=config.data.max_size,
        resize_in_training=False,
        **({"num_keypoints": num_keypoints} if "keypoints" in besides_boxes(config.model.head.name) else {}),
        **config.model.head.options(),
    )


def evaluation_size(config: DetectionConfig) -> int:
    """The shorter side of an image in evaluation, pixels."""
    return max(np.atleast_1d(config.data.min_size).tolist())


def iou_types(config: DetectionConfig) -> list[IouType]:
    """What the predictions of a config's detector are scored as, boxes first."""
    types: dict[str, IouType] = {"masks": "segm", "keypoints": "keypoints"}
    return ["bbox", *(types[kind] for kind in besides_boxes(config.model.head.name))]


def build_training_set(config: DetectionConfig, *, world: World | None = None) -> CocoDataset:
    """The augmented training set, with the masks or keypoints that the head is trained on.

    Raises:
        UserError: files that are missing or malformed; classes, masks or keypoints that are needed and not there.
    """
    paths = find_data(config.data.train, split="train", world=world)
    classes = config.data.classes
    kinds = besides_boxes(config.model.head.name)
    with_masks, with_keypoints = "masks" in kinds, "keypoints" in kinds
    steps = [step for choice in config.data.augmentations for step in build_steps(choice.name, choice.options())]
    own_steps = [step for step in steps if isinstance(step, SampleStep)]
    masks_for_steps = any(step.needs_masks for step in own_steps)
    annotations, left_out = load_for_training(
        paths,
        partial(read_annotations, world=world),
        on_fault=config.data.on_fault,
        with_masks=with_masks or masks_for_steps,
        world=world,
    )
    annotations = select(annotations, classes=classes, drop_empty=config.data.drop_empty_images)
    if with_masks and not annotations.has_masks:
        raise UserError(
            f"{paths.annotations} has no masks (`segmentation`), which {config.model.head.name} is trained on. "
            "Use model.head.name=faster_rcnn."
        )
    if with_keypoints and not (annotations.num_keypoints and annotations.keypoints[..., 2].any()):
        raise UserError(
            f"{paths.annotations} has no keypoints, which {config.model.head.name} is trained on: `keypoints`, their names, in "
            "each category, and `keypoints`, x, y and visibility of each, in the annotations. Or use another head."
        )
    if not len(annotations.boxes):
        of_these = "" if classes is None else f" of data.classes ({', '.join(classes)})"
        raise UserError(f"{paths.annotations} has no usable object{of_these}: there is nothing to learn.")
    brings_to_size = any(choice.name in RESIZING for choice in config.data.augmentations)
    if masks_for_steps and not annotations.has_masks:
        raise UserError(
            f"{paths.annotations} has no masks (`segmentation`), along which copy_paste cuts objects out. "
            "Leave it out of data.augmentations."
        )
    augmentation = Augmentation(
        steps,
        min_sizes=None if brings_to_size else np.atleast_1d(config.data.min_size).tolist(),
        max_size=config.data.max_size,
        mirrored_keypoints=annotations.mirrored_keypoints if with_keypoints else None,
        boxes_from_masks=brings_to_size or bool(own_steps),  # both cut objects
        drop_masks=not with_masks,
    )
    shapes = np.stack([annotations.heights, annotations.widths], axis=1)
    keeps_images = ImageCache.size_of(shapes) <= config.data.cache_images
    return CocoDataset(
        paths.images,
        annotations,
        augmentation=augmentation,
        with_masks=with_masks or masks_for_steps,
        cropped_masks=True,
        # A head without masks is also trained on objects that have none.
        boxes_as_masks=not with_masks,
        with_keypoints=with_keypoints,
        seed=config.seed,
        aspect_ratio_grouping=config.data.aspect_ratio_grouping,
        repeat_threshold=None if config.data.sampling is None else config.data.sampling.threshold,
        image_cache=ImageCache(shapes, world=world) if keeps_images else None,
        left_out=left_out,
    )


def build_validation_set(config: DetectionConfig, *, world: World | None = None) -> CocoDataset:
    """The validation set, images as they are: the model resizes them.

    Raises:
        UserError: files that are missing or malformed, images too; classes that are not there.
    """
    paths = find_data(config.data.val, split="val", world=world)
    annotations = check_for_validation(paths, partial(read_annotations, world=world), world=world)
    annotations = select(annotations, classes=config.data.classes)
    kinds = besides_boxes(config.model.head.name) if config.eval.losses else ()
    return CocoDataset(
        paths.images,
        annotations,
        with_masks="masks" in kinds,
        with_keypoints="keypoints" in kinds,
        seed=config.seed,
    )
