"""Validation losses, from the pass that gives the predictions."""

import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from backbones import build_fpn_backbone
from engine.detection.losses import detect_with_losses
from engine.train import train
from heads import build_detector, list_detectors


def model_and_batch(head, make_target):
    torch.manual_seed(0)
    body = build_fpn_backbone("resnet18", norm="frozen_bn", out_channels=32)
    options = {"num_keypoints": 3} if head == "keypoint_rcnn" else {}
    model = build_detector(head, body, 4, min_size=96, max_size=160, **options)
    targets = [make_target([[5, 9, 60, 80], [20, 20, 70, 60]], crowd=[], size=(90, 120)) | {"seed": seed} for seed in (3, 8)]
    for target in targets:
        points = torch.stack(
            [target["boxes"][:, :2], target["boxes"].view(-1, 2, 2).mean(1), target["boxes"][:, 2:] - 1], dim=1
        )
        target["keypoints"] = torch.cat([points, torch.full((len(points), 3, 1), 2.0)], dim=2)
    return model, [torch.rand(3, 90, 120) for _ in targets], targets


@pytest.mark.parametrize("head", list_detectors())
def test_losses_and_predictions_are_those_of_the_two_modes(head, make_target):
    model, images, targets = model_and_batch(head, make_target)
    passes = []
    model.backbone.body.register_forward_hook(lambda *_: passes.append(1))
    backbone = model.backbone
    with torch.no_grad():
        found, losses = detect_with_losses(model.eval(), images, targets)
        assert len(passes) == 1
        assert model.backbone is backbone
        assert not any(module.training for module in model.modules())
        expected = model(images)
        expected_losses = model.train()(images, targets)
    assert losses.keys() == expected_losses.keys()
    for name, loss in losses.items():
        assert_close(loss, expected_losses[name], atol=1e-5, rtol=1e-5)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            assert_close(one[key], other[key])


def test_a_failing_loss_leaves_the_model_as_it_was(make_target):
    model, images, targets = model_and_batch("faster_rcnn", make_target)
    backbone = model.backbone
    no_sides = {"boxes": torch.zeros(1, 4), "labels": torch.ones(1, dtype=torch.int64), "seed": 3}
    targets[0] = no_sides  # torchvision refuses such boxes
    with pytest.raises(AssertionError):
        detect_with_losses(model.eval(), images, targets)
    assert model.backbone is backbone
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("head", ["faster_rcnn", "mask_rcnn"])
def test_a_run_logs_them(make_config, toy_data, head):
    folders = []
    for batch in (1, 7):
        config = make_config(
            f"model.head={{name: {head}, box_head_dim: 32}}", "eval.losses=true", f"eval.batch_size={batch}",
            "train.epochs=1", data=toy_data, name=str(batch),
        )  # fmt: skip
        train(config)
        folders.append(Path(config.output_dir))
    for folder in folders:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        (losses,) = [line["losses"] for line in lines if line["kind"] == "eval"]
        assert {"loss_classifier", "loss_objectness"} <= losses.keys()
        assert ("loss_mask" in losses) == (head == "mask_rcnn")
        assert all(0 < value < 20 for value in losses.values())
