"""backbones/zoos/huggingface.py: transformers' backbones under our contract, and AutoBackbone's own maps as the reference."""

import pytest
import torch

from backbones import UserError, build_backbone, build_fpn_backbone, list_backbones
from backbones.check import check_freezing, check_gradients
from backbones.check_maps import check_maps
from heads import faster_rcnn

transformers = pytest.importorskip("transformers")

# Small ones, by configuration.
SMALL = {
    "swin": {"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 3, 3], "window_size": 4},
    "convnext": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "layer_type": "basic"},
    "dinov2": {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 56},
}


def reference_maps(name, backbone, images):
    """AutoBackbone's own, with the same weights."""
    config = transformers.AutoConfig.for_model(name, **SMALL[name])
    config.out_features = list(config.stage_names)
    model = transformers.AutoBackbone.from_config(config).eval()
    model.load_state_dict({key.removeprefix("model."): value for key, value in backbone.body.state_dict().items()})
    with torch.no_grad():
        return model(images).feature_maps


@pytest.mark.parametrize("name", ["swin", "convnext", "resnet"])
def test_maps_are_auto_backbones_own(name):
    backbone = build_backbone(f"hf/{name}", **SMALL[name]).eval()
    assert [spec.stride for spec in backbone.feature_specs.values()] == [4, 8, 16, 32]
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        found = backbone(images)
    for ours, theirs in zip(found.values(), reference_maps(name, backbone, images)[1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_patches_of_14_pixels_span_16_of_the_image():
    backbone = build_backbone("hf/dinov2", **SMALL["dinov2"]).eval()
    assert backbone.plain
    assert {name: (spec.channels, spec.stride) for name, spec in backbone.feature_specs.items()} == {"c4": (24, 16)}
    images = torch.rand(1, 3, 64, 96)
    smaller = torch.nn.functional.interpolate(images, size=(56, 84), mode="bilinear")
    with torch.no_grad():
        torch.testing.assert_close(backbone(images)["c4"], reference_maps("dinov2", backbone, smaller)[-1])


@pytest.mark.parametrize("name", SMALL)
def test_odd_sizes_gradients_and_freezing(name):
    backbone = build_backbone(f"hf/{name}", **SMALL[name])
    check_maps(backbone, size=(97, 131))
    check_gradients(backbone)
    check_freezing(backbone)


@pytest.mark.parametrize("name", ["swin", "dinov2"])
def test_transformers_backbones_train_in_faster_rcnn(name, make_target, train_step):
    model = faster_rcnn(
        build_fpn_backbone(f"hf/{name}", out_channels=16, **SMALL[name]), 3, min_size=64, max_size=96, box_head_dim=8
    )
    assert train_step(model, [torch.rand(3, 64, 96)], [make_target([[8, 8, 60, 50]])])["loss_classifier"] > 0


def test_a_folder_gives_its_configuration_and_with_pretrained_its_weights(tmp_path):
    config = transformers.AutoConfig.for_model("resnet", **SMALL["resnet"])
    model = transformers.AutoBackbone.from_config(config)
    model.save_pretrained(tmp_path / "saved")
    backbone = build_backbone(f"hf/{tmp_path / 'saved'}", weights="pretrained", norm="bn")
    for key, value in model.state_dict().items():
        assert torch.equal(backbone.body.model.state_dict()[key], value), key
    scratch = build_backbone(f"hf/{tmp_path / 'saved'}")
    assert not torch.equal(scratch.body.model.embedder.embedder.convolution.weight, model.embedder.embedder.convolution.weight)
    assert all(parameter.requires_grad for parameter in scratch.parameters())


def test_pretrained_weights_are_adapted_to_other_channels(tmp_path):
    config = transformers.AutoConfig.for_model("resnet", **SMALL["resnet"])
    model = transformers.AutoBackbone.from_config(config)
    model.save_pretrained(tmp_path / "saved")
    backbone = build_backbone(f"hf/{tmp_path / 'saved'}", weights="pretrained", in_channels=1, norm="bn")
    for key, value in model.state_dict().items():
        if key == "embedder.embedder.convolution.weight":
            value = value.sum(1, keepdim=True)
        torch.testing.assert_close(backbone.body.model.state_dict()[key], value, msg=key)
    assert "1" in str(backbone.weights_report)


def test_a_file_loads_in_the_models_own_names(tmp_path):
    model = build_backbone("hf/resnet", **SMALL["resnet"]).body.model
    torch.save(model.state_dict(), tmp_path / "model.pth")
    backbone = build_backbone("hf/resnet", weights=str(tmp_path / "model.pth"), norm="bn", **SMALL["resnet"])
    assert torch.equal(
        backbone.body.model.encoder.stages[3].layers[0].layer[0].convolution.weight,
        model.encoder.stages[3].layers[0].layer[0].convolution.weight,
    )


def test_without_a_network_an_id_is_one_sentence(monkeypatch):
    def fail(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", fail)
    with pytest.raises(
        UserError, match=r"configuration of hf/microsoft/resnet-50 could not be had \(no route to host\).*FOLDER"
    ):
        build_backbone("hf/microsoft/resnet-50")


def test_other_channels_and_unknown_names_and_options():
    backbone = build_backbone("hf/convnext", in_channels=2, **SMALL["convnext"])
    check_maps(backbone)
    assert "hf/swinv2" in list_backbones("hf/swin*")
    with pytest.raises(UserError, match=r"no model type with a backbone 'swinn'.*Did you mean 'swin'\?"):
        build_backbone("hf/swinn")
    with pytest.raises(UserError, match=r"hf/swin has no option 'depth'.*Did you mean 'depths'\?"):
        build_backbone("hf/swin", depth=2)
    with pytest.raises(UserError, match="hf/textnet takes images of 3 channels only"):
        build_backbone("hf/textnet", in_channels=1)
    with pytest.raises(UserError, match=r"hf/timm_backbone is of the model type 'timm_backbone'.*timm/NAME"):
        build_backbone("hf/timm_backbone")
    with pytest.raises(UserError, match="norm is 'gn', but hf/resnet"):
        build_backbone("hf/resnet", norm="gn")
    with pytest.raises(UserError, match="hf/swin has no weights 'IMAGENET1K_V1'"):
        build_backbone("hf/swin", weights="IMAGENET1K_V1", **SMALL["swin"])
