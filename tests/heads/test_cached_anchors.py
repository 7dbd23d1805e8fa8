"""heads/cached_anchors.py: torchvision's anchors, kept by shape."""

import copy
import pickle

import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from heads.cached_anchors import CachedAnchorGenerator

SIZES, RATIOS = ((32,), (64,)), ((0.5, 1.0, 2.0),) * 2


def batch(height, width, count=2, dtype=torch.float32):
    images = ImageList(torch.zeros(count, 3, height, width), [(height, width)] * count)
    maps = [torch.zeros(count, 1, -(-height // s), -(-width // s), dtype=dtype) for s in (8, 16)]
    return images, maps


def test_anchors_are_torchvision_own_for_every_shape():
    cached, plain = CachedAnchorGenerator(SIZES, RATIOS), AnchorGenerator(SIZES, RATIOS)
    for height, width in ((64, 96), (96, 64), (64, 96), (32, 32)):
        found, expected = cached(*batch(height, width)), plain(*batch(height, width))
        assert len(found) == 2
        assert all(a.equal(b) for a, b in zip(found, expected, strict=True))
        by_level = cached.by_level(batch(height, width)[0].tensors, batch(height, width)[1])
        assert torch.cat(by_level).equal(expected[0])


def test_a_shape_is_made_once_and_few_are_kept():
    cached = CachedAnchorGenerator(SIZES, RATIOS)
    first = cached.by_level(*_args(64, 96))
    assert cached.by_level(*_args(64, 96))[0] is first[0]
    for side in range(1, cached.MOST + 1):
        cached.by_level(*_args(32 * side, 32))
    assert len(cached._kept) == cached.MOST
    assert cached.by_level(*_args(64, 96))[0] is not first[0]


def test_anchors_of_bf16_maps_are_exact():
    cached = CachedAnchorGenerator(SIZES, RATIOS)
    assert cached(*batch(1024, 1024, dtype=torch.bfloat16))[0].equal(AnchorGenerator(SIZES, RATIOS)(*batch(1024, 1024))[0])


def test_copies_carry_no_anchors():
    cached = CachedAnchorGenerator(SIZES, RATIOS)
    cached.by_level(*_args(64, 96))
    assert not copy.deepcopy(cached)._kept
    assert len(pickle.dumps(cached)) < 5000


def _args(height, width):
    images, maps = batch(height, width)
    return images.tensors, maps
