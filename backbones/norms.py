"""The normalisation layers a backbone can be built with, by name."""

from collections.abc import Callable
from functools import partial

from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from backbones.errors import UserError, did_you_mean

NormLayer = Callable[[int], nn.Module]

NORMS: dict[str, NormLayer] = {
    "frozen_bn": FrozenBatchNorm2d,  # statistics, scale and shift are constants: the usual choice with pretrained weights
    "bn": nn.BatchNorm2d,
    "sync_bn": nn.SyncBatchNorm,  # batch norm over all processes; plain batch norm in one process
    "gn": partial(nn.GroupNorm, 32),
}


def norm_layer(name: str) -> NormLayer:
    """The constructor (channels -> module) of a normalisation layer: frozen_bn, bn, sync_bn or gn (32 groups).

    Raises:
        UserError: no such norm.
    """
    if name not in NORMS:
        raise UserError(f"There is no norm {name!r}.{did_you_mean(name, NORMS)}")
    return NORMS[name]
