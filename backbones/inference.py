"""The same function, faster, for a model that no longer learns."""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d as TorchvisionFrozenBatchNorm2d

from backbones.errors import UserError
from backbones.norms import FrozenBatchNorm2d
from backbones.winograd import WinogradConv2d, is_suitable

ModelT = TypeVar("ModelT", bound=nn.Module)


def optimize_for_inference(model: ModelT, *, winograd: bool | None = None, compile_backbone: bool = False) -> ModelT:
    """A copy of a model that gives the same outputs, faster, and cannot be trained.

    Batch norms are folded into the convolutions before them, memory is laid out channels last, and on a CPU the 3x3
    convolutions are computed by Winograd's algorithm. The original is left as it is.

    Args:
        model: any of ours, or torchvision's: a module, or one with a module `backbone`, that takes a batch of images.
        winograd: left out, on a CPU where the weights are float32.
        compile_backbone: also run the backbone through `torch.compile`, once for each shape of the batch; that takes a minute a
            shape, and a C++ compiler on a CPU.

    Raises:
        UserError: `winograd` is asked for elsewhere than on a CPU.
    """
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    if winograd and device.type != "cpu":
        raise UserError(f"winograd=True is for CPUs, and the model is on {device.type}, whose library has it itself.")
    optimized = _sharing_copy(model).eval()
    dense = getattr(optimized, "backbone", optimized)
    whole = optimized if hasattr(optimized, "classifier") or dense is optimized else dense
    fold_norms(whole, lambda: whole(_example(dense, device)))
    if winograd or (winograd is None and device.type == "cpu"):
        for parent in list(optimized.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Conv2d) and is_suitable(child):
                    setattr(parent, name, WinogradConv2d(child))
    _own_tensors(optimized, {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())})
    if compile_backbone:
        dense = getattr(optimized, "backbone", optimized)
        dense.compile(dynamic=False)
    return optimized


def _sharing_copy(model: ModelT) -> ModelT:
    """A copy without gradients whose tensors are the model's own: most are about to be replaced, and need no memory twice."""
    shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    shared |= {id(buffer): buffer.detach() for buffer in model.buffers()}
    return copy.deepcopy(model, shared)


def _own_tensors(model: nn.Module, shared: set[int]) -> None:
    """Copy the tensors that are still another model's (by address), and lay all out channels last."""
    done: dict[int, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in done:
                    layout = torch.channels_last if tensor.dim() == 4 else torch.preserve_format
                    own = tensor.data_ptr() not in shared
                    new = tensor.detach().to(memory_format=layout) if own else tensor.detach().clone(memory_format=layout)
                    done[id(tensor)] = nn.Parameter(new, requires_grad=False) if isinstance(tensor, nn.Parameter) else new
                tensors[name] = done[id(tensor)]  # type: ignore[assignment]


@torch.no_grad()
def fold_norms(model: nn.Module, run: Callable[[], object]) -> int:
    """Fold batch norms, plain or frozen, into the convolutions whose output they take; gives their number.

    Which those are is seen in a run of the model, `run()`, in evaluation mode. One that is used twice stays as it is.
    """
    calls: Counter[int] = Counter()
    made_by: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # the tensor is kept, so that its id stays its own
    pairs: list[tuple[nn.Conv2d, nn.Module]] = []

    def after_convolution(module: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        calls[id(module)] += 1
        made_by[id(output)] = module, output

    def before_norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[id(module)] += 1
        if id(inputs[0]) in made_by:
            pairs.append((made_by[id(inputs[0])][0], module))

    norms = (nn.BatchNorm2d, FrozenBatchNorm2d, TorchvisionFrozenBatchNorm2d)  # not those of them that do more besides
    hooks = [m.register_forward_hook(after_convolution) for m in model.modules() if type(m) is nn.Conv2d]
    hooks += [m.register_forward_pre_hook(before_norm) for m in model.modules() if type(m) in norms]
    was_training = model.training
    try:
        model.eval()
        run()
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    folded = {id(norm): (convolution, norm) for convolution, norm in pairs if calls[id(convolution)] == calls[id(norm)] == 1}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if id(child) in folded:
                _fold(*folded[id(child)])
                setattr(parent, name, nn.Identity())
    return len(folded)


def _fold(convolution: nn.Conv2d, norm: Any) -> None:
    mean, variance = norm.running_mean, norm.running_var
    scale = torch.rsqrt(variance.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    if convolution.bias is not None:
        shift = shift + convolution.bias.double() * scale
    dtype = convolution.weight.dtype
    convolution.weight = nn.Parameter((convolution.weight.double() * scale[:, None, None, None]).to(dtype), requires_grad=False)
    convolution.bias = nn.Parameter(shift.to(dtype), requires_grad=False)


def _example(backbone: nn.Module, device: torch.device) -> Tensor:
    channels = getattr(backbone, "in_channels", 3)
    return torch.zeros(1, channels, 64, 64, device=device)
