"""A step's forward and backward pass once more, watched for where it first leaves the finite numbers."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor, nn

from backbones.errors import UserError
from backbones.weights import load_pickled_tensors
from engine.amp import autocast
from engine.checkpoint import load_checkpoint
from engine.compilation import as_written
from engine.job import Job, job_of
from engine.seeding import seed_everything
from heads.cropped_masks import CroppedMasks

Part = tuple[list[Tensor], list[dict[str, Any]]]  # images and targets of one forward pass
Losses = dict[str, float]

_ALONE = 64  # most images that are each tried by themselves


@dataclass(frozen=True)
class Circumstances:
    """What besides weights and batch decides a step: the seed of its layers' draws, the precision, the scale of its loss."""

    seed: int
    precision: str
    loss_scale: float = 1.0


@dataclass(frozen=True)
class Trace:
    """What a watched step showed: the losses of each part, and where something was first not finite, if anything was."""

    losses: list[Losses]
    output: str | None  # the module that gave it
    gradient: str | None  # the module whose output it is the gradient of
    parameters: list[str]  # those whose gradient is not finite

    @property
    def is_finite(self) -> bool:
        """Whether neither a loss nor a parameter's gradient was anything but a number."""
        return not self.parameters and all(math.isfinite(value) for losses in self.losses for value in losses.values())


def total_loss(losses: dict[str, Tensor], *, parts: int) -> Tensor:
    """What a step's part contributes to its loss."""
    return torch.stack(list(losses.values())).sum() / parts


def watched_step(job: Job[Any], model: nn.Module, parts: Sequence[Part], circumstances: Circumstances) -> Trace:
    """Run a step's passes on a model in training mode; its gradients and buffers change, its weights do not."""
    device = next(model.parameters()).device
    seed_everything(circumstances.seed)
    model.zero_grad(set_to_none=True)
    found: dict[str, str] = {}
    terms: list[Losses] = []
    with as_written(), _watched(model, found):
        for images, targets in parts:
            with autocast(device, circumstances.precision):
                losses = job.losses(model, images, targets)
            terms.append({name: float(value.detach()) for name, value in losses.items()})
            loss = total_loss(losses, parts=len(parts))
            if loss.isfinite():  # the gradients of one that is not say nothing
                (loss * circumstances.loss_scale).backward()
    return Trace(terms, found.get("output"), found.get("gradient"), nonfinite_parameters(model))


def nonfinite_parameters(model: nn.Module) -> list[str]:
    """The names of the parameters whose gradient is not finite, or so large that its norm is not.

    Where only the norm of all is not, it is the largest.
    """
    norms = {name: parameter.grad.norm() for name, parameter in model.named_parameters() if parameter.grad is not None}
    names = [name for name, norm in norms.items() if not norm.isfinite()]
    if not names and norms and not torch.stack([norm.float() for norm in norms.values()]).norm().isfinite():
        names = [max(norms, key=lambda name: float(norms[name]))]
    return names


def at_fault_alone(job: Job[Any], model: nn.Module, parts: Sequence[Part], circumstances: Circumstances) -> list[int]:
    """The ids of the images that lead to what is not finite also when each is a batch by itself.

    It is empty where there is but one image, or so many that it would take long, or the model wants several at a time.
    """
    alone = [([image], [target]) for images, targets in parts for image, target in zip(images, targets, strict=True)]
    if not 1 < len(alone) <= _ALONE:
        return []
    try:
        traces = [watched_step(job, model, [one], circumstances) for one in alone]
    except ValueError:  # a batch norm, given one value a channel
        return []
    return [int(targets[0]["image_id"]) for (_, targets), trace in zip(alone, traces, strict=True) if not trace.is_finite]


@contextmanager
def _watched(model: nn.Module, found: dict[str, str]) -> Iterator[None]:
    """Note in `found` the first output and the first gradient that is not finite: of a module before what holds it."""

    def see_output(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        for tensor in _tensors(output):
            if "output" not in found and not tensor.detach().isfinite().all():
                found["output"] = name
            if tensor.requires_grad:
                tensor.register_hook(partial(see_gradient, name))

    def see_gradient(name: str, gradient: Tensor) -> None:
        if "gradient" not in found and not gradient.isfinite().all():
            found["gradient"] = name

    handles = [
        module.register_forward_hook(partial(see_output, name or type(model).__name__))
        for name, module in model.named_modules()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _tensors(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _tensors(entry)
    elif isinstance(getattr(value, "tensors", None), Tensor):  # torchvision's ImageList
        yield from _tensors(value.tensors)


# ---- The batch's file ----


def save_parts(parts: Sequence[Part], path: Path) -> None:
    """Write images and targets as they are, on the CPU; the file is read with `weights_only=True`."""
    content = [
        {"images": [image.cpu() for image in images], "targets": [_as_plain(target) for target in targets]}
        for images, targets in parts
    ]
    torch.save({"parts": content}, path)


def load_parts(path: Path, device: torch.device) -> list[Part]:
    """What `save_parts` wrote, on a device.

    Raises:
        UserError: it is not such a file.
    """
    content = load_pickled_tensors(path)
    try:
        return [
            ([image.to(device) for image in part["images"]], [_from_plain(target, device) for target in part["targets"]])
            for part in content["parts"]
        ]
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is no batch of a report of a step that was not finite.") from None


def _as_plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, CroppedMasks):
        return {
            "cropped masks": value.pixels.cpu(), "windows": value.windows, "size": value.size, "starts": value.starts
        }  # fmt: skip
    if isinstance(value, dict):
        return {key: _as_plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_as_plain(entry) for entry in value]
    return value


def _from_plain(value: Any, device: torch.device, *, key: str = "") -> Any:
    if isinstance(value, Tensor):
        return value if key == "image_id" else value.to(device)
    if isinstance(value, dict) and "cropped masks" in value:
        windows = [(left, top, right, bottom) for left, top, right, bottom in value["windows"]]
        height, width = value["size"]
        return CroppedMasks(value["cropped masks"].to(device), windows, (height, width), starts=value["starts"])
    if isinstance(value, dict):
        return {name: _from_plain(entry, device, key=name) for name, entry in value.items()}
    if isinstance(value, list):
        return [_from_plain(entry, device) for entry in value]
    return value


# ---- A report's step ----


class _Image(BaseModel):
    id: int
    file: str


class _Report(BaseModel):
    """What of a report.json a replay needs; numbers that are not finite are there as text."""

    step: int
    rank: int
    images: list[_Image]
    losses: list[Losses]
    step_seed: int = Field(ge=0, lt=2**63)
    precision: Literal["float32", "fp16", "bf16"]
    loss_scale: float
    channels_last: bool
    notes: list[str]


def _read_report(folder: Path) -> _Report:
    try:
        return _Report.model_validate_json((folder / "report.json").read_bytes())
    except (OSError, ValidationError):
        raise UserError(
            f"{folder} is no report of a step that was not finite: name a folder OUTPUT_DIR/nonfinite/step_..._rank..., which "
            "holds report.json, batch.pt and state.pt."
        ) from None


def replay(folder: str | Path, *, device: str = "auto", say: Callable[[str], None] = print) -> bool:
    """Run the step of a report again; gives whether it is again not finite.

    Args:
        folder: `OUTPUT_DIR/nonfinite/step_..._rank...`.
        device: auto, cpu or cuda; auto is a GPU where there is one.

    Raises:
        UserError: the folder is no such report, or there is no GPU.
    """
    folder = Path(folder)
    report = _read_report(folder)
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("There is no GPU here that PyTorch sees: use --device cpu.")
    where = torch.device("cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu")
    checkpoint = load_checkpoint(folder / "state.pt")
    job = job_of(checkpoint.load_config())
    job.take_classes(checkpoint.categories)
    memory_format = torch.channels_last if report.channels_last else torch.contiguous_format
    model = checkpoint.build_model(job.config).to(where).to(memory_format=memory_format).train()
    parts = load_parts(folder / "batch.pt", where)
    if len(parts) != len(report.losses):
        raise UserError(
            f"{folder}: report.json and batch.pt are of different steps: the one has losses of {len(report.losses)} "
            f"parts, the other {len(parts)}. Copy the report again, whole."
        )
    trace = watched_step(job, model, parts, Circumstances(report.step_seed, report.precision, report.loss_scale))

    images = ", ".join(f"{image.id} ({image.file})" for image in report.images)
    say(f"step {report.step} of process {report.rank}, on {where.type}, images {images}")
    for note in report.notes:
        say(note)
    for number, (now, then) in enumerate(zip(trace.losses, report.losses, strict=True), start=1):
        told = ", ".join(f"{name} {value:.6g} (then {then.get(name, math.nan):.6g})" for name, value in now.items())
        say(f"losses of part {number} of {len(trace.losses)}: {told}")
    say(f"first output that is not finite: {trace.output or 'none'}")
    say(f"first gradient that is not finite: {f'that of the output of {trace.gradient}' if trace.gradient else 'none'}")
    if trace.parameters:
        more = f" and {len(trace.parameters) - 5} more" if len(trace.parameters) > 5 else ""
        say(f"parameters whose gradient is not finite: {', '.join(trace.parameters[:5])}{more}")
    say("reproduced" if not trace.is_finite else "not reproduced: all is finite this time")
    return not trace.is_finite
