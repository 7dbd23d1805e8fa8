"""The one place that turns what all jobs' configs share into objects; each job has its own beside it."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backbones import Backbone, build_backbone, build_fpn_backbone
from backbones.errors import UserError
from engine.config import BackboneConfig, CocoFiles, PyramidConfig, RunConfig
from engine.data.annotations import Annotations, load_annotations
from engine.data.sampler import GlobalBatchSampler
from engine.data.sampling import RepeatsImages
from engine.data.sources import DATASETS, CocoPaths, Split, find_paths
from engine.distributed import World
from engine.job import SampleSet


def build_body(config: BackboneConfig, *, load_weights: bool, in_channels: int = 3) -> Backbone:
    """The bare backbone of a config.

    Args:
        load_weights: whether to load its weights; a checkpoint brings its own.

    Raises:
        UserError: weights that cannot be had or do not fit.
    """
    return build_backbone(config.name, in_channels=in_channels, **_backbone_options(config, load_weights=load_weights))


def build_pyramid(config: BackboneConfig, pyramid: PyramidConfig, *, load_weights: bool) -> Backbone:
    """The backbone of a config with a pyramid on it.

    Args:
        load_weights: whether to load the backbone's weights; a checkpoint brings its own.

    Raises:
        UserError: weights that cannot be had or do not fit.
    """
    return build_fpn_backbone(
        config.name,
        out_channels=pyramid.out_channels,
        pyramid=pyramid.name,
        extra_level=pyramid.extra_level,
        pyramid_norm=pyramid.norm,
        pyramid_options=pyramid.options(),
        **_backbone_options(config, load_weights=load_weights),
    )


def _backbone_options(config: BackboneConfig, *, load_weights: bool) -> dict[str, Any]:
    return {
        "weights": config.weights if load_weights else None,
        # What the weights would choose holds without them, too: a checkpoint brings its own.
        "norm": config.norm or ("frozen_bn" if config.weights is not None else "bn"),
        "trainable_layers": config.trainable_layers,
        "out_features": config.out_features,
        **config.options(),
    }


def find_data(source: str | CocoFiles, *, split: Split, world: World | None = None) -> CocoPaths:
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


def read_annotations(path: Path, *, world: World | None = None) -> Annotations:
    """`load_annotations`, by the main process first: of a large file the others then map what it has stored.

    Raises:
        UserError: as `load_annotations`, on every process.
    """
    if world is None:
        return load_annotations(path)
    if not world.is_main:
        world.barrier()
    try:
        return load_annotations(path)
    finally:
        if world.is_main:
            world.barrier()


def check_processes(config: RunConfig, world: World) -> None:
    """Check that a config can be trained on these processes.

    Raises:
        UserError: the batch cannot be split evenly, static_graph meets accumulation, or sync_bn is to be synchronised on CPUs.
    """
    parts = world.size * config.train.accumulate
    if config.train.batch_size % parts:
        raise UserError(
            f"train.batch_size is {config.train.batch_size} over all processes, which {world.size} processes with "
            f"train.accumulate={config.train.accumulate} cannot share evenly. Give a multiple of {parts}."
        )
    if config.distributed.static_graph and config.train.accumulate > 1 and world.size > 1:
        raise UserError(
            f"distributed.static_graph cannot be used with train.accumulate={config.train.accumulate}: PyTorch wants the first "
            "backward pass to exchange gradients. Leave one of them out."
        )
    pyramid = getattr(config.model, "pyramid", None)
    if "sync_bn" in (config.model.backbone.norm, pyramid and pyramid.norm) and world.size > 1 and world.device.type == "cpu":
        raise UserError("norm sync_bn needs GPUs where there are several processes. On CPUs use bn, gn or frozen_bn.")


def build_training_sampler(config: RunConfig, dataset: SampleSet, world: World, *, start_step: int = 0) -> GlobalBatchSampler:
    """The batches of this process; `check_processes` has passed the config."""
    return GlobalBatchSampler(
        len(dataset),
        batch_size=config.train.batch_size,
        epochs=config.train.epochs,
        groups=dataset.shape_groups(),
        repeat_factors=dataset.repeat_factors() if isinstance(dataset, RepeatsImages) else None,
        rank=world.rank,
        world_size=world.size,
        accumulate=config.train.accumulate,
        seed=config.seed,
        start_step=start_step,
    )


def build_optimizer(config: RunConfig, model: nn.Module) -> torch.optim.Optimizer:
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


def build_schedule(config: RunConfig, *, steps_per_epoch: int) -> Callable[[int], float]:
    """The learning rate's factor by the step, from 0: a linear warm-up, then steps down, a half cosine or a power."""
    schedule = config.schedule
    total = config.train.epochs * steps_per_epoch
    warmup = min(schedule.warmup_steps, total // 5)
    milestones = [round(m * (total if m <= 1 else steps_per_epoch), 6) for m in schedule.milestones]

    def factor(step: int) -> float:
        if step < warmup:
            return schedule.warmup_factor + (1 - schedule.warmup_factor) * step / warmup
        if schedule.name == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
        if schedule.name == "poly":
            return float((1 - (step - warmup) / max(1, total - warmup)) ** schedule.power)
        return float(schedule.gamma ** sum(step >= milestone for milestone in milestones))

    return factor
