"""backbones/winograd.py: the same convolution as PyTorch's, to rounding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

import backbones.winograd as winograd
from backbones.winograd import WinogradConv2d, is_suitable


@settings(max_examples=25)
@given(
    batch=st.integers(1, 5), height=st.integers(1, 23), width=st.integers(1, 23), bias=st.booleans(),
    last=st.booleans(), cache=st.sampled_from([1, 200_000, 10**9]), channels=st.sampled_from([(128, 130), (160, 128)]),
)  # fmt: skip
def test_it_is_pytorch_own_convolution(batch, height, width, bias, last, cache, channels):
    convolution = nn.Conv2d(*channels, 3, padding=1, bias=bias)
    images = torch.randn(batch, channels[0], height, width)
    images = images.contiguous(memory_format=torch.channels_last) if last else images
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "CACHE_BYTES", cache)
        found, expected = WinogradConv2d(convolution)(images), convolution(images)
    assert found.shape == expected.shape
    assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_rounding_stays_small_beside_the_largest_output():
    convolution = nn.Conv2d(256, 256, 3, padding=1)
    images = torch.randn(1, 256, 40, 40)
    with torch.no_grad():
        exact = nn.functional.conv2d(images.double(), convolution.weight.double(), convolution.bias.double(), padding=1)
        error = (WinogradConv2d(convolution)(images) - exact).abs().max() / exact.abs().max()
    assert error < 3e-5


@pytest.mark.parametrize(
    ("options", "suitable"),
    [
        ({}, True),
        ({"kernel_size": 1, "padding": 0}, False),
        ({"stride": 2}, False),
        ({"dilation": 2, "padding": 2}, False),
        ({"padding": 0}, False),
        ({"groups": 2}, False),
        ({"padding_mode": "reflect"}, False),
        ({"in_channels": 64}, False),
        ({"dtype": torch.bfloat16}, False),
        ({"padding": "same"}, True),
    ],
)
def test_only_what_it_computes_is_taken(options, suitable):
    convolution = nn.Conv2d(**{"in_channels": 128, "out_channels": 128, "kernel_size": 3, "padding": 1} | options)
    assert is_suitable(convolution) is suitable


def test_the_original_convolution_is_left_as_it_is():
    convolution = nn.Conv2d(128, 128, 3, padding=1)
    before = convolution.weight.detach().clone()
    copy = WinogradConv2d(convolution)
    convolution.weight.data.zero_()
    assert copy.kernel.abs().sum() > 0
    assert before.abs().sum() > 0
    assert "128, 128" in repr(copy)
