"""Where the numbers of a run go: a line of JSON and TensorBoard by default, anything else through the same small interface."""

import json
import time
from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    """Takes the numbers of a step."""

    def log(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Record the values of a "train" step or of an "eval"."""
        ...

    def close(self) -> None:
        """Flush and release what is open."""
        ...


class JsonlTracker:
    """Appends a line of JSON for each call to a file.

    A resumed run does the steps after its checkpoint again: lines of steps after `start_step` are taken out first.
    """

    def __init__(self, path: Path, *, start_step: int = 0) -> None:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        path.write_text("".join(line for line in lines if _step_of(line) <= start_step), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")

    def log(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Write {"kind", "step", "time", **values}."""
        line = {"kind": kind, "step": step, "time": round(time.time(), 3), **values}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardTracker:
    """Writes the numbers among the values as TensorBoard scalars, `kind/name`."""

    def __init__(self, folder: Path, *, start_step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=start_step + 1 if start_step else None)

    def log(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Write each number."""
        for name, value in _numbers(values, kind):
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):  # cut short when the run was killed
        return float("inf")


def _numbers(values: dict[str, Any], prefix: str) -> list[tuple[str, float]]:
    found = []
    for name, value in values.items():
        if isinstance(value, dict):
            found += _numbers(value, f"{prefix}/{name}")
        elif isinstance(value, int | float):
            found.append((f"{prefix}/{name}", float(value)))
    return found
