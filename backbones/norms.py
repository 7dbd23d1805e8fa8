"""The normalisation layers a backbone can be built with, by name."""

import math
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn

from backbones.errors import UserError, did_you_mean

NormLayer = Callable[[int], nn.Module]


class FrozenBatchNorm2d(torchvision.ops.FrozenBatchNorm2d):
    """torchvision's parameters and numbers, with one map in memory in place of two; the output has the input's type.

    Under autocast torchvision's makes float32 maps of half precision ones, which then take twice the memory.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        scale = (self.weight * torch.rsqrt(self.running_var + self.eps))[:, None, None]
        shift = self.bias[:, None, None] - self.running_mean[:, None, None] * scale
        if x.is_cuda:
            return torch.addcmul(shift, x, scale).to(x.dtype)  # one kernel; on a CPU, where it is not vectorized, slower
        return (x * scale).add_(shift).to(x.dtype)


def _group_norm(channels: int) -> nn.GroupNorm:
    """32 groups, as in the paper (https://arxiv.org/abs/1803.08494), or as many as narrow layers can be divided into."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


NORMS: dict[str, NormLayer] = {
    "frozen_bn": FrozenBatchNorm2d,  # statistics, scale and shift are constants: the usual choice with pretrained weights
    "bn": nn.BatchNorm2d,
    "sync_bn": nn.SyncBatchNorm,  # batch norm over all processes; plain batch norm in one process
    "gn": _group_norm,
}


def norm_layer(name: str) -> NormLayer:
    """The constructor (channels -> module) of a normalisation layer: frozen_bn, bn, sync_bn or gn (32 groups, fewer
    where the channels are not a multiple of 32).

    Raises:
        UserError: no such norm.
    """
    if name not in NORMS:
        raise UserError(f"There is no norm {name!r}.{did_you_mean(name, NORMS)}")
    return NORMS[name]


def check_conversion(norm: str, name: str) -> None:
    """Check that the batch norms of a model of another library can be turned into `norm`.

    Raises:
        UserError: no such norm, or gn, for which such a model has no weights.
    """
    norm_layer(norm)
    if norm == "gn":
        raise UserError(
            f"norm is 'gn', but {name} is built as its library has it: bn leaves its own norms, frozen_bn and sync_bn turn its "
            "batch norms into those. Choose a model that has group norm, or one of our own."
        )


def convert_batch_norms(model: nn.Module, norm: str) -> nn.Module:
    """Turn a model's BatchNorm2d into frozen_bn or sync_bn, with their weights and statistics; bn leaves the model's own.

    Raises:
        UserError: as `check_conversion`.
    """
    check_conversion(norm, type(model).__name__)
    if norm == "sync_bn":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if norm == "frozen_bn":
        for name, module in list(model.named_modules()):
            for child_name, child in list(module.named_children()):
                if isinstance(child, nn.BatchNorm2d):
                    assert name is not None
                    setattr(module, child_name, _frozen(child))
    return model


def _frozen(norm: nn.BatchNorm2d) -> FrozenBatchNorm2d:
    frozen = FrozenBatchNorm2d(norm.num_features, eps=norm.eps)
    for key in ("weight", "bias", "running_mean", "running_var"):
        value = getattr(norm, key)
        if value is not None:
            frozen.register_buffer(key, value.detach().clone())
    return frozen
