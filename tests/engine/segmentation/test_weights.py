"""engine/segmentation/weights.py: whole segmenters from files, and backbones from one kind of model to another."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import segmentation

from backbones.errors import UserError
from engine.build import build_body, build_pyramid
from engine.checkpoint import save_checkpoint
from engine.data.annotations import Category
from engine.detection.build import build_model as build_detector_model
from engine.detection.config import DetectionConfig
from engine.evaluate import evaluate
from engine.segmentation.batch import normalise
from engine.segmentation.build import build_model, build_validation_set
from engine.segmentation.metrics import pixel_confusion, semantic_score
from engine.segmentation.weights import load_segmenter_weights
from tests.engine.conftest import toy_config as toy_detector_config

VOC = [f"class {k}" for k in range(21)]
R50 = "model.backbone={name: resnet50, output_stride: 8, out_features: [c4, c5]}"
CATEGORIES = [Category(0, "background"), Category(1, "square"), Category(2, "bar")]


def config_file(config, path: Path) -> str:
    path.write_text(json.dumps(config.model_dump()))  # JSON is YAML
    return str(path)


@pytest.mark.parametrize("name", ["fcn", "deeplabv3"])
def test_torchvisions_weights_are_scored_as_torchvision_predicts(name, make_config, randomize, tmp_path):
    build = {"fcn": segmentation.fcn_resnet50, "deeplabv3": segmentation.deeplabv3_resnet50}[name]
    theirs = randomize(build(weights=None, weights_backbone=None, aux_loss=True)).eval()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    head = f"model.head={{name: {name}, auxiliary: true}}"
    config = make_config(R50, head, f"data.classes={json.dumps(VOC)}", "data.min_size=null")
    source = config_file(config, tmp_path / "run.yaml")
    (score,) = evaluate(source, [], job="segmentation", weights=str(tmp_path / "theirs.pth"), output_dir=str(tmp_path / "out"))

    dataset = build_validation_set(config)
    confusion = np.zeros((21, 21), np.int64)
    for index in range(len(dataset)):
        image, target = dataset[index]
        with torch.no_grad():
            predicted = theirs(normalise(image)[None])["out"][0].argmax(0)
        confusion += pixel_confusion(target["labels"].numpy(), predicted.numpy(), num_classes=21, ignored=255)
    assert (confusion.sum(axis=0) > 0).sum() > 1, "one class everywhere would show nothing"
    assert score.stats == pytest.approx(semantic_score(confusion, VOC).stats, abs=2e-4)


def test_an_auxiliary_classifier_too_many_or_too_few_is_pointed_at(make_config, tmp_path):
    for has, wants in ((True, "false"), (False, "true")):
        head = "model.head={name: fcn, norm: gn, auxiliary: %s}"
        body = "model.backbone={name: resnet18, norm: gn}"
        model = build_model(make_config(body, head % str(has).lower()), num_classes=3, load_weights=False)
        torch.save(model.state_dict(), tmp_path / "w.pth")
        other = make_config(body, head % wants)
        with pytest.raises(UserError, match=rf"w\.pth does not fit.*aux_classifier.*model\.head\.auxiliary={str(has).lower()}"):
            load_segmenter_weights(
                build_model(other, num_classes=3, load_weights=False), tmp_path / "w.pth", build_validation_set(other)
            )


def test_weights_of_other_classes_are_refused(make_config, tmp_path):
    config = make_config()
    model = build_model(config, num_classes=3, load_weights=False)
    others = [Category(0, "background"), Category(1, "square"), Category(2, "stick")]
    save_checkpoint(tmp_path / "other.pt", model=model.state_dict(), config=config, categories=others)
    with pytest.raises(UserError, match=r"other\.pt was trained on other classes .*'stick' \(id 2\) against 'bar' \(id 2\)"):
        load_segmenter_weights(model, tmp_path / "other.pt", build_validation_set(config))
    torch.save(build_model(config, num_classes=5, load_weights=False).state_dict(), tmp_path / "five.pth")
    with pytest.raises(UserError, match=r"five\.pth does not fit Segmenter: classifier\.4\.weight is 5x"):
        load_segmenter_weights(model, tmp_path / "five.pth", build_validation_set(config))


def test_our_checkpoint_loads_into_the_config_s_model(make_config, tmp_path):
    config = make_config()
    ours, other = (build_model(config, num_classes=3, load_weights=False) for _ in range(2))
    save_checkpoint(tmp_path / "ours.pt", model=ours.state_dict(), config=config, categories=CATEGORIES)
    load_segmenter_weights(other, tmp_path / "ours.pt", build_validation_set(config))
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in ours.state_dict().items())


# ---- From one kind of model to another ----


@pytest.fixture
def detector(toy_data, tmp_path):
    """A detector's checkpoint and its model."""
    config = toy_detector_config("model.backbone.out_features=null", data=toy_data, output_dir=tmp_path / "det")
    assert isinstance(config, DetectionConfig)
    model = build_detector_model(config, num_classes=4, load_weights=False)
    save_checkpoint(tmp_path / "detector.pt", model=model.state_dict(), config=config, categories=CATEGORIES)
    return tmp_path / "detector.pt", model


def assert_accounted_for(report, path, model):
    """Each tensor of the file was used or left out for a reason that is no misfit; each of the model has its value."""
    given = torch.load(path, weights_only=True)["model"]
    left_out = [key for keys in report.ignored.values() for key in keys]
    assert sorted([*report.used.values(), *left_out]) == sorted(given)
    assert report.complete
    assert "not in the model" not in report.ignored
    assert all(torch.equal(model.state_dict()[ours], given[theirs]) for ours, theirs in report.used.items())
    return set(report.ignored)


def test_a_detector_s_backbone_starts_a_segmenter(detector, make_config):
    path, theirs = detector
    config = make_config(f"model.backbone={{name: resnet18, norm: gn, weights: {path}}}")
    model = build_model(config, num_classes=3, load_weights=True)
    reasons = assert_accounted_for(model.backbone.weights_report, path, model.backbone)
    assert len(model.backbone.weights_report.used) == len(model.backbone.state_dict())
    assert torch.equal(model.backbone.conv1.weight, theirs.backbone.body.conv1.weight)
    assert len(reasons) >= 1
    assert "beside the weights" in str(model.backbone.weights_report)


def test_a_detector_s_pyramid_starts_a_segmenter_s(detector, make_config):
    path, theirs = detector
    config = make_config(
        f"model.backbone={{name: resnet18, norm: gn, weights: {path}}}",
        "model.pyramid={name: fpn, out_channels: 16}",
        "model.head={name: semantic_fpn, channels: 8}",
    )
    model = build_model(config, num_classes=3, load_weights=True)
    assert torch.equal(model.backbone.body.conv1.weight, theirs.backbone.body.conv1.weight)
    assert_accounted_for(model.backbone.weights_report, path, model.backbone.body)


@pytest.mark.parametrize("head", ["{name: fcn, auxiliary: true}", "{name: deeplabv3}", "{name: deeplabv3plus}", "semantic"])
def test_a_segmenter_s_backbone_starts_a_detector(head, toy_data, make_config, tmp_path):
    pyramid = []
    if head == "semantic":
        head, pyramid = "{name: semantic_fpn, channels: 8}", ["model.pyramid={name: fpn, out_channels: 16}"]
    config = make_config("model.backbone={name: resnet18, norm: gn}", f"model.head={head}", *pyramid)
    ours = build_model(config, num_classes=3, load_weights=False)
    save_checkpoint(tmp_path / "segmenter.pt", model=ours.state_dict(), config=config, categories=CATEGORIES)
    overrides = ("model.backbone.out_features=null", f"model.backbone.weights={tmp_path / 'segmenter.pt'}")
    detection = toy_detector_config(*overrides, data=toy_data, output_dir=tmp_path / "det")
    backbone = build_pyramid(detection.model.backbone, detection.model.pyramid, load_weights=True)
    assert_accounted_for(backbone.weights_report, tmp_path / "segmenter.pt", backbone.body)
    body = getattr(ours.backbone, "body", ours.backbone)
    assert torch.equal(backbone.body.layer4[1].conv2.weight, body.layer4[1].conv2.weight)
    bare = build_body(detection.model.backbone, load_weights=True)
    assert torch.equal(bare.conv1.weight, body.conv1.weight)
