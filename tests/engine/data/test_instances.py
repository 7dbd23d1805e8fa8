"""engine/data/instances.py: rows of a sample that is scaled, moved and cut."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import masks_to_boxes
from torchvision.transforms.functional import resize

from engine.data.instances import join, mask_boxes, take, tight_boxes, transfer


def disc(size=60, radius=20):
    """A dark disc on white, and its row."""
    y, x = np.mgrid[:size, :size]
    mask = (x - size / 2 + 0.5) ** 2 + (y - size / 2 + 0.5) ** 2 < radius**2
    image = np.full((size, size, 3), 255, np.uint8)
    image[mask] = 0
    masks = mask[None].astype(np.uint8)
    points = np.array([[[size / 2, size / 2, 2], [0, 0, 0]]], np.float32)
    return image, {"boxes": mask_boxes(masks), "labels": np.array([4]), "masks": masks, "keypoints": points}


def sample(*boxes, size=(20, 30), **columns):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return np.zeros((*size, 3), np.uint8), {"boxes": boxes, "labels": np.arange(1, len(boxes) + 1), **columns}


@given(st.lists(st.tuples(*[st.integers(0, 11)] * 4), min_size=1, max_size=4))
def test_extents_are_torchvision_s(corners):
    masks = np.zeros((len(corners), 12, 12), np.uint8)
    for mask, (a, b, c, d) in zip(masks, corners, strict=True):
        mask[a, b] = mask[c, d] = 1
    expected = masks_to_boxes(torch.from_numpy(masks)).numpy()
    expected[:, 2:] += 1  # torchvision's end inside
    np.testing.assert_array_equal(mask_boxes(masks), expected)


def test_an_empty_mask_has_no_extent():
    assert mask_boxes(np.zeros((2, 5, 5), np.uint8)).tolist() == [[0, 0, 0, 0]] * 2
    assert mask_boxes(np.zeros((0, 5, 5), np.uint8)).shape == (0, 4)


def test_sides_move_to_the_mask_where_they_are_over_a_pixel_off():
    masks = np.zeros((2, 20, 20), np.uint8)
    masks[0, 2:10, 3:12] = 1
    masks[1, 4:5, 6:7] = 1
    boxes = np.array([[3.4, 0.5, 11.2, 10.0], [6.9, 4, 14, 5]], np.float32)
    np.testing.assert_allclose(
        tight_boxes({"boxes": boxes, "masks": masks}),
        [[3.4, 2, 11.2, 10], [6, 4, 7, 5]],  # the second would be a tenth of a pixel wide
        rtol=1e-6,
    )


def test_rows_are_taken_and_joined_with_all_their_columns():
    _, rows = sample([0, 0, 5, 5], [5, 5, 9, 9], extra=np.array([[1, 2], [3, 4]]))
    both = join([take(rows, np.array([True, False])), take(rows, np.array([1]))])
    assert both["labels"].tolist() == [1, 2]
    assert both["extra"].tolist() == [[1, 2], [3, 4]]


# ---- Transfer ----


def test_a_sample_is_moved_and_cut():
    picture, rows = sample([2, 2, 10, 10], [20, 5, 30, 20], area=np.array([64, 100], np.float32))
    picture[:] = 7
    canvas = np.full((20, 20, 3), 1, np.uint8)
    out = transfer((picture, rows), canvas, shift=(5, -4), window=(0, 0, 12, 20))
    assert out["boxes"].tolist() == [[7, 0, 12, 6]]
    assert out["labels"].tolist() == [1]
    assert out["area"].tolist() == [64 * 30 / 64]
    assert (canvas[:16, 5:12] == 7).all()
    assert (canvas == 7).sum() == 16 * 7 * 3


def test_area_and_keypoints_follow_the_scale():
    points = np.array([[[4, 4, 2], [12, 3, 1], [9, 9, 0]]], np.float32)
    before = sample([2, 2, 14, 10], size=(20, 20), area=np.array([50], np.float32), keypoints=points)
    out = transfer(before, np.zeros((40, 30, 3), np.uint8), to_size=(40, 60), window=(0, 0, 30, 40))
    assert out["boxes"].tolist() == [[6, 4, 30, 20]]
    np.testing.assert_allclose(out["area"], [50 * 6 * 24 / 36])
    assert out["keypoints"].tolist() == [[[12, 8, 2], [0, 0, 0], [0, 0, 0]]]
    assert points[0, 1].tolist() == [12, 3, 1]  # the row before is as it was


@pytest.mark.parametrize(("min_visible", "labels"), [(0.0, [1, 2]), (0.5, [1, 2]), (0.51, [2])])
def test_rows_need_a_share_of_their_box_and_crowd_regions_a_pixel(min_visible, labels):
    before = sample([0, 0, 10, 10], [4, 0, 30, 10], iscrowd=np.array([0, 1]))
    out = transfer(before, np.zeros((20, 5, 3), np.uint8), min_visible=min_visible)
    assert out["labels"].tolist() == labels


def test_what_is_less_than_a_pixel_is_gone():
    out = transfer(sample([0, 0, 5.5, 10], [5.5, 0, 9, 10]), np.zeros((20, 6, 3), np.uint8))
    assert out["labels"].tolist() == [1]


@pytest.mark.parametrize("factor", [0.4, 0.75, 1.0, 1.6])
def test_image_mask_box_and_keypoint_are_scaled_alike(factor):
    before = disc()
    side = round(60 * factor)
    canvas = np.full((side + 3, side + 5, 3), 255, np.uint8)
    out = transfer(before, canvas, to_size=(side, side), shift=(5, 3))
    seen = 1 - canvas[..., 0] / 255
    marked = out["masks"][0]
    assert marked.sum() == pytest.approx(seen.sum(), rel=0.02)
    for axis in (0, 1):
        along = np.arange(seen.shape[1 - axis])
        centres = [(pixels.sum(axis=axis) * along).sum() / pixels.sum() for pixels in (seen, marked)]
        assert abs(centres[0] - centres[1]) < 0.25
        assert abs(centres[0] + 0.5 - out["boxes"][0, [axis, axis + 2]].mean()) < 0.3
        assert abs(centres[0] + 0.5 - out["keypoints"][0, 0, axis]) < 0.1
    expected = resize(torch.from_numpy(before[0]).permute(2, 0, 1).float(), [side, side], antialias=False)
    assert np.abs(canvas[3:, 5:, 0] - expected[0].numpy()).max() < 3
