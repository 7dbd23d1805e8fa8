"""backbones/layouts.py: a model written by each library's rules loads into ours and computes the same."""

import pickle
import re
from functools import partial

import pytest
import timm
import torch
from torch import nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn, retinanet_resnet50_fpn
from torchvision.models.resnet import Bottleneck as TorchvisionBottleneck
from torchvision.models.resnet import ResNet as TorchvisionResNet
from torchvision.ops import deform_conv2d

from backbones import UserError, build_backbone, build_fpn_backbone, load_backbone_weights
from backbones.base import Backbone, FeatureSpec
from backbones.resnet import ResNet
from backbones.resnet_blocks import BasicBlock, Bottleneck

IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
IMAGENET_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


@pytest.fixture
def images():
    return torch.randn(2, 3, 70, 90)


def small_resnet(**options):
    """Ours with bottlenecks, a block a stage."""
    stride_in_1x1 = options.pop("stride_in_1x1", False)
    return ResNet(partial(Bottleneck, stride_in_1x1=stride_in_1x1), (1, 1, 1, 1), **options).eval()


def small_torchvision(randomize, **options):
    """torchvision's of the same kind."""
    return randomize(TorchvisionResNet(TorchvisionBottleneck, [1, 1, 1, 1], num_classes=7, **options)).eval()


def torchvision_maps(model, images):
    x = model.maxpool(model.relu(model.bn1(model.conv1(images))))
    maps = {}
    for i in range(1, 5):
        x = getattr(model, f"layer{i}")(x)
        maps[f"c{i + 1}"] = x
    return maps


def assert_same(maps, others):
    others = list(others.values()) if isinstance(others, dict) else others
    assert len(maps) == len(others) > 0
    for (name, ours), theirs in zip(maps.items(), others, strict=True):
        difference = (ours - theirs).abs().max() / theirs.abs().max()
        assert difference < 1e-5, (name, difference)


def save(content, path):
    torch.save(content, path)
    return path


def save_arrays(content, path, **beside):
    """As detectron2 saves: a pickle of NumPy arrays."""
    with path.open("wb") as file:
        pickle.dump({"model": {key: value.numpy() for key, value in content.items()}, **beside}, file)
    return path


# --- timm ---


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnetv2_18", {"name": "resnetv2_18"}),
        ("resnetv2_50", {"name": "resnetv2_50"}),
        ("resnetv2_50d", {"name": "resnetv2_50", "stem": "deep", "shortcut": "D"}),
    ],
)
@torch.no_grad()
def test_timm_preactivation(name, options, images, tmp_path, randomize):
    theirs = randomize(timm.create_model(name)).eval()
    ours = build_backbone(**options, out_features=["c5"]).eval()
    report = load_backbone_weights(ours, save(theirs.state_dict(), tmp_path / "timm.pth"))
    assert report.layout == "timm resnetv2"
    assert report.ignored == {"classifier": ["head.fc.weight", "head.fc.bias"]}
    assert_same(ours(images), [theirs.forward_features(images)])


@torch.no_grad()
def test_timm_preactivation_without_its_last_stages(images, tmp_path, randomize):
    theirs = randomize(timm.create_model("resnetv2_18")).eval()
    ours = build_backbone("resnetv2_18", out_features=["c3"]).eval()
    report = load_backbone_weights(ours, save(theirs.state_dict(), tmp_path / "timm.pth"))
    unbuilt = {".".join(key.split(".")[:2]) for key in report.ignored["stages that are not built"]}
    assert unbuilt == {"stages.2", "stages.3", *(f"norm.{part}" for part in ("weight", "bias", "running_mean", "running_var"))}
    x = theirs.stages[1](theirs.stages[0](theirs.stem(images)))
    assert_same(ours(images), [x])


@pytest.mark.parametrize(
    ("name", "ours_name"), [("resnet18d", "resnet18d"), ("seresnet18", "seresnet18"), ("resnet50c", "resnet50c")]
)
@torch.no_grad()
def test_timm_deep_stems_averaged_shortcuts_and_squeeze_excitation(name, ours_name, images, tmp_path, randomize):
    theirs = randomize(timm.create_model(name)).eval()
    ours = build_backbone(ours_name).eval()
    report = load_backbone_weights(ours, save(theirs.state_dict(), tmp_path / "timm.pth"))
    assert report.ignored == {"classifier": ["fc.weight", "fc.bias"]}
    assert_same(ours(images), theirs.forward_intermediates(images, indices=[1, 2, 3, 4], intermediates_only=True))


def test_timm_standardised_convolutions_are_refused(tmp_path):
    theirs = timm.create_model("resnetv2_50x1_bit")
    ours = build_backbone("resnetv2_50", norm="gn")
    with pytest.raises(UserError, match="BiT, whose convolutions standardise their weights"):
        load_backbone_weights(ours, save(theirs.state_dict(), tmp_path / "bit.pth"), allow_partial=True)


class Adapter(Backbone):
    """Another library's model within a backbone, as a user would write it."""

    def __init__(self, model, specs):
        super().__init__()
        self.network = model
        self.feature_specs = specs

    def forward(self, images):
        return dict(zip(self.feature_specs, self.network(images), strict=True))


@pytest.mark.parametrize("indices", [[0, 1, 2, 3], [1, 2]])
@torch.no_grad()
def test_a_timm_model_within_an_adapter(indices, images, tmp_path, randomize):
    whole = randomize(timm.create_model("convnext_atto")).eval()
    inner = timm.create_model("convnext_atto", features_only=True, out_indices=indices).eval()
    specs = {f"c{i + 2}": FeatureSpec(40 * 2**i, 4 * 2**i) for i in indices}
    ours = Adapter(inner, specs).eval()
    report = load_backbone_weights(ours, save(whole.state_dict(), tmp_path / "timm.pth"))
    assert report.complete
    heads = [key for keys in report.ignored.values() for key in keys]
    assert {key.split(".")[0] for key in heads} == ({"head"} if 3 in indices else {"head", "stages"})
    assert_same(ours(images), whole.forward_intermediates(images, indices=indices, intermediates_only=True))


@pytest.mark.parametrize(
    ("name", "beyond"),
    [
        ("efficientnet_b0", {"conv_head", "bn2"}),
        ("cspresnet50", set()),  # a stem that is taken apart, and is no Sequential
        ("vit_tiny_patch16_224", {"norm"}),  # a module of another name within the adapter's; the norm is an Identity there
        ("levit_128s", {"head", "head_dist"}),
    ],
)
def test_timm_models_of_other_families_within_an_adapter(name, beyond, tmp_path):
    whole = timm.create_model(name)
    ours = Adapter(timm.create_model(name, features_only=True), {})
    report = load_backbone_weights(ours, save(whole.state_dict(), tmp_path / "timm.pth"))
    assert report.complete
    assert not report.not_from_file
    assert not report.notes
    assert {key.split(".")[0] for key in report.ignored.get("beyond the feature maps", [])} == beyond
    for key, value in ours.state_dict().items():
        assert torch.equal(value, whole.state_dict()[report.used[key]]), key


def test_an_adapter_is_not_filled_from_a_model_of_another_depth(tmp_path):
    inner = timm.create_model("convnext_atto", features_only=True)
    ours = Adapter(inner, {f"c{i + 2}": FeatureSpec(40 * 2**i, 4 * 2**i) for i in range(4)})
    path = save(timm.create_model("convnext_atto", depths=[2, 2, 7, 2]).state_dict(), tmp_path / "timm.pth")
    with pytest.raises(UserError, match=r"not in the model stages\.2\.blocks\.6\.gamma"):
        load_backbone_weights(ours, path)


# --- detectron2 and Caffe2 ---


def detectron2_name(key):
    """The rule of detectron2's tools/convert-torchvision-to-d2.py."""
    if "layer" not in key:
        key = f"stem.{key}"
    for t in (1, 2, 3, 4):
        key = key.replace(f"layer{t}", f"res{t + 1}")
    for t in (1, 2, 3):
        key = key.replace(f"bn{t}", f"conv{t}.norm")
    return key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def detectron2_names(model):
    return {detectron2_name(key): value for key, value in model.state_dict().items() if "num_batches" not in key}


@torch.no_grad()
def test_detectron2_pickle_converted_from_torchvision(images, tmp_path, randomize):
    theirs = small_torchvision(randomize)
    path = save_arrays(detectron2_names(theirs), tmp_path / "R-50.pkl", __author__="torchvision", matching_heuristics=True)
    ours = small_resnet()
    report = load_backbone_weights(ours, path)
    assert report.layout == "detectron2"
    assert report.ignored == {"classifier": ["stem.fc.weight", "stem.fc.bias"]}
    assert report.others == ("__author__", "matching_heuristics")
    assert any("not in the file" in note for note in report.notes)
    assert_same(ours(images), torchvision_maps(theirs, images))


def original_resnet(randomize, **options):
    """The network of the Caffe weights: strides in the 1x1, norms that scale and shift, images BGR, 0..255, less the mean."""
    model = small_torchvision(randomize, **options)
    for block in (model.layer2[0], model.layer3[0], model.layer4[0]):
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.zero_()
            module.running_var.fill_(1 - module.eps)
    model.conv1.weight.data /= 60  # else the maps of images up to 255 are large
    return model


def caffe_maps(model, images):
    return torchvision_maps(model, (images * IMAGENET_STD * 255).flip(1))


def caffe2_name(key):
    """The names of the MSRA models for Caffe2, from torchvision's."""
    if key.startswith("fc."):
        return key.replace("fc.weight", "fc1000_w").replace("fc.bias", "fc1000_b")
    what = {"weight": "w", "bias": "b"}[key.rpartition(".")[2]]
    if "bn" in key or "downsample.1" in key:
        what = {"w": "bn_s", "b": "bn_b"}[what]
    if not key.startswith("layer"):
        return "conv1_w" if key == "conv1.weight" else f"res_conv1_{what}"
    stage, block, part, *_ = key.split(".")
    branch = {"1": "branch2a", "2": "branch2b", "3": "branch2c", "e": "branch1"}[part[-1]]
    return f"res{int(stage[-1]) + 1}_{block}_{branch}_{what}"


def caffe2_names(model):
    return {caffe2_name(key): value for key, value in model.state_dict().items() if not re.search("running|batches", key)}


def test_caffe2_names_are_as_remembered():
    names = caffe2_names(TorchvisionResNet(TorchvisionBottleneck, [1, 1, 1, 1]))
    assert {"conv1_w", "res_conv1_bn_s", "res2_0_branch2a_w", "res2_0_branch2a_bn_s", "res5_0_branch1_bn_b"} < names.keys()


@pytest.mark.parametrize("norm", ["frozen_bn", "bn"])
@torch.no_grad()
def test_caffe2_pickle_with_the_images_of_caffe(norm, images, tmp_path, randomize):
    theirs = original_resnet(randomize)
    arrays = caffe2_names(theirs) | {
        "conv1_b": torch.zeros(64),
        "conv1_w_momentum": torch.ones(64, 3, 7, 7),
        "fpn_inner_res2_2_sum_lateral_w": torch.ones(8, 256, 1, 1),
        "rpn_conv_fpn2_w": torch.ones(8, 8, 3, 3),
    }
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"blobs": {key: value.numpy() for key, value in arrays.items()}}, protocol=2))
    ours = small_resnet(stride_in_1x1=True, norm=norm)
    report = load_backbone_weights(ours, path)
    assert (report.layout, report.container) == ("Caffe2", "blobs")
    assert report.ignored == {
        "classifier": ["fc1000_w", "fc1000_b"],
        "biases of zero": ["conv1_b"],
        "the solver's momentum": ["conv1_w_momentum"],
        "other parts of a detector": ["fpn_inner_res2_2_sum_lateral_w", "rpn_conv_fpn2_w"],
    }
    assert any("BGR" in note for note in report.notes)
    filled = report.not_from_file["statistics of norms that have none: mean 0, variance 1 - eps"]
    assert set(filled) == {key for key in ours.state_dict() if "running" in key}
    assert_same(ours(images), caffe_maps(theirs, images))


@torch.no_grad()
def test_detectron2_names_with_the_images_of_caffe(images, tmp_path, randomize):
    """The MSRA models in detectron2's own names, and all that were trained from them."""
    theirs = original_resnet(randomize)
    detector = {f"backbone.{key}": value for key, value in detectron2_names(theirs).items() if "fc" not in key}
    detector |= {"roi_heads.box_predictor.cls_score.weight": torch.ones(3, 8), "proposal_generator.anchors": torch.ones(2, 4)}
    ours = small_resnet(stride_in_1x1=True)
    report = load_backbone_weights(ours, save_arrays(detector, tmp_path / "model_final.pkl"))
    assert report.prefix == "backbone."
    assert report.ignored == {
        "other parts of a detector": ["roi_heads.box_predictor.cls_score.weight", "proposal_generator.anchors"]
    }
    assert_same(ours(images), caffe_maps(theirs, images))


@torch.no_grad()
def test_detectron2_detector_that_states_its_images(images, tmp_path, randomize):
    theirs = small_torchvision(randomize)
    theirs.conv1.weight.data /= 60
    detector = {f"backbone.bottom_up.{key}": value for key, value in detectron2_names(theirs).items() if "fc" not in key}
    detector |= {"pixel_mean": torch.tensor([103.53, 116.28, 123.675]), "pixel_std": torch.ones(3)}
    ours = small_resnet()
    report = load_backbone_weights(ours, save({"model": detector, "iteration": 3}, tmp_path / "model_final.pth"))
    assert report.ignored == {"other parts of a detector": ["pixel_mean", "pixel_std"]}
    assert_same(ours(images), caffe_maps(theirs, images))


@torch.no_grad()
def test_resnext_of_caffe2_takes_scaled_images_and_strides_in_the_3x3(images, tmp_path, randomize):
    theirs = original_resnet(randomize, groups=32, width_per_group=4)
    for block in (theirs.layer2[0], theirs.layer3[0], theirs.layer4[0]):
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    ours = ResNet(partial(Bottleneck, groups=32, width_per_group=4), (1, 1, 1, 1)).eval()
    load_backbone_weights(ours, save_arrays(detectron2_names(theirs), tmp_path / "X-101-32x8d.pkl"))
    assert_same(ours(images), torchvision_maps(theirs, images.flip(1)))


def test_weights_of_caffe_are_refused_where_strides_or_norms_differ(tmp_path, randomize):
    path = save_arrays(caffe2_names(original_resnet(randomize)), tmp_path / "R-50.pkl")
    with pytest.raises(UserError, match=r"\(v1\).*layer2\.0 it is in the 3x3.*stride_in_1x1=True"):
        load_backbone_weights(small_resnet(), path)
    load_backbone_weights(small_resnet(out_features=["c2"]), path)  # no stride in it
    with pytest.raises(UserError, match=r"only scale and shift.*norm='frozen_bn'"):
        load_backbone_weights(small_resnet(stride_in_1x1=True, norm="gn"), path)


@torch.no_grad()
def test_weights_of_caffe_under_names_that_do_not_say_so_are_noted(images, tmp_path, randomize):
    """MMDetection's "caffe" models."""
    theirs = original_resnet(randomize)
    ours = small_resnet(stride_in_1x1=True)
    path = save({"state_dict": {f"backbone.{key}": value for key, value in theirs.state_dict().items()}}, tmp_path / "mm.pth")
    (note,) = load_backbone_weights(ours, path).notes
    assert "as in weights from Caffe" in note
    assert_same(ours(images), torchvision_maps(theirs, images))
    path = save(small_resnet().state_dict(), tmp_path / "untrained.pth")
    assert load_backbone_weights(ours, path).notes == []


# --- MMDetection, MMPretrain ---


def openmmlab_name(key):
    """MMPretrain's ResNetV1d from timm's names: one sequence for the stem, its last norm included."""
    key = re.sub(r"^conv1\.(\d)", r"stem.\1", key)
    key = re.sub(r"^bn1", "stem.7", key)
    return re.sub(r"\.se\.fc(\d)\.", r".se_layer.conv\1.conv.", key)


@torch.no_grad()
def test_openmmlab_deep_stem(images, tmp_path, randomize):
    theirs = randomize(timm.create_model("resnet18d")).eval()
    content = {f"backbone.{openmmlab_name(key)}": value for key, value in theirs.state_dict().items() if "fc." not in key}
    content |= {"head.fc.weight": theirs.fc.weight, "head.fc.bias": theirs.fc.bias}
    ours = build_backbone("resnet18d").eval()
    report = load_backbone_weights(ours, save({"meta": {"epoch": 3}, "state_dict": content}, tmp_path / "mm.pth"))
    assert (report.layout, report.prefix, report.others) == ("MMDetection", "backbone.", ("meta",))
    assert report.ignored == {"classifier": ["head.fc.weight", "head.fc.bias"]}
    assert_same(ours(images), theirs.forward_intermediates(images, indices=[1, 2, 3, 4], intermediates_only=True))


@torch.no_grad()
def test_openmmlab_squeeze_excitation(images, tmp_path, randomize):
    theirs = randomize(timm.create_model("seresnet18")).eval()
    content = {f"backbone.{key.replace('se.fc1', 'se_layer.conv1.conv').replace('se.fc2', 'se_layer.conv2.conv')}": value
               for key, value in theirs.state_dict().items() if not key.startswith("fc.")}  # fmt: skip
    ours = build_backbone("seresnet18").eval()
    load_backbone_weights(ours, save({"state_dict": content}, tmp_path / "mm.pth"))
    assert_same(ours(images), theirs.forward_intermediates(images, indices=[1, 2, 3, 4], intermediates_only=True))


@torch.no_grad()
def test_openmmlab_group_norm(images, tmp_path, randomize):
    theirs = small_torchvision(randomize, norm_layer=partial(nn.GroupNorm, 32))
    content = {f"backbone.{key.replace('bn', 'gn')}": value for key, value in theirs.state_dict().items()}
    ours = small_resnet(norm="gn")
    load_backbone_weights(ours, save({"state_dict": content}, tmp_path / "mm.pth"))
    assert_same(ours(images), torchvision_maps(theirs, images))


class ElsewhereDeformable(nn.Module):
    """A 3x3 with free samples as MMCV and detectron2 compute it: samples weighed by a sigmoid (27 channels), or not (18)."""

    def __init__(self, convolution, channels):
        super().__init__()
        self.weight, self.stride = convolution.weight, convolution.stride
        self.conv_offset = nn.Conv2d(convolution.in_channels, channels, 3, stride=self.stride, padding=1)

    def forward(self, x):
        predicted = self.conv_offset(x)
        mask = predicted[:, 18:].sigmoid() if predicted.shape[1] == 27 else None
        return deform_conv2d(x, predicted[:, :18], self.weight, stride=self.stride, padding=1, mask=mask)


@pytest.mark.parametrize("channels", [18, 27])
@pytest.mark.parametrize("library", ["MMDetection", "detectron2"])
@torch.no_grad()
def test_deformable_convolutions_of_other_libraries(channels, library, images, tmp_path, randomize):
    theirs = small_torchvision(randomize)
    theirs.layer3[0].conv2 = randomize(ElsewhereDeformable(theirs.layer3[0].conv2, channels))
    content = {f"backbone.{key}": value for key, value in theirs.state_dict().items()}
    if library == "detectron2":
        content = {key.replace("conv2.conv_offset", "conv2_offset"): v for key, v in detectron2_names(theirs).items()}
    ours = small_resnet(deformable_stages=["c4"])
    report = load_backbone_weights(ours, save({"state_dict": content}, tmp_path / "mm.pth"))
    assert report.layout == library
    assert_same(ours(images), torchvision_maps(theirs, images))


@torch.no_grad()
def test_deformable_convolutions_start_as_the_file_s_plain_ones(images, tmp_path, randomize):
    theirs = small_torchvision(randomize)
    ours = small_resnet(deformable_stages=["c4"])
    report = load_backbone_weights(ours, save(theirs.state_dict(), tmp_path / "plain.pth"))
    assert report.not_from_file == {
        "offsets of deformable convolutions, zero at first": [
            f"layer3.0.conv2.offset_and_mask.{part}" for part in ("weight", "bias")
        ]
    }
    assert_same(ours(images), torchvision_maps(theirs, images))


# --- Hugging Face ---


@pytest.mark.parametrize("layer_type", ["basic", "bottleneck"])
@torch.no_grad()
def test_hugging_face(layer_type, images, tmp_path, randomize):
    transformers = pytest.importorskip("transformers")
    widths = [256, 512, 1024, 2048] if layer_type == "bottleneck" else [64, 128, 256, 512]
    config = transformers.ResNetConfig(depths=[2, 1, 1, 1], hidden_sizes=widths, layer_type=layer_type)
    theirs = randomize(transformers.ResNetForImageClassification(config)).eval()
    ours = ResNet(Bottleneck if layer_type == "bottleneck" else BasicBlock, (2, 1, 1, 1)).eval()
    report = load_backbone_weights(ours, save(theirs.state_dict(), tmp_path / "pytorch_model.bin"))
    assert (report.layout, report.prefix) == ("Hugging Face", "resnet.")
    assert report.ignored == {"classifier": ["classifier.1.weight", "classifier.1.bias"]}
    assert_same(ours(images), theirs.resnet(images, output_hidden_states=True).hidden_states[1:])


# --- self-supervised ---


@pytest.mark.parametrize(
    ("content", "container", "prefix", "ignored"),
    [
        (
            lambda one, other: {
                "state_dict": {
                    **{f"module.encoder_k.{key}": value for key, value in other.items()},
                    **{f"module.encoder_q.{key}": value for key, value in one.items()},
                    "module.encoder_q.fc.0.weight": torch.ones(4, 4),
                    "module.encoder_q.fc.2.bias": torch.ones(4),
                    "module.encoder_k.fc.0.weight": torch.ones(4, 4),
                    "module.queue": torch.ones(4, 9),
                    "module.queue_ptr": torch.ones(1),
                },
                "arch": "resnet50",
                "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}},
            },
            "state_dict",
            "module.encoder_q.",
            {"projection head", "another encoder"},
        ),
        (
            lambda one, other: {
                "student": {f"module.backbone.{key}": value for key, value in other.items()},
                "teacher": {f"backbone.{key}": value for key, value in one.items()}
                | {"head.mlp.0.weight": torch.ones(4, 4), "head.last_layer.weight_g": torch.ones(4, 1)},
                "epoch": 100,
            },
            "teacher",
            "backbone.",
            {"projection head"},
        ),
        (
            lambda one, other: (
                {f"module.{key}": value for key, value in one.items()}
                | {"module.projection_head.0.weight": torch.ones(4, 4), "module.prototypes.weight": torch.ones(9, 4)}
            ),
            "",
            "module.",
            {"projection head"},
        ),
        (
            lambda one, other: {"state_dict": other, "state_dict_ema": one},
            "state_dict_ema",
            "",
            set(),
        ),
        (
            lambda one, other: {"model": {f"any.name.at.all.{key}": value for key, value in one.items()}},
            "model",
            "any.name.at.all.",
            set(),
        ),
    ],
    ids=["MoCo", "DINO", "SwAV", "average", "any"],
)
def test_selfsupervised_files(content, container, prefix, ignored, tmp_path, randomize):
    one, other = (
        {key: value.clone() for key, value in randomize(small_torchvision(randomize)).state_dict().items() if "fc." not in key}
        for _ in range(2)
    )
    ours = small_resnet()
    report = load_backbone_weights(ours, save(content(one, other), tmp_path / "checkpoint.pth.tar"))
    assert (report.container, report.prefix, set(report.ignored)) == (container, prefix, ignored)
    for key, value in ours.state_dict().items():
        assert torch.equal(value, one[key]), key


# --- whole detectors ---


@pytest.fixture(scope="module")
def torchvision_detector(randomize):
    return randomize(fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)).eval()


@torch.no_grad()
def test_torchvision_detector_gives_body_and_pyramid(torchvision_detector, images, tmp_path):
    path = save(torchvision_detector.state_dict(), tmp_path / "detector.pth")
    ours = build_fpn_backbone("resnet50", norm="frozen_bn").eval()
    report = load_backbone_weights(ours, path)
    assert (report.prefix, set(report.ignored)) == ("backbone.body.", {"other parts of a detector", "batch counters"})
    assert report.complete
    assert not report.not_from_file
    assert_same(ours(images), torchvision_detector.backbone(images))

    body = build_backbone("resnet50", norm="frozen_bn").eval()
    report = load_backbone_weights(body, path)
    assert "backbone.fpn.inner_blocks.0.0.weight" in report.ignored["other parts of a detector"]
    assert_same(body(images), torchvision_detector.backbone.body(images))


def renamed_detector(detector, library):
    content = {}
    for key, value in detector.state_dict().items():
        if key.startswith("backbone.body."):
            key = key.removeprefix("backbone.body.")
            content[{"torchvision": f"backbone.body.{key}", "detectron2": f"backbone.bottom_up.{detectron2_name(key)}",
                     "MMDetection": f"backbone.{key}"}[library]] = value  # fmt: skip
        elif match := re.fullmatch(r"backbone\.fpn\.(inner|layer)_blocks\.(\d)\.0\.(weight|bias)", key):
            kind, level, what = match.groups()
            content[{
                "torchvision": f"backbone.fpn.{kind}_blocks.{level}.{what}",
                "detectron2": f"backbone.fpn_{'lateral' if kind == 'inner' else 'output'}{int(level) + 2}.{what}",
                "MMDetection": f"neck.{'lateral_convs' if kind == 'inner' else 'fpn_convs'}.{level}.conv.{what}",
            }[library]] = value  # fmt: skip
        else:
            assert key.startswith(("rpn.", "roi_heads.")), key
            content[key] = value
    return content


@pytest.mark.parametrize("library", ["torchvision", "detectron2", "MMDetection"])
@torch.no_grad()
def test_pyramids_of_other_libraries_and_of_old_torchvision(library, torchvision_detector, images, tmp_path):
    path = save({"model": renamed_detector(torchvision_detector, library)}, tmp_path / "detector.pth")
    ours = build_fpn_backbone("resnet50", norm="frozen_bn").eval()
    report = load_backbone_weights(ours, path)
    assert set(report.ignored) == {"other parts of a detector", "batch counters"}
    assert any(note.startswith(f"pyramid: names of {library} under") for note in report.notes)
    assert_same(ours(images), torchvision_detector.backbone(images))


@torch.no_grad()
def test_retinanet_gives_its_three_levels_and_the_two_above(images, tmp_path, randomize):
    detector = randomize(retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)).eval()
    ours = build_fpn_backbone(
        "resnet50", norm="frozen_bn", out_features=["c3", "c4", "c5"], extra_level="p6p7"
    ).eval()  # fmt: skip
    report = load_backbone_weights(ours, save(detector.state_dict(), tmp_path / "retinanet.pth"))
    assert report.complete
    assert not report.not_from_file
    assert_same(ours(images), detector.backbone(images))
