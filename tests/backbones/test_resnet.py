"""backbones/resnet.py against torchvision's networks."""

import pytest
import torch
import torchvision
from torch import nn
from torch.testing import assert_close
from torchvision.models._utils import IntermediateLayerGetter

from backbones import UserError, build_backbone, list_backbones

TORCHVISION_RESNETS = torchvision.models.list_models(torchvision.models, include=["resnet*", "resnext*", "wide_resnet*"])
BOTTLENECKS = sorted(set(TORCHVISION_RESNETS) - {"resnet18", "resnet34"})


@pytest.fixture
def odd_images():
    return torch.randn(1, 3, 65, 97)


def torchvision_trunk(name, randomize):
    """torchvision's network with random weights, and its state dict without the classifier."""
    with torch.device("meta"):
        network = torchvision.models.get_model(name)
    randomize(network.to_empty(device="cpu")).eval()
    return network, {key: value for key, value in network.state_dict().items() if not key.startswith("fc.")}


def feature_maps(network, images):
    layers = {f"layer{i}": f"c{i + 1}" for i in range(1, 5)}
    with torch.no_grad():
        return IntermediateLayerGetter(network, layers)(images)


def loaded(name, state_dict, **options):
    with torch.device("meta"):
        backbone = build_backbone(name, **options)
    backbone.load_state_dict(state_dict, strict=True, assign=True)
    return backbone.eval()


def assert_same_maps(backbone, expected, images):
    with torch.no_grad():
        features = backbone(images)
    assert list(features) == ["c2", "c3", "c4", "c5"]
    for name, feature in features.items():
        assert feature.std() > 1e-3, f"{name} is all but constant: equality would show nothing"
        assert_close(feature, expected[name])


def test_every_torchvision_resnet_is_registered():
    assert set(TORCHVISION_RESNETS) <= set(list_backbones())
    assert len(TORCHVISION_RESNETS) >= 10


@pytest.mark.parametrize("name", TORCHVISION_RESNETS)
def test_torchvision_weights_load_strictly_and_give_its_feature_maps(name, randomize, odd_images):
    network, state_dict = torchvision_trunk(name, randomize)
    assert_same_maps(loaded(name, state_dict), feature_maps(network, odd_images), odd_images)


def test_frozen_batch_norm_gives_torchvision_feature_maps(randomize, odd_images):
    network, state_dict = torchvision_trunk("resnet18", randomize)
    assert_same_maps(loaded("resnet18", state_dict, norm="frozen_bn"), feature_maps(network, odd_images), odd_images)


def test_stride_in_1x1_is_torchvision_resnet_with_the_strides_moved(randomize, odd_images):
    network, state_dict = torchvision_trunk("resnet50", randomize)
    for layer in (network.layer2, network.layer3, network.layer4):
        layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
    backbone = loaded("resnet50", state_dict, stride_in_1x1=True)
    assert_same_maps(backbone, feature_maps(network, odd_images), odd_images)


def test_new_networks_have_the_spread_of_torchvision_initialisation():
    ours, theirs = build_backbone("resnet18"), torchvision.models.resnet18()
    for name, parameter in ours.named_parameters():
        reference = theirs.get_parameter(name)
        if parameter.ndim > 1:
            assert_close(parameter.std(), reference.std(), rtol=0.05, atol=0)
        else:
            assert_close(parameter, reference)


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_every_bottleneck_network_can_have_its_stride_in_1x1(name):
    with torch.device("meta"):
        backbone = build_backbone(name, stride_in_1x1=True)
    first = backbone.layer2[0]
    assert (first.conv1.stride, first.conv2.stride) == ((2, 2), (1, 1))


@pytest.mark.parametrize(
    ("out_features", "layers"),
    [(["c2"], 1), (["c3", "c2"], 2), (["c4"], 3), (["c2", "c5"], 4), (None, 4)],
)
def test_stages_above_the_last_wanted_map_are_not_built(out_features, layers):
    backbone = build_backbone("resnet18", out_features=out_features)
    built = [name for name, _ in backbone.named_children() if name.startswith("layer")]
    assert built == [f"layer{i}" for i in range(1, layers + 1)]


def test_out_features_gives_the_same_maps_as_the_whole_network(randomize, odd_images):
    whole = randomize(build_backbone("resnet18")).eval()
    part = build_backbone("resnet18", out_features=["c4", "c2"]).eval()
    part.load_state_dict({key: value for key, value in whole.state_dict().items() if key in part.state_dict()})
    features, expected = part(odd_images), whole(odd_images)
    assert list(features) == list(part.feature_specs) == ["c2", "c4"]
    for name in features:
        assert_close(features[name], expected[name])
        assert part.feature_specs[name] == whole.feature_specs[name]


def test_unknown_out_feature_suggests_the_nearest():
    with pytest.raises(UserError, match=r"'C5'.*Did you mean 'c5'\?"):
        build_backbone("resnet18", out_features=["c2", "C5"])


def test_empty_out_features_are_refused():
    with pytest.raises(UserError, match=r"out_features is empty.*c2, c3, c4, c5"):
        build_backbone("resnet18", out_features=[])


def test_unknown_norm_suggests_the_nearest():
    with pytest.raises(UserError, match=r"no norm 'frozenbn'.*Did you mean 'frozen_bn'\?"):
        build_backbone("resnet18", norm="frozenbn")


@pytest.mark.parametrize(("norm", "layer"), [("bn", nn.BatchNorm2d), ("sync_bn", nn.SyncBatchNorm), ("gn", nn.GroupNorm)])
def test_norm_is_the_only_normalisation_in_the_network(norm, layer):
    backbone = build_backbone("resnet18", norm=norm)
    norms = [module for name, module in backbone.named_modules() if name.endswith(("bn1", "bn2", "downsample.1"))]
    assert len(norms) == 20
    assert {type(module) for module in norms} == {layer}


@pytest.mark.parametrize("name", TORCHVISION_RESNETS)
def test_parameters_come_in_torchvision_order(name):
    """An optimizer's state names parameters by their place."""
    with torch.device("meta"):
        ours, theirs = build_backbone(name), torchvision.models.get_model(name)
    expected = [key for key, _ in theirs.named_parameters() if not key.startswith("fc.")]
    assert [key for key, _ in ours.named_parameters()] == expected
