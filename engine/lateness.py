"""Who is late, said before the collectives' own timeout ends a run with a page of addresses."""

import os
import sys
import threading
import time

from backbones.errors import UserError
from engine.distributed import World
from engine.durations import in_words
from engine.failures import note_failure

LOADS, COMPUTES = "loads its images", "computes"
ORDER = (LOADS, COMPUTES)


class StepWatch:
    """Knows where each process is in its steps; ends a run in which one has waited too long for another, and names both.

    A thread puts this process's place into the world's store a few times a minute; a step itself does nothing but assign it.
    """

    def __init__(self, world: World, *, step_minutes: float) -> None:
        self.world = world
        self.limit = 54 * step_minutes  # seconds: a tenth before the collectives' timeout, whose message says nothing
        self._place: tuple[int, str, float] | None = None
        self._ended = threading.Event()
        if world.store is not None:
            threading.Thread(target=self._watch, name="step watch", daemon=True).start()

    def at(self, step: int, doing: str) -> None:
        """This process begins to do something, `LOADS` or `COMPUTES`, for a step, counted from 1."""
        self._place = (step, doing, time.monotonic())

    def pause(self) -> None:
        """Outside of steps nobody is late: see `World.barrier`."""
        self._place = None

    def close(self) -> None:
        """Watch no longer."""
        self._ended.set()

    def _watch(self) -> None:
        store, rank = self.world.store, self.world.rank
        assert store is not None
        while not self._ended.wait(min(10.0, self.limit / 8)):
            place = self._place
            try:
                store.set(f"place of {rank}", f"{place[0]} {place[1]}" if place else "")
                if place is not None and place[1] == COMPUTES and time.monotonic() - place[2] > self.limit:
                    text = self._describe(place[0])
                    if note_failure(self.world, UserError(text)):
                        print(text, file=sys.stderr, flush=True)
                    os._exit(1)  # the main thread is inside a collective, which nothing but its timeout ends
            except RuntimeError:  # the store has gone, and the run with it
                return

    def _describe(self, step: int) -> str:
        store = self.world.store
        assert store is not None
        behind = []
        for rank in range(self.world.size):
            key = f"place of {rank}"
            words = store.get(key).decode() if store.check([key]) else ""
            number, _, doing = words.partition(" ")
            if not words:
                behind.append(f"process {rank}, which is in no step")
            elif (int(number), ORDER.index(doing)) < (step, ORDER.index(COMPUTES)):
                behind.append(f"process {rank}, which {doing} for step {number}")
        whom = ", ".join(behind) or "the others, which compute, too"
        return (
            f"[process {self.world.rank}] has waited {in_words(self.limit)} in step {step} for {whom}. "
            "The run ends here; a longer wait is distributed.step_minutes."
        )
