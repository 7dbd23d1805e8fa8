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
    """Appends a line of JSON for each call to a file."""

    def __init__(self, path: Path) -> None:
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

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def log(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Write each number."""
        for name, value in _numbers(values, kind):
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


def _numbers(values: dict[str, Any], prefix: str) -> list[tuple[str, float]]:
    found = []
    for name, value in values.items():
        if isinstance(value, dict):
            found += _numbers(value, f"{prefix}/{name}")
        elif isinstance(value, int | float):
            found.append((f"{prefix}/{name}", float(value)))
    return found
