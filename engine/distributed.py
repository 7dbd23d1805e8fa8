"""The processes of a run, as torchrun starts them; one process needs none of it."""

import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from backbones.errors import UserError
from engine.durations import in_words
from engine.failures import Failures, PlannedEnd, raise_if_another_ended

T = TypeVar("T")

# What a rank that is ahead allows one that is behind, minutes: within a step; and for what the main process does alone.
STEP_MINUTES = 30.0
WAIT_MINUTES = 120.0


@dataclass(frozen=True, slots=True)
class World:
    """This process among all: its rank, their number, and the device it computes on."""

    rank: int
    size: int
    device: torch.device
    store: Store | None = field(default=None, compare=False)
    """Small values that all processes of this start can set and look up without waiting for each other; None for one process.
    Its connection is this process's only one: `check` a key before `get`, which blocks every other thread until it is there."""
    wait_minutes: float = field(default=WAIT_MINUTES, compare=False)
    _meetings: Iterator[int] = field(default_factory=count, compare=False, repr=False)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def gather(self, value: T, *, patient: bool = False) -> list[T]:
        """Every process's value by rank, on the main process; an empty list on the others.

        Args:
            patient: whether some come so much later than others that it is no fault: they are waited for as in `barrier`.
        """
        if self.size == 1:
            return [value]
        if patient:
            self.barrier()
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
        """Wait until every process is here, for as long as the main process may work alone.

        No collective: those time out sooner, and hold a GPU.

        Raises:
            RuntimeError: a process has failed, or does not come.
        """
        if self.store is None:
            return
        name = f"meeting {next(self._meetings)}"
        if self.store.add(f"{name} here", 1) == self.size:
            self.store.set(f"{name} all", "")
        began = time.monotonic()
        while not self.store.check([f"{name} all"]):
            raise_if_another_ended(self)
            waited = time.monotonic() - began
            if waited > 60 * self.wait_minutes:
                came = self.store.add(f"{name} here", 0)
                raise RuntimeError(
                    f"process {self.rank} has waited {in_words(60 * self.wait_minutes)} for others: {came} of {self.size} came"
                )
            time.sleep(min(0.2, 0.001 + waited / 50))


@contextmanager
def start_world(
    device: str = "auto", *, step_minutes: float = STEP_MINUTES, wait_minutes: float = WAIT_MINUTES
) -> Iterator[World]:
    """Join the processes torchrun started (NCCL on GPUs, gloo on CPUs), or be the only one; leave them at the end.

    Args:
        step_minutes: how long a collective (the gradients' exchange) waits for the slowest process.
        wait_minutes: how long the others wait for what the main process does alone: a first download, the scoring.

    Raises:
        UserError: a GPU is asked for and there is none, or fewer than processes.
    """
    rank, size, local_rank = _launched()
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
    timeout = timedelta(minutes=step_minutes)
    try:
        store, _, _ = next(rendezvous("env://", timeout=timeout))
    except (ValueError, OSError, dist.DistError) as error:  # a variable that is no address; the port is taken; nobody is there
        place = f"{os.environ.get('MASTER_ADDR', '(unset)')}:{os.environ.get('MASTER_PORT', '(unset)')}"
        raise UserError(
            f"Process {rank} of {size} did not meet the others at MASTER_ADDR:MASTER_PORT = {place} "
            f"({str(error).splitlines()[0][:200]}). Start all of them with torchrun, which sets these variables."
        ) from None
    store.set_timeout(timeout)
    store = PrefixStore(_agree_on_start(store, rank, size, seconds=timeout.total_seconds()), store)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", store=PrefixStore("group", store), rank=rank, world_size=size, timeout=timeout
    )
    world = World(rank, size, where, PrefixStore("world", store), wait_minutes)
    failures = Failures(world)
    try:
        yield world
        _leave(world)
    except PlannedEnd:
        _leave(world)
        raise
    except BaseException as error:
        failures.tell(error)
        raise
    finally:
        dist.destroy_process_group()
        failures.close()


def _launched() -> tuple[int, int, int]:
    """RANK, WORLD_SIZE and LOCAL_RANK, as torchrun sets them.

    Raises:
        UserError: they are no such numbers.
    """
    numbers = {}
    for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        text = os.environ.get(name, default)
        if not (text.isascii() and text.isdigit()):
            raise UserError(f"The variable {name} is {text!r}, not a number. Start with torchrun, which sets it, or unset it.")
        numbers[name] = int(text)
    rank, size, local_rank = numbers.values()
    if rank >= size:
        raise UserError(f"RANK={rank} with WORLD_SIZE={size}: there is no such process. Start with torchrun, or unset both.")
    return rank, size, local_rank


def _agree_on_start(store: Store, rank: int, size: int, *, seconds: float) -> str:
    """A name that the processes of this start share, and no earlier start had.

    After a restart torchrun's store still holds what the last start wrote, addresses of dead processes included; its restart
    counter is no name, for a machine that was started anew counts from 0. So each process writes a word of its own, the first
    lists the words it sees, and a list is of this start when each process has found its own word in it.
    """
    own, words, name = uuid.uuid4().hex, list[str](), ""
    store.set(f"word of {rank}", own)
    everyone = range(size)
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if rank == 0 and store.check([f"word of {other}" for other in everyone]):
            seen = [store.get(f"word of {other}").decode() for other in everyone]
            if seen != words:  # the first time, or what was seen was an earlier start's
                words, name = seen, uuid.uuid4().hex
                store.set("start", json.dumps({"name": name, "words": words}))
        if rank != 0 and store.check(["start"]):
            start = json.loads(store.get("start"))
            name = start["name"] if start["words"][rank : rank + 1] == [own] else ""
        if name:
            store.set(f"{name} {rank}", "")
            if rank == 0 and store.check([f"{name} {other}" for other in everyone]):
                store.set(f"{name} all", "")
            if store.check([f"{name} all"]):
                return name
        time.sleep(0.02)
    raise UserError(
        f"Process {rank} has waited {in_words(seconds)} for all {size} to start, and not all did. Start them with torchrun, on "
        "every machine; or unset RANK and WORLD_SIZE for one process."
    )


def _leave(world: World, *, seconds: float = 30) -> None:
    """The main process may hold the store: it is the last to leave."""
    assert world.store is not None
    if not world.is_main:
        world.store.add("left", 1)
        return
    began = time.monotonic()
    while world.store.add("left", 0) < world.size - 1 and time.monotonic() - began < seconds:
        time.sleep(0.02)
