"""Weights into a backbone: what torchvision publishes, by name, or a file; never code from a file, never a silent misfit."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file as load_safetensors
from torch import Tensor, nn

from backbones.errors import UserError, did_you_mean

WEIGHT_FILE_SUFFIXES = (".pth", ".pt", ".safetensors", ".th", ".bin")
# What people wrap a state dict in, in the order it is looked for.
CONTAINERS = ("model", "state_dict", "model_state_dict", "module")
# Parts of a classifier or a detector that a bare backbone has no use for.
CLASSIFIER_KEYS = ("fc.",)


def load_published_weights(backbone: nn.Module, weights: str, *, architecture: str) -> None:
    """Load `weights` into `backbone`: a name torchvision publishes for `architecture`, or the path of a file.

    Raises:
        UserError: no such name or file, a download that failed, or weights that do not fit.
    """
    if Path(weights).suffix in WEIGHT_FILE_SUFFIXES or "/" in weights or Path(weights).exists():
        load_backbone_weights(backbone, weights)
    else:
        state_dict = download_torchvision_weights(architecture, weights)
        _load_into(backbone, state_dict, source=f"{architecture}'s weights {weights}")


def load_backbone_weights(model: nn.Module, path: str | Path) -> None:
    """Load a file of torchvision-named weights, of a classifier or of a bare backbone; a classifier's `fc` is left out.

    Raises:
        UserError: the file is missing, is not a weight file, or does not fit; the message names the keys.
    """
    _load_into(model, read_state_dict(path), source=str(path))


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .pth or .safetensors file by key, on the CPU; no code in the file is ever run.

    A wrapper such as {"model": ...} and a DistributedDataParallel prefix `module.` are taken off.

    Raises:
        UserError: the file is missing, unreadable, needs unpickling of code, or holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no weight file at {path}. Give the path of a .pth or .safetensors file.")
    if path.suffix == ".safetensors":
        try:
            return unwrap_state_dict(load_safetensors(path), source=path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} cannot be read as a safetensors file: {error}. Download or save it again.") from error
    return unwrap_state_dict(load_pickled_tensors(path), source=path)


def load_pickled_tensors(path: Path) -> Any:
    """`torch.load` that runs no code (`weights_only=True`), with the errors put in words.

    Raises:
        UserError: not a PyTorch file, truncated, or one that would have to run code to be read.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} was not loaded: it is not a PyTorch file, or it holds more than tensors, and reading it could run code "
            "from the file. Save the state dict alone: torch.save(model.state_dict(), path)."
        ) from error
    except Exception as error:  # a damaged file can fail anywhere in the reader: IndexError, struct.error, ...
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read: {first_line}. It may be truncated; copy or download it again.") from error


def unwrap_state_dict(content: Any, *, source: str | Path) -> dict[str, Tensor]:
    """The state dict within `content`, without wrappers and `module.` prefixes.

    Raises:
        UserError: there are no named tensors in it.
    """
    for container in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(container), Mapping):
            content = content[container]
    entries = content.items() if isinstance(content, Mapping) else ()
    state_dict = {key: value for key, value in entries if isinstance(key, str) and isinstance(value, Tensor)}
    if not state_dict:
        raise UserError(f"{source} holds no named tensors. A weight file is a state dict: {{name: tensor}}.")
    if all(key.startswith("module.") for key in state_dict):
        state_dict = {key.removeprefix("module."): value for key, value in state_dict.items()}
    return state_dict


def download_torchvision_weights(architecture: str, name: str) -> dict[str, Tensor]:
    """The state dict torchvision publishes under `name`, from its cache or downloaded and checked against its hash.

    Raises:
        UserError: torchvision publishes no such weights, or they cannot be downloaded.
    """
    advice = "give the path of a .pth or .safetensors file instead"
    try:
        published = torchvision.models.get_model_weights(architecture)
    except ValueError:
        raise UserError(f"torchvision publishes no weights for {architecture!r}; {advice}, not {name!r}.") from None
    if name not in published.__members__:
        hint = did_you_mean(name, [*published.__members__, "DEFAULT"])
        raise UserError(f"torchvision publishes no weights {name!r} for {architecture}.{hint} Or {advice}.")
    entry = published[name]
    try:
        return entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
    # URLError is an OSError; a wrong hash a RuntimeError; a web page saved in the file's place cannot be unpickled.
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise UserError(
            f"The weights {name} of {architecture} could not be downloaded from {entry.url} ({error}). "
            f"Where there is no network, fetch that file elsewhere and pass its path: model.backbone.weights=PATH, or put it "
            f"into {torch.hub.get_dir()}/checkpoints/."
        ) from error


def check_fit(model: nn.Module, state_dict: Mapping[str, Tensor], *, source: str) -> None:
    """Check that a state dict has just the model's keys, in the model's shapes.

    Batch-norm counters (`num_batches_tracked`) may be missing or left over: frozen and live batch norm differ in them.

    Raises:
        UserError: it does not; the message names the missing, left-over and misshapen keys.
    """
    expected = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    given = {key: value for key, value in state_dict.items() if not key.endswith("num_batches_tracked")}
    problems = []
    if missing := [key for key in expected if key not in given]:
        problems.append(f"missing {_some(missing)}")
    if unexpected := [key for key in given if key not in expected]:
        problems.append(f"not in the model {_some(unexpected)}")
    shapes = [
        f"{key} is {_shape(given[key])} in the file and {_shape(expected[key])} in the model"
        for key in expected
        if key in given and given[key].shape != expected[key].shape
    ]
    if shapes:
        problems.append(_some(shapes))
    if problems:
        raise UserError(
            f"{source} does not fit {type(model).__name__}: {'; '.join(problems)}. "
            "Check that the architecture and its options are those the weights were made for."
        )


def _load_into(model: nn.Module, state_dict: Mapping[str, Tensor], *, source: str) -> None:
    wanted = {key: value for key, value in state_dict.items() if not key.startswith(CLASSIFIER_KEYS)}
    own = model.state_dict()
    # Stages that were not built because no feature map of theirs was asked for.
    wanted = {key: value for key, value in wanted.items() if key in own or not _of_unbuilt_stage(model, key)}
    check_fit(model, wanted, source=source)
    load_tensors(model, wanted)


def load_tensors(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load a state dict that `check_fit` has passed, whichever of the two has the counters of batch norm."""
    own = model.state_dict()
    counters = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")}
    model.load_state_dict({**counters, **{key: value for key, value in state_dict.items() if key in own}}, strict=True)


def _of_unbuilt_stage(model: nn.Module, key: str) -> bool:
    stage = key.split(".", 1)[0]
    return stage.startswith("layer") and stage not in dict(model.named_children())


def _some(items: list[str], limit: int = 6) -> str:
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def _shape(tensor: Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape) or "a single number"
