"""Rows of unequal lengths as two arrays: what a list of lists holds, without an object for each row."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """Row i is `values[offsets[i]:offsets[i + 1]]`; `offsets` is (rows + 1,) int64."""

    values: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """(rows,) int64."""
        return np.diff(self.offsets)

    @classmethod
    def of_lengths(cls, values: np.ndarray, lengths: np.ndarray | Sequence[int]) -> "Ragged":
        """Rows of these lengths, one after another."""
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return cls(values, offsets)

    @classmethod
    def of_bytes(cls, rows: Iterable[bytes]) -> "Ragged":
        """A row of uint8 for each."""
        rows = list(rows)
        return cls.of_lengths(np.frombuffer(b"".join(rows), np.uint8), [len(row) for row in rows])

    @classmethod
    def join(cls, parts: "Sequence[Ragged]") -> "Ragged":
        """The rows of all, in the smallest type that holds the values of each."""
        dtype = np.result_type(*(part.values.dtype for part in parts))
        values = np.concatenate([part.values for part in parts], dtype=dtype)
        return cls.of_lengths(values, np.concatenate([part.lengths for part in parts]))
