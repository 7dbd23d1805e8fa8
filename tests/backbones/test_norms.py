"""Our frozen batch norm against torchvision's."""

import pytest
import torch
import torchvision
from torch.testing import assert_close

from backbones.norms import FrozenBatchNorm2d


def norms():
    torch.manual_seed(0)
    theirs = torchvision.ops.FrozenBatchNorm2d(5)
    for buffer in theirs.buffers():
        buffer.uniform_(0.2, 2)
    ours = FrozenBatchNorm2d(5)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_outputs_and_gradients_are_torchvisions(layout):
    results = []
    for norm in norms():
        x = torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=layout)
        y = norm(x.requires_grad_())
        y.square().sum().backward()
        results.append((y, x.grad))
    assert_close(results[1], results[0], atol=1e-6, rtol=1e-6)


def test_half_precision_maps_stay_so():
    theirs, ours = norms()
    x = torch.randn(2, 5, 6, 7).bfloat16()
    assert theirs(x).dtype == torch.float32
    assert ours(x).dtype == torch.bfloat16
    assert_close(ours(x).float(), theirs(x), atol=1e-2, rtol=1e-2)
