"""heads/faster_rcnn.py against torchvision's Faster R-CNN, and what torchvision's lacks."""

import itertools

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torchvision.models.detection import FasterRCNN, fasterrcnn_resnet50_fpn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from backbones import build_fpn_backbone
from heads import build_detector, faster_rcnn

LOSSES = {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}


def resnet18_fpn():
    return resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=5)


def frozen_resnet18(**options):
    return build_fpn_backbone("resnet18", norm="frozen_bn", **options)


def assert_same_predictions(model, reference, images, keys=("boxes", "labels", "scores")):
    model.eval()
    reference.eval()
    with torch.no_grad():
        predictions, expected = model(images), reference(images)
    for ours, theirs in zip(predictions, expected, strict=True):
        assert set(ours) == set(theirs) == set(keys)
        assert len(theirs["boxes"]) > 5, "too few detections to show anything"
        for key in keys:
            assert_close(ours[key], theirs[key], atol=1e-4, rtol=1e-4)


def test_torchvision_fasterrcnn_resnet50_fpn_loads_and_predicts_the_same(randomize, odd_batch):
    options = {"min_size": 160, "max_size": 256, "box_score_thresh": 0.0, "rpn_post_nms_top_n_test": 60}
    reference = randomize(fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, **options))
    for build in (FasterRCNN, faster_rcnn):
        model = build(build_fpn_backbone("resnet50"), num_classes=91, **options)
        model.load_state_dict(reference.state_dict(), strict=True)
        assert_same_predictions(model, reference, odd_batch[0])


def test_a_torchvision_detector_on_resnet18_loads_and_predicts_the_same(randomize, odd_batch):
    options = {"min_size": 128, "max_size": 256, "box_score_thresh": 0.0, "rpn_post_nms_top_n_test": 60}
    body = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d)
    reference = randomize(FasterRCNN(body, 5, **options))
    model = faster_rcnn(build_fpn_backbone("resnet18"), 5, **options)
    model.load_state_dict(reference.state_dict(), strict=True)
    assert_same_predictions(model, reference, odd_batch[0])


# The RoI scales torchvision guesses from the first batch. Anchors are compared in test_anchors.py.
NOT_COMPARED = (".cell_anchors", ".box_roi_pool.scales", ".fg_bg_sampler.salt")


def settings_of(model):
    """Every number, name and list that the parts of a detector hold, by the part's name."""
    parts = {name: part for name, part in model.named_modules() if not name.startswith("backbone")}
    for owner, kind in itertools.product(("rpn", "roi_heads"), ("proposal_matcher", "fg_bg_sampler", "box_coder")):
        parts[f"{owner}.{kind}"] = getattr(parts[owner], kind)
    return {
        f"{name}.{key}": list(value) if isinstance(value, tuple) else value
        for name, part in parts.items()
        for key, value in vars(part).items()
        if not key.startswith("_") and isinstance(value, int | float | str | tuple | list | dict)
        if not f"{name}.{key}".endswith(NOT_COMPARED)
    }


def test_every_default_is_torchvision_own():
    settings = settings_of(faster_rcnn(frozen_resnet18(), 91))
    assert settings == settings_of(FasterRCNN(resnet18_fpn(), 91))
    assert {"rpn.nms_thresh", "roi_heads.detections_per_img", "transform.min_size"} <= set(settings)
    assert {"rpn.proposal_matcher.high_threshold", "roi_heads.box_coder.weights"} <= set(settings)


def test_options_go_where_torchvision_puts_them():
    options = {
        "min_size": 100, "max_size": 200, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6],
        "rpn_pre_nms_top_n_train": 1, "rpn_pre_nms_top_n_test": 2, "rpn_post_nms_top_n_train": 3, "rpn_post_nms_top_n_test": 4,
        "rpn_nms_thresh": 0.61, "rpn_fg_iou_thresh": 0.62, "rpn_bg_iou_thresh": 0.21, "rpn_batch_size_per_image": 5,
        "rpn_positive_fraction": 0.11, "rpn_score_thresh": 0.12, "box_score_thresh": 0.13, "box_nms_thresh": 0.41,
        "box_detections_per_img": 6, "box_fg_iou_thresh": 0.63, "box_bg_iou_thresh": 0.42, "box_batch_size_per_image": 7,
        "box_positive_fraction": 0.14,
    }  # fmt: skip
    settings = settings_of(faster_rcnn(frozen_resnet18(), 91, **options))
    assert settings == settings_of(FasterRCNN(resnet18_fpn(), 91, **options))


@pytest.mark.parametrize(
    "sampling",
    [{"rpn_batch_size_per_image": 10**6, "box_batch_size_per_image": 10**6}, {}],
    ids=["all-are-sampled", "same-random-sample-plain"],
)
def test_training_losses_and_gradients_equal_torchvision(sampling, randomize, odd_batch):
    options = {"min_size": 96, "max_size": 192, "rpn_post_nms_top_n_train": 40} | sampling
    reference = randomize(FasterRCNN(resnet18_fpn(), 5, **options)).train()
    model = faster_rcnn(frozen_resnet18(), 5, fast=bool(sampling), **options).train()
    model.load_state_dict(reference.state_dict(), strict=True)
    losses, expected = [], []
    for detector, results in ((model, losses), (reference, expected)):
        torch.manual_seed(3)
        results.append(detector(*odd_batch))
        sum(results[0].values()).backward()
    assert set(losses[0]) == set(expected[0]) == LOSSES
    for name, loss in losses[0].items():
        assert loss > 0
        assert_close(loss, expected[0][name], atol=1e-5, rtol=1e-4)
    for name, parameter in model.named_parameters():
        gradient = reference.get_parameter(name).grad
        assert_close(parameter.grad, gradient, atol=1e-4 * gradient.abs().max().item(), rtol=1e-3, msg=name)


def test_bytes_and_floats_give_the_same(small_detector, randomize, make_target):
    model = randomize(small_detector(box_score_thresh=0.0))
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((64, 96), (70, 65))]
    floats = [image.float() / 255 for image in images]
    targets = [make_target([[5, 5, 40, 50]], seed=1), make_target([[10, 10, 60, 60]], seed=2)]
    for name, loss in model.train()(images, targets).items():
        assert_close(loss, model(floats, targets)[name])
    model.eval()
    for ours, expected in zip(model(images), model(floats), strict=True):
        assert len(expected["boxes"]) > 5
        for key in expected:
            assert_close(ours[key], expected[key])


def test_labels_run_from_one_to_the_last_class(small_detector, randomize):
    model = randomize(small_detector(num_classes=3, box_score_thresh=0.0, box_detections_per_img=10000)).eval()
    (prediction,) = model([torch.rand(3, 64, 96)])
    assert set(prediction["labels"].tolist()) == {1, 2}
    assert model.roi_heads.box_predictor.bbox_pred.out_features == 12


def test_boxes_are_in_the_pixels_of_the_image_given(small_detector, randomize):
    model = randomize(small_detector(box_score_thresh=0.0, min_size=64)).eval()
    image = torch.rand(3, 128, 160)
    (small,), (large,) = model([image]), model([image.repeat_interleave(2, 1).repeat_interleave(2, 2)])
    for prediction, (height, width) in ((small, (128, 160)), (large, (256, 320))):
        assert len(prediction["boxes"]) > 5
        assert (prediction["boxes"] >= 0).all()
        assert (prediction["boxes"] <= torch.tensor([width, height, width, height])).all()
    assert large["boxes"][:, 2].max() > 160


@pytest.mark.parametrize("training", [True, False])
def test_without_resizing_in_training_images_keep_their_size(training, small_detector, make_target):
    model = small_detector(resize_in_training=False, min_size=64, max_size=1000).train(training)
    image, target = torch.rand(3, 100, 140), make_target([[10.0, 20.0, 30.0, 40.0]], size=(100, 140))
    batch, (resized,) = model.transform([image], [target])
    if training:
        assert batch.image_sizes == [(100, 140)]
        assert torch.equal(resized["boxes"], target["boxes"])
        assert torch.equal(resized["masks"], target["masks"])
    else:
        assert batch.image_sizes == [(64, 89)]
        assert_close(resized["boxes"], torch.tensor([[10 * 89 / 140, 20 * 0.64, 30 * 89 / 140, 40 * 0.64]]))


def test_several_sizes_are_drawn_from_in_training_only(small_detector):
    transform = small_detector(min_size=[48, 64, 80], max_size=1000).transform
    image = torch.rand(3, 100, 140)
    drawn = {transform.train()([image])[0].image_sizes[0][0] for _ in range(40)}
    assert drawn == {48, 64, 80}
    assert {transform.eval()([image])[0].image_sizes[0][0] for _ in range(10)} == {80}


@pytest.mark.parametrize(
    "backbone",
    [
        {"extra_level": "p6p7"},
        {"extra_level": "p6p7_on_c5"},
        {"extra_level": None},
        {"out_features": ["c3", "c4", "c5"]},
        {"out_features": ["c4"], "extra_level": None},
    ],
    ids=repr,
)
def test_every_pyramid_trains_and_detects(backbone, small_detector, make_target, randomize, train_step):
    model = randomize(small_detector(backbone=backbone, box_score_thresh=0.0))
    image = torch.rand(3, 65, 97)
    losses = train_step(model, [image], [make_target([[5, 5, 40, 50], [30, 8, 90, 60]])])
    assert set(losses) == LOSSES
    (prediction,) = model.eval()([image])
    assert len(prediction["boxes"]) > 0
    assert (prediction["boxes"] <= torch.tensor([97, 65, 97, 65])).all()


EMPTY, FULL = [], [[5, 5, 40, 50], [60, 8, 90, 60]]


@pytest.mark.parametrize("head", ["faster_rcnn", "mask_rcnn"])
@pytest.mark.parametrize(
    ("batch", "crowd"),
    [([EMPTY], None), ([EMPTY], []), ([EMPTY, EMPTY], []), ([EMPTY, FULL], [])],
    ids=["without-flags", "one", "two", "mixed"],
)
def test_images_without_objects_train_every_parameter(head, batch, crowd, small_detector, make_target, train_step):
    images = [torch.rand(3, 64, 96) for _ in batch]
    targets = [make_target(boxes, size=(64, 96), crowd=crowd) for boxes in batch]
    losses = train_step(small_detector(head), images, targets)
    assert losses["loss_objectness"] > 0, "background is an example, too"
    assert losses["loss_classifier"] > 0


def test_frozen_stages_of_a_detector_stay_frozen(small_detector, make_target, train_step):
    frozen = tuple(f"backbone.body.{part}." for part in ("conv1", "bn1", "layer1", "layer2"))
    model = small_detector(backbone={"norm": "bn", "trainable_layers": 2})
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    train_step(model, [torch.rand(3, 64, 96)] * 2, [make_target([[5, 5, 40, 50]])] * 2)
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if not name.startswith(frozen)}
    moved = {name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])}
    assert moved == {name for name in before if not name.startswith(frozen)}


@pytest.mark.parametrize("in_channels", [1, 4])
def test_images_of_other_numbers_of_channels_train_and_are_normalised_channel_by_channel(
    in_channels, small_detector, make_target, train_step
):
    model = small_detector(backbone={"in_channels": in_channels})
    image = torch.rand(in_channels, 64, 96)
    assert torch.allclose(model.transform.normalize(image), (image - 0.449) / 0.226, atol=1e-6)
    losses = train_step(model, [image], [make_target([[8, 8, 60, 50]])])
    assert losses["loss_classifier"] > 0


@pytest.mark.parametrize("option", ["image_mean", "image_std"])
def test_a_number_for_each_channel_or_a_sentence(option, small_detector):
    assert small_detector(**{option: [0.1, 0.2, 0.3]}).transform
    with pytest.raises(ValueError, match=rf"{option} has 3 numbers, but the backbone takes images of 1 channels"):
        small_detector(backbone={"in_channels": 1}, **{option: [0.1, 0.2, 0.3]})


@pytest.mark.parametrize("head", ["faster_rcnn", "mask_rcnn", "retinanet", "fcos", "cascade_rcnn", "keypoint_rcnn"])
@pytest.mark.parametrize("num_classes", [0, 1, "3"])
def test_the_background_alone_is_no_class(head, num_classes):
    with pytest.raises(ValueError, match=r"num_classes is .*: give a whole number of at least 2"):
        build_detector(head, build_fpn_backbone("resnet18", out_channels=64), num_classes)
