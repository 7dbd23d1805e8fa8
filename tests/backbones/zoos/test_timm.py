"""backbones/zoos/timm.py: timm's models under our contract, and timm's own maps as the reference."""

import pytest
import timm
import torch
from torchvision.ops import FrozenBatchNorm2d

from backbones import UserError, build_backbone, build_fpn_backbone, list_backbones
from backbones.check import check_freezing, check_gradients
from backbones.check_maps import check_maps
from heads import faster_rcnn

pytestmark = [
    # timm's own
    pytest.mark.filterwarnings("ignore:.*indexing.*:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:timm"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:timm"),
]

HIERARCHICAL = {
    "resnet10t": {"c2": (64, 4), "c3": (128, 8), "c4": (256, 16), "c5": (512, 32)},
    "mobilenetv3_small_050": {"c2": (8, 4), "c3": (16, 8), "c4": (24, 16), "c5": (288, 32)},
    "convnext_atto": {"c2": (40, 4), "c3": (80, 8), "c4": (160, 16), "c5": (320, 32)},
    "efficientvit_b0": {"c2": (16, 4), "c3": (32, 8), "c4": (64, 16), "c5": (128, 32)},
    "shvit_s1": {"c4": (128, 16), "c5": (224, 32)},  # the map of stride 64 is none of a detector's
    "hrnet_w18_small": {"c2": (128, 4), "c3": (256, 8), "c4": (512, 16), "c5": (1024, 32)},
}
NHWC = {"swin_tiny_patch4_window7_224": {"c2": (96, 4), "c3": (192, 8), "c4": (384, 16), "c5": (768, 32)}}
PLAIN = {"vit_tiny_patch16_224": {"c4": (192, 16)}, "xcit_nano_12_p16_224": {"c4": (128, 16)}}
TILED = {"levit_128s": {"c4": (128, 16), "c5": (256, 32)}}


def specs(backbone):
    return {name: (spec.channels, spec.stride) for name, spec in backbone.feature_specs.items()}


@pytest.mark.parametrize(("name", "expected"), (HIERARCHICAL | NHWC | PLAIN).items())
def test_models_of_every_kind_keep_their_shapes_on_odd_sizes_and_get_gradients_everywhere(name, expected):
    backbone = build_backbone(f"timm/{name}")
    assert specs(backbone) == expected
    assert backbone.plain == (name in PLAIN)
    check_maps(backbone, size=(97, 65))
    check_gradients(backbone)


@pytest.mark.parametrize(
    "name",
    ["vit_small_patch14_dinov2", "maxvit_rmlp_pico_rw_256", "coat_tiny", "swinv2_tiny_window8_256", "vgg11", "nest_tiny"],
)
def test_shapes_hold_on_the_meta_device(name):
    with torch.device("meta"):
        backbone = build_backbone(f"timm/{name}")
    check_maps(backbone, size=(97, 131))
    assert all(parameter.is_meta for parameter in backbone.parameters())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet10t", {}),
        ("mobilenetv3_small_050", {}),
        ("convnext_atto", {}),
        ("efficientvit_b0", {}),
        ("swin_tiny_patch4_window7_224", {"strict_img_size": False}),
    ],
)
def test_maps_are_timms_own_where_nothing_is_padded(name, options):
    backbone = build_backbone(f"timm/{name}").eval()
    reference = timm.create_model(name, features_only=True, **options).eval()
    reference.load_state_dict(backbone.body.state_dict(), strict=False)
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        found, theirs = backbone(images), reference(images)
    if name == "swin_tiny_patch4_window7_224":
        theirs = [features.permute(0, 3, 1, 2) for features in theirs]
    for ours, expected in zip(found.values(), theirs[-len(found) :], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_a_plain_vision_transformer_gives_its_last_block_after_the_final_norm():
    backbone = build_backbone("timm/vit_tiny_patch16_224").eval()
    reference = timm.create_model("vit_tiny_patch16_224", num_classes=0, global_pool="token", dynamic_img_size=True).eval()
    reference.load_state_dict({key.removeprefix("model."): value for key, value in backbone.body.state_dict().items()})
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        tokens = reference.forward_features(images)[:, 1:]
        torch.testing.assert_close(backbone(images)["c4"], tokens.transpose(1, 2).reshape(1, 192, 4, 6), rtol=1e-5, atol=1e-5)


def test_a_patch_of_14_pixels_sees_the_image_at_14_sixteenths():
    options = {"embed_dim": 24, "depth": 3, "num_heads": 2}
    backbone = build_backbone("timm/vit_small_patch14_dinov2", **options).eval()
    assert specs(backbone) == {"c4": (24, 16)}
    reference = timm.create_model("vit_small_patch14_dinov2", num_classes=0, dynamic_img_size=True, **options).eval()
    reference.load_state_dict({key.removeprefix("model."): value for key, value in backbone.body.state_dict().items()})
    images = torch.rand(1, 3, 64, 96)
    smaller = torch.nn.functional.interpolate(images, size=(56, 84), mode="bilinear")
    with torch.no_grad():
        tokens = reference.forward_features(smaller)[:, 1:]
        torch.testing.assert_close(backbone(images)["c4"], tokens.transpose(1, 2).reshape(1, 24, 4, 6), rtol=1e-5, atol=1e-5)


def test_a_model_of_one_size_sees_each_tile_of_that_size_on_its_own():
    backbone = build_backbone("timm/levit_128s").eval()
    assert specs(backbone) == TILED["levit_128s"]
    image = torch.rand(1, 3, 224, 448)
    with torch.no_grad():
        whole = backbone(image)
        left, right = (backbone(part) for part in image.split(224, dim=3))
    for name, found in whole.items():
        torch.testing.assert_close(found, torch.cat([left[name], right[name]], dim=3), rtol=1e-4, atol=1e-5)
    reference = timm.create_model("levit_128s", features_only=True).eval()
    reference.load_state_dict(backbone.body.state_dict(), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(left["c4"], reference(image[..., :224])[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_freezing_counts_stages_as_for_a_resnet(name):
    backbone = build_backbone(f"timm/{name}", trainable_layers=3)
    assert list(backbone.stages()) == ["stem", "stage1", "stage2", "stage3", "stage4"]
    trained = {key for key, parameter in backbone.named_parameters() if parameter.requires_grad}
    if name == "resnet10t":
        assert {key.split(".")[1] for key in trained} == {"layer2", "layer3", "layer4"}
    else:
        blocks = {int(key.split(".")[3]) for key in trained if ".blocks." in key}
        assert blocks == set(range(3, 12))
        assert "body.model.pos_embed" not in trained
        assert "body.model.norm.weight" in trained


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto"])
def test_what_is_frozen_stays(name):
    check_freezing(build_backbone(f"timm/{name}"))


def test_fewer_maps_leave_out_what_no_map_needs():
    backbone = build_backbone("timm/resnet10t", out_features=["c1", "c3"], trainable_layers=4)
    assert specs(backbone) == {"c1": (64, 2), "c3": (128, 8)}
    assert not any("layer3" in key for key, _ in backbone.named_parameters())
    assert not backbone.stages()["stage3"]
    check_maps(backbone, size=(65, 97))
    with pytest.raises(UserError, match="out_features names 'c6', but timm/resnet10t gives c1, c2, c3, c4, c5"):
        build_backbone("timm/resnet10t", out_features=["c6"])


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_timms_models_train_in_faster_rcnn(name, make_target, train_step):
    model = faster_rcnn(build_fpn_backbone(f"timm/{name}", out_channels=16), 3, min_size=64, max_size=96, box_head_dim=8)
    losses = train_step(model, [torch.rand(3, 64, 96)], [make_target([[8, 8, 60, 50]])])
    assert losses["loss_classifier"] > 0


def test_norms_are_turned_into_frozen_and_synchronised_ones():
    torch.manual_seed(1)
    live = build_backbone("timm/resnet10t", norm="bn").eval()
    torch.manual_seed(1)
    frozen = build_backbone("timm/resnet10t", norm="frozen_bn").eval()
    assert not any("bn" in key for key, _ in frozen.named_parameters())
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(frozen(images)["c5"], live(images)["c5"], rtol=1e-4, atol=1e-5)
    synchronised = build_backbone("timm/resnet10t", norm="sync_bn")
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in synchronised.modules())
    assert not any(isinstance(module, FrozenBatchNorm2d) for module in synchronised.modules())
    with pytest.raises(UserError, match="norm is 'gn', but timm/resnet10t is built as its library has it"):
        build_backbone("timm/resnet10t", norm="gn")


def test_a_file_of_timms_weights_loads_with_its_filter_functions_and_misfits_are_named(tmp_path):
    whole = timm.create_model("convnext_atto")
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    backbone = build_backbone("timm/convnext_atto", weights=str(tmp_path / "whole.pth"))
    given = {key.replace(".", "_"): value for key, value in whole.state_dict().items()}
    own = {key.replace(".", "_"): value for key, value in backbone.body.state_dict().items()}
    assert all(torch.equal(value, given[key]) for key, value in own.items())
    assert sum(parameter.requires_grad for parameter in backbone.stages()["stage1"][0].parameters()) == 0

    grey = build_backbone("timm/convnext_atto", weights=str(tmp_path / "whole.pth"), in_channels=1)
    torch.testing.assert_close(grey.body.stem_0.weight, whole.stem[0].weight.sum(1, keepdim=True))

    short = {key: value for key, value in whole.state_dict().items() if not key.startswith("stages.3.blocks.1.")}
    torch.save(short, tmp_path / "short.pth")
    with pytest.raises(UserError, match=r"do not fit timm/convnext_atto: \d+ tensors are missing: stages\.3\.blocks\.1\."):
        build_backbone("timm/convnext_atto", weights=str(tmp_path / "short.pth"))
    with pytest.raises(UserError, match="do not fit timm/convnext_femto"):
        build_backbone("timm/convnext_femto", weights=str(tmp_path / "whole.pth"))


def test_a_failed_download_says_how_to_pass_a_file(monkeypatch):
    def fail(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fail)
    with pytest.raises(UserError, match=r"timm/resnet10t could not be downloaded \(no route to host\).*weights=PATH"):
        build_backbone("timm/resnet10t", weights="pretrained")
    with pytest.raises(UserError, match="timm publishes no weights 'c3_in1k' for resnet18"):
        build_backbone("timm/resnet18", weights="c3_in1k")


def test_other_channels_and_options_reach_timm():
    backbone = build_backbone("timm/resnet10t", in_channels=5, drop_path_rate=0.2)
    check_maps(backbone)
    assert backbone.in_channels == 5
    assert any(type(module).__name__ == "DropPath" for module in backbone.modules())
    with pytest.raises(UserError, match=r"timm/resnet10t cannot be built with {'drop_pth': 1}"):
        build_backbone("timm/resnet10t", drop_pth=1)


def test_building_draws_the_same_random_numbers_as_timm_alone():
    torch.manual_seed(3)
    timm.create_model("resnet10t", features_only=True, out_indices=(1, 2, 3, 4))
    expected = torch.rand(1)
    torch.manual_seed(3)
    build_backbone("timm/resnet10t")
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("crossvit_9_240", r"gives a map .*expected sides that divide the image's evenly"),
        ("pit_ti_224", r"gives a map \(1, 64, 27, 27\), expected"),
        ("inception_v3", r"gives a map .*expected sides that divide"),
    ],
)
def test_models_that_cannot_keep_the_contract_are_refused_with_what_was_measured(name, why):
    with torch.device("meta"), pytest.raises(UserError, match=rf"timm/{name} cannot be a backbone.*{why}"):
        build_backbone(f"timm/{name}")


def test_names_are_listed_and_unknown_ones_suggest_the_nearest():
    assert "timm/vit_tiny_patch16_224" in list_backbones("timm/*vit_tiny*")
    with pytest.raises(UserError, match=r"timm has no model 'convnext_tinny'.*Did you mean 'convnext_tiny'\?"):
        build_backbone("timm/convnext_tinny")
    with pytest.raises(UserError, match=r"timm/resnet18.a1_in1k names weights.*name timm/resnet18, weights a1_in1k"):
        build_backbone("timm/resnet18.a1_in1k")
