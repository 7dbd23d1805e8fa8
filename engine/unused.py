"""Parameters that no loss depends on: on several processes the exchange of gradients would wait for theirs."""

from typing import Any

import torch
from torch import nn

from backbones.errors import UserError
from engine.amp import autocast
from engine.compilation import as_written
from engine.config import RunConfig
from engine.data.prefetch import to_device
from engine.distributed import World
from engine.job import Job, SampleSet
from engine.replay import total_loss

_TRIES = 10  # samples that are asked for; a run that cannot read any of them says so itself


def parameters_without_gradient(
    config: RunConfig, job: Job[Any], model: nn.Module, dataset: SampleSet, world: World
) -> list[str]:
    """The names of the parameters that train and get no gradient from two samples, as the main process finds them.

    Other libraries' backbones have such (a classifier's last stage, beyond the maps that are used), and so may one's own.
    Nothing of the model is changed. One process alone need not know: it gives none.
    """
    if world.size == 1 or config.distributed.static_graph:  # which looks for them itself, in its first step
        return []
    return world.broadcast(_look(config, job, model, dataset, world) if world.is_main else [])


def _look(config: RunConfig, job: Job[Any], model: nn.Module, dataset: SampleSet, world: World) -> list[str]:
    samples = []
    for index in range(min(_TRIES, len(dataset))):
        try:
            samples.append(dataset[0, index])
        except UserError:
            continue
        if len(samples) == 2:  # one alone may be too few for a batch norm
            break
    if not samples:
        return []
    images, targets = to_device(([image for image, _ in samples], [target for _, target in samples]), world.device)
    buffers = [buffer.clone() for buffer in model.buffers()]
    was_training = model.training
    model.train()
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.eval()  # in training it waits for the other processes, which are not here
    torch.manual_seed(config.seed)
    try:
        with as_written():
            with autocast(world.device, config.train.precision):
                losses = job.losses(model, images, targets)
            total_loss(losses, parts=1).backward()
        return [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    except UserError:  # the first step says it, with its own batch
        return []
    finally:
        model.train(was_training)
        model.zero_grad(set_to_none=True)
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
