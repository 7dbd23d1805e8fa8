"""Nearest neighbours and matching pairs, against scikit-learn and against measuring all pairs one by one."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestNeighbors

from backbones.errors import UserError
from engine import neighbours
from engine.neighbours import matching_pairs, nearest_neighbours

METRICS = ["cosine", "euclidean"]


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


few_whole_numbers = st.integers(-2, 2).map(float)
floats = st.floats(-1e6, 1e6, width=32)


@st.composite
def problems(draw, elements=few_whole_numbers):
    """Queries and embeddings, some of them copies of others: many ties."""
    channels = draw(st.integers(1, 5))
    embeddings = draw(arrays(np.float32, (draw(st.integers(1, 25)), channels), elements=elements))
    queries = draw(arrays(np.float32, (draw(st.integers(0, 6)), channels), elements=elements))
    copies = draw(st.lists(st.integers(0, len(embeddings) - 1), max_size=10))
    return np.concatenate([queries, embeddings[copies]]), np.concatenate([embeddings, embeddings[copies]])


def in_small_blocks(call, *arguments, **options):
    """The answer with blocks of a few rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "QUERIES", 2)
        patch.setattr(neighbours, "BLOCK_BYTES", 8 * 3 * 5)
        return call(*arguments, **options)


def similarities(queries: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
    """(Q, N), by the definition, zeros for vectors of zeros."""
    q, e = queries.astype(np.longdouble), embeddings.astype(np.longdouble)
    lengths = np.sqrt((q**2).sum(1))[:, None] * np.sqrt((e**2).sum(1))
    return np.divide((q[:, None] * e).sum(2), lengths, out=np.zeros(lengths.shape, np.longdouble), where=lengths > 0)


def distances(queries: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
    return np.sqrt(((queries[:, None].astype(np.longdouble) - embeddings) ** 2).sum(2))


# ---- Against scikit-learn ----


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("channels", "count"), [(3, 1), (64, 7), (2048, 5)])
def test_neighbours_are_scikit_learns(metric, channels, count):
    queries, embeddings = random(20, channels, seed=1), random(500, channels)
    indices, values = nearest_neighbours(queries, embeddings, count=count, metric=metric)
    reference = NearestNeighbors(n_neighbors=count, metric=metric, algorithm="brute").fit(embeddings.astype(np.float64))
    their_distances, their_indices = reference.kneighbors(queries.astype(np.float64))
    np.testing.assert_array_equal(indices, their_indices)
    np.testing.assert_allclose(1 - values if metric == "cosine" else values, their_distances, atol=1e-6, rtol=1e-6)
    assert (indices.dtype, values.dtype) == (np.int64, np.float32)


def test_pairs_are_scikit_learns():
    embeddings = np.concatenate([random(60, 4), 3 * random(20, 4)])  # the last 20 have the first 20's directions
    expected = 1 - pairwise_distances(embeddings.astype(np.float64), metric="cosine")
    for threshold in (0.3, 0.9, 1.0):
        pairs, values = matching_pairs(embeddings, threshold=threshold)
        i, j = np.nonzero(np.triu(expected >= threshold - 1e-7, k=1))
        assert {*map(tuple, pairs.tolist())} == {*zip(i.tolist(), j.tolist(), strict=True)}
        np.testing.assert_allclose(values, expected[pairs[:, 0], pairs[:, 1]], atol=1e-6)
    assert pairs.tolist() == [[i, i + 60] for i in range(20)]


# ---- By the definition ----


@given(problems(), st.integers(1, 40))
def test_distances_of_whole_numbers_and_their_ties_are_exact(problem, count):
    queries, embeddings = problem
    indices, values = nearest_neighbours(queries, embeddings, count=count, metric="euclidean")
    expected = distances(queries, embeddings)
    order = np.argsort(expected, axis=1, kind="stable")[:, :count]
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_array_equal(values, np.take_along_axis(expected, order, axis=1).astype(np.float32))


@given(st.one_of(problems(), problems(elements=floats)), st.integers(1, 40), st.sampled_from(METRICS))
def test_no_neighbour_is_missed_and_equal_ones_are_in_order(problem, count, metric):
    queries, embeddings = problem
    indices, values = nearest_neighbours(queries, embeddings, count=count, metric=metric)
    count = min(count, len(embeddings))
    assert indices.shape == values.shape == (len(queries), count)
    everything = -similarities(queries, embeddings) if metric == "cosine" else distances(queries, embeddings)
    keys = -values if metric == "cosine" else values
    tolerance = {"rtol": 1e-6, "atol": 1e-6 if metric == "cosine" else 1e-44}
    np.testing.assert_allclose(keys, np.sort(everything, axis=1)[:, :count].astype(float), **tolerance)
    np.testing.assert_allclose(keys, np.take_along_axis(everything, indices, axis=1).astype(float), **tolerance)
    assert all(len(set(row)) == count for row in indices.tolist())
    before, after = keys[:, :-1], keys[:, 1:]
    assert ((before < after) | ((before == after) & (indices[:, :-1] < indices[:, 1:]))).all()


@given(st.one_of(problems(), problems(elements=floats)), st.integers(1, 12), st.sampled_from(METRICS))
def test_the_answer_is_the_same_whatever_the_blocks(problem, count, metric):
    queries, embeddings = problem
    whole = nearest_neighbours(queries, embeddings, count=count, metric=metric)
    in_parts = in_small_blocks(nearest_neighbours, queries, embeddings, count=count, metric=metric)
    alone = [nearest_neighbours(query[None], embeddings, count=count, metric=metric) for query in queries]
    for number, ours in enumerate(whole):
        np.testing.assert_array_equal(ours, in_parts[number])
        for row, one in zip(ours, alone, strict=True):
            np.testing.assert_array_equal(row, one[number][0])


@given(st.one_of(problems(), problems(elements=floats)), st.floats(-1, 1, width=32))
def test_pairs_are_all_that_reach_the_threshold(problem, threshold):
    _, embeddings = problem
    pairs, values = matching_pairs(embeddings, threshold=threshold)
    expected = similarities(embeddings, embeddings)
    found = np.zeros(expected.shape, bool)
    found[pairs[:, 0], pairs[:, 1]] = True
    upper = np.triu(np.ones_like(found), k=1)
    assert not found[~upper].any()
    assert found[upper & (expected >= threshold + 1e-6)].all()
    assert not found[upper & (expected < threshold - 1e-6)].any()
    assert len({*map(tuple, pairs.tolist())}) == len(pairs)
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -values))
    np.testing.assert_array_equal(order, np.arange(len(pairs)))
    for ours, theirs in zip((pairs, values), in_small_blocks(matching_pairs, embeddings, threshold=threshold), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("offset", [0, 1000])
def test_of_copies_the_first_are_given(metric, offset):
    """A product of matrices rounds copies differently, by where they lie in it."""
    for channels in (17, 37, 64, 513):
        queries = random(7, channels) + np.float32(offset)
        for number, copies, count in itertools.product((1, 2, 5, 7), (7, 257), (1, 2, 3, 50)):
            embeddings = np.tile(queries[:1], (copies, 1))
            indices, values = nearest_neighbours(queries[:number], embeddings, count=count, metric=metric)
            np.testing.assert_array_equal(indices, np.tile(np.arange(min(count, copies)), (number, 1)))
            assert (values == values[:, :1]).all()
            assert (values[0] == (1 if metric == "cosine" else 0)).all()


def test_the_last_bit_of_a_coordinate_counts():
    """|q|² + |x|² - 2 q x would not see it."""
    point = np.full((1, 64), 1000, np.float32)
    near, nearest = point.copy(), point.copy()
    near[0, :2], nearest[0, 0] = np.nextafter(point[0, 0], 2000), np.nextafter(point[0, 0], 2000)
    indices, values = nearest_neighbours(point, np.concatenate([near, nearest, point]), count=3, metric="euclidean")
    assert indices.tolist() == [[2, 1, 0]]
    step = float(np.nextafter(np.float32(1000), np.float32(2000))) - 1000
    np.testing.assert_allclose(values, [[0, step, step * 2**0.5]], rtol=1e-6)


# ---- Odd values ----


def test_a_vector_of_zeros_is_like_nothing():
    embeddings = np.array([[0, 0], [-1, 0], [1, 0], [0, 0]], np.float32)
    indices, values = nearest_neighbours(embeddings[[2, 0]], embeddings, count=4)
    assert indices.tolist() == [[2, 0, 3, 1], [0, 1, 2, 3]]
    assert values.tolist() == [[1, 0, 0, -1], [0, 0, 0, 0]]
    assert matching_pairs(embeddings, threshold=0.5)[0].tolist() == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e200])
def test_a_value_that_is_not_finite_is_refused_and_its_row_named(value):
    good, bad = random(5, 3).astype(np.float64), random(5, 3).astype(np.float64)
    bad[3, 1] = value
    for metric in METRICS:
        with pytest.raises(UserError, match="Row 3 of the embeddings has a value that is not finite"):
            in_small_blocks(nearest_neighbours, good, bad, count=1, metric=metric)
        with pytest.raises(UserError, match="Row 3 of the queries"):
            in_small_blocks(nearest_neighbours, bad, good, count=1, metric=metric)
    with pytest.raises(UserError, match="Row 3 of the embeddings"):
        in_small_blocks(matching_pairs, bad, threshold=0.5)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32])
def test_numbers_of_every_type_are_taken(dtype):
    embeddings = np.arange(12).reshape(4, 3).astype(dtype)
    indices, values = nearest_neighbours(embeddings[:2], embeddings, count=2, metric="euclidean")
    assert indices.tolist() == [[0, 1], [1, 0]]
    np.testing.assert_allclose(values, [[0, 27**0.5]] * 2, rtol=1e-6)


# ---- Size ----


def test_embeddings_of_a_file_are_read_in_blocks(tmp_path, monkeypatch):
    """Far less memory than they take, once as float32 and twice that as float64."""
    embeddings = random(20_000, 128)
    np.save(tmp_path / "embeddings.npy", embeddings)
    monkeypatch.setattr(neighbours, "BLOCK_BYTES", 2**18)
    mapped = np.load(tmp_path / "embeddings.npy", mmap_mode="r")
    tracemalloc.start()
    indices, _ = nearest_neighbours(mapped[[5, 19_999]], mapped, count=3)
    pairs, _ = matching_pairs(mapped[:3000], threshold=0.5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert indices[:, 0].tolist() == [5, 19_999]
    assert len(pairs) == 0
    assert peak < embeddings.nbytes / 3


def test_more_neighbours_than_there_are_is_all_of_them():
    indices, values = nearest_neighbours(random(2, 4), random(3, 4), count=10)
    assert indices.shape == values.shape == (2, 3)
    assert nearest_neighbours(random(0, 4), random(3, 4), count=10)[0].shape == (0, 3)


# ---- What is refused ----


@pytest.mark.parametrize(
    ("queries", "embeddings", "options", "message"),
    [
        (random(2, 3), random(5, 4), {}, "queries have 3 numbers each, the embeddings 4"),
        (random(2, 3), random(5, 3), {"count": 0}, "count is 0: ask for at least 1"),
        (random(2, 3), random(5, 3), {"metric": "cosin"}, "no metric 'cosin'.*cosine"),
        (random(3), random(5, 3), {}, r"queries are float32 of shape \(3,\)"),
        (random(2, 3), random(0, 3), {}, r"embeddings are float32 of shape \(0, 3\)"),
        (random(2, 3), np.array([["a", "b", "c"]]), {}, "embeddings are <U1"),
    ],
)
def test_what_makes_no_sense_is_refused(queries, embeddings, options, message):
    with pytest.raises(UserError, match=message):
        nearest_neighbours(queries, embeddings, **{"count": 1} | options)


@pytest.mark.parametrize("threshold", [1.01, -2, float("nan")])
def test_a_threshold_that_no_similarity_can_have_is_refused(threshold):
    with pytest.raises(UserError, match="from -1 to 1"):
        matching_pairs(random(5, 3), threshold=threshold)


def test_more_pairs_than_can_be_held_are_refused():
    with pytest.raises(UserError, match=r"More than 100 pairs .* at least 0\.5.* Raise the threshold"):
        matching_pairs(np.ones((20, 3), np.float32), threshold=0.5, max_pairs=100)
    assert len(matching_pairs(np.ones((20, 3), np.float32), threshold=0.5, max_pairs=190)[0]) == 190
