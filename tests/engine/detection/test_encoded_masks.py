"""engine/detection/encoded_masks.py: masks decoded when they are asked for."""

import numpy as np
import pytest
import torch

from engine.data.masks import encode_mask
from engine.detection.encoded_masks import EncodedMasks


def test_each_mask_is_decoded_for_itself():
    mask = np.zeros((6, 9), np.uint8)
    mask[2:5, 3:8] = 1
    masks = EncodedMasks([encode_mask(mask), [[0, 0, 4, 0, 4, 2, 0, 2]], []], (6, 9))
    assert masks.shape == (3, 6, 9)
    assert len(masks) == 3
    assert torch.equal(masks[0], torch.from_numpy(mask))
    assert masks[1][:2, :4].all()
    assert masks[1].sum() == 8
    assert not masks[2].any()


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match="is not the image's"):
        EncodedMasks([encode_mask(np.ones((6, 9), np.uint8))], (9, 6))[0]
