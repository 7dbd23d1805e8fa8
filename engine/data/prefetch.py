"""Batches moved to the device while the one before is computed."""

from collections.abc import Generator, Iterable
from typing import Any

import torch
from torch import Tensor

from engine.data.loader import Batch
from heads.cropped_masks import CroppedMasks


def on_device(batches: Iterable[Batch], device: torch.device) -> Generator[Batch, None, None]:
    """The batches with their tensors on `device`.

    To a GPU they are copied on a stream of their own, one batch ahead: the copy of the next goes on while this one is computed.
    """
    if device.type != "cuda":
        for batch in batches:
            yield to_device(batch, device)
        return
    stream = torch.cuda.Stream(device)
    ahead: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            copied = to_device(batch, device), stream.record_event()
        if ahead is not None:
            yield _received(*ahead, device)
        ahead = copied
    if ahead is not None:
        yield _received(*ahead, device)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """A batch with its tensors on `device`, but for each image's id.

    The id is for the log: to read it from a GPU would be to wait for the GPU.
    """
    # A copy from a GPU that is not waited for may be read before it is there.
    non_blocking = device.type == "cuda"

    def moved(key: str, value: Any) -> Any:
        is_moved = isinstance(value, Tensor | CroppedMasks) and key != "image_id"
        return value.to(device, non_blocking=non_blocking) if is_moved else value

    images, targets = batch
    return (
        [image.to(device, non_blocking=non_blocking) for image in images],
        [{key: moved(key, value) for key, value in target.items()} for target in targets],
    )


def _received(batch: Batch, copied: torch.cuda.Event, device: torch.device) -> Batch:
    """A batch whose copies end with the event, for use on the current stream."""
    current = torch.cuda.current_stream(device)
    current.wait_event(copied)
    images, targets = batch
    values = [value.pixels if isinstance(value, CroppedMasks) else value for target in targets for value in target.values()]
    for tensor in (*images, *(value for value in values if isinstance(value, Tensor))):
        if tensor.is_cuda:
            tensor.record_stream(current)  # its memory is not given to the next copy before this stream is done with it
    return batch
