"""Batches on the device."""

import pytest
import torch

from engine.data.prefetch import on_device, to_device
from heads.cropped_masks import CroppedMasks

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


def batches(count=4):
    for number in range(count):
        boxes = torch.full((2, 4), float(number))
        yield (
            [torch.full((3, 5, 6), number, dtype=torch.uint8)],
            [{"boxes": boxes, "image_id": torch.tensor(number), "seed": 7}],
        )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("count", [0, 1, 4])
def test_all_arrive_in_order(device, count):
    arrived = list(on_device(batches(count), torch.device(device)))
    assert len(arrived) == count
    for number, ((image,), (target,)) in enumerate(arrived):
        assert image.device.type == target["boxes"].device.type == device
        assert target["image_id"].device.type == "cpu"
        assert target["seed"] == 7
        assert (image == number).all()
        assert (target["boxes"] == number).all()
        assert target["image_id"] == number


@pytest.mark.parametrize("device", DEVICES)
def test_cropped_masks_go_with_their_target(device):
    masks = CroppedMasks(torch.ones(6, dtype=torch.uint8), [(1, 2, 3, 5)], (5, 6))
    _, (target,) = to_device(([], [{"masks": masks}]), torch.device(device))
    assert target["masks"].pixels.device.type == device
    (back,) = to_device(([], [target]), torch.device("cpu"))[1]
    assert torch.equal(back["masks"].dense(), masks.dense())


def test_an_error_of_the_loader_comes_through():
    def broken():
        yield from batches(1)
        raise ValueError("a broken image")

    arriving = on_device(broken(), torch.device("cpu"))
    next(arriving)
    with pytest.raises(ValueError, match="a broken image"):
        next(arriving)
