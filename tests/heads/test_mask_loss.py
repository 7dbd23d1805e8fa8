"""heads/mask_loss.py and cropped_masks.py against torchvision's maskrcnn_loss, on any number of objects."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection.roi_heads import maskrcnn_loss, project_masks_on_boxes

from heads.cropped_masks import CroppedMasks
from heads.mask_loss import CHUNK, mask_loss, mask_targets


def crop(masks):
    """(N, H, W) -> CroppedMasks whose windows are some pixels wider than they must be."""
    windows, parts = [], []
    for mask in masks:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        if len(rows) == 0:
            windows.append((0, 0, 0, 0))
            continue
        left, top = max(0, int(columns.min()) - 1), max(0, int(rows.min()) - 2)
        right, bottom = int(columns.max()) + 1, int(rows.max()) + 1
        windows.append((left, top, right, bottom))
        parts.append(mask[top:bottom, left:right].flatten())
    return CroppedMasks(torch.cat(parts) if parts else masks.new_zeros(0), windows, tuple(masks.shape[1:]))


def scene(seed, *, objects, boxes, size=(40, 56)):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(boxes + objects, 2, 2, generator=generator).sort(dim=1).values * torch.tensor([size[1], size[0]])
    every = corners.flatten(1)
    masks = torch.zeros(objects, *size, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, every[boxes:].round().int().tolist(), strict=True):
        mask[top:bottom, left:right] = torch.rand(bottom - top, right - left, generator=generator) < 0.8
    rows = torch.randint(objects, (boxes,), generator=generator)
    labels = torch.randint(1, 4, (objects,), generator=generator)
    return every[:boxes], masks, rows, labels


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3 * CHUNK), st.integers(0, 60), st.booleans())
def test_targets_are_torchvisions_to_the_bit(seed, objects, boxes, cropped):
    image_boxes, masks, rows, _ = scene(seed, objects=objects, boxes=boxes)
    expected = project_masks_on_boxes(masks, image_boxes, rows, 14)
    assert torch.equal(mask_targets(crop(masks) if cropped else masks, image_boxes, rows, 14), expected)


@pytest.mark.parametrize("objects", [3, 2 * CHUNK + 1])
@pytest.mark.parametrize("cropped", [False, True])
def test_the_loss_and_its_gradient_are_torchvisions(objects, cropped):
    images = [scene(seed, objects=objects, boxes=boxes) for seed, boxes in enumerate([20, 0, 7])]
    boxes, masks, rows, labels = (list(column) for column in zip(*images, strict=True))
    logits = torch.randn(27, 4, 28, 28, generator=torch.Generator().manual_seed(5), requires_grad=True)
    expected = maskrcnn_loss(logits, boxes, masks, labels, rows)
    loss = mask_loss(logits, boxes, [crop(image) for image in masks] if cropped else masks, labels, rows)
    assert torch.equal(loss, expected)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.equal(gradient, torch.autograd.grad(expected, logits)[0])


def test_no_boxes_give_a_loss_of_zero_with_gradients():
    boxes, masks, rows, labels = scene(0, objects=2, boxes=0)
    logits = torch.zeros(0, 4, 28, 28, requires_grad=True)
    loss = mask_loss(logits, [boxes], [masks], [labels], [rows])
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None


def test_rows_by_number_and_by_bool():
    _, masks, _, _ = scene(1, objects=6, boxes=1)
    cropped = crop(masks)
    chosen = torch.tensor([True, False, True, True, False, False])
    assert torch.equal(cropped[chosen].dense(), masks[chosen])
    numbers = torch.tensor([5, 0, 0])
    assert torch.equal(cropped[numbers][torch.tensor([2, 0])].dense(), masks[[0, 5]])
    assert all(torch.equal(cropped[row], masks[row]) for row in range(6))
    assert len(cropped[torch.zeros(6, dtype=torch.bool)]) == 0
    assert cropped.shape == tuple(masks.shape)


def test_pixels_that_do_not_fill_the_windows_are_our_own_mistake():
    with pytest.raises(AssertionError):
        CroppedMasks(torch.zeros(5, dtype=torch.uint8), [(0, 0, 2, 2)], (4, 4))
