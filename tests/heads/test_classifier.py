"""heads/classifier.py: the logits of the library that the weights come from, and photographs named for what they show."""

import pickle

import numpy as np
import pytest
import skimage.data
import timm
import torch
import torchvision
from torch.nn import functional as F
from torchvision.transforms.functional import normalize

from backbones import Backbone, FeatureSpec, UserError, build_backbone
from heads.classifier import classifier, load_classifier_weights

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture
def images():
    return torch.randn(2, 3, 70, 90)


def save(content, path):
    torch.save(content, path)
    return path


def assert_whole(report, model):
    assert report.complete
    assert set(report.used) == {key for key in model.state_dict() if not key.endswith("num_batches_tracked")} | {
        key for key in report.used if key.endswith("num_batches_tracked")
    }
    assert set(report.ignored) <= {"batch counters"}


@torch.no_grad()
def test_torchvision_resnet_gives_its_logits(images, tmp_path, randomize):
    theirs = randomize(torchvision.models.resnet18(num_classes=7)).eval()
    ours = classifier(build_backbone("resnet18"), 7).eval()
    report = load_classifier_weights(ours, save({"model": theirs.state_dict()}, tmp_path / "weights.pth"))
    assert_whole(report, ours)
    assert report.used["fc.weight"] == "fc.weight"
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18d", "resnetv2_18"])  # a final layer named fc; one that is a 1x1 convolution, head.fc
@torch.no_grad()
def test_timm_resnets_give_their_logits(name, images, tmp_path, randomize):
    theirs = randomize(timm.create_model(name, num_classes=7)).eval()
    ours = classifier(build_backbone(name, norm="frozen_bn"), 7).eval()
    report = load_classifier_weights(ours, save(theirs.state_dict(), tmp_path / "weights.pth"))
    assert_whole(report, ours)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


def test_the_final_layer_of_caffe2_is_found(tmp_path, randomize):
    theirs = randomize(torchvision.models.resnet18(num_classes=7))
    arrays = {"pred_w": theirs.fc.weight, "pred_b": theirs.fc.bias}
    for key, value in theirs.state_dict().items():
        if "running" in key or "batches" in key or key.startswith("fc"):
            continue
        what = {"weight": "w", "bias": "b"}[key.rpartition(".")[2]]
        if key.startswith("layer"):
            stage, block, part, *rest = key.split(".")
            is_norm = part.startswith("bn") or rest[0] == "1"
            branch = {"1": "branch2a", "2": "branch2b", "e": "branch1"}[part[-1]]
            arrays[
                f"res{int(stage[-1]) + 1}_{block}_{branch}_{'bn_' if is_norm else ''}{'s' if is_norm and what == 'w' else what}"
            ] = value
        else:
            arrays["conv1_w" if "conv" in key else f"res_conv1_bn_{'s' if what == 'w' else 'b'}"] = value
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({key: value.detach().numpy() for key, value in arrays.items()}))
    ours = classifier(build_backbone("resnet18"), 7)
    report = load_classifier_weights(ours, path)
    assert (report.used["fc.weight"], report.used["fc.bias"]) == ("pred_w", "pred_b")
    assert torch.equal(ours.fc.weight, theirs.fc.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("fc.weight"), r"does not end in one linear layer with a bias; its classifier is fc\.bias"),
        (lambda weights: [weights.pop("fc.weight"), weights.pop("fc.bias")], "has no final layer, only a backbone"),
        (lambda weights: weights.update({"head.weight": torch.ones(7, 512)}), "does not end in one linear layer"),
        (
            lambda weights: weights.update({"fc.weight": torch.ones(9, 512), "fc.bias": torch.ones(9)}),
            r"fc\.weight is 9x512 in the file and fc\.weight is 7x512 in the model\. Give the model as many classes as",
        ),
        (lambda weights: weights.update({"fc.bias": torch.tensor(1.0)}), r"fc\.bias is a single number in the file"),
        (lambda weights: weights.pop("layer1.0.conv1.weight"), r"missing layer1\.0\.conv1\.weight"),
    ],
)
def test_files_without_the_right_final_layer_are_refused_and_nothing_is_loaded(change, message, tmp_path):
    weights = torchvision.models.resnet18(num_classes=7).state_dict()
    change(weights)
    model = classifier(build_backbone("resnet18"), 7)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError, match=message):
        load_classifier_weights(model, save(weights, tmp_path / "weights.pth"))
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


class Adapter(Backbone):
    """timm's maps of a model whose final layer follows on a norm."""

    def __init__(self):
        super().__init__()
        self.network = timm.create_model("convnext_atto", features_only=True, out_indices=[3])
        self.feature_specs = {"c5": FeatureSpec(320, 32)}

    def forward(self, images):
        return {"c5": self.network(images)[0]}


def test_a_final_layer_that_follows_on_more_than_the_maps_is_refused(tmp_path):
    path = save(timm.create_model("convnext_atto", num_classes=7).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"does not end in one linear layer.*head\.norm\.weight"):
        load_classifier_weights(classifier(Adapter(), 7), path)


@pytest.mark.parametrize(
    ("options", "message"), [({"num_classes": 0}, "num_classes is 0"), ({"dropout": 1.0}, "dropout is 1.0")]
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        classifier(build_backbone("cifar_resnet20"), **{"num_classes": 3} | options)


def test_it_learns_and_drops_in_training_alone():
    model = classifier(build_backbone("cifar_resnet", depth=8), 4, dropout=0.5)
    images = torch.randn(8, 3, 16, 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    labels = torch.arange(8) % 4
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    model.backbone.eval()
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


# --- really trained weights ---


@pytest.mark.shared_data
@torch.no_grad()
def test_photographs_are_named_for_what_they_show(shared):
    model = classifier(build_backbone("resnet50", stride_in_1x1=True), 1000).eval()
    report = load_classifier_weights(model, shared / "weights" / "resnet50_v1_imagenet.safetensors")
    assert set(report.used) == set(model.state_dict())
    assert not report.ignored
    names = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    photographs = {
        ("tabby", "tiger cat", "Egyptian cat"): skimage.data.chelsea(),
        ("espresso", "cup"): skimage.data.coffee(),
        ("missile", "space shuttle"): skimage.data.rocket(),
        ("moped", "motor scooter"): skimage.data.stereo_motorcycle()[0],
    }
    for expected, pixels in photographs.items():
        image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float() / 255
        size = [round(side * 256 / min(image.shape[-2:])) for side in image.shape[-2:]]
        image = F.interpolate(image, size, mode="bilinear", antialias=True)
        logits = model(normalize(image, IMAGENET_MEAN, IMAGENET_STD))
        top5 = {names[i] for i in logits[0].topk(5).indices}
        assert top5 & set(expected), top5


@pytest.mark.shared_data
@pytest.mark.parametrize(("depth", "file"), [(20, "12fca82f"), (32, "d509ac18"), (44, "014dd654"), (56, "4bfd9763")])
@torch.no_grad()
def test_cifar_classifiers_load_with_nothing_left_over(depth, file, shared):
    model = classifier(build_backbone(f"cifar_resnet{depth}", norm="frozen_bn"), 10).eval()
    report = load_classifier_weights(model, shared / "weights" / "cifar10_resnets" / f"resnet{depth}-{file}.th")
    assert (report.ignored, report.missing, report.misshapen, report.not_from_file) == ({}, [], {}, {})
    assert set(report.used) == set(model.state_dict())
    assert report.used["fc.weight"] == "module.linear.weight"
    # A photograph of a cat, as small as CIFAR's.
    image = torch.from_numpy(skimage.data.chelsea()[:, :300]).permute(2, 0, 1)[None].float() / 255
    image = F.interpolate(image, (32, 32), mode="bilinear", antialias=True)
    probabilities = model(normalize(image, IMAGENET_MEAN, IMAGENET_STD)).softmax(1)
    assert CIFAR10_CLASSES[int(probabilities.argmax())] == "cat"
    assert probabilities.max() > 0.9
