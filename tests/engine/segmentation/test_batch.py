"""engine/segmentation/batch.py: what the model is given, and class maps at an image's own size."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchvision.transforms.functional import normalize

from engine.segmentation import batch as module
from engine.segmentation.batch import best_class, normalise, predict_labels, scaled_shape, training_batch


def images(*sizes):
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 900), st.integers(1, 1500))
def test_the_shorter_side_is_min_size_unless_the_longer_would_pass_max_size(height, width, min_size, max_size):
    shape = scaled_shape(height, width, min_size=min_size, max_size=max_size)
    assert max(shape) <= max_size
    assert min(shape) == min_size or max(shape) == max_size
    assert (shape[0] <= shape[1]) == (height <= width) or shape[0] == shape[1]


def test_an_image_may_keep_its_size():
    assert scaled_shape(300, 500, min_size=None, max_size=2048) == (300, 500)
    assert scaled_shape(300, 500, min_size=None, max_size=250) == (150, 250)
    assert scaled_shape(300, 500, min_size=None, max_size=2048, factor=1.5) == (450, 750)
    assert scaled_shape(300, 500, min_size=200, max_size=250, factor=2) == (300, 500)


def test_normalisation_is_torchvisions():
    (image,) = images((5, 7))
    expected = normalize(image / 255, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    torch.testing.assert_close(normalise(image), expected)


def test_what_is_smaller_is_padded_with_the_mean_colour_and_no_class():
    given_images = images((4, 6), (5, 3))
    labels = [torch.randint(0, 9, (4, 6), dtype=torch.uint8), torch.randint(0, 9, (5, 3), dtype=torch.uint8)]
    batch, maps = training_batch(given_images, labels)
    assert (batch.shape, maps.shape, maps.dtype) == ((2, 3, 5, 6), (2, 5, 6), torch.int64)
    torch.testing.assert_close(batch[0, :, :4], normalise(given_images[0]))
    torch.testing.assert_close(batch[1, :, :, :3], normalise(given_images[1]))
    assert (batch[0, :, 4] == 0).all()
    assert (batch[1, :, :, 3:] == 0).all()
    assert torch.equal(maps[0, :4], labels[0].long())
    assert torch.equal(maps[1, :, :3], labels[1].long())
    assert (maps[0, 4] == 255).all()
    assert (maps[1, :, 3:] == 255).all()


def test_wide_labels_are_padded_with_theirs():
    _, maps = training_batch(
        images((2, 2), (3, 2)), [torch.full((2, 2), 300, dtype=torch.int32), torch.zeros(3, 2, dtype=torch.int32)]
    )
    assert maps[0, :2].unique().tolist() == [300]
    assert maps[0, 2].tolist() == [65535, 65535]


@pytest.mark.parametrize("at_once", [1, 700, 1500, 10**9])
def test_the_best_class_is_the_argmax_at_the_image_s_size_however_few_classes_fit(monkeypatch, at_once):
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", at_once)
    logits = torch.randn(2, 7, 9, 11).round(decimals=1)  # so coarse that some are equal
    for size in ((9, 11), (13, 21), (5, 4)):
        expected = F.interpolate(logits, size=size, mode="bilinear", align_corners=False).argmax(1)
        assert torch.equal(best_class(logits, size), expected)


class Recorder(nn.Module):
    """A segmenter of one convolution, which notes what it is given."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, kernel_size=5, padding=2)
        self.seen = []

    def forward(self, x):
        self.seen.append(tuple(x.shape))
        return {"out": self.layer(x)}


@torch.no_grad()
def test_each_image_is_resized_by_itself_and_its_labels_are_of_its_own_size():
    model = Recorder()
    for size, seen in (((40, 60), (30, 45)), ((60, 40), (45, 30)), ((30, 400), (6, 80))):
        (image,) = images(size)
        labels = predict_labels(model, image, min_size=30, max_size=80)
        assert labels.shape == size
        assert model.seen.pop() == (1, 3, *seen)
        resized = F.interpolate(normalise(image)[None], size=seen, mode="bilinear", align_corners=False)
        logits = F.interpolate(model.layer(resized), size=size, mode="bilinear", align_corners=False)
        assert torch.equal(labels, logits[0].argmax(0))
    (image,) = images((33, 44))
    predict_labels(model, image, min_size=None, max_size=80)
    assert model.seen.pop() == (1, 3, 33, 44)
