"""engine/classification/mixing.py: against torchvision's MixUp and CutMix, and what holds for any mixture."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import v2

from engine.classification.mixing import STREAM, draw_box, mix

ALPHAS = st.sampled_from([0.0, 0.2, 1.0, 4.0])
SEEDS = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4)


def batch(num_images: int, height: int = 9, width: int = 12) -> torch.Tensor:
    return torch.randn(num_images, 3, height, width, dtype=torch.float64)


@given(SEEDS, ALPHAS, ALPHAS, st.integers(1, 20), st.integers(1, 20))
def test_labels_are_shared_as_the_pixels_are(seeds, mixup_alpha, cutmix_alpha, height, width):
    """Image i is i everywhere, so that the mean of a mixture says how much of each image is in it."""
    seeds = [seed for seed in seeds for _ in range(2)]
    numbers = torch.arange(len(seeds), dtype=torch.float64)
    images = numbers[:, None, None, None].expand(-1, 2, height, width)
    mixed, shares = mix(
        images,
        torch.arange(len(seeds)),
        seeds,
        num_classes=len(seeds) + 1,
        mixup_alpha=mixup_alpha or (0 if cutmix_alpha else 1),
        cutmix_alpha=cutmix_alpha,
    )
    assert shares.dtype == torch.float32
    assert shares.shape == (len(seeds), len(seeds) + 1)
    assert (shares >= 0).all()
    torch.testing.assert_close(shares.sum(1), torch.ones(len(seeds)))
    torch.testing.assert_close(mixed.mean((1, 2, 3)), shares[:, :-1].double() @ numbers, rtol=1e-5, atol=1e-5)
    # Nothing comes from outside of the pair.
    pairs = torch.arange(len(seeds)) // 2
    assert shares[:, :-1][pairs[:, None] != pairs[None]].count_nonzero() == 0


def test_two_images_of_one_class_keep_its_whole_label():
    _, shares = mix(batch(2), torch.tensor([3, 3]), [5, 6], num_classes=4, mixup_alpha=1.0, cutmix_alpha=1.0)
    assert shares.tolist() == [[0, 0, 0, 1]] * 2


def test_mixup_is_torchvisions_under_the_same_share():
    images, labels = batch(2).float(), torch.tensor([4, 1])
    for seed in range(20):
        ours, our_shares = mix(images, labels, [seed, 0], num_classes=5, mixup_alpha=0.4, cutmix_alpha=0.0)
        share = np.random.default_rng([STREAM, seed]).beta(0.4, 0.4)
        theirs = v2.MixUp(num_classes=5)
        theirs._dist = SimpleNamespace(sample=lambda _, share=share: torch.tensor(share, dtype=torch.float64))
        their_images, their_shares = theirs(images, labels)  # which rolls the batch by one: of two, it swaps them
        torch.testing.assert_close(ours, their_images)
        torch.testing.assert_close(our_shares, their_shares)


def test_cutmix_is_torchvisions_under_the_same_share_and_place(monkeypatch):
    images, labels = batch(2, 17, 23).float(), torch.tensor([4, 1])
    partial = 0
    for seed in range(50):
        ours, our_shares = mix(images, labels, [seed, 0], num_classes=5, mixup_alpha=0.0, cutmix_alpha=1.0)
        generator = np.random.default_rng([STREAM, seed])
        share = generator.beta(1.0, 1.0)
        places = [torch.tensor([int(generator.integers(side))]) for side in (23, 17)]
        theirs = v2.CutMix(num_classes=5)
        theirs._dist = SimpleNamespace(sample=lambda _, share=share: torch.tensor(share, dtype=torch.float64))
        monkeypatch.setattr(torch, "randint", lambda *_, places=places, **__: places.pop(0))
        their_images, their_shares = theirs(images, labels)
        assert torch.equal(ours, their_images)
        torch.testing.assert_close(our_shares, their_shares)
        partial += 0 < our_shares[0, 1] < 1
    assert partial > 30


@given(st.integers(0, 2**32), st.floats(0, 1), st.integers(1, 50), st.integers(1, 50))
def test_the_rectangle_lies_within_the_image_and_is_no_larger_than_its_share(seed, share, height, width):
    left, top, right, bottom = draw_box(np.random.default_rng(seed), share, height, width)
    assert 0 <= left <= right <= width
    assert 0 <= top <= bottom <= height
    assert (right - left) * (bottom - top) <= (1 - share) * height * width + 1e-9


@pytest.mark.parametrize("alphas", [(0.2, 0.0), (0.0, 1.0), (0.2, 1.0)])
def test_processes_that_share_a_batch_mix_it_as_one_does(alphas):
    images, labels, seeds = batch(12), torch.arange(12) % 5, [100 + i for i in range(12)]
    options = {"num_classes": 5, "mixup_alpha": alphas[0], "cutmix_alpha": alphas[1]}
    whole, whole_shares = mix(images, labels, seeds, **options)
    parts = [mix(images[part], labels[part], seeds[part], **options) for part in (slice(0, 4), slice(4, 6), slice(6, 12))]
    assert torch.equal(whole, torch.cat([part for part, _ in parts]))
    assert torch.equal(whole_shares, torch.cat([shares for _, shares in parts]))
    assert not torch.equal(whole, images)


def test_the_images_given_stay_as_they_are_and_no_generator_is_drawn_from():
    images = batch(4)
    before, state, numpy_state = images.clone(), torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    mix(images, torch.zeros(4, dtype=torch.int64), [1, 2, 3, 4], num_classes=2, mixup_alpha=1.0, cutmix_alpha=1.0)
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


def test_each_of_the_two_is_as_likely_and_shares_follow_their_beta_distribution():
    seeds = list(range(4000))
    images = torch.tensor([0.0, 1.0]).repeat(2000)[:, None, None, None].expand(-1, 1, 32, 32)
    mixed, shares = mix(images, torch.tensor([0, 1]).repeat(2000), seeds, num_classes=2, mixup_alpha=0.3, cutmix_alpha=1.0)
    blended = ((mixed > 0) & (mixed < 1)).flatten(1).any(1)[::2]
    assert 0.45 < blended.double().mean() < 0.55
    found = shares[::2, 0][blended].double().numpy()
    assert scipy.stats.kstest(found, scipy.stats.beta(0.3, 0.3).cdf).pvalue > 0.01
