"""A run that is told to stop: by Ctrl-C, by a scheduler that wants its machine back, by torchrun."""

import os
import signal
import threading
import time
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

from engine.distributed import World
from engine.failures import PlannedEnd

STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))
# torchrun passes on the signal its processes may have had themselves, as from Ctrl-C in a terminal.
ECHO_SECONDS = 2.0


class Preempted(PlannedEnd):
    """Ends a run that was told to stop, with status 128 + the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number).name


class StopSignals:
    """Within it, the first signal to stop is noted and answered, and a second one ends the process at once.

    All processes stop after the same step, without exchanging anything in each: one that finds a signal at the start of step
    n says in the store that step n + 2 is not to be taken, and all look there at the start of each. A process is ahead of
    another by one step at most, for within a step it waits for the gradients of all: it comes to the start of step n + 2 once
    all have begun step n + 1, which is after the word was written. Whoever reads it before goes on to step n + 2.

    Args:
        world: the processes.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.received: int | None = None
        self._at = 0.0
        self._echoes = "TORCHELASTIC_RUN_ID" in os.environ
        self._said = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # Python lets no other set them
            self._before = {number: signal.signal(number, self._receive) for number in STOP_SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            # None: it was set by other than Python, and cannot be set again
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._at = number, time.monotonic()
            # torchrun's SIGTERM may be for another process that has failed: then this one cannot end its step.
            if self.world.is_main and not (self._echoes and number == signal.SIGTERM):
                # Written past Python's buffers, in the midst of whose work this may come.
                name = signal.Signals(number).name
                text = f"\n{name}: the run ends its step and saves; a second one ends it at once, unsaved\n"
                with suppress(OSError):  # nobody may listen
                    os.write(2, text.encode())
        elif not self._echoes or time.monotonic() - self._at > ECHO_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def check_step(self, step: int) -> None:
        """Raise if step `step` is not to be taken.

        Raises:
            Preempted: on all processes at the same step.
        """
        store = self.world.store
        if store is None:
            if self.received is not None:
                raise Preempted(self.received)
            return
        if self.received is not None and not self._said:
            self._said = True
            store.compare_set("stop", "", f"{step + 2} {self.received}")  # the first to say it is heard
        if store.check(["stop"]):
            last, number = map(int, store.get("stop").split())
            if step >= last:
                raise Preempted(number)

    def breaks_evaluation(self) -> bool:
        """Whether to break off the evaluation: this process has a signal, or another has said that it does."""
        store = self.world.store
        if store is None:
            return self.received is not None
        if self.received is not None:
            store.compare_set("stop evaluating", "", str(self.received))
        return store.check(["stop evaluating"])

    def end_evaluation(self) -> None:
        """Meet the other processes after an evaluation, and leave it with them if one of them has broken it off.

        Raises:
            Preempted: on all processes.
        """
        self.world.barrier()  # what is said is said by those who come here: all of them read the same
        store = self.world.store
        if store is None:
            if self.received is not None:
                raise Preempted(self.received)
        elif store.check(["stop evaluating"]):
            raise Preempted(int(store.get("stop evaluating")))


def leave_signals_to_parent(_: int) -> None:
    """For a loader's worker process: Ctrl-C and a scheduler's signals reach it too, and it is its parent that ends it.

    It also ends by itself, within seconds, once its parent is gone.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
