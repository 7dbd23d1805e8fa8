"""Masks of one class against those that torchvision picks out of all."""

import torch
from torch import nn
from torch.testing import assert_close
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.roi_heads import maskrcnn_inference

from heads import class_masks as class_masks_module
from heads.class_masks import class_masks

LABELS = [torch.tensor([3, 1]), torch.zeros(0, dtype=torch.int64), torch.tensor([4, 2, 2])]


class OtherPredictor(MaskRCNNPredictor):
    """A user's own, of which nothing is known."""

    def forward(self, features):
        return super().forward(features) * 2


def test_the_one_mask_is_torchvisions():
    torch.manual_seed(0)
    features = torch.randn(5, 6, 7, 9)
    for predictor in (MaskRCNNPredictor(6, 8, 5), OtherPredictor(6, 8, 5)):
        nn.init.uniform_(predictor.mask_fcn_logits.bias, -1, 1)
        with torch.no_grad():
            expected = maskrcnn_inference(predictor(features), LABELS)
            for layout in (torch.contiguous_format, torch.channels_last):
                found = class_masks(predictor, features.contiguous(memory_format=layout), LABELS)
                assert [len(masks) for masks in found] == [2, 0, 3]
                for one, other in zip(found, expected, strict=True):
                    assert_close(one, other)


def test_no_detection_has_no_mask():
    predictor = MaskRCNNPredictor(6, 8, 5)
    (masks,) = class_masks(predictor, torch.zeros(0, 6, 7, 7), [torch.zeros(0, dtype=torch.int64)])
    assert masks.shape == (0, 1, 14, 14)


def test_many_detections_are_masked_a_few_at_a_time(small_detector, odd_batch, monkeypatch):
    model = small_detector("mask_rcnn", box_score_thresh=0.0, box_detections_per_img=20).eval()
    images, _ = odd_batch
    with torch.no_grad():
        whole = model(images)
        monkeypatch.setattr(class_masks_module, "AT_ONCE", 6)
        parts = model(images)
    for one, other in zip(whole, parts, strict=True):
        assert len(one["masks"]) == 20
        assert one["masks"].std() > 0
        assert_close(other["masks"], one["masks"], rtol=1e-5, atol=1e-6)
