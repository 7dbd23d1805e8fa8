"""engine/data/sampling.py: repeat factors are the paper's, and an epoch holds each image as often as they say."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data.sampler import GlobalBatchSampler
from engine.data.sampling import draw_repeats, epoch_length, repeat_factors

seeds = st.integers(0, 1000)


@st.composite
def data_sets(draw):
    """For each image the classes of its objects."""
    return draw(st.lists(st.lists(st.integers(1, 5), max_size=6), min_size=1, max_size=30))


def factors_of(images, threshold):
    labels = np.array([label for image in images for label in image], np.int64)
    places = np.array([place for place, image in enumerate(images) for _ in image], np.int64)
    return repeat_factors(labels, places, num_images=len(images), threshold=threshold)


@given(data_sets(), st.floats(0.0005, 1))
def test_factors_are_those_of_the_paper_counted_by_hand(images, threshold):
    expected = []
    for image in images:
        frequencies = [sum(label in other for other in images) / len(images) for label in image]
        expected.append(max([max(1.0, math.sqrt(threshold / frequency)) for frequency in frequencies], default=1.0))
    np.testing.assert_allclose(factors_of(images, threshold), expected, rtol=1e-12)


def test_a_class_in_one_of_a_hundred_images_is_repeated_by_the_root():
    images = [[1]] * 99 + [[1, 2, 2]]
    assert factors_of(images, 0.16).tolist() == [1] * 99 + [4]


@given(st.lists(st.floats(1, 9), min_size=1, max_size=60), seeds)
def test_each_factor_is_rounded_and_their_sum_too(factors, seed):
    factors = np.array(factors)
    repeats = draw_repeats(factors, np.random.default_rng(seed))
    assert (repeats >= np.floor(factors)).all()
    assert (repeats <= np.floor(factors) + 1).all()
    assert (repeats[factors % 1 == 0] == factors[factors % 1 == 0]).all()
    assert epoch_length(factors) <= repeats.sum() <= epoch_length(factors) + 1
    assert abs(epoch_length(factors) - (factors.sum() - 0.5)) <= 0.5 + 1e-6


def test_rounding_is_right_on_average_and_independent_of_the_place():
    factors = np.array([1.0, 1.1, 1.5, 2.9, 3.25, 1.01])
    draws = np.array([draw_repeats(factors, np.random.default_rng(seed)) for seed in range(4000)])
    np.testing.assert_allclose(draws.mean(axis=0), factors, atol=0.03)
    assert {tuple(draw) for draw in draws[:, 1:4].tolist()} >= {(1, 1, 3), (1, 2, 3), (2, 1, 3), (1, 2, 2)}


# ---- In the sampler ----


@given(st.lists(st.floats(1, 4), min_size=1, max_size=40), st.integers(1, 6), seeds, st.booleans())
def test_epochs_hold_the_repeats_and_have_one_length(factors, batch_size, seed, grouped):
    factors = np.array(factors)
    groups = np.arange(len(factors)) % 2 if grouped else None
    sampler = GlobalBatchSampler(
        len(factors), batch_size=batch_size, epochs=3, groups=groups, repeat_factors=factors, seed=seed
    )
    batches = list(sampler)
    assert len(batches) == len(sampler) == 3 * max(1, epoch_length(factors) // batch_size)
    for epoch in range(3):
        keys = [key for batch in batches for key in batch if key[0] == epoch]
        assert len(keys) == batch_size * sampler.steps_per_epoch
        counts = np.bincount([key[1] for key in keys], minlength=len(factors))
        if epoch_length(factors) >= batch_size:
            assert len(set(keys)) == len(keys)  # the same image again is another sample
            assert (counts <= np.ceil(factors)).all()
            left_out = np.maximum(np.floor(factors) - counts, 0).sum()
            assert left_out <= epoch_length(factors) + 1 - len(keys)


@given(st.lists(st.floats(1, 3), min_size=4, max_size=30), seeds, st.integers(0, 10))
def test_what_is_trained_on_depends_neither_on_processes_nor_on_the_start(factors, seed, start):
    factors = np.array(factors)

    def steps(size, accumulate, start_step=0):
        samplers = [
            GlobalBatchSampler(
                len(factors), batch_size=4, epochs=4, repeat_factors=factors, rank=rank, world_size=size,
                accumulate=accumulate, seed=seed, start_step=start_step,
            )
            for rank in range(size)
        ]  # fmt: skip
        parts = [[key for batch in part for key in batch] for part in zip(*samplers, strict=True)]
        return [[key for part in parts[i : i + accumulate] for key in part] for i in range(0, len(parts), accumulate)]

    alone = steps(1, 1)
    assert steps(2, 1) == steps(1, 4) == steps(2, 2) == alone
    assert steps(2, 2, start) == alone[start:]


@pytest.mark.parametrize("threshold", [0.001, 0.5])
def test_factors_of_one_change_nothing_but_the_draw(threshold):
    factors = factors_of([[1]] * 24, threshold)
    sampler = GlobalBatchSampler(24, batch_size=8, epochs=2, repeat_factors=factors)
    keys = [key for batch in sampler for key in batch]
    assert sampler.steps_per_epoch == 3
    assert sorted(keys) == [(epoch, index) for epoch in range(2) for index in range(24)]


def test_a_rare_class_is_seen_as_often_as_its_factor_says():
    images = [[1]] * 60 + [[2]] * 4  # a share of 1 / 16
    factors = factors_of(images, 0.25)
    sampler = GlobalBatchSampler(64, batch_size=4, epochs=50, repeat_factors=factors)
    counts = np.bincount([key[1] for batch in sampler for key in batch], minlength=64) / 50
    np.testing.assert_allclose(counts[60:], 2, atol=0.1)
    np.testing.assert_allclose(counts[:60], 1, atol=0.1)
