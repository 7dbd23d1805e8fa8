"""heads/batched_boxes.py: matching, sampling and suppression of a whole batch, against torchvision's, image by image."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close
from torchvision.models.detection._utils import Matcher
from torchvision.ops import batched_nms, box_iou, nms

import heads.batched_boxes as batched_boxes
from heads.batched_boxes import match, pad_rows, pairwise_iou, sample, spread, suppress


def random_boxes(count, *, seed, extent=100):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * extent
    return torch.cat([corners, corners + 1 + torch.rand(count, 2, generator=generator) * extent / 2], dim=1)


def test_rows_are_padded_with_zeros_and_the_padding_is_known():
    padded, present = pad_rows([torch.ones(2, 4), torch.ones(0, 4), torch.ones(3, 4)])
    assert padded.shape == (3, 3, 4)
    assert present.tolist() == [[True, True, False], [False] * 3, [True] * 3]
    assert padded.sum((1, 2)).tolist() == [8, 0, 12]
    padded, present = pad_rows([torch.ones(0, 4)], least=1)
    assert padded.shape == (1, 1, 4)
    assert not present.any()


def test_ious_are_torchvision_own():
    first, second = random_boxes(7, seed=0), random_boxes(5, seed=1)
    assert_close(pairwise_iou(first, second), box_iou(first, second))


@pytest.mark.parametrize("budget", [1, 100, 2**25], ids=["one at a time", "a few at a time", "all at once"])
@given(counts=st.lists(st.integers(0, 6), min_size=1, max_size=3), seed=st.integers(0, 10**6))
def test_matches_are_those_of_torchvision_for_each_image(budget, counts, seed):
    boxes = random_boxes(60, seed=seed)
    # Some objects are boxes themselves, and one stands twice: ties.
    new = [random_boxes(count, seed=seed + i) for i, count in enumerate(counts)]
    objects = [torch.cat([own, boxes[: len(own) // 2], boxes[: len(own) // 3]]) for own in new]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batched_boxes, "MATCH_BUDGET", {"cpu": budget * len(counts) * len(boxes)})
        overlap, rows, is_nearest = match(boxes, *pad_rows(objects, least=1))
    for i, own in enumerate(objects):
        if not len(own):
            assert not overlap[i].any()
            assert not is_nearest[i].any()
            continue
        expected = Matcher(0.7, 0.3, allow_low_quality_matches=True)(box_iou(own, boxes))
        found = torch.where(overlap[i] < 0.3, -1, -2)
        found = torch.where((overlap[i] >= 0.7) | is_nearest[i], rows[i], found)
        assert found.tolist() == expected.tolist()


@given(
    labels=st.lists(st.lists(st.integers(-1, 3), min_size=9, max_size=9), min_size=1, max_size=3),
    size=st.integers(1, 12),
    fraction=st.sampled_from([0.25, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_a_sample_is_balanced_without_doubles_and_as_full_as_can_be(labels, size, fraction, seed):
    labels = torch.tensor(labels)
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(labels))]
    rows, taken = sample(labels, size=size, positive_fraction=fraction, generators=generators)
    assert rows.shape == taken.shape == (len(labels), min(size, 9))
    for own, chosen, is_taken in zip(labels, rows, taken, strict=True):
        chosen = chosen[is_taken]
        assert len(set(chosen.tolist())) == len(chosen)
        positives = int((own[chosen] >= 1).sum())
        assert positives == min(int((own >= 1).sum()), int(size * fraction))
        assert int((own[chosen] == 0).sum()) == min(int((own == 0).sum()), min(size, 9) - positives)
        assert (own[chosen] >= 0).all()
        assert (own[chosen[:positives]] >= 1).all(), "objects come first"


def test_a_sample_depends_on_the_images_own_generator_alone():
    labels = torch.randint(-1, 2, (3, 50))
    both = sample(labels, size=10, positive_fraction=0.5, generators=[torch.Generator().manual_seed(i) for i in range(3)])
    alone = sample(labels[1:2], size=10, positive_fraction=0.5, generators=[torch.Generator().manual_seed(1)])
    assert both[0][1].tolist() == alone[0][0].tolist()
    other = sample(labels[1:2], size=10, positive_fraction=0.5, generators=[torch.Generator().manual_seed(2)])
    assert other[0][0].tolist() != alone[0][0].tolist()


def test_every_candidate_is_chosen_as_often_as_another():
    labels = torch.cat([torch.ones(1, 10), torch.zeros(1, 30), -torch.ones(1, 5)], dim=1).long()
    counts = np.zeros(45)
    for seed in range(2000):
        rows, _ = sample(labels, size=10, positive_fraction=0.4, generators=[torch.Generator().manual_seed(seed)])
        counts[rows[0].numpy()] += 1
    assert counts[40:].sum() == 0
    assert np.abs(counts[:10] / 2000 - 0.4).max() < 0.06
    assert np.abs(counts[10:40] / 2000 - 0.2).max() < 0.06


@given(sizes=st.lists(st.integers(0, 12), min_size=1, max_size=4), seed=st.integers(0, 10**6))
def test_boxes_of_other_images_and_groups_do_not_suppress(sizes, seed):
    total = sum(sizes)
    boxes = torch.stack([random_boxes(total, seed=seed + i) for i in range(2)])
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(2, total, generator=generator)
    valid = torch.rand(2, total, generator=generator) > 0.2
    kept = suppress(boxes, scores, valid, sizes, 0.5)
    groups = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    for image in range(2):
        rows = valid[image].nonzero()[:, 0]
        expected = rows[batched_nms(boxes[image, rows], scores[image, rows], groups[rows], 0.5)]
        assert kept[image].nonzero()[:, 0].tolist() == sorted(expected.tolist())


@given(count=st.integers(1, 90), seed=st.integers(0, 10**6))
def test_spread_boxes_meet_only_their_own_group(count, seed):
    """What a GPU does in place of the loops, computed here."""
    boxes = random_boxes(120, seed=seed, extent=1300)
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randint(count, (120,), generator=generator)
    scores = torch.rand(120, generator=generator)
    apart = spread(boxes, groups, count=count)
    assert_close(apart[:, 2:] - apart[:, :2], boxes[:, 2:] - boxes[:, :2], atol=4e-3, rtol=0)
    overlap = box_iou(apart, apart)
    assert not overlap[groups[:, None] != groups].any()
    assert nms(apart, scores, 0.5).tolist() == batched_nms(boxes, scores, groups, 0.5).tolist()
