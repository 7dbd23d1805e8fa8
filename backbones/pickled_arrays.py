"""Pickles of NumPy arrays, as detectron2 and Caffe2 save weights, read without running anything that is in them."""

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from backbones.errors import UserError

# Tensors lie in a dictionary, or in one within it; whatever is deeper is no weight.
DEEPEST = 4


def load_pickled_arrays(path: Path) -> Any:
    """The content of a pickle of arrays, Python 2's included; each array becomes a tensor.

    Of a pickle's instructions only those are followed that put together containers, strings, numbers and arrays.

    Raises:
        UserError: the pickle asks for anything else, or is damaged.
    """
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file).load()
        return _with_tensors(content)
    except _Forbidden as error:
        raise UserError(
            f"{path} was not loaded: it holds more than arrays ({error}), and reading it could run code from the file. "
            "Save a dictionary of arrays alone."
        ) from error
    except Exception as error:  # a damaged pickle can fail in any of its instructions
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path} cannot be read as a pickle of arrays: {first_line}. It may be truncated, or be no weight file."
        ) from error


def number_builders() -> list[Any]:
    """What `torch.serialization.safe_globals` has to know so that files of tensors may hold NumPy's numbers, too."""
    known = _array_builders()
    names = ["numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"]
    kinds = [type(np.dtype(name)) for name in ("f2", "f4", "f8", "i4", "i8", "b1")]
    return [np.dtype, *kinds, *((known["numpy.core.multiarray", "scalar"], name) for name in names)]


class _Forbidden(Exception):
    """A pickle names something that is not needed for arrays."""


class _ArrayUnpickler(pickle.Unpickler):
    """Knows the names that NumPy's pickles use, and no others. They lead to functions of this file, never to an import."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin1")  # byte strings of Python 2 become text
        self._known = _array_builders()

    def find_class(self, module: str, name: str) -> Any:
        # NumPy 2 calls numpy.core numpy._core.
        known = self._known.get((module.replace("numpy._core", "numpy.core"), name))
        if known is None:
            raise _Forbidden(f"{module}.{name}")
        return known

    def persistent_load(self, pid: Any) -> Any:
        raise _Forbidden("a reference out of the file")


def _array_builders() -> dict[tuple[str, str], Any]:
    """What a pickle's names stand for. Made anew each time: a pickle can set attributes of the functions it is given."""

    array_class = object()  # to be named, not called: an array without content would have what was in memory before

    def empty_array(subtype: Any, shape: Any, kind: Any) -> Any:
        if subtype is not array_class:
            raise _Forbidden("an array of another class")
        return np.ndarray.__new__(np.ndarray, (0,), "b")  # its shape and content follow

    def scalar(dtype: Any, data: Any) -> Any:
        data = data.encode("latin1") if isinstance(data, str) else data
        return np.frombuffer(data, dtype=_plain(dtype), count=1)[0]

    def from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any) -> Any:
        return np.frombuffer(buffer, dtype=_plain(dtype)).reshape(shape, order=order)

    def encode(text: str, encoding: str) -> bytes:
        if encoding not in ("latin1", "latin-1"):
            raise _Forbidden(f"the encoding {encoding}")
        return text.encode("latin1")

    def no_bytes() -> bytes:
        return b""

    return {
        ("numpy", "ndarray"): array_class,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): empty_array,
        ("numpy.core.multiarray", "scalar"): scalar,
        ("numpy.core.numeric", "_frombuffer"): from_buffer,
        ("_codecs", "encode"): encode,
        ("__builtin__", "bytes"): no_bytes,
        ("collections", "OrderedDict"): OrderedDict,
    }


def _plain(dtype: Any) -> Any:
    if not isinstance(dtype, np.dtype) or dtype.hasobject:
        raise _Forbidden("an array of objects")
    return dtype


def _with_tensors(content: Any, depth: int = 0) -> Any:
    if isinstance(content, Mapping) and depth < DEEPEST:
        return {key: _with_tensors(value, depth + 1) for key, value in content.items()}
    if isinstance(content, np.ndarray) and content.dtype.kind in "fiub":
        native = content.astype(content.dtype.newbyteorder("="))  # a copy, which torch may write to
        try:
            return torch.from_numpy(native)
        except TypeError:  # a number type that torch lacks: float128
            return content
    return content
