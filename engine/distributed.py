"""The processes of a run, as torchrun starts them; one process needs none of it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from backbones.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class World:
    """This process among all: its rank, their number, and the device it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Every process's value by rank, on the main process; an empty list on the others."""
        if self.size == 1:
            return [value]
        gathered: list[T] | None = [None] * self.size if self.is_main else None  # type: ignore[list-item]
        dist.gather_object(value, gathered, dst=0)
        return gathered or []

    def broadcast(self, value: T) -> T:
        """The main process's value, on every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def share_buffers(self, model: nn.Module) -> None:
        """Give every process the main one's buffers: batch statistics follow each process's own images."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def start_world(device: str = "auto") -> Iterator[World]:
    """Join the processes torchrun started (NCCL on GPUs, gloo on CPUs), or be the only one; leave them at the end.

    Raises:
        UserError: a GPU is asked for and there is none, or fewer than processes.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda, but PyTorch sees no GPU here. Use device=cpu, or check the driver with nvidia-smi.")
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if on_gpu and local_rank >= torch.cuda.device_count():
        raise UserError(
            f"Process {local_rank} on this machine has no GPU: there are {torch.cuda.device_count()}. "
            "Start as many processes as there are: torchrun --nproc-per-node=gpu."
        )
    if on_gpu:
        torch.cuda.set_device(local_rank)
    where = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if size == 1:
        yield World(0, 1, where)
        return
    # Evaluation and the first download keep the other processes waiting for the main one.
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(hours=2))
    try:
        yield World(rank, size, where)
    finally:
        dist.destroy_process_group()
