"""Arrays made of a file, kept in one file beside it, and mapped into memory by every process that asks again.

The pages of a mapped file are in memory once, whatever the number of processes, and hold no reference counts that would make
each process copy them. A store is written under a name of its own, flushed to the disk and renamed into place, so whoever reads
sees a whole one or none; of several processes that write at once, each writes a whole one and the last stays.

The file: a head of fixed size, a description in JSON, the arrays. The head holds the source's time of change, which alone is
ever written again, and a checksum of the description, which holds the source's length and hash and a checksum of the arrays.
"""

import contextlib
import hashlib
import json
import mmap
import os
import struct
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from engine.data.cache import default_cache_dir

FORMAT = 1  # of the file below: raise it when that changes
SUFFIX = ".columns"
_MAGIC = b"vertebra columns"
_HEAD = struct.Struct("<16sqQI")  # magic, the source's mtime in ns, the description's length and checksum
_MTIME = 16  # where in the head it stands
_ALIGNMENT = 64
_ABANDONED = 3600.0  # seconds: a file that is still being written is never as old
_UNSETTLED = 2_000_000_000  # ns: the coarsest step of a file system's times


@dataclass(frozen=True)
class Table:
    """Arrays by name, and facts that JSON can hold. Arrays from a store can only be read."""

    facts: dict[str, Any]
    columns: dict[str, np.ndarray]
    store: "Store | None" = field(default=None, compare=False)  # where they are mapped from


@dataclass(frozen=True)
class Store:
    """Which store, of what: enough for another process to find the same arrays."""

    path: Path
    version: int
    source_hash: str


def load_table(source: Path, build: Callable[[bytes], Table], *, version: int) -> Table:
    """The table that `build` makes of the content of `source`: from its store, or else built now and stored for the next time.

    The store is beside the source, or, where nothing can be written there, in the cache folder; where neither can be written,
    the table stays in this process. A store is good if it has this version and the source's length, and the source has the
    time of change it had then, or else the same content.

    Args:
        version: of what `build` makes. Raise it when that changes.

    Raises:
        OSError: the source cannot be read.
        Exception: whatever `build` raises.
    """
    places = _places(source)
    before = source.stat()
    for place in places:
        table = _read(place, version=version, source=source)
        if table is not None:
            return table
    content = source.read_bytes()
    with ThreadPoolExecutor(1) as pool:  # hashing needs a core, but not the interpreter
        hashing = pool.submit(hashlib.sha256, content)
        table = build(content)
    after = source.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or len(content) != after.st_size:
        return table  # it was written meanwhile: nobody knows what of it this is
    described = {"version": version, "source_bytes": len(content), "source_sha256": hashing.result().hexdigest()}
    del content
    for place in places:
        with contextlib.suppress(OSError):
            if place.parent.is_dir() and not place.parent.stat().st_mode & 0o222:
                continue  # an administrator might write there, but nobody is meant to
            _write(place, table, described, after.st_mtime_ns)
            return _read(place, version=version, source=source) or table
    return table


def reopen(store: Store) -> Table | None:
    """The table of a store, whatever has become of its source; None where there is no store any more, or another one."""
    table = _read(store.path, version=store.version, source=None)
    return table if table is not None and table.store == store else None


def _places(source: Path) -> list[Path]:
    """Where a store of this file may be, the best place first."""
    source = source.absolute()
    named = f"{source.stem}-{hashlib.sha256(os.fsencode(source)).hexdigest()[:16]}{SUFFIX}"
    return [source.with_name(source.name + SUFFIX), default_cache_dir() / "annotations" / named]


# ---- Reading ----


def _read(path: Path, *, version: int, source: Path | None) -> Table | None:
    """What is stored, if it is whole, and of this version and source; a source of None is not looked at."""
    try:
        with path.open("rb") as file:
            magic, mtime, length, checksum = _HEAD.unpack(file.read(_HEAD.size))
            size = os.fstat(file.fileno()).st_size
            if magic != _MAGIC or length > size:
                return None
            description = file.read(length)
            if zlib.crc32(description) != checksum:
                return None
            described = json.loads(description)
            start = _aligned(_HEAD.size + length)
            if described["format"] != FORMAT or described["version"] != version or size != start + described["bytes"]:
                return None
            if source is not None and not _is_of(described, mtime, source, path):
                return None
            file.seek(start)
            if _checksum(file) != described["checksum"]:
                return None
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if any(np.dtype(dtype).hasobject for _, dtype, _, _ in described["columns"]):
            return None  # somebody's forgery: numpy would take the bytes for addresses
        columns = {name: np.ndarray(shape, dtype, mapped, start + at) for name, dtype, shape, at in described["columns"]}
    except (OSError, ValueError, TypeError, KeyError, RecursionError, OverflowError, struct.error):
        return None
    return Table(described["facts"], columns, Store(path, version, described["source_sha256"]))


def _is_of(described: dict[str, Any], mtime: int, source: Path, path: Path) -> bool:
    """Whether the source is the one described. If only its time has changed, the store is told, so that it is read but once."""
    now = source.stat()
    if now.st_size != described["source_bytes"]:
        return False
    if now.st_mtime_ns == mtime:
        return True
    digest = hashlib.sha256()
    with source.open("rb") as file:
        for block in _blocks(file):
            digest.update(block)
    if digest.hexdigest() != described["source_sha256"] or source.stat().st_mtime_ns != now.st_mtime_ns:
        return False
    with contextlib.suppress(OSError), path.open("r+b") as store:
        store.seek(_MTIME)
        store.write(struct.pack("<q", _settled(now.st_mtime_ns)))
    return True


def _settled(mtime: int) -> int:
    """A time of change to recognise a file by, or -1 where it is so recent that another change could have the same."""
    return mtime if time.time_ns() - mtime > _UNSETTLED else -1


def _checksum(file: BufferedReader) -> int:
    """Of all that follows in a file. It is read, not mapped: what is read adds nothing to this process's memory."""
    checksum = 0
    for block in _blocks(file):
        checksum = zlib.crc32(block, checksum)
    return checksum


def _blocks(file: BufferedReader) -> Iterator[memoryview]:
    """What follows in a file, in pieces that are gone when the next one is asked for."""
    buffer = bytearray(1 << 20)
    while count := file.readinto(buffer):
        yield memoryview(buffer)[:count]


# ---- Writing ----


def _write(path: Path, table: Table, described: dict[str, Any], mtime: int) -> None:
    """Write a store under another name, and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    layout: list[tuple[str, str, tuple[int, ...], int]] = []
    parts: list[Any] = []  # buffers
    checksum, size = 0, 0
    for name, column in table.columns.items():
        layout.append((name, column.dtype.str, column.shape, size))
        data = np.ascontiguousarray(column).reshape(-1).view(np.uint8).data
        parts += [data, b"\0" * (_aligned(len(data)) - len(data))]
        size += _aligned(len(data))
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    facts = {"format": FORMAT, "facts": table.facts, "columns": layout, "bytes": size, "checksum": checksum}
    description = json.dumps(described | facts).encode()
    head = _HEAD.pack(_MAGIC, _settled(mtime), len(description), zlib.crc32(description)) + description
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(head.ljust(_aligned(len(head)), b"\0"))
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # the rename, too; not every system can
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _remove_abandoned(path: Path) -> None:
    """Delete what processes that died while they wrote have left."""
    for left in path.parent.iterdir():
        if left.name.startswith(f".{path.name}."):
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > _ABANDONED:
                    left.unlink()


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
