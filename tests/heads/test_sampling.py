"""heads/sampling.py against torchvision's sampler, and the freedom of an image's sample from its batch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from heads.sampling import BalancedSampler


def labels(size=400, *, objects=60, ignored=20):
    rows = torch.zeros(size)
    rows[:objects], rows[objects : objects + ignored] = 1, -1
    return rows[torch.randperm(size)]


def draw(sampler, images, seeds):
    sampler.follow([{"seed": seed} if seed is not None else {} for seed in seeds])
    positive, negative = sampler(images)
    return [torch.stack(pair) for pair in zip(positive, negative, strict=True)]


def test_an_image_sample_depends_on_its_own_seed_alone():
    first, second, third = labels(), labels(300, objects=5), labels(500)
    sampler = BalancedSampler(64, 0.5, salt=0)
    together = draw(sampler, [first, second, third], [11, 12, 13])
    torch.manual_seed(99)
    assert torch.equal(draw(sampler, [second], [12])[0], together[1])
    swapped = draw(BalancedSampler(64, 0.5, salt=0), [third, first], [13, 11])
    assert torch.equal(swapped[0], together[2])
    assert torch.equal(swapped[1], together[0])


@pytest.mark.parametrize("seed", [0, 12, 2**62 + 1, 2**63 - 1, -1])
def test_other_seeds_and_salts_choose_others(seed):
    image = labels()
    (choice,) = draw(BalancedSampler(64, 0.5, salt=0), [image], [seed])
    (other_seed,) = draw(BalancedSampler(64, 0.5, salt=0), [image], [seed + 1])
    (other_salt,) = draw(BalancedSampler(64, 0.5, salt=1), [image], [seed])
    for kind in (0, 1):
        assert not torch.equal(choice[kind], other_seed[kind])
        assert not torch.equal(choice[kind], other_salt[kind])


def test_a_seeded_sample_leaves_the_global_generator_alone():
    image = labels()
    before = torch.get_rng_state()
    draw(BalancedSampler(64, 0.5, salt=0), [image], [3])
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_count_for_one_call_only():
    image = labels()
    sampler = BalancedSampler(64, 0.5, salt=0)
    draw(sampler, [image], [3])
    first, second = (sampler([image])[1][0] for _ in range(2))
    assert not torch.equal(first, second)


def test_without_seeds_the_choice_is_torchvision_own():
    images = [labels(), labels(300, objects=5), labels(50, objects=0, ignored=50)]
    torch.manual_seed(5)
    expected = BalancedPositiveNegativeSampler(64, 0.5)(images)
    torch.manual_seed(5)
    chosen = BalancedSampler(64, 0.5, salt=0)(images)
    for ours, theirs in zip(chosen, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_every_candidate_is_chosen_as_often_as_another():
    image = torch.tensor([1.0] * 10 + [0.0] * 30)
    sampler = BalancedSampler(16, 0.25, salt=1)
    counts = sum(draw(sampler, [image], [seed])[0].sum(0, dtype=torch.int64) for seed in range(600))
    assert_close(counts[:10] / 600, torch.full((10,), 4 / 10), atol=0.09, rtol=0)
    assert_close(counts[10:] / 600, torch.full((30,), 12 / 30), atol=0.09, rtol=0)


@given(
    objects=st.integers(0, 60),
    background=st.integers(0, 60),
    ignored=st.integers(0, 20),
    size=st.integers(1, 64),
    fraction=st.floats(0, 1),
    seed=st.none() | st.integers(0, 2**63 - 1),
)
def test_as_many_are_chosen_as_torchvision_would(objects, background, ignored, size, fraction, seed):
    image = torch.tensor([2.0] * objects + [0.0] * background + [-1.0] * ignored)
    (positive,), (negative,) = BalancedPositiveNegativeSampler(size, fraction)([image])
    (choice,) = draw(BalancedSampler(size, fraction, salt=0), [image], [seed])
    assert choice.sum(1).tolist() == [positive.sum(), negative.sum()]
    assert (image[choice[0].bool()] >= 1).all()
    assert (image[choice[1].bool()] == 0).all()


@pytest.mark.parametrize("generator_seeds", [(1, 1, 1), (1, 2, 3)])
def test_losses_of_a_batch_are_the_mean_of_those_of_its_halves(generator_seeds, small_detector, make_target, randomize):
    """What lets one process with a batch of four train as two processes with two each do."""
    options = {"rpn_batch_size_per_image": 32, "box_batch_size_per_image": 24, "rpn_post_nms_top_n_train": 100}
    model = randomize(small_detector(**options)).train()
    images = [torch.rand(3, 64, 96) for _ in range(4)]
    targets = [make_target([[5 + 8 * i, 4, 40 + 8 * i, 50], [60, 20, 90, 60]], seed=100 + i) for i in range(4)]

    def losses(rows, seed):
        torch.manual_seed(seed)
        return model(images[rows], [dict(target) for target in targets[rows]])

    whole, first, second = (
        losses(rows, seed) for rows, seed in zip((slice(4), slice(2), slice(2, 4)), generator_seeds, strict=True)
    )
    for name, loss in whole.items():
        assert loss > 0, f"{name} is zero: nothing was sampled for it"
        assert_close(loss, (first[name] + second[name]) / 2, atol=1e-4, rtol=1e-4)


def test_losses_repeat_with_the_targets_seeds_and_change_with_them(small_detector, make_target, randomize):
    model = randomize(small_detector("mask_rcnn", rpn_batch_size_per_image=32, box_batch_size_per_image=16)).train()
    image = torch.rand(3, 64, 96)

    def losses(seed):
        target = make_target([[5, 4, 40, 50], [60, 20, 90, 60]], size=(64, 96), seed=seed)
        return {name: loss.item() for name, loss in model([image], [target]).items()}

    assert losses(1) == losses(1)
    assert losses(1) != losses(2)
