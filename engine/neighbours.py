"""Nearest neighbours and matching pairs among embeddings: exact, in bounded memory, the same whatever the blocks."""

from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np

from backbones.errors import UserError, did_you_mean

Metric = Literal["cosine", "euclidean"]

BLOCK_BYTES = 64 * 2**20  # of each of the few arrays that are held at a time, besides the embeddings and the answer
QUERIES = 1024  # at a time
_EPS = float(np.finfo(np.float64).eps)
_LARGEST = 1e76  # squared norm, past which distances leave float32


def nearest_neighbours(
    queries: np.ndarray, embeddings: np.ndarray, *, count: int, metric: Metric = "cosine"
) -> tuple[np.ndarray, np.ndarray]:
    """The embeddings most like each query. Exact; identical embeddings, and all that agree to float32, by their index.

    Matrix products in float64 find the candidates; these are then measured pair by pair, so that the answer does not depend on
    the order in which a product is summed. The embeddings may be mapped from a file: they are read in blocks.

    Args:
        queries: (Q, C).
        embeddings: (N, C).
        count: how many; where there are fewer embeddings, all.
        metric: cosine needs no normalised embeddings; a vector of zeros has similarity 0 to all. Or euclidean.

    Returns:
        Indices (Q, K) int64 with K = min(count, N), the nearest first; and their similarities from -1 to 1, or distances for
        euclidean, (Q, K) float32.

    Raises:
        UserError: shapes that do not fit, a count below 1, an unknown metric, values that are not finite.
    """
    queries, embeddings = _checked(queries, "queries"), _checked(embeddings, "embeddings")
    if queries.shape[1] != embeddings.shape[1]:
        raise UserError(
            f"The queries have {queries.shape[1]} numbers each, the embeddings {embeddings.shape[1]}: "
            "they are not of one backbone."
        )
    if count < 1:
        raise UserError(f"count is {count}: ask for at least 1 neighbour.")
    if metric not in get_args(Metric):
        raise UserError(f"There is no metric {metric!r}.{did_you_mean(metric, get_args(Metric))}")
    count = min(count, len(embeddings))
    found = [_nearest(block, embeddings, count, metric) for block in _blocks(queries, QUERIES, metric, "queries")]
    indices = [np.zeros((0, count), np.int64), *(indices for indices, _ in found)]
    values = [np.zeros((0, count), np.float32), *(values for _, values in found)]
    return np.concatenate(indices), np.concatenate(values)


def matching_pairs(embeddings: np.ndarray, *, threshold: float, max_pairs: int = 10_000_000) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of embeddings whose cosine similarity is at least `threshold`, the most alike first. Exact.

    Args:
        embeddings: (N, C); a vector of zeros has similarity 0 to all.
        threshold: from -1 to 1; 1 gives those that agree to float32.
        max_pairs: how many to hold.

    Returns:
        Indices (M, 2) int64, the lower first, and similarities (M,) float32.

    Raises:
        UserError: a threshold out of range, more pairs than `max_pairs`, values that are not finite.
    """
    embeddings = _checked(embeddings, "embeddings")
    if not -1 <= threshold <= 1:
        raise UserError(f"The threshold is {threshold}: a cosine similarity is from -1 to 1.")
    size = min(_block_size(embeddings.shape[1]), int((BLOCK_BYTES / 8) ** 0.5))
    threshold = float(np.float32(threshold))
    pairs, similarities, total = [], [], 0
    for first, (left, _) in enumerate(_blocks(embeddings, size, "cosine", "embeddings")):
        # The blocks from this one on: each pair of blocks once.
        for second, (right, _) in enumerate(_blocks(embeddings[first * size :], size, "cosine", "embeddings"), start=first):
            i, j = np.nonzero(left @ right.T >= threshold - _slack("cosine", left.shape[1]))
            if first == second:
                i, j = i[i < j], j[i < j]
            values = _measure(left, right, i, j, "cosine")
            enough = values >= threshold
            pairs.append(np.stack([i[enough] + first * size, j[enough] + second * size], axis=1))
            similarities.append(values[enough])
            total += len(pairs[-1])
            if total > max_pairs:
                raise UserError(
                    f"More than {max_pairs:,} pairs have a similarity of at least {threshold:g}. Raise the threshold."
                )
    found, values = np.concatenate(pairs), np.concatenate(similarities)
    order = np.lexsort((found[:, 1], found[:, 0], -values))
    return found[order], values[order]


Block = tuple[np.ndarray, np.ndarray]  # float64 rows (B, C), of length 1 for cosine, and their squared lengths (B,)


def _checked(array: np.ndarray, name: str) -> np.ndarray:
    array = np.asarray(array)
    if array.ndim != 2 or array.dtype.kind not in "fiu" or (name == "embeddings" and not len(array)):
        raise UserError(f"The {name} are {array.dtype} of shape {array.shape}: give numbers (N, C), a row for each image.")
    return array


def _block_size(channels: int) -> int:
    return max(1, BLOCK_BYTES // (8 * max(channels, QUERIES)))


def _blocks(array: np.ndarray, size: int, metric: Metric, name: str) -> Iterator[Block]:
    for start in range(0, len(array), size):
        rows = np.array(array[start : start + size], np.float64, order="C")
        with np.errstate(over="ignore", invalid="ignore"):
            squares = (rows * rows).sum(axis=1)
        if not (squares <= _LARGEST).all():
            row = start + int(np.argmin(squares <= _LARGEST))
            raise UserError(f"Row {row} of the {name} has a value that is not finite, or is too large for float32.")
        if metric == "cosine":
            lengths = np.sqrt(squares)
            rows /= np.where(lengths > 0, lengths, 1)[:, None]
            squares = (lengths > 0).astype(np.float64)
        yield rows, squares


def _nearest(queries: Block, embeddings: np.ndarray, count: int, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    """For one block of queries: indices and values (Q, count)."""
    q, q_squares = queries
    sign = -1 if metric == "cosine" else 1  # of a value among what is sorted: the nearest has the least
    keys = np.full((len(q), count), np.inf, np.float32)
    indices = np.full((len(q), count), len(embeddings), np.int64)
    size = _block_size(q.shape[1])
    for number, (rows, squares) in enumerate(_blocks(embeddings, size, metric, "embeddings")):
        if metric == "cosine":
            rough = -(q @ rows.T)
            slack = np.full((len(q), 1), _slack(metric, q.shape[1]))
            limit = keys[:, -1:].astype(np.float64)
        else:
            rough = q_squares[:, None] + squares - 2 * (q @ rows.T)
            slack = _slack(metric, q.shape[1]) * (q_squares[:, None] + squares.max())
            limit = _rounded_up(keys[:, -1:]) ** 2
        if len(rows) >= count:
            own = np.partition(rough, count - 1, axis=1)[:, count - 1 : count] + slack
            limit = np.minimum(limit, own if metric == "cosine" else _rounded_up(np.sqrt(own)) ** 2)
        # What might be among the nearest, whatever the product's rounding: measured one by one.
        of_query, of_row = np.nonzero(rough <= limit + slack)
        measured = sign * _measure(q, rows, of_query, of_row, metric)
        _keep_least(keys, indices, of_query, measured, of_row + number * size)
    return indices, sign * keys


def _slack(metric: Metric, channels: int) -> float:
    """By how much a product's result may differ from the pair's own, both rounded; for euclidean, of squared lengths."""
    return 8 * (channels + 4) * _EPS + (2.0**-22 if metric == "cosine" else 0)


def _rounded_up(distances: np.ndarray) -> np.ndarray:
    """No distance that equals these in float32 is larger."""
    return distances.astype(np.float64) * (1 + 2.0**-22) + 2.0**-148


def _measure(q: np.ndarray, rows: np.ndarray, of_query: np.ndarray, of_row: np.ndarray, metric: Metric) -> np.ndarray:
    """Similarities or distances (P,) float32 of P pairs; each depends on its two vectors alone, not on where they lie."""
    values = np.empty(len(of_query), np.float32)
    step = max(1, BLOCK_BYTES // (8 * max(1, q.shape[1])))
    for start in range(0, len(values), step):
        part = slice(start, start + step)
        left, right = q[of_query[part]], rows[of_row[part]]
        if metric == "cosine":
            values[part] = (left * right).sum(axis=1).clip(-1, 1)
        else:
            values[part] = np.sqrt(((left - right) ** 2).sum(axis=1))
    return values


def _keep_least(
    keys: np.ndarray, indices: np.ndarray, of_query: np.ndarray, new_keys: np.ndarray, new_indices: np.ndarray
) -> None:
    """Update each query's least keys (Q, K) and their indices in place; equal keys by index."""
    number, count = keys.shape
    of_query = np.concatenate([np.repeat(np.arange(number), count), of_query])
    all_keys, all_indices = np.concatenate([keys.ravel(), new_keys]), np.concatenate([indices.ravel(), new_indices])
    order = np.lexsort((all_indices, all_keys, of_query))
    of_query = of_query[order]
    place = np.arange(len(order)) - np.searchsorted(of_query, of_query)
    first = place < count
    keys[of_query[first], place[first]] = all_keys[order][first]
    indices[of_query[first], place[first]] = all_indices[order][first]
