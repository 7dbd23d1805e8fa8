"""Files of weights, read without ever running code from them: PyTorch's, safetensors, and pickles of arrays."""

import argparse
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file as load_safetensors
from torch import Tensor

from backbones.errors import UserError
from backbones.pickled_arrays import load_pickled_arrays, number_builders

WEIGHT_FILE_SUFFIXES = (".pth", ".pt", ".safetensors", ".th", ".bin", ".pkl", ".tar", ".ckpt", ".pyth")
# What people wrap a state dict in, in the order it is looked for.
CONTAINERS = ("model", "state_dict", "model_state_dict", "module")
# How PyTorch's files begin: those since 1.6 are zip archives, those before it start with a number.
TORCH_MAGIC = (b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")


@dataclass(frozen=True)
class StateDict:
    """The named tensors of one dictionary in a file."""

    path: str  # the names of the dictionaries it lies in, such as "model" or "teacher"; empty for the file itself
    tensors: dict[str, Tensor]
    others: tuple[str, ...]  # what else is in the file, on the way to it and within it


def read_content(path: str | Path) -> Any:
    """What a weight file holds, its tensors on the CPU; no code in the file is ever run.

    Raises:
        UserError: the file is missing or unreadable, or would have to run code to be read.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no weight file at {path}. Give the path of a .pth, .safetensors or .pkl file.")
    if path.suffix == ".safetensors":
        try:
            return load_safetensors(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} cannot be read as a safetensors file: {error}. Download or save it again.") from error
    if path.suffix == ".pkl":
        with path.open("rb") as file:
            is_torch = file.read(16).startswith(TORCH_MAGIC)
        if not is_torch:
            return load_pickled_arrays(path)
    return load_pickled_tensors(path)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a weight file by key, on the CPU; no code in the file is ever run.

    A wrapper such as {"model": ...} and a DistributedDataParallel prefix `module.` are taken off.

    Raises:
        UserError: the file is missing, unreadable, needs unpickling of code, or holds no tensors.
    """
    return unwrap_state_dict(read_content(path), source=path)


def load_pickled_tensors(path: Path) -> Any:
    """`torch.load` that runs no code (`weights_only=True`), with the errors put in words.

    Raises:
        UserError: not a PyTorch file, truncated, or one that would have to run code to be read.
    """
    # Many training scripts save their command line, a Namespace, and scores with the weights. They are data alone.
    # What the caller's program has made known itself stays known afterwards.
    known_before = torch.serialization.get_safe_globals()
    known = [name for name in (argparse.Namespace, *number_builders()) if name not in known_before]
    try:
        with torch.serialization.safe_globals(known):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        _check_is_no_text(path)
        raise UserError(
            f"{path} was not loaded: it is not a PyTorch file, or it holds more than tensors, and reading it could run code "
            "from the file. Save the state dict alone: torch.save(model.state_dict(), path)."
        ) from error
    except Exception as error:  # a damaged file can fail anywhere in the reader: IndexError, struct.error, ...
        if path.is_file() and path.stat().st_size == 0:
            raise UserError(f"{path} is empty; copy or download it again.") from error
        # PyTorch goes on for half a page.
        reason = str(error).splitlines()[0].split(". ")[0].rstrip(".") if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read: {reason}. It may be truncated; copy or download it again.") from error


def _check_is_no_text(path: Path) -> None:
    """Say what a file is that looks like weights by its name alone.

    Raises:
        UserError: it is a web page, or a pointer of Git LFS.
    """
    with path.open("rb") as file:
        start = file.read(200).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"{path} is a web page, not weights: the download went wrong. Download it again.")
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a pointer of Git LFS, not the weights themselves: fetch them with `git lfs pull`.")


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
        raise _no_tensors(source)
    if all(key.startswith("module.") for key in state_dict):
        state_dict = {key.removeprefix("module."): value for key, value in state_dict.items()}
    return state_dict


def find_state_dicts(content: Any, *, source: str | Path) -> list[StateDict]:
    """Every dictionary of named tensors in a file's content, at most three dictionaries deep; optimizers' are left out.

    Raises:
        UserError: there is none.
    """
    found = list(_walk(content, path=(), others=()))
    if not found:
        raise _no_tensors(source)
    return found


def _walk(content: Any, *, path: tuple[str, ...], others: tuple[str, ...]) -> Iterator[StateDict]:
    if not isinstance(content, Mapping):
        return

    def name(key: object) -> str:
        return "/".join([*path, str(key)])

    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    rest = {key: value for key, value in content.items() if key not in tensors}
    if tensors:
        yield StateDict("/".join(path), tensors, (*others, *(name(key) for key in rest)))
    if len(path) == 3:
        return
    for key, value in rest.items():
        if isinstance(key, str) and "optim" not in key.lower():
            beside = tuple(name(other) for other in content if other != key)
            yield from _walk(value, path=(*path, key), others=(*others, *beside))


def _no_tensors(source: str | Path) -> UserError:
    return UserError(f"{source} holds no named tensors. A weight file is a state dict: {{name: tensor}}.")
