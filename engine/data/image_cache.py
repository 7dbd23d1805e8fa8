"""Decoded images of a small data set, kept for the next epoch and shared by all processes of a machine."""

import os
import tempfile
import uuid
from multiprocessing import reduction
from multiprocessing.context import get_spawning_popen
from pathlib import Path
from typing import Any

import numpy as np

from engine.distributed import World


class ImageCache:
    """Holds images (H, W, 3) uint8, all or those that processes have put there so far, in a file without a name.

    The file lies in the folder for temporary files. It is gone with the last process that has it open, however that ends; and
    the system drops its pages from memory to the disk, or to swap, where memory is short.

    Args:
        shapes: (I, 2) height and width of each image, pixels.
        world: the processes that share it; each machine has its own.
    """

    _file = -1

    def __init__(self, shapes: np.ndarray, *, world: World | None = None) -> None:
        sizes = shapes.astype(np.int64).prod(axis=1) * 3
        self._shapes = shapes
        # One byte an image says whether it is there, then come the images.
        self._offsets = len(shapes) + np.concatenate([[0], np.cumsum(sizes)])
        self._file = _shared_file(world)
        self._is_full = False
        os.ftruncate(self._file, int(self._offsets[-1]))

    @staticmethod
    def size_of(shapes: np.ndarray) -> float:
        """What images of these shapes would take, in GB (1e9 bytes)."""
        return float(shapes.astype(np.float64).prod(axis=1).sum() * 3 / 1e9)

    def get(self, index: int) -> np.ndarray | None:
        """A copy of image `index`, or None where it is not there."""
        if self._file < 0 or os.pread(self._file, 1, index) != b"\1":
            return None
        image = np.empty((*self._shapes[index], 3), np.uint8)
        read = os.preadv(self._file, [image.data], int(self._offsets[index]))
        return image if read == image.nbytes else None

    def put(self, index: int, image: np.ndarray) -> None:
        """Keep an image; on a full disk, do nothing from now on."""
        if self._file < 0 or self._is_full or image.shape != (*self._shapes[index], 3):
            return
        try:
            written = os.pwrite(self._file, np.ascontiguousarray(image).data, int(self._offsets[index]))
            if written == image.nbytes:
                os.pwrite(self._file, b"\1", index)  # after the pixels: who reads this finds all of them
        except OSError:
            self._is_full = True

    def close(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        # Loader processes that are not forked get the open file handed over; any other copy goes without.
        is_handed_over = self._file >= 0 and get_spawning_popen() is not None
        return self.__dict__ | {"_file": reduction.DupFd(self._file) if is_handed_over else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._file = -1 if state["_file"] is None else state["_file"].detach()


def _shared_file(world: World | None) -> int:
    """A new file without a name, open in all processes of a run that are on this machine."""
    if world is None or world.size == 1:
        file, name = tempfile.mkstemp(prefix="vertebra-images-")
        Path(name).unlink()
        return file
    # No other run, data set or user comes upon the name, whatever they share.
    path = Path(tempfile.gettempdir()) / f"vertebra-images-{world.broadcast(uuid.uuid4().hex)}"
    file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
    world.barrier()  # all have it open
    path.unlink(missing_ok=True)
    return file
