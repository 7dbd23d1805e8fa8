"""An exponential moving average of a model's weights."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def average_model(model: nn.Module, *, decay: float) -> AveragedModel:
    """A copy of `model` whose weights follow the original's, keeping a share `decay` of themselves at each update.

    In the first updates the share is (1 + n) / (10 + n), so that the average does not cling to the initial weights; as in
    TensorFlow's ExponentialMovingAverage. Buffers, such as batch statistics, are copied.
    """
    return AveragedModel(model, multi_avg_fn=_moving_average(decay))


def _moving_average(decay: float) -> Callable[..., None]:
    @torch.no_grad()
    def update(averages: list[Tensor], currents: list[Tensor], num_averaged: Tensor | int) -> None:
        n = int(num_averaged)
        weight = 1 - min(decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(averages, currents, weight)

    return update
