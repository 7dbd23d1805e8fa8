"""One of several processes fails: its message is the one that is seen, and the others end with a line."""

import json
import os
import re
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import torch.distributed as dist

from backbones.errors import UserError

if TYPE_CHECKING:
    from engine.distributed import World

_NOTE, _HEARD = "failure", "failure heard"
# What PyTorch's errors say where another process has gone, besides those that are of a class of their own.
_OF_ANOTHER = ("gloo", "nccl", "connection closed", "connection reset", "because another did")


class Ended(UserError):
    """This process ends because another one failed.

    `is_said` is true where both failed of the same, and the other says so: then this one has nothing to add.
    """

    def __init__(self, text: str, *, is_said: bool = False) -> None:
        super().__init__(text)
        self.is_said = is_said


class Failures:
    """Tells the other processes of a failure here, and ends this one after a failure there.

    A thread looks for a failure elsewhere twice a second, so that it is known here also once the process that holds the store
    is gone. Where the main thread has not ended `patience` seconds later (it may be inside a collective, which nothing but a
    timeout of half an hour ends), the thread ends the process.

    Args:
        world: the processes.
        patience: seconds.
    """

    def __init__(self, world: "World", *, patience: float = 15) -> None:
        self.world = world
        self.patience = patience
        self._first: dict[str, str] | None = None
        self._closed = threading.Event()
        self._heard = threading.Event()
        threading.Thread(target=self._listen, name="failures", daemon=True).start()

    def tell(self, error: BaseException) -> None:
        """Let the others know why this process fails, and wait a moment until they do.

        Raises:
            Ended: another one failed first, and this process fails for that, or for the same.
        """
        if not isinstance(error, Exception):
            return  # it was told to end
        assert self.world.store is not None
        if _is_of_another(error):
            first = self._wait_for_first(seconds=5)
            if self.world.is_main and first is not None:
                self._wait_for_others(seconds=3)
            if first is not None:
                raise Ended(self._describe(first)) from None
            raise Ended(
                f"Another process has gone without a word: it was killed, or its machine was lost. ({_core(error)})"
            ) from None
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        try:
            is_first = note_failure(self.world, text)
        except RuntimeError:  # the store has gone with its process: what was heard before is all there is
            is_first = False
        first = None if is_first else self._wait_for_first(seconds=5)
        if is_first or self.world.is_main:  # the main process may hold the store
            self._wait_for_others(seconds=3)
        if first is not None and first["text"] == text:
            raise Ended(text, is_said=True) from None

    def close(self) -> None:
        """Listen no longer."""
        self._closed.set()

    def _wait_for_first(self, *, seconds: float) -> dict[str, str] | None:
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
            while not store.check([_NOTE]):
                if self._closed.wait(0.5):
                    return
            self._first = json.loads(store.get(_NOTE))
            self._heard.set()
            store.add(_HEARD, 1)
        except RuntimeError:  # the store has gone with its process
            if self._first is None:
                return
        if not self._closed.wait(self.patience):
            assert self._first is not None
            own = self._first["rank"] == str(self.world.rank)
            said = self._first["text"] if own else self._describe(self._first)
            print(f"[process {self.world.rank}] {said}", file=sys.stderr, flush=True)
            os._exit(1)

    def _describe(self, first: dict[str, str]) -> str:
        if first["host"] == socket.gethostname():
            return f"process {first['rank']} failed first, and says why."
        return f"process {first['rank']}, on {first['host']}, failed first: {first['text']}"


def note_failure(world: "World", text: str) -> bool:
    """Leave word of why this process fails; gives whether it is the first to.

    Raises:
        RuntimeError: the store has gone.
    """
    assert world.store is not None
    note = json.dumps({"rank": str(world.rank), "host": socket.gethostname(), "text": text})
    return bool(world.store.compare_set(_NOTE, "", note).decode() == note)


def _core(error: Exception) -> str:
    """What an error of PyTorch's says, without the place in its source before it and the advice behind it."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"^\[\S+:\d+\] ", "", line).split(". ")[0][:300]


def _is_of_another(error: Exception) -> bool:
    """Whether an error only says that another process is no longer there."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return type(error) is RuntimeError and any(word in text for word in _OF_ANOTHER)
