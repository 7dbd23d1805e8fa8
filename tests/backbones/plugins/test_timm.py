"""Our backbones as timm models: built, fine-tuned and taken apart by timm's own functions, whose code is unchanged."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision

from backbones import UserError, build_backbone, build_fpn_backbone

timm = pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError)

from timm.optim import create_optimizer_v2  # noqa: E402

from backbones.plugins.timm import VertebraModel, register_timm_model  # noqa: E402

IMAGES = (2, 3, 64, 96)


@pytest.fixture
def weights(tmp_path, randomize):
    """A torchvision ResNet-18 of 1000 classes with random weights, and the file they are in."""
    classifier = randomize(torchvision.models.resnet18()).eval()
    torch.save(classifier.state_dict(), tmp_path / "resnet18.pth")
    return classifier, str(tmp_path / "resnet18.pth")


def test_our_resnets_are_in_timms_registry():
    assert {"vertebra_resnet18", "vertebra_resnet50d", "vertebra_cifar_resnet20"} <= set(timm.list_models("vertebra_*"))
    assert isinstance(timm.create_model("vertebra_resnet18", num_classes=2), VertebraModel)


def test_features_only_gives_our_own_backbones_maps():
    model = timm.create_model("vertebra_resnet18", features_only=True, out_indices=(2, 4)).eval()
    ours = build_backbone("resnet18", out_features=["c3", "c5"]).eval()
    ours.load_state_dict(model.model.backbone.state_dict())
    images = torch.rand(IMAGES)
    for found, expected in zip(model(images), ours(images).values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert (model.feature_info.channels(), model.feature_info.reduction()) == ([128, 512], [8, 32])


def test_places_of_maps_are_those_of_timms_own_resnet():
    ours = timm.create_model("vertebra_resnet18", features_only=True)
    timms = timm.create_model("resnet18", features_only=True)
    assert ours.feature_info.reduction() == timms.feature_info.reduction() == [2, 4, 8, 16, 32]
    assert ours.feature_info.channels() == timms.feature_info.channels()
    last = timm.create_model("vertebra_resnet18", features_only=True, out_indices=2)
    assert last.feature_info.reduction() == [16, 32]


def test_maps_that_are_not_asked_for_leave_no_parameters_without_gradient():
    model = timm.create_model("vertebra_resnet18", features_only=True, out_indices=(1, 2), in_chans=4)
    sum(level.square().mean() for level in model(torch.rand(2, 4, 64, 64))).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert model.model.backbone.conv1.weight.shape[1] == 4
    assert not hasattr(model.model.backbone, "layer3")


def test_a_classifier_takes_a_training_step():
    model = timm.create_model("vertebra_resnet18", num_classes=10, drop_rate=0.1)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1, weight_decay=1e-4)
    before = model.backbone.conv1.weight.detach().clone()
    F.cross_entropy(model(torch.rand(IMAGES)), torch.tensor([3, 9])).backward()
    assert float(model.backbone.conv1.weight.grad.abs().sum()) > 0
    optimizer.step()
    assert not torch.equal(model.backbone.conv1.weight, before)


def test_the_methods_of_timms_models():
    model = timm.create_model("vertebra_resnet18", num_classes=10).eval()
    images = torch.rand(IMAGES)
    features = model.forward_features(images)
    assert features.shape == (2, 512, 2, 3)
    assert torch.equal(model.forward_head(features), model(images))
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), features.mean((2, 3)))
    assert (model.num_features, model.head_hidden_size, model.num_classes) == (512, 512, 10)
    last, (c5,) = model.forward_intermediates(images, indices=1)
    assert torch.equal(last, features)
    assert torch.equal(c5, features)

    model.reset_classifier(3)
    assert model(images).shape == (2, 3)
    assert model.get_classifier().out_features == 3
    model.reset_classifier(0)
    assert torch.equal(model(images), model.forward_head(features, pre_logits=True))
    model.reset_classifier(0, "")
    assert torch.equal(model(images), features)
    assert copy.deepcopy(model)(images).shape == features.shape
    model.set_grad_checkpointing()
    assert model.backbone.checkpoint_blocks


def test_a_file_gives_pretrained_weights(weights):
    classifier, path = weights
    file = {"file": path}
    model = timm.create_model("vertebra_resnet18", pretrained=True, pretrained_cfg_overlay=file).eval()
    images = torch.rand(IMAGES)
    torch.testing.assert_close(model(images), classifier(images))
    assert all(parameter.requires_grad for parameter in model.parameters())  # as timm's own pretrained models

    fewer = timm.create_model("vertebra_resnet18", pretrained=True, pretrained_cfg_overlay=file, num_classes=2).eval()
    torch.testing.assert_close(fewer.forward_features(images), model.forward_features(images))
    assert fewer(images).shape == (2, 2)

    maps = timm.create_model("vertebra_resnet18", features_only=True, pretrained=True, pretrained_cfg_overlay=file).eval()
    torch.testing.assert_close(maps(images)[-1], model.forward_features(images))
    fine = timm.create_model(
        "vertebra_resnet18", features_only=True, out_indices=[1], pretrained=True, pretrained_cfg_overlay=file
    )
    torch.testing.assert_close(fine.eval()(images)[0], maps(images)[1])


def test_the_option_weights_freezes_as_ours_does(weights):
    _, path = weights
    model = timm.create_model("vertebra_resnet18", weights=path, num_classes=0).eval()
    ours = build_backbone("resnet18", weights=path).eval()
    images = torch.rand(IMAGES)
    torch.testing.assert_close(model.forward_features(images), ours(images)["c5"], rtol=0, atol=0)
    trained = {name for name, parameter in model.backbone.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in ours.named_parameters() if parameter.requires_grad}
    assert "conv1.weight" not in trained


def test_a_pyramid_and_options_are_registered_by_name():
    name = register_timm_model("resnet18", timm_name="vertebra_test_pyramid", pyramid="fpn", out_channels=16, norm="gn")
    model = timm.create_model(name, features_only=True, out_indices=(0, 1, 4)).eval()
    ours = build_fpn_backbone("resnet18", out_channels=16, norm="gn").eval()
    ours.load_state_dict(model.model.backbone.state_dict())
    images = torch.rand(IMAGES)
    expected = ours(images)
    for found, level in zip(model(images), ("0", "1", "pool"), strict=True):
        torch.testing.assert_close(found, expected[level], rtol=0, atol=0)
    assert model.feature_info.reduction() == [4, 8, 64]


def test_mistakes_are_one_sentence():
    with pytest.raises(UserError, match="Did you mean 'resnet50'"):
        register_timm_model("resnet5")
    with pytest.raises(UserError, match="already"):
        register_timm_model("resnet18")
    with pytest.raises(UserError, match="give a file"):
        timm.create_model("vertebra_resnet18", pretrained=True)
    with pytest.raises(UserError, match="Did you mean 'output_stride'"):
        timm.create_model("vertebra_resnet18", output_strides=16)
    with pytest.raises(UserError, match="out_indices"):
        timm.create_model("vertebra_resnet18", features_only=True, out_indices=(5,))
    with pytest.raises(UserError, match="NCHW"):
        timm.create_model("vertebra_resnet18").forward_intermediates(torch.rand(IMAGES), output_fmt="NLC")
