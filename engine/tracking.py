"""Where the numbers of a run go: a line of JSON and TensorBoard by default, anything else through the same small interface.

What is logged is in the file when `log` returns, so that a process that is killed loses none of it. What cannot be written, for
the disk is full, is kept in memory and written with what comes next.
"""

import errno
import json
import math
import os
import socket
import time
from pathlib import Path
from typing import Any, Protocol

from engine.files import WriteErrors, is_gone, write_whole


class Tracker(Protocol):
    """Takes the numbers of a step."""

    def log(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Record the values of a "train" step or of an "eval"."""
        ...

    def flush(self) -> None:
        """Have all of it on the disk."""
        ...

    def close(self) -> None:
        """Flush and release what is open."""
        ...


class JsonlTracker:
    """Appends a line of JSON for each call to a file.

    A resumed run does the steps after its checkpoint again: lines of steps after `start_step` are taken out first, and where
    it does the evaluation after that step again, its line, too.
    """

    def __init__(
        self, path: Path, *, start_step: int = 0, evaluates_again: bool = False, errors: WriteErrors | None = None
    ) -> None:
        if path.is_dir() or path.is_fifo():
            raise OSError(errno.EEXIST, "there is something else than a file", str(path))
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        records = [(line, _record(line)) for line in lines]
        if errors is not None and (foreign := sum(record is None and line.endswith(b"\n") for line, record in records)):
            # A line without an end is the last one, cut short when a run was killed.
            copy = path.with_name("metrics.before.jsonl")
            write_whole(copy, b"".join(lines))
            errors.tell(
                f"warning: {foreign} lines of {path} are none of a run's, and are taken out; the file is kept in {copy}"
            )
        stay = [
            (line, record)
            for line, record in records
            if record is not None and _stays(record, start_step, evaluates_again=evaluates_again)
        ]
        kept = [line for line, _ in stay]
        self.last_records = [record for _, record in stay if record["step"] == start_step]
        if kept != lines:
            write_whole(path, b"".join(kept))
        self._file = _AppendedFile(path, errors)

    def log(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Write {"kind", "step", "time", **values}; what is no number is null, for JSON has no word for it."""
        line = {"kind": kind, "step": step, "time": round(time.time(), 3), **_finite(values)}
        self._file.append(json.dumps(line).encode() + b"\n")

    def flush(self) -> None:
        """Have all lines on the disk."""
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardTracker:
    """Writes the numbers among the values as TensorBoard scalars, `kind/name`.

    Args:
        folder: of the event files; each start writes one.
        start_step: the step of the checkpoint the run goes on from: TensorBoard forgets what came after.
        again: records (of `JsonlTracker`) of that step itself: it is forgotten, too, and then written from these.
        errors: who is told of what cannot be written; None raises.
    """

    def __init__(
        self,
        folder: Path,
        *,
        start_step: int = 0,
        again: list[dict[str, Any]] | None = None,
        errors: WriteErrors | None = None,
    ) -> None:
        # Not torch's SummaryWriter: it writes in a thread, which holds events back for minutes and dies of a full disk.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 10**9:010d}.{socket.gethostname()}.{os.getpid()}.{time.time_ns()}"
        self._file = _AppendedFile(folder / name, errors)
        self._records = RecordWriter(self)
        self._write_event(Event(wall_time=time.time(), file_version="brain.Event:2"))
        # Also at the beginning: a start that was killed before its first checkpoint has left its events here.
        first = start_step if again is not None else start_step + 1
        self._write_event(Event(wall_time=time.time(), step=first, session_log=SessionLog(status=SessionLog.START)))
        for record in again or []:
            values = {key: value for key, value in record.items() if key not in ("kind", "step", "time")}
            self.log(record["kind"], start_step, values, at=record["time"])

    def log(self, kind: str, step: int, values: dict[str, Any], *, at: float | None = None) -> None:
        """Write each number; `at` is its time, now if left out."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        for name, value in _numbers(values, kind):
            summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
            self._write_event(Event(wall_time=time.time() if at is None else at, step=step, summary=summary))

    def write(self, data: bytes) -> None:
        """Take a part of a record, for TensorBoard's `RecordWriter`."""
        self._file.append(data)

    def flush(self) -> None:
        """Have all events on the disk."""
        self._file.flush()

    def close(self) -> None:
        """Flush and close the event file."""
        self._file.close()

    def _write_event(self, event: Any) -> None:
        self._records.write(event.SerializeToString())


class _AppendedFile:
    """A file that is appended to at once. What could not be written is kept, and goes before what comes next.

    A file that somebody deletes meanwhile is there again, as it was, after the next `flush`; one that takes its place (an
    editor's) is gone on with.
    """

    def __init__(self, path: Path, errors: WriteErrors | None) -> None:
        self.path = path
        self.errors = errors
        self._pending = b""
        self._handle: int | None = None
        self.append(b"")

    def append(self, data: bytes) -> None:
        self._pending += data
        try:
            if self._handle is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._handle = self._open()
            while self._pending:
                self._pending = self._pending[os.write(self._handle, self._pending) :]
        except OSError as error:
            if self.errors is None:
                raise
            self.errors.failed(self._name, error, then="it is kept, and written with what comes next")
            return
        if self.errors is not None:
            self.errors.succeeded(self._name)

    def flush(self) -> None:
        if self._handle is not None and is_gone(self.path):
            self._pending = self._whole() + self._pending
            self._release()
        elif self._handle is not None and self._is_another():
            self._release()
        self.append(b"")
        if self._handle is not None and not self._pending:
            try:
                os.fsync(self._handle)
            except OSError as error:
                if error.errno == errno.EINVAL:
                    return  # a device has no disk to be on
                if self.errors is None:
                    raise
                self.errors.failed(self._name, error)

    def close(self) -> None:
        if self._handle is not None:
            self.append(b"")
            self._release()

    def _open(self) -> int:
        # A pipe would take the lines from the run, and hold it up when it is full.
        if self.path.is_fifo():
            raise OSError(errno.EEXIST, "there is something else than a file", str(self.path))
        return os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)

    def _release(self) -> None:
        assert self._handle is not None
        os.close(self._handle)
        self._handle = None

    def _is_another(self) -> bool:
        """Whether the name is that of another file than the open one."""
        assert self._handle is not None
        try:
            return not os.path.samestat(self.path.stat(), os.fstat(self._handle))
        except OSError:
            return False

    def _whole(self) -> bytes:
        """What the open file has, wherever its name is."""
        assert self._handle is not None
        try:
            return os.pread(self._handle, os.fstat(self._handle).st_size, 0)
        except OSError:
            return b""

    @property
    def _name(self) -> str:
        return self.path.name if self.path.suffix == ".jsonl" else self.path.parent.name + "/"


def _record(line: bytes) -> dict[str, Any] | None:
    """What a line says, or None where it is none of `JsonlTracker`'s, or not whole."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not line.endswith(b"\n") or not isinstance(record, dict):
        return None
    types: dict[str, Any] = {"kind": str, "step": int, "time": int | float}
    return record if all(isinstance(record.get(key), kind) for key, kind in types.items()) else None


def _stays(record: dict[str, Any], start_step: int, *, evaluates_again: bool) -> bool:
    step = record["step"]
    return bool(step < start_step or (step == start_step and not (evaluates_again and record["kind"] == "eval")))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(values: dict[str, Any], prefix: str) -> list[tuple[str, float]]:
    found = []
    for name, value in values.items():
        if isinstance(value, dict):
            found += _numbers(value, f"{prefix}/{name}")
        elif isinstance(value, int | float):
            found.append((f"{prefix}/{name}", float(value)))
    return found
