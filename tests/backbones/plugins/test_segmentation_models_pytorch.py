"""Our backbones as encoders inside segmentation_models_pytorch's own Unet and DeepLabV3+, whose code is unchanged."""

import pytest
import torch
import torchvision

from backbones import UserError, build_backbone, build_fpn_backbone, register_backbone

smp = pytest.importorskip(
    "segmentation_models_pytorch", reason="segmentation_models_pytorch is not installed", exc_type=ImportError
)

from backbones.plugins.segmentation_models_pytorch import VertebraEncoder, register_encoder  # noqa: E402

register_encoder("resnet18", encoder_name="vertebra_test_pyramid", pyramid="fpn", out_channels=16)
register_encoder("timm/convnext_atto", encoder_name="vertebra_test_convnext")


@register_backbone("test_smp_fixed_strides")
def fixed_strides(*, in_channels=3, norm="bn", out_features=None):
    return build_backbone("resnet18", in_channels=in_channels, norm=norm, out_features=out_features)


register_encoder("test_smp_fixed_strides", encoder_name="vertebra_test_fixed_strides")


def step(model, in_channels, **sizes):
    """A training step; gives the gradient's size at the encoder's first convolution."""
    mask = (torch.rand(2, 1, 64, 96) > 0.5).float()
    scores = model.train()(torch.rand(2, in_channels, 64, 96))
    assert scores.shape == mask.shape
    smp.losses.DiceLoss(mode="binary")(scores, mask).backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert unused == []
    first = next(parameter for parameter in model.encoder.parameters() if parameter.ndim == 4)
    assert first.shape[1] == in_channels
    return float(first.grad.abs().sum())


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("name", ["vertebra_resnet18", "vertebra_test_pyramid", "vertebra_test_convnext"])
def test_unet_takes_a_training_step(name, in_channels):
    assert step(smp.Unet(name, encoder_weights=None, in_channels=in_channels), in_channels) > 0


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("output_stride", [16, 8])
def test_deeplab_takes_a_training_step_on_dilated_maps(output_stride, in_channels):
    options = {"encoder_weights": None, "encoder_output_stride": output_stride, "in_channels": in_channels}
    model = smp.DeepLabV3Plus("vertebra_resnet18", decoder_channels=32, **options)
    assert step(model, in_channels) > 0
    maps = model.encoder(torch.rand(1, in_channels, 64, 96))
    strides = [64 // level.shape[2] for level in maps]
    assert strides == [min(stride, output_stride) for stride in (1, 2, 4, 8, 16, 32)]


def test_maps_are_our_own_backbones_maps():
    encoder = smp.encoders.get_encoder("vertebra_resnet18", weights=None, output_stride=16).eval()
    ours = build_backbone("resnet18", out_features=["c1", "c2", "c3", "c4", "c5"], output_stride=16).eval()
    ours.load_state_dict(encoder.backbone.state_dict())
    images = torch.rand(2, 3, 64, 96)
    found = encoder(images)
    assert torch.equal(found[0], images)
    for level, expected in zip(found[1:], ours(images).values(), strict=True):
        torch.testing.assert_close(level, expected, rtol=0, atol=0)
    assert encoder.out_channels == [3, 64, 64, 128, 256, 512]
    assert encoder.output_stride == 16


def test_a_smaller_depth_builds_a_smaller_backbone():
    encoder = smp.encoders.get_encoder("vertebra_resnet18", depth=3)
    assert encoder.out_channels == [3, 64, 64, 128]
    assert not hasattr(encoder.backbone, "layer3")
    assert step(smp.Unet("vertebra_resnet18", 3, None, decoder_channels=(32, 16, 8)), 3) > 0


def test_a_map_of_stride_2_that_is_not_there_has_no_channels_as_in_smps_own_encoders():
    encoder = smp.encoders.get_encoder("vertebra_test_pyramid")
    ours = build_fpn_backbone("resnet18", out_channels=16).eval()
    ours.load_state_dict(encoder.eval().backbone.state_dict())
    images = torch.rand(2, 3, 64, 96)
    found = encoder(images)
    assert encoder.out_channels == [3, 0, 16, 16, 16, 16]
    assert found[1].shape == (2, 0, 32, 48)
    for level, expected in zip(found[2:], list(ours(images).values())[:4], strict=True):
        torch.testing.assert_close(level, expected, rtol=0, atol=0)


@pytest.mark.parametrize("output_stride", [16, 8])
def test_make_dilated_is_what_smp_makes_of_torchvisions_resnet(output_stride, randomize):
    theirs = smp.encoders.get_encoder("resnet18", weights=None)
    ours = VertebraEncoder("resnet18")
    randomize(theirs)
    ours.backbone.load_state_dict(theirs.state_dict())
    assert list(ours.get_stages()) == [4, 8, 16, 32]
    for encoder in (ours, theirs):
        encoder.eval().make_dilated(output_stride)
    images = torch.rand(2, 3, 64, 96)
    strided, dilated = ours(images), theirs(images)
    assert [level.shape for level in strided] == [level.shape for level in dilated]
    for level, expected in zip(strided[:4], dilated[:4], strict=True):  # the first block of a dilated stage differs
        torch.testing.assert_close(level, expected)


def test_weights_and_freezing_pass_through(tmp_path, randomize):
    path = tmp_path / "resnet18.pth"
    classifier = randomize(torchvision.models.resnet18()).eval()
    torch.save(classifier.state_dict(), path)
    name = register_encoder("resnet18", encoder_name="vertebra_test_weights", weights=str(path), trainable_layers=2)
    model = smp.Unet(name, encoder_weights=None)
    images = torch.rand(2, 3, 64, 96)
    expected = build_backbone("resnet18", weights=str(path)).eval()(images)["c5"]
    torch.testing.assert_close(model.eval().encoder(images)[-1], expected, rtol=0, atol=0)
    trained = {name.split(".")[0] for name, p in model.encoder.backbone.named_parameters() if p.requires_grad}
    assert trained == {"layer3", "layer4"}

    grey = smp.Unet(name, encoder_weights=None, in_channels=1)  # smp adapts the first convolution; it stays frozen
    weight = grey.encoder.backbone.conv1.weight
    torch.testing.assert_close(weight, classifier.conv1.weight.sum(1, keepdim=True))
    assert not weight.requires_grad
    assert grey.encoder.backbone.in_channels == 1


def test_mistakes_are_one_sentence():
    with pytest.raises(UserError, match="Did you mean 'resnet50'"):
        register_encoder("resnet5")
    with pytest.raises(UserError, match="already"):
        register_encoder("resnet18")
    with pytest.raises(UserError, match="Did you mean 'zero_init_last_norm'"):
        register_encoder("resnet18", encoder_name="other", zero_init=True)
    with pytest.raises(UserError, match="has none of 8"):
        smp.Unet("vertebra_cifar_resnet20", encoder_weights=None)
    with pytest.raises(UserError, match="has no option 'output_stride'"):
        smp.DeepLabV3Plus("vertebra_test_fixed_strides", encoder_weights=None)
    with pytest.raises(UserError, match="encoder_depth is 6"):
        VertebraEncoder("resnet18", depth=6)
