"""Our backbones inside transformers' own DETR and Mask2Former, whose code is unchanged."""

import pytest
import torch
import torchvision

from backbones import UserError, build_backbone, build_fpn_backbone

transformers = pytest.importorskip("transformers", reason="transformers is not installed", exc_type=ImportError)
pytest.importorskip("scipy", reason="transformers' losses match with scipy, which is not installed")

from transformers import (  # noqa: E402
    AutoBackbone,
    AutoConfig,
    DetrConfig,
    DetrForObjectDetection,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
)

from backbones.plugins.transformers import VertebraBackbone, VertebraConfig  # noqa: E402

# The warnings are transformers' own: of what it will change, of scipy and of torch.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")

IMAGES = (2, 3, 64, 96)


def detr(**config):
    small = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_queries": 5, "num_labels": 3}
    small |= {f"{part}_{what}": 1 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    # transformers 4 asks for a published backbone unless told.
    small |= {"use_timm_backbone": False, "use_pretrained_backbone": False}
    return DetrForObjectDetection(DetrConfig(backbone_config=VertebraConfig(**config), **small))


def mask2former(**config):
    small = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 16}
    small |= {"encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2, "dim_feedforward": 16, "num_queries": 5}
    small |= {"num_labels": 3, "train_num_points": 64, "use_pretrained_backbone": False}
    return Mask2FormerForUniversalSegmentation(Mask2FormerConfig(backbone_config=VertebraConfig(**config), **small))


def conv1_gradient(model):
    gradients = [p.grad for name, p in model.named_parameters() if name.endswith("conv1.weight") and p.shape[1] == 3]
    return float(gradients[0].abs().sum())


def test_maps_are_our_own_backbones_maps():
    model = AutoBackbone.from_config(VertebraConfig(name="resnet18", out_features=["c3", "c5"])).eval()
    ours = build_backbone("resnet18", out_features=["c3", "c5"]).eval()
    ours.load_state_dict(model.backbone.state_dict())
    images = torch.rand(IMAGES)
    for found, expected in zip(model(images).feature_maps, ours(images).values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert isinstance(model, VertebraBackbone)
    assert (model.channels, model.out_features, model.out_indices) == ([128, 512], ["c3", "c5"], [2, 4])
    assert model.stage_names == ["c1", "c2", "c3", "c4", "c5"]


def test_a_pyramids_levels_are_maps():
    config = VertebraConfig(name="resnet18", pyramid="fpn", options={"out_channels": 16, "extra_level": "p6p7"})
    model = AutoBackbone.from_config(config).eval()
    ours = build_fpn_backbone("resnet18", out_channels=16, extra_level="p6p7").eval()
    ours.load_state_dict(model.backbone.state_dict())
    images = torch.rand(IMAGES)
    for found, expected in zip(model(images).feature_maps, ours(images).values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert model.out_features == ["0", "1", "2", "3", "p6", "p7"]
    assert model.channels == [16] * 6


def test_transformers_does_not_initialise_again():
    config = VertebraConfig(name="resnet18")
    torch.manual_seed(3)
    model = AutoBackbone.from_config(config)
    torch.manual_seed(3)
    ours = build_backbone("resnet18")
    for name, value in ours.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], value), name


def test_places_of_maps_mean_their_names():
    assert VertebraConfig(name="resnet18", out_indices=[-1, 2]).out_features == ["c3", "c5"]


def test_hidden_states_and_tuples_are_given_when_asked_for():
    model = AutoBackbone.from_config(VertebraConfig(name="resnet18", out_features=["c2"])).eval()
    images = torch.rand(IMAGES)
    assert model(images).hidden_states is None
    assert torch.equal(model(images, output_hidden_states=True).hidden_states[0], model(images).feature_maps[0])
    assert torch.equal(model(images, return_dict=False)[0][0], model(images).feature_maps[0])


@pytest.mark.parametrize("config", [{"name": "resnet18"}, {"name": "resnet18", "pyramid": "fpn", "num_channels": 3}])
def test_detr_takes_a_training_step(config):
    model = detr(**config).train()
    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.3, 0.4]])}] * 2
    output = model(torch.rand(IMAGES), labels=labels)
    assert output.loss.isfinite()
    output.loss.backward()
    assert conv1_gradient(model) > 0


def test_mask2former_takes_a_training_step():
    model = mask2former(name="resnet18").train()
    masks = torch.zeros(2, 64, 96)
    masks[0, :, :40], masks[1, 20:, :] = 1, 1
    output = model(torch.rand(IMAGES), mask_labels=[masks, masks], class_labels=[torch.tensor([0, 2])] * 2)
    assert output.loss.isfinite()
    output.loss.backward()
    assert conv1_gradient(model) > 0


def test_a_saved_backbone_comes_back_with_what_was_frozen(tmp_path, randomize):
    weights = tmp_path / "resnet18.pth"
    torch.save(randomize(torchvision.models.resnet18()).state_dict(), weights)
    model = VertebraBackbone(VertebraConfig(name="resnet18", weights=str(weights))).eval()
    ours = build_backbone("resnet18", weights=str(weights)).eval()
    images = torch.rand(IMAGES)
    for found, expected in zip(model(images).feature_maps, ours(images).values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)

    model.save_pretrained(tmp_path / "saved")
    weights.unlink()  # a saved model needs nothing besides
    again = VertebraBackbone.from_pretrained(tmp_path / "saved").eval()
    for found, expected in zip(again(images).feature_maps, ours(images).values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    trained = {name for name, parameter in ours.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in again.backbone.named_parameters() if parameter.requires_grad} == trained
    assert "layer2.0.conv1.weight" in trained
    assert "conv1.weight" not in trained
    config = AutoConfig.from_pretrained(tmp_path / "saved")
    assert isinstance(config, VertebraConfig)
    assert (config.weights, config.norm, config.trainable_layers) == (None, "frozen_bn", 3)


def test_a_saved_detr_comes_back(tmp_path, randomize):
    weights = tmp_path / "resnet18.pth"
    torch.save(randomize(torchvision.models.resnet18()).state_dict(), weights)
    model = detr(name="resnet18", weights=str(weights), out_features=["c4"]).eval()
    model.save_pretrained(tmp_path / "saved")
    weights.unlink()
    again = DetrForObjectDetection.from_pretrained(tmp_path / "saved").eval()
    images = torch.rand(IMAGES)
    torch.testing.assert_close(again(images).logits, model(images).logits)
    torch.testing.assert_close(again(images).pred_boxes, model(images).pred_boxes)


def test_a_saved_backbone_of_timm_comes_back_with_what_it_does_not_save(tmp_path):
    pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError)
    config = VertebraConfig(name="timm/swin_tiny_patch4_window7_224", out_features=["c2"])
    model = VertebraBackbone(config).eval()
    model.save_pretrained(tmp_path)
    again = VertebraBackbone.from_pretrained(tmp_path).eval()
    images = torch.rand(1, 3, 64, 96)
    (found,), (expected,) = again(images).feature_maps, model(images).feature_maps
    assert found.shape == (1, 96, 16, 24)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)  # the windows' masks and places are not in the file


def test_what_a_checkpoint_lacks_is_initialised(tmp_path):
    model = VertebraBackbone(VertebraConfig(name="resnet18", out_features=["c3"]))
    state = {key: value for key, value in model.state_dict().items() if "layer2" not in key}
    model.save_pretrained(tmp_path, state_dict=state)
    again = VertebraBackbone.from_pretrained(tmp_path).eval()
    assert torch.equal(again.backbone.conv1.weight, model.backbone.conv1.weight)
    assert torch.equal(again.backbone.layer2[0].bn1.running_var, torch.ones(128))
    weight = again.backbone.layer2[0].conv1.weight
    assert float(weight.std()) == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.05)  # He's, over the outputs


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "resnet5"}, "Did you mean 'resnet50'"),
        ({"name": "resnet18", "out_features": ["c3", "c6"]}, "'c6'"),
        ({"name": "resnet18", "out_indices": [7]}, "out_indices has 7"),
        ({"name": "resnet18", "trainable_layer": 3}, "Did you mean 'trainable_layers'"),
        ({"name": "resnet18", "output_stride": 16}, "options="),
        ({"name": "resnet18", "options": {"output_strid": 16}}, "Did you mean 'output_stride'"),
        ({"name": "resnet18", "pyramid": "fpm"}, "Did you mean 'fpn'"),
    ],
)
def test_a_mistake_is_one_sentence(config, message):
    with pytest.raises(UserError, match=message):
        VertebraConfig(**config)


def test_a_map_that_was_not_built_is_named():
    model = VertebraBackbone(VertebraConfig(name="resnet18", out_features=["c3"]))
    model.out_features = ["c5"]
    with pytest.raises(UserError, match="c5 was not built"):
        model(torch.rand(IMAGES))


def test_the_channels_of_an_image_have_one_name():
    with pytest.raises(UserError, match=r"give VertebraConfig\(num_channels=\.\.\.\)"):
        VertebraConfig(name="resnet18", options={"in_channels": 4})
