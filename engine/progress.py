"""What a run prints: lines that a person and a log file can both read, and a bar where there is a terminal."""

import os
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from engine.distributed import World
from engine.scores import Score


class _Console(Console):
    """Falls silent where nobody reads any more, the disk of a log is full, or there is no output: a run goes on without."""

    def print(self, *objects: Any, **options: Any) -> None:
        try:
            super().print(*objects, **options)
        except OSError:
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        self.quiet = True
        with suppress(OSError, ValueError, AttributeError):  # or Python meets the same as it ends, and says so
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Reporter:
    """Prints on the main process, and nothing on the others."""

    def __init__(self, world: World) -> None:
        self.is_main = world.is_main
        # Lines in a file or a pipe are not to be wrapped at a terminal's width.
        width = None if sys.stdout is not None and sys.stdout.isatty() else 200
        is_quiet = not world.is_main or sys.stdout is None
        self.console = _Console(quiet=is_quiet, highlight=False, emoji=False, width=width, soft_wrap=True)

    def line(self, text: str = "") -> None:
        """Print a line."""
        self.console.print(text, markup=False)

    def scores(self, scores: list[Score]) -> None:
        """Print the numbers of each score."""
        for score in scores:
            self.line(f"{score.kind}:")
            for text in score.lines():
                self.line(text)

    def losses(self, losses: Mapping[str, float]) -> None:
        """Print validation losses, if there are any."""
        if losses:
            parts = "  ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in losses.items())
            self.line(f"loss {sum(losses.values()):.3f} ({parts})")

    def per_class(self, scores: list[Score]) -> None:
        """Print a table of each class's numbers."""
        measure = scores[0].measure
        table = Table(
            "class", *(f"{score.kind} {measure}" for score in scores), title=f"{measure} by class", title_justify="left"
        )
        for name in dict.fromkeys(name for score in scores for name in score.per_class):
            values = [score.per_class.get(name, -1.0) for score in scores]  # not every class has keypoints
            table.add_row(Text(name), *("–" if value < 0 else f"{value:.3f}" for value in values))
        self.console.print(table)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str) -> None:
        """Print a table of text."""
        table = Table(*columns, title=title, title_justify="left")
        for row in rows:
            table.add_row(*map(Text, row))
        self.console.print(table)

    @contextmanager
    def bar(self, description: str, total: int) -> Iterator[Any]:
        """A progress bar on a terminal; gives a function that sets how much is done."""
        if not (self.is_main and self.console.is_terminal):
            yield lambda done: None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(description, total=total)
            yield lambda done: progress.update(task, completed=done)


class Speed:
    """Images a second and the time left, from the steps since the last report; evaluation is not counted."""

    def __init__(self, *, batch_size: int) -> None:
        self.batch_size = batch_size
        self._steps = 0
        self._seconds = 0.0
        self._began = time.perf_counter()

    def start(self) -> None:
        """A step begins."""
        self._began = time.perf_counter()

    def stop(self) -> None:
        """A step has ended."""
        self._seconds += time.perf_counter() - self._began
        self._steps += 1
        self._began = time.perf_counter()

    def report(self, *, steps_left: int) -> tuple[float, float]:
        """(images a second, seconds left) since the last report."""
        step_seconds = self._seconds / max(1, self._steps)
        self._steps, self._seconds = 0, 0.0
        return self.batch_size / max(step_seconds, 1e-9), steps_left * step_seconds


def peak_memory_gb(device: torch.device) -> float:
    """Most memory held so far: by tensors on a GPU, by this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
