"""heads/cascade_rcnn.py: each stage against torchvision's own box head on the same boxes, and what the cascade adds."""

import pytest
import torch
from torch.testing import assert_close
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image

from backbones import UserError, build_fpn_backbone
from heads import build_detector

WEIGHTS = [(10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0)]


def small(head="cascade_rcnn", **options):
    thin = {"min_size": 96, "max_size": 192, "box_head_dim": 16, "rpn_post_nms_top_n_train": 40, "rpn_post_nms_top_n_test": 30}
    if head == "cascade_mask_rcnn":
        thin |= {"mask_head_dim": 8, "mask_head_layers": 1}
    backbone = build_fpn_backbone("resnet18", norm="frozen_bn", out_channels=16)
    return build_detector(head, backbone, 4, **thin | options)


def stage_outputs(heads, features, boxes, shapes):
    """Logits, offsets and the boxes each stage was given, by torchvision's parts alone."""
    for stage, weights in zip(heads.stages, WEIGHTS, strict=True):
        pooled = heads.box_roi_pool(features, boxes, shapes)
        hidden = stage.box_head(pooled)
        logits, offsets = stage.cls_score(hidden), stage.bbox_pred(hidden)
        yield logits, offsets, boxes
        moved = BoxCoder(weights).decode(offsets.detach(), boxes)[:, 0].split([len(b) for b in boxes])
        boxes = [clip_boxes_to_image(b, shape) for b, shape in zip(moved, shapes, strict=True)]
    yield None, None, boxes


@pytest.fixture
def pooled_maps():
    maps = {str(i): torch.randn(2, 16, 64 // 2**i, 96 // 2**i) for i in range(4)}
    return maps | {"pool": torch.randn(2, 16, 4, 6)}, [(256, 384), (240, 300)]


def random_boxes(count, shape, *, seed):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([shape[1] - 80.0, shape[0] - 80.0])
    return torch.cat([corner, corner + 20 + torch.rand(count, 2, generator=generator) * 60], dim=1)


def test_scores_are_the_mean_of_the_stages_and_boxes_the_last_ones(pooled_maps, randomize):
    features, shapes = pooled_maps
    heads = randomize(small(box_score_thresh=0.0, box_detections_per_img=10)).eval().roi_heads
    boxes = [random_boxes(12, shape, seed=i) for i, shape in enumerate(shapes)]
    with torch.no_grad():
        results, losses = heads(features, boxes, shapes)
        *stages, (_, _, last) = stage_outputs(heads, features, boxes, shapes)
    assert losses == {}
    scores = torch.stack([logits.softmax(-1) for logits, _, _ in stages]).mean(0).split([12, 12])
    for result, image_boxes, image_scores in zip(results, last, scores, strict=True):
        labels = torch.arange(1, 4).repeat(12)
        flat, repeated = image_scores[:, 1:].reshape(-1), image_boxes.repeat_interleave(3, dim=0)
        keep = batched_nms(repeated, flat, labels, 0.5)[:10]
        assert_close(result["boxes"], repeated[keep])
        assert_close(result["scores"], flat[keep])
        assert_close(result["labels"], labels[keep])


def test_each_stage_has_fast_rcnn_losses_at_its_own_iou(pooled_maps, randomize, make_target):
    features, shapes = pooled_maps
    options = {"box_batch_size_per_image": 10**6, "box_positive_fraction": 1.0}
    heads = randomize(small(**options)).train().roi_heads
    targets = [make_target(random_boxes(3, shape, seed=9).tolist()) for shape in shapes]
    # Boxes around the objects, so that each stage has examples of both kinds.
    proposals = [torch.cat([t["boxes"] + torch.randn(3, 4) * 12 for _ in range(8)]) for t in targets]
    with torch.no_grad():
        _, losses = heads(features, [p.clone() for p in proposals], shapes, targets)
        sampled = heads.select_training_samples([p.clone() for p in proposals], targets)[0]
        stages = list(stage_outputs(heads, features, sampled, shapes))[:3]
    for number, ((logits, offsets, boxes), weights, iou) in enumerate(
        zip(stages, WEIGHTS, (0.5, 0.6, 0.7), strict=True), start=1
    ):
        labels, wanted = [], []
        for image_boxes, target in zip(boxes, targets, strict=True):
            best, index = box_iou(image_boxes, target["boxes"]).max(dim=1)
            labels.append(torch.where(best >= iou, target["labels"][index], 0))
            wanted.append(BoxCoder(weights).encode_single(target["boxes"][index], image_boxes))
        assert 0 < sum((rows > 0).sum() for rows in labels) < sum(len(rows) for rows in labels)
        # torchvision's loss takes a box a class: the same one for each.
        classes, regression = fastrcnn_loss(logits, offsets.repeat(1, 4), labels, wanted)
        assert_close(losses[f"loss_classifier_{number}"], classes)
        assert_close(losses[f"loss_box_reg_{number}"], regression)


@pytest.mark.parametrize("head", ["cascade_rcnn", "cascade_mask_rcnn"])
@pytest.mark.parametrize("kind", ["objects", "empty", "crowd"])
def test_every_parameter_gets_a_gradient_whatever_the_batch_holds(head, kind, odd_batch, make_target, train_step):
    images, targets = odd_batch
    if kind != "objects":
        crowd = [[-500.0, -500.0, 1000.0, 1000.0]] if kind == "crowd" else []
        targets = [make_target([], crowd=crowd, size=image.shape[1:]) for image in images]
    losses = train_step(small(head), images, targets)
    assert (losses["loss_box_reg_3"] > 0) == (kind == "objects")
    assert ("loss_mask" in losses) == (head == "cascade_mask_rcnn")


def test_stages_share_one_gradient_into_the_maps(pooled_maps):
    features, shapes = pooled_maps
    features = {name: level.requires_grad_() for name, level in features.items()}
    heads = small().train().roi_heads
    boxes = [random_boxes(4, shape, seed=2) for shape in shapes]
    heads._pool(features, boxes, shapes).sum().backward()
    shared = features["0"].grad.clone()
    features["0"].grad = None
    heads.box_roi_pool(features, boxes, shapes).sum().backward()
    assert_close(shared, features["0"].grad / 3)


def test_masks_are_those_of_the_last_boxes(odd_batch, randomize):
    model = randomize(small("cascade_mask_rcnn", box_score_thresh=0.0, box_detections_per_img=5)).eval()
    with torch.no_grad():
        for prediction, image in zip(model(odd_batch[0]), odd_batch[0], strict=True):
            assert prediction["masks"].shape == (5, 1, *image.shape[1:])
            assert len(prediction["boxes"]) == 5


def test_the_stages_thresholds_are_not_options():
    with pytest.raises(UserError, match="box_fg_iou_thresh is not an option of a cascade"):
        small(box_fg_iou_thresh=0.5)


def test_boxes_stay_exact_in_mixed_precision():
    """bf16 has eight bits: 1000 and 1002 pixels would be one place."""
    boxes = [torch.tensor([[1001.0, 803.0, 1207.0, 1111.0]])]
    offsets = torch.zeros(1, 4, dtype=torch.bfloat16)
    (moved,) = small().roi_heads._refine(BoxCoder(WEIGHTS[0]), offsets, boxes, [(1200, 1300)])
    assert_close(moved, boxes[0])
