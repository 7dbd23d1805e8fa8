"""backbones/zoos/torchvision.py: torchvision's classifiers under our contract, and their own layers as the reference."""

import pytest
import torch
import torchvision
from torch import nn

from backbones import UserError, build_backbone, build_fpn_backbone, list_backbones
from backbones.check import check_freezing, check_gradients
from backbones.check_maps import check_maps
from heads import faster_rcnn

SMALL = {
    "resnet18": ("layer1", "layer2", "layer3", "layer4"),
    "mobilenet_v3_small": ("features.1", "features.3", "features.8", "features.12"),
    "regnet_x_400mf": ("trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output.block4"),
    "shufflenet_v2_x0_5": ("maxpool", "stage2", "stage3", "conv5"),
    "vgg11": ("features.9", "features.14", "features.19", "features.20"),
    "densenet121": ("features.denseblock1", "features.denseblock2", "features.denseblock3", "features.norm5"),
    "mnasnet0_5": ("layers.8", "layers.9", "layers.11", "layers.16"),
    "googlenet": ("conv3", "inception3b", "inception4e", "inception5b"),
    "convnext_tiny": ("features.1", "features.3", "features.5", "features.7"),
}


def layers_of(model, names, images):
    """What the model's own modules give in its own forward pass."""
    found = {}
    for name in names:
        model.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: found.update({name: output.clone()}))
    with torch.no_grad():
        model.eval()(images)
    return [found[name] for name in names]


@pytest.mark.parametrize(("name", "layers"), SMALL.items())
def test_maps_are_those_of_the_classifiers_own_layers(name, layers):
    backbone = build_backbone(f"torchvision/{name}").eval()
    assert {spec.stride for spec in backbone.feature_specs.values()} == {4, 8, 16, 32}
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, weights=None, **options)
    own = model.state_dict()
    for key, value in backbone.body.state_dict().items():
        own[key].copy_(value)
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        found = backbone(images)
    for ours, expected in zip(found.values(), layers_of(model, layers, images), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_maps_of_swin_have_their_channels_first():
    backbone = build_backbone("torchvision/swin_t").eval()
    model = torchvision.models.swin_t()
    model.load_state_dict(backbone.body.state_dict(), strict=False)
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        found = backbone(images)
    expected = layers_of(model, ("features.1", "features.3", "features.5", "norm"), images)
    for ours, theirs in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(ours, theirs.permute(0, 3, 1, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "regnet_x_400mf", "vgg11", "googlenet", "shufflenet_v2_x0_5"]
)
def test_odd_sizes_and_gradients(name):
    backbone = build_backbone(f"torchvision/{name}")
    check_maps(backbone, size=(97, 131))
    check_gradients(backbone)


def test_freezing_counts_stages_as_for_a_resnet():
    backbone = build_backbone("torchvision/mobilenet_v3_small", trainable_layers=3)
    trained = {int(key.split(".")[2]) for key, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert trained == set(range(2, 13))  # features.0 is the stem, features.1 gives c2
    check_freezing(build_backbone("torchvision/resnet18"))


def test_a_classifiers_file_loads_by_torchvisions_names(tmp_path):
    model = torchvision.models.resnet18()
    torch.save(model.state_dict(), tmp_path / "resnet18.pth")
    backbone = build_backbone("torchvision/resnet18", weights=str(tmp_path / "resnet18.pth"))
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = layers_of(model, ("layer4",), images)[0]
        torch.testing.assert_close(backbone.eval()(images)["c5"], expected, rtol=1e-4, atol=1e-5)
    assert backbone.stages()["stage2"][0].training is False
    with pytest.raises(UserError, match=r"resnet18.pth"):
        build_backbone("torchvision/vgg11", weights=str(tmp_path / "resnet18.pth"))


def test_published_weights_come_through_torchvision(monkeypatch):
    published = torchvision.models.get_model_weights("resnet18")["IMAGENET1K_V1"]
    model = torchvision.models.resnet18()
    monkeypatch.setattr(type(published), "get_state_dict", lambda self, **options: model.state_dict())
    backbone = build_backbone("torchvision/resnet18", weights="IMAGENET1K_V1", in_channels=1)
    torch.testing.assert_close(backbone.body.conv1.weight, model.conv1.weight.sum(1, keepdim=True))
    torch.testing.assert_close(backbone.body.layer4.get_submodule("1").conv2.weight, model.layer4[1].conv2.weight)
    with pytest.raises(UserError, match="publishes no weights 'IMAGENET1K_V9' for resnet18"):
        build_backbone("torchvision/resnet18", weights="IMAGENET1K_V9")


def test_frozen_norms_compute_what_live_ones_do_in_evaluation(randomize):
    live = randomize(build_backbone("torchvision/resnet18", norm="bn")).eval()
    frozen = build_backbone("torchvision/resnet18", norm="frozen_bn").eval()
    frozen.load_state_dict({key: value for key, value in live.state_dict().items() if "num_batches" not in key})
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(frozen(images)["c5"], live(images)["c5"], rtol=1e-4, atol=1e-4)
    assert any(isinstance(m, nn.SyncBatchNorm) for m in build_backbone("torchvision/resnet18", norm="sync_bn").modules())
    with pytest.raises(UserError, match="norm is 'gn', but torchvision/resnet18"):
        build_backbone("torchvision/resnet18", norm="gn")


def test_torchvisions_classifiers_train_in_faster_rcnn(make_target, train_step):
    body = build_fpn_backbone("torchvision/mobilenet_v3_small", out_channels=16)
    model = faster_rcnn(body, 3, min_size=64, max_size=96, box_head_dim=8)
    assert train_step(model, [torch.rand(3, 64, 96)], [make_target([[8, 8, 60, 50]])])["loss_classifier"] > 0


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("vit_b_16", "it takes images of one size only. timm/vit_base_patch16_224"),
        ("maxvit_t", "it takes images of one size only"),
        ("alexnet", r"gives a map \(1, 64, 31, 63\), expected"),
        ("squeezenet1_1", r"gives a map \(1, 64, 63, 127\), expected"),
    ],
)
def test_classifiers_that_cannot_keep_the_contract_are_refused_with_why(name, why):
    with torch.device("meta"), pytest.raises(UserError, match=rf"torchvision/{name} cannot be a backbone.*{why}"):
        build_backbone(f"torchvision/{name}")


def test_unknown_names_and_options_are_one_sentence():
    assert "torchvision/regnet_y_400mf" in list_backbones("torchvision/*regnet*")
    with pytest.raises(UserError, match=r"torchvision has no classifier 'resnet5'.*Did you mean 'resnet50'\?"):
        build_backbone("torchvision/resnet5")
    with pytest.raises(UserError, match=r"torchvision/resnet18 cannot be built with {'depth': 3}"):
        build_backbone("torchvision/resnet18", depth=3)
