"""heads/box_coding.py: offsets are decoded in float32, whatever their type."""

import pytest
import torch
from torch.testing import assert_close
from torchvision.models.detection._utils import BoxCoder as TorchvisionBoxCoder

from heads.box_coding import BoxCoder

BOXES = torch.tensor([[900.0, 700.0, 1001.0, 777.0], [3.0, 4.0, 1300.0, 799.0]])
OFFSETS = torch.tensor([[0.1, -0.2, 0.3, 0.05], [0.01, 0.02, -0.03, 0.04]])


def test_in_float32_it_is_torchvision_own():
    weights = (10.0, 10.0, 5.0, 5.0)
    ours, theirs = BoxCoder(weights), TorchvisionBoxCoder(weights)
    assert ours.decode(OFFSETS, [BOXES]).equal(theirs.decode(OFFSETS, [BOXES]))
    assert ours.encode([BOXES], [BOXES + 3])[0].equal(theirs.encode([BOXES], [BOXES + 3])[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_offsets_of_few_bits_move_boxes_to_a_fraction_of_a_pixel(dtype):
    weights = (10.0, 10.0, 5.0, 5.0)
    exact = TorchvisionBoxCoder(weights).decode(OFFSETS.to(dtype).float(), [BOXES])
    found = BoxCoder(weights).decode(OFFSETS.to(dtype), [BOXES])
    assert found.dtype == torch.float32
    assert_close(found, exact)
    coarse = TorchvisionBoxCoder(weights).decode(OFFSETS.to(dtype), [BOXES])
    assert (coarse.float() - exact).abs().max() > 0.3, "or there is nothing to mend"
