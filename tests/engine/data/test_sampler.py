"""engine/data/sampler.py: what is trained on depends on neither processes nor accumulation; shards are exact."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data.sampler import GlobalBatchSampler, ShardSampler

counts = st.integers(1, 60)
seeds = st.integers(0, 1000)


def steps(num_images, *, world_size=1, accumulate=1, start_step=0, **options):
    """For each step, each process's parts, in order: [step][part][rank] is a list of keys."""
    samplers = [
        GlobalBatchSampler(
            num_images, rank=rank, world_size=world_size, accumulate=accumulate, start_step=start_step, **options
        )
        for rank in range(world_size)
    ]
    batches = [list(sampler) for sampler in samplers]
    assert [len(sampler) for sampler in samplers] == [len(own) for own in batches]
    parts = list(zip(*batches, strict=True))
    return [parts[i : i + accumulate] for i in range(0, len(parts), accumulate)]


def united(all_steps):
    """The keys of each step, over all parts and processes, in order."""
    return [[key for part in step for batch in part for key in batch] for step in all_steps]


@given(counts, st.integers(1, 4), st.integers(1, 3), seeds, st.booleans())
def test_a_step_is_the_same_however_it_is_shared_out(num_images, share, epochs, seed, grouped):
    groups = np.arange(num_images) % 3 // 2 if grouped else None
    options = {"batch_size": 4 * share, "epochs": epochs, "seed": seed, "groups": groups}
    alone = united(steps(num_images, **options))
    for world_size, accumulate in ((2, 1), (4, 1), (1, 2), (1, 4), (2, 2)):
        shared = steps(num_images, world_size=world_size, accumulate=accumulate, **options)
        assert united(shared) == alone
        sizes = {len(batch) for step in shared for part in step for batch in part}
        assert sizes == {4 * share // world_size // accumulate}


@given(counts, st.integers(1, 8), st.integers(1, 4), seeds)
def test_no_image_comes_twice_in_an_epoch(num_images, batch_size, epochs, seed):
    by_epoch = {}
    for step in united(steps(num_images, batch_size=batch_size, epochs=epochs, seed=seed)):
        assert len(step) == batch_size
        assert len({epoch for epoch, _ in step}) == 1
        for epoch, index in step:
            assert 0 <= index < num_images
            by_epoch.setdefault(epoch, []).append(index)
    assert list(by_epoch) == list(range(epochs))
    for indices in by_epoch.values():
        if num_images >= batch_size:
            assert len(set(indices)) == len(indices) == num_images // batch_size * batch_size


@given(st.integers(1, 12), st.integers(1, 12), seeds)
def test_a_set_smaller_than_the_batch_is_gone_round_evenly(num_images, more, seed):
    batch_size = num_images + more
    sampler = GlobalBatchSampler(num_images, batch_size=batch_size, epochs=3, seed=seed)
    assert sampler.steps_per_epoch == 1
    for batch in sampler:
        counted = np.bincount([index for _, index in batch], minlength=num_images)
        assert counted.sum() == batch_size
        assert counted.max() - counted.min() <= 1


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 3), st.data())
def test_a_start_gives_exactly_the_tail(num_images, batch_size, epochs, data):
    options = {"batch_size": 2 * batch_size, "epochs": epochs, "seed": 3}
    whole = steps(num_images, accumulate=2, **options)
    start = data.draw(st.integers(0, len(whole)))
    assert steps(num_images, accumulate=2, start_step=start, **options) == whole[start:]


@given(counts, st.integers(1, 8), st.integers(1, 3))
def test_lengths_are_right(num_images, batch_size, epochs):
    sampler = GlobalBatchSampler(num_images, batch_size=2 * batch_size, epochs=epochs, accumulate=2)
    assert sampler.steps_per_epoch == max(1, num_images // (2 * batch_size))
    assert sampler.total_steps == epochs * sampler.steps_per_epoch
    assert len(sampler) == len(list(sampler)) == 2 * sampler.total_steps


def test_more_epochs_go_on_where_fewer_ended():
    few, many = (united(steps(30, batch_size=4, epochs=epochs)) for epochs in (2, 5))
    assert many[: len(few)] == few


def test_a_start_beyond_the_end_gives_nothing():
    sampler = GlobalBatchSampler(10, batch_size=2, epochs=1, start_step=9)
    assert list(sampler) == []
    assert len(sampler) == 0


def test_a_sampler_can_be_gone_through_again():
    sampler = GlobalBatchSampler(20, batch_size=4, epochs=2, start_step=3)
    assert list(sampler) == list(sampler)


def test_the_order_follows_seed_and_epoch():
    def orders(seed):
        batches = united(steps(24, batch_size=24, epochs=4, seed=seed))
        return [tuple(index for _, index in batch) for batch in batches]

    assert orders(0) == orders(0)
    assert len(set(orders(0)) | set(orders(1))) == 8
    assert tuple(range(24)) not in orders(0)


def test_what_an_epoch_leaves_out_is_not_always_the_same():
    batches = np.array(united(steps(11, batch_size=4, epochs=20))).reshape(20, -1, 2)  # [epoch, place] = (epoch, index)
    left_out = [set(range(11)) - set(epoch[:, 1].tolist()) for epoch in batches]
    assert {len(missing) for missing in left_out} == {3}
    assert set().union(*left_out) == set(range(11))


# ---- Groups ----


@given(st.lists(st.integers(0, 2), min_size=1, max_size=60), st.integers(1, 8), seeds)
def test_batches_mix_groups_only_in_what_is_left(groups, batch_size, seed):
    groups = np.array(groups)
    sampler = GlobalBatchSampler(len(groups), batch_size=batch_size, epochs=1, groups=groups, seed=seed)
    batches = sampler.global_batches(0)
    pure = [set(groups[batch].tolist()).pop() for batch in batches if len(set(groups[batch].tolist())) == 1]
    for group in set(groups.tolist()):
        assert pure.count(group) >= (groups == group).sum() // batch_size
    if len(groups) >= batch_size:
        left = sum(int((groups == group).sum() % batch_size) for group in set(groups.tolist()))
        assert len(batches) - len(pure) <= left // batch_size
        assert len(batches) == len(groups) // batch_size


def test_groups_come_in_no_fixed_order():
    groups = np.repeat([0, 1], 40)
    sampler = GlobalBatchSampler(80, batch_size=4, epochs=1, groups=groups)
    order = [int(groups[batch[0]]) for batch in sampler.global_batches(0)]
    assert order not in (sorted(order), sorted(order, reverse=True))


# ---- Evaluation ----


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@given(st.integers(0, 60), st.integers(1, 9))
def test_shards_are_an_exact_partition_in_the_batches_of_one_process(world_size, num_images, batch_size):
    shards = [ShardSampler(num_images, batch_size=batch_size, rank=r, world_size=world_size) for r in range(world_size)]
    assert [len(shard) for shard in shards] == [len(list(shard)) for shard in shards]
    assert [shard.num_own_images for shard in shards] == [sum(map(len, shard)) for shard in shards]
    assert sum(shard.num_own_images for shard in shards) == num_images
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    alone = list(ShardSampler(num_images, batch_size=batch_size))
    assert [index for batch in alone for index in batch] == list(range(num_images))
    assert all(len(batch) == batch_size for batch in alone[:-1])
    dealt = [batch for turn in itertools.zip_longest(*shards) for batch in turn if batch is not None]
    assert dealt == alone
