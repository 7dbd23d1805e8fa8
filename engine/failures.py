"""One of several processes fails: its message is the one that is seen, and the others end with a line.

Every process that ends before its time leaves word in the store, `note_failure`; waits for others look there, and so does a
thread of each process, `Failures`.
"""

import json
import os
import re
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from backbones.errors import UserError

if TYPE_CHECKING:
    from engine.distributed import World

_NOTE, _HEARD = "failure", "failure heard"
_FINISH_SECONDS = 600.0
# What PyTorch's errors say where another process has gone, besides those that are of a class of their own.
_OF_ANOTHER = ("gloo", "nccl", "connection closed", "connection reset")


class Ended(UserError):
    """This process ends because another one failed.

    `is_said` is true where both failed of the same, and the other says so: then this one has nothing to add. `status` is what
    the process exits with: as the other one does, 2 where there is something to put right.
    """

    def __init__(self, text: str, *, is_said: bool = False, status: int = 1) -> None:
        super().__init__(text)
        self.is_said = is_said
        self.status = status


class PlannedEnd(SystemExit):
    """All processes end at the same step, as they agreed to: none of them fails."""


class Finishing(threading.Thread):
    """A thread that is let finish before its process is ended for another's failure: it writes a checkpoint."""


class AnotherEnded(RuntimeError):
    """A wait for other processes that one of them does not come to: it has left word that it ends."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The word that a process leaves as it ends."""

    rank: int
    host: str
    summary: str
    """The error's class and message."""
    text: str
    """What its user sees: a UserError's message alone."""
    is_cause: bool
    """Whether the process failed by itself: it was not told to end, nor does it end because another did."""
    status: int
    """What it exits with."""


class Failures:
    """Tells the other processes of a failure here, and ends this one after a failure there.

    A thread looks for a failure elsewhere twice a second, so that it is known here also once the process that holds the store
    is gone. Where the main thread has not ended `patience` seconds later (it may be inside a collective, which nothing but a
    timeout of half an hour ends), the thread ends the process, once what is `Finishing` has.

    Args:
        world: the processes.
        patience: seconds.
    """

    def __init__(self, world: "World", *, patience: float = 15) -> None:
        self.world = world
        self.patience = patience
        self._first: Failure | None = None
        self._closed = threading.Event()
        self._heard = threading.Event()
        threading.Thread(target=self._listen, name="failures", daemon=True).start()

    def tell(self, error: BaseException) -> None:
        """Let the others know why this process fails, and wait a moment until they do.

        Raises:
            Ended: another one failed first, and this process fails for that, or for the same.
        """
        try:
            is_first = note_failure(self.world, error)
        except RuntimeError:  # the store has gone with its process: what was heard before is all there is
            is_first = False
        if not isinstance(error, Exception):
            return  # it was told to end
        if _is_of_another(error):
            first = self._wait_for_first(seconds=5)
            if self.world.is_main and first is not None:
                self._wait_for_others(seconds=3)
            if first is not None:
                raise Ended(self._describe(first), status=first.status) from None
            raise Ended(
                f"Another process has gone without a word: it was killed, or its machine was lost. ({_core(error)})"
            ) from None
        first = None if is_first else self._wait_for_first(seconds=5)
        if is_first or self.world.is_main:  # the main process may hold the store
            self._wait_for_others(seconds=3)
        if first is not None and first.text == _text(error):
            raise Ended(first.text, is_said=True, status=first.status) from None

    def close(self) -> None:
        """Listen no longer."""
        self._closed.set()

    def _wait_for_first(self, *, seconds: float) -> Failure | None:
        self._heard.wait(seconds)
        return self._first

    def _wait_for_others(self, *, seconds: float) -> None:
        """Wait until all processes have heard."""
        store, began = self.world.store, time.monotonic()
        assert store is not None
        with suppress(RuntimeError):
            while store.add(_HEARD, 0) < self.world.size and time.monotonic() - began < seconds:
                time.sleep(0.05)

    def _listen(self) -> None:
        store = self.world.store
        assert store is not None
        try:
            while (noted := _noted(store)) is None or not noted.is_cause:
                if self._closed.wait(0.5):
                    return
            self._first = noted
            self._heard.set()
            store.add(_HEARD, 1)
        except RuntimeError:  # the store has gone with its process
            if self._first is None:
                return
        if not self._closed.wait(self.patience):
            for thread in threading.enumerate():
                if isinstance(thread, Finishing):
                    thread.join(_FINISH_SECONDS)
            assert self._first is not None
            own = self._first.rank == self.world.rank
            said = self._first.text if own else self._describe(self._first)
            print(f"[process {self.world.rank}] {said}", file=sys.stderr, flush=True)
            os._exit(1)

    def _describe(self, first: Failure) -> str:
        if first.host == socket.gethostname():
            return f"process {first.rank} failed first, and says why."
        return f"process {first.rank}, on {first.host}, failed first: {first.text}"


def note_failure(world: "World", error: BaseException) -> bool:
    """Leave word of why this process ends; gives whether the word stands: it is the first.

    The word of a process that ends for no fault of its own gives way to that of one that failed, which all are to hear.

    Raises:
        RuntimeError: the store has gone.
    """
    store = world.store
    assert store is not None
    is_cause = isinstance(error, Exception) and not _is_of_another(error)
    summary = f"{type(error).__name__}: {error}"
    status = 2 if isinstance(error, UserError) else 1
    note = json.dumps(asdict(Failure(world.rank, socket.gethostname(), summary, _text(error), is_cause, status)))
    standing = store.compare_set(_NOTE, "", note).decode()
    if is_cause and not json.loads(standing)["is_cause"]:
        standing = store.compare_set(_NOTE, standing, note).decode()
    return bool(standing == note)


def raise_if_another_ended(world: "World") -> None:
    """Break off a wait for other processes where one of them ends.

    Raises:
        AnotherEnded: a process has left word; the message is its summary.
    """
    assert world.store is not None
    noted = _noted(world.store)
    if noted is not None:
        raise AnotherEnded(f"process {world.rank} ends because another did: process {noted.rank}: {noted.summary}")


def _noted(store: Store) -> Failure | None:
    return Failure(**json.loads(store.get(_NOTE))) if store.check([_NOTE]) else None


def _text(error: BaseException) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _core(error: Exception) -> str:
    """What an error of PyTorch's says, without the place in its source before it and the advice behind it."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"^\[\S+:\d+\] ", "", line).split(". ")[0][:300]


def _is_of_another(error: Exception) -> bool:
    """Whether an error only says that another process is no longer there."""
    if isinstance(error, AnotherEnded | dist.DistError):
        return True
    text = str(error).lower()
    return type(error) is RuntimeError and any(word in text for word in _OF_ANOTHER)
