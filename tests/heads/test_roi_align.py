"""RoIAlign of all levels at once against torchvision's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from torchvision.ops import MultiScaleRoIAlign

from backbones import FeatureSpec
from heads.anchors import roi_pool
from heads.roi_align import BatchedRoIAlign

STRIDES = {"0": 4, "1": 8, "2": 16}
SIZE = (96, 130)


def pools(output_size, strides=STRIDES):
    levels = {name: FeatureSpec(channels=5, stride=stride) for name, stride in strides.items()}
    return [roi_pool(levels, output_size=output_size, fast=fast) for fast in (False, True)]


def maps(batch=2, dtype=torch.float32, strides=STRIDES):
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(batch, 5, -(-SIZE[0] // stride), -(-SIZE[1] // stride), dtype=dtype, generator=generator)
        for name, stride in strides.items()
    }


@settings(max_examples=60, deadline=None)
@given(
    corners=st.lists(st.tuples(*[st.floats(-200, 400, width=32)] * 4), min_size=1, max_size=6),
    output_size=st.sampled_from([1, 2, 7]),
)
def test_any_box_has_torchvisions_values(corners, output_size):
    boxes = torch.tensor(corners)
    boxes = torch.cat([boxes[:, :2].minimum(boxes[:, 2:]), boxes[:, :2].maximum(boxes[:, 2:])], dim=1)
    plain, batched = pools(output_size)
    assert type(plain) is MultiScaleRoIAlign
    assert type(batched) is BatchedRoIAlign
    expected = plain(maps(), [boxes, boxes[:1]], [SIZE, SIZE])
    assert_close(batched(maps(), [boxes, boxes[:1]], [SIZE, SIZE]), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("strides", [STRIDES, {"0": 16}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_is_torchvisions(dtype, strides):
    boxes = [
        torch.tensor([[3, 4, 90, 60], [-9, -9, 20, 30], [0, 0, 0, 0]], dtype=dtype),
        torch.tensor([[100, 70, 130, 96], [5, 5, 9, 9]], dtype=dtype),
    ]
    gradients = []
    for pool in pools(7, strides):
        inputs = {name: level.requires_grad_() for name, level in maps(dtype=dtype, strides=strides).items()}
        pooled = pool(inputs, boxes, [SIZE, SIZE])
        (pooled * torch.linspace(-1, 1, pooled.numel(), dtype=dtype).view_as(pooled)).sum().backward()
        gradients.append([level.grad for level in inputs.values()])
    for expected, found in zip(*gradients, strict=True):
        assert expected.abs().max() > 0.1 or not found.any()
        assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_no_box_at_all_leaves_a_gradient_of_zero():
    inputs = {name: level.requires_grad_() for name, level in maps().items()}
    pooled = pools(7)[1](inputs, [torch.zeros(0, 4), torch.zeros(0, 4)], [SIZE, SIZE])
    assert pooled.shape == (0, 5, 7, 7)
    pooled.sum().backward()
    assert all(level.grad is not None and not level.grad.any() for level in inputs.values())


def test_a_box_that_is_not_a_number_reads_nothing():
    boxes = torch.tensor([[float("nan")] * 4, [float("inf")] * 4, [3, 4, 90, 60]])
    pooled = pools(7)[1](maps(1), [boxes], [SIZE])
    assert not pooled[:2].any()
    assert pooled[2].any()


def test_half_precision_maps_are_added_up_in_float32():
    inputs = {name: level.bfloat16() for name, level in maps(1).items()}
    boxes = torch.tensor([[3.0, 4, 90, 60], [20, 9, 40, 25]])
    plain, batched = pools(7)
    found = batched(inputs, [boxes], [SIZE])
    assert found.dtype == torch.bfloat16
    exact = plain({name: level.float() for name, level in inputs.items()}, [boxes], [SIZE])
    assert_close(found.float(), exact, atol=1e-2, rtol=1e-2)


def test_a_number_of_samples_that_depends_on_the_box_is_left_to_torchvision():
    pool = BatchedRoIAlign(["0"], 2, 0)
    boxes = [torch.tensor([[3.0, 4, 90, 60]])]
    inputs = {"0": maps(1)["0"]}
    assert_close(pool(inputs, boxes, [SIZE]), MultiScaleRoIAlign(["0"], 2, 0)(inputs, boxes, [SIZE]))
