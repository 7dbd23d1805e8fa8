"""The one place that turns a config into objects."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from backbones import build_fpn_backbone
from backbones.errors import UserError
from engine.coco_eval import IouType
from engine.config import Config, DataSource
from engine.data.annotations import load_annotations
from engine.data.augmentations import RESIZING, build_transforms
from engine.data.dataset import CocoDataset
from engine.data.pipeline import Augmentation
from engine.data.sampler import GlobalBatchSampler, aspect_groups
from engine.data.sources import DATASETS, CocoPaths, Split, find_paths
from engine.distributed import World
from heads import build_detector
from heads.registry import besides_boxes


def build_model(config: Config, *, num_classes: int, load_weights: bool, num_keypoints: int = 0) -> nn.Module:
    """The detector of a config.

    Args:
        num_classes: number of classes, the background counted.
        num_keypoints: keypoints of an object, for heads that predict them.
        load_weights: whether to load the backbone's weights; a checkpoint brings its own.

    Raises:
        UserError: weights that cannot be had or do not fit.
    """
    backbone_config = config.model.backbone
    has_weights = backbone_config.weights is not None
    backbone = build_fpn_backbone(
        backbone_config.name,
        out_channels=config.model.pyramid.out_channels,
        pyramid=config.model.pyramid.name,
        extra_level=config.model.pyramid.extra_level,
        pyramid_norm=config.model.pyramid.norm,
        pyramid_options=config.model.pyramid.options(),
        weights=backbone_config.weights if load_weights else None,
        # What the weights would choose holds without them, too: a checkpoint brings its own.
        norm=backbone_config.norm or ("frozen_bn" if has_weights else "bn"),
        trainable_layers=backbone_config.trainable_layers,
        out_features=backbone_config.out_features,
        **backbone_config.options(),
    )
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


def check_processes(config: Config, world: World) -> None:
    """Check that a config can be trained on these processes.

    Raises:
        UserError: the batch cannot be split evenly, or sync_bn is to be synchronised on CPUs.
    """
    parts = world.size * config.train.accumulate
    if config.train.batch_size % parts:
        raise UserError(
            f"train.batch_size is {config.train.batch_size} over all processes, which {world.size} processes with "
            f"train.accumulate={config.train.accumulate} cannot share evenly. Give a multiple of {parts}."
        )
    if "sync_bn" in (config.model.backbone.norm, config.model.pyramid.norm) and world.size > 1 and world.device.type == "cpu":
        raise UserError("norm sync_bn needs GPUs where there are several processes. On CPUs use bn, gn or frozen_bn.")


def evaluation_size(config: Config) -> int:
    """The shorter side of an image in evaluation, pixels."""
    return max(np.atleast_1d(config.data.min_size).tolist())


def iou_types(config: Config) -> list[IouType]:
    """What the predictions of a config's detector are scored as, boxes first."""
    types: dict[str, IouType] = {"masks": "segm", "keypoints": "keypoints"}
    return ["bbox", *(types[kind] for kind in besides_boxes(config.model.head.name))]


def find_data(source: DataSource, *, split: Split, world: World | None = None) -> CocoPaths:
    """The files of a data source. An embedded set is rendered by the main process, the others wait.

    Raises:
        UserError: files that are not there.
    """
    if not isinstance(source, str):
        return find_paths(source.images, source.annotations, split=split)
    if world is not None and not world.is_main:
        world.barrier()
    paths = CocoPaths(*DATASETS.get(source)(split))
    if world is not None and world.is_main:
        world.barrier()
    return paths


def build_training_set(config: Config, *, world: World | None = None) -> CocoDataset:
    """The augmented training set, with the masks or keypoints that the head is trained on.

    Raises:
        UserError: files that are missing or malformed; masks or keypoints that are needed and not there.
    """
    paths = find_data(config.data.train, split="train", world=world)
    annotations = load_annotations(paths.annotations)
    kinds = besides_boxes(config.model.head.name)
    with_masks, with_keypoints = "masks" in kinds, "keypoints" in kinds
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
        raise UserError(f"{paths.annotations} has no usable object: there is nothing to learn.")
    steps = config.data.augmentations
    brings_to_size = any(step.name in RESIZING for step in steps)
    augmentation = Augmentation(
        [transform for step in steps for transform in build_transforms(step.name, step.options())],
        min_sizes=None if brings_to_size else np.atleast_1d(config.data.min_size).tolist(),
        max_size=config.data.max_size,
        mirrored_keypoints=annotations.mirrored_keypoints if with_keypoints else None,
    )
    return CocoDataset(
        paths.images,
        annotations,
        augmentation=augmentation,
        with_masks=with_masks,
        with_keypoints=with_keypoints,
        seed=config.seed,
    )


def build_validation_set(config: Config, *, world: World | None = None) -> CocoDataset:
    """The validation set, images as they are: the model resizes them.

    Raises:
        UserError: files that are missing or malformed.
    """
    paths = find_data(config.data.val, split="val", world=world)
    return CocoDataset(paths.images, load_annotations(paths.annotations), seed=config.seed)


def build_training_sampler(config: Config, dataset: CocoDataset, world: World, *, start_step: int = 0) -> GlobalBatchSampler:
    """The batches of this process; `check_processes` has passed the config."""
    table = dataset.annotations
    return GlobalBatchSampler(
        len(dataset),
        batch_size=config.train.batch_size,
        epochs=config.train.epochs,
        groups=aspect_groups(table.widths, table.heights) if config.data.aspect_ratio_grouping else None,
        rank=world.rank,
        world_size=world.size,
        accumulate=config.train.accumulate,
        seed=config.seed,
        start_step=start_step,
    )


def build_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """SGD or AdamW over what trains; each group carries its full learning rate as `initial_lr`."""
    options = config.optimizer
    lr = options.lr
    if options.base_batch_size is not None:
        lr *= config.train.batch_size / options.base_batch_size
    norm_types = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
    in_norms = {id(p) for module in model.modules() if isinstance(module, norm_types) for p in module.parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    norm_decay = options.weight_decay if options.norm_weight_decay is None else options.norm_weight_decay
    groups = [
        {"params": [p for p in trained if id(p) not in in_norms], "weight_decay": options.weight_decay},
        {"params": [p for p in trained if id(p) in in_norms], "weight_decay": norm_decay},
    ]
    groups = [group | {"initial_lr": lr} for group in groups if group["params"]]
    if options.name == "adamw":
        return torch.optim.AdamW(groups, lr=lr)
    return torch.optim.SGD(groups, lr=lr, momentum=options.momentum)


def build_schedule(config: Config, *, steps_per_epoch: int) -> Callable[[int], float]:
    """The learning rate's factor as a function of the step, from 0: a linear warm-up, then steps down or a half cosine."""
    schedule = config.schedule
    total = config.train.epochs * steps_per_epoch
    warmup = min(schedule.warmup_steps, total // 5)
    milestones = [round(m * (total if m <= 1 else steps_per_epoch), 6) for m in schedule.milestones]

    def factor(step: int) -> float:
        if step < warmup:
            return schedule.warmup_factor + (1 - schedule.warmup_factor) * step / warmup
        if schedule.name == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
        return float(schedule.gamma ** sum(step >= milestone for milestone in milestones))

    return factor
