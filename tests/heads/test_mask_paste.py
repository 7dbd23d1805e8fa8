"""heads/mask_paste.py: torchvision's pasted masks, value by value."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection.roi_heads import paste_masks_in_image

from heads.mask_paste import UnpastedMasks, paste_masks

corner = st.floats(-30, 90, width=32)
side = st.floats(0, 120, width=32)


@given(boxes=st.lists(st.tuples(corner, corner, side, side), max_size=5), height=st.integers(40, 90), width=st.integers(40, 90))
def test_masks_are_torchvision_own(boxes, height, width):
    rows = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    # Detections are within their image.
    low = rows[:, :2].clamp(min=0, max=39)
    rows = torch.cat([low, torch.minimum(low + rows[:, 2:], torch.tensor([width, height]))], dim=1)
    masks = torch.rand(len(rows), 1, 28, 28)
    assert paste_masks(masks, rows, (height, width)).equal(paste_masks_in_image(masks, rows, (height, width)))


def test_masks_pasted_one_at_a_time_are_those_pasted_together():
    corners = torch.rand(9, 2) * 50 - 10
    boxes, masks = torch.cat([corners, corners + torch.rand(9, 2) * 40], dim=1), torch.rand(9, 1, 28, 28)
    unpasted, pasted = UnpastedMasks(masks, boxes, (40, 60)).cpu(), paste_masks(masks, boxes, (40, 60))
    assert unpasted.shape == pasted.shape
    assert len(unpasted) == 9
    assert torch.equal(torch.stack([unpasted[row] for row in range(9)]), pasted)
