"""Training with the dense part of a model compiled, for few shapes."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from backbones import UserError


def batch_shapes(min_size: int, max_size: int, *, multiple: int = 32) -> list[tuple[int, int]]:
    """The (H, W) that batches of images are padded to whose sides are at most `min_size` (the shorter) and `max_size`, pixels.

    A shorter side, three longer ones, wide and tall, and a square for a batch of both: six shapes, of which a batch wastes a
    tenth on COCO.
    """
    short, long = _round_up(min_size, multiple), _round_up(max(min_size, max_size), multiple)
    longer = sorted({short, _round_up((min_size + max(min_size, max_size)) // 2, multiple), long})
    wide = [(short, side) for side in longer]
    return [*wide, *((width, height) for height, width in wide if width != height), *([(long, long)] if long != short else [])]


def compile_dense_part(model: nn.Module, *, min_size: int | None = None, max_size: int | None = None) -> None:
    """Run a model's backbone and pyramid, or all of a model without one, through `torch.compile`, in place.

    Parameters keep their names. A detector's training batches are padded to `batch_shapes`, so that it is compiled for no more
    than those; heads stay as they are, for what they do depends on the boxes.

    Raises:
        UserError: a detector that is not of this project, whose padding cannot be set; on a CPU, no C++ compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if next(model.parameters()).device.type == "cpu" and shutil.which(compiler) is None:
        raise UserError(
            f"train.compile on a CPU needs a C++ compiler, and there is no {compiler}. Install one, or leave it out."
        )
    if min_size is not None and max_size is not None:
        transform: Any = getattr(model, "transform", None)
        if not hasattr(transform, "limit_training_shapes"):
            raise UserError(f"train.compile cannot be used with {type(model).__name__}, whose batches take any shape.")
        transform.limit_training_shapes(batch_shapes(min_size, max_size))
    dense = getattr(model, "backbone", model)
    dense.compile(dynamic=False)


@contextmanager
def as_written() -> Iterator[None]:
    """Within it, compiled modules run as they are written: evaluation meets each image's own shape."""
    torch.compiler.set_stance("force_eager")
    try:
        yield
    finally:
        torch.compiler.set_stance("default")


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
