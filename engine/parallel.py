"""A model trained on several processes: their gradients become one, and nothing else of a step waits for another process."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel
from torchvision.ops import FrozenBatchNorm2d

from backbones.errors import UserError
from engine.compilation import as_written
from engine.config import DistributedConfig
from engine.distributed import World

COMPRESSIONS: dict[str, Callable[..., Any]] = {
    "bf16": default_hooks.bf16_compress_hook,
    "fp16": default_hooks.fp16_compress_hook,
}

# What says whether buffers are sent before each step: PyTorch 2.15 renamed it, and warns of the old name.
_BUFFERS = "forward_sync_buffers"
if _BUFFERS not in inspect.signature(DistributedDataParallel).parameters:
    _BUFFERS = "broadcast_buffers"

# Their buffers are constants, or statistics that a training step writes and does not read.
NORMS = (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)


def synchronize_batch_norms(model: nn.Module, config: DistributedConfig, world: World) -> nn.Module:
    """The model with batch norm over all processes' images, if the config asks for it: same parameters, same names.

    Raises:
        UserError: on several CPUs, where PyTorch has no such norm.
    """
    if not config.sync_batch_norm or world.size == 1:
        return model
    if world.device.type == "cpu":
        raise UserError(
            "distributed.sync_batch_norm needs GPUs where there are several processes. On CPUs leave it out, or use norm gn."
        )
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def parallelize(model: nn.Module, config: DistributedConfig, world: World, *, some_are_unused: bool = False) -> nn.Module:
    """What to call for the losses: the model itself in one process, or DistributedDataParallel around it.

    A step's collectives are the all-reduces of its gradients' buckets. Buffers are sent before each step only where they may
    count in it, which batch norms' do not: in training they normalise by their own images. Statistics then follow the main
    process's images, as they would otherwise, and it is the main one's that are evaluated and saved.

    Args:
        some_are_unused: whether parameters get no gradient (`engine.unused`): they are then looked for in every step.
    """
    if world.size == 1:
        return model
    # Of a 1 x 1 convolution's gradient, whose strides over dimensions of size 1 may be any: four lines on every process.
    # It comes of the backward pass, from autograd's threads too, whose warnings are shown by the thread that called it, as that
    # module's. No catch_warnings around each pass: it changes the filters of all threads, and would have every other warning
    # that is shown once shown again after each step.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning, r"torch\.autograd\.graph$")
    sends_buffers: dict[str, Any] = {_BUFFERS: buffers_count_in_training(model)}
    parallel = DistributedDataParallel(
        model,
        device_ids=None,  # batches are on the device; image ids are not, and would each be copied there, and waited for
        gradient_as_bucket_view=True,
        **sends_buffers,
        bucket_cap_mb=config.bucket_mb,
        static_graph=config.static_graph,
        find_unused_parameters=some_are_unused,
    )
    if config.gradient_compression is not None:
        parallel.register_comm_hook(None, COMPRESSIONS[config.gradient_compression])
    if not config.static_graph:
        _settle_buckets(parallel)
    return parallel


def buffers_count_in_training(model: nn.Module) -> bool:
    """Whether a layer besides batch norms has numbers of its own that a training step might change and read."""
    return any(
        buffer.is_floating_point()
        for module in model.modules()
        if not isinstance(module, NORMS)
        for buffer in module.buffers(recurse=False)
    )


def _settle_buckets(parallel: DistributedDataParallel) -> None:
    """Let the gradients' buckets be laid out before the first step, in the same way in every start.

    DistributedDataParallel lays them out anew after the first backward pass. How the processes' numbers are added up (from
    three on, in which order) depends on an element's place in its bucket: a run that was resumed, whose first step had the
    first layout, would differ in the last bit from one that was not stopped.
    """
    model = parallel.module
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def touch_all() -> Tensor:
        # Gradients then come in the reverse order of the parameters, as from a model that uses them in that order.
        return torch.stack([parameter.flatten()[0].float() for parameter in trained]).sum()

    own = vars(model).get("forward")  # where a user has put another in the place of the class's
    model.forward = touch_all
    try:
        with as_written():
            for _ in range(2):  # the first pass sees the order, the second has the new buckets
                parallel().backward()
    finally:
        del model.forward
        if own is not None:
            model.forward = own
    for parameter in trained:
        parameter.grad = None
