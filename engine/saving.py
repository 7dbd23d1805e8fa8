"""Checkpoints written beside the training: the copy is taken at once, a thread writes it."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.checkpoint import write_checkpoint
from engine.failures import Finishing
from engine.files import WriteErrors

LAST, PREVIOUS, BEST = "last.pt", "last.previous.pt", "best.pt"
KEPT, KEPT_PATTERN = "epoch_{:04d}.pt", "epoch_*.pt"


class CheckpointWriter:
    """Writes a run's checkpoints, one save at a time, in a thread of its own.

    The files of a save are written in their order: `best.pt` comes before the `last.pt` that counts on it. Where `best.pt`
    could not be written, what comes after it knows of the one before, and evaluates again if it is of the same step. What could
    not be written is tried again with the next save; of what is saved again meanwhile, the new. Of the checkpoints that are
    kept by epoch, a failed one is given up.

    Args:
        folder: of the run.
        errors: who is told of what cannot be written.
        best: the score of the `best.pt` that is there.
    """

    def __init__(self, folder: Path, *, errors: WriteErrors, best: float = float("-inf")) -> None:
        self.folder = folder
        self.errors = errors
        self.best = best
        self._new_best = (best, 0)  # of the best.pt that is to be written: its score, and the step it is of
        self._pending: dict[str, dict[str, Any]] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(
        self,
        contents: dict[str, dict[str, Any]],
        *,
        best: float = float("-inf"),
        step: int = 0,
        ready: Callable[[], None] | None = None,
    ) -> None:
        """Write checkpoints by name; this waits for the save before, and for no more.

        Args:
            contents: of `copied`.
            best: the score of `best.pt`, where it is among them.
            step: of the state.
            ready: what came with the copy.
        """
        self.join()
        if BEST in contents:
            self._new_best = (best, step)
        for name in contents:
            self._pending.pop(name, None)  # so that it takes its place behind what waits for longer
        self._pending |= contents
        self._thread = Finishing(target=self._write, args=(ready,), name="checkpoint")
        self._thread.start()

    def join(self) -> None:
        """Wait until what was saved is written, or could not be.

        Raises: what the thread met besides an `OSError`.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def finish(self) -> None:
        """Wait for what is written, and try the rest once more."""
        self.join()
        if self._pending:
            self.save({})
            self.join()

    def _write(self, ready: Callable[[], None] | None) -> None:
        try:
            if ready is not None:
                ready()
            for name, content in list(self._pending.items()):
                previous = self.folder / PREVIOUS if name == LAST else None
                is_kept = name not in (LAST, BEST)
                if name != BEST and BEST in self._pending:
                    content = self._without_new_best(content)
                try:
                    write_checkpoint(self.folder / name, content, previous=previous)
                except OSError as error:
                    then = "it is not kept" if is_kept else "it is tried again at the next save"
                    self.errors.failed(name, error, then=then)
                    if not is_kept:
                        continue
                    self.errors.unwritten.pop(name)
                else:
                    self.errors.succeeded(name)
                    if name == BEST:
                        self.best = self._new_best[0]
                del self._pending[name]
        except BaseException as error:  # raised where the training waits for it
            self._error = error

    def _without_new_best(self, content: dict[str, Any]) -> dict[str, Any]:
        """A checkpoint of a run whose newest best.pt could not be written."""
        training = content["training"]
        due = training["evaluation_due"] or training["step"] == self._new_best[1]
        return content | {"training": training | {"best": self.best, "evaluation_due": due}}


def copied(content: Any, device: torch.device) -> tuple[Any, Callable[[], None] | None]:
    """A copy of nested dicts, lists and tensors, in the CPU's memory, that later steps do not change.

    From a GPU the copy runs on, in the order of its stream: before it is read, call what comes with it.
    """
    if device.type != "cuda":
        return _copied(content), None
    copy = _copied(content)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return copy, event.synchronize


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.detach()
        if not value.is_cuda:
            return value.clone()
        return torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)
    if isinstance(value, dict):
        return {key: _copied(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_copied, value))
    return value
