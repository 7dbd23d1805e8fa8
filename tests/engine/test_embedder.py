"""Images become embeddings: prepared as torchvision prepares them, seen by the backbone alone, of whatever origin."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.transforms import v2

from backbones import Backbone, FeatureSpec, build_backbone
from backbones.errors import UserError
from engine.checkpoint import load_checkpoint, save_checkpoint
from engine.config_file import apply_overrides
from engine.data.annotations import Category
from engine.data.dataset import read_image
from engine.embedder import Embedder, Recipe, build_embedder
from engine.job import job_of

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photo(height: int = 70, width: int = 91, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.fixture(scope="session")
def resnet18(tmp_path_factory, randomize) -> tuple[Path, nn.Module]:
    """A file of a classifier's weights, and torchvision's classifier with them."""
    model = randomize(torchvision.models.resnet18()).eval()
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(model.state_dict(), path)
    return path, model


class Identity(Backbone):
    """A backbone that gives the image back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.in_channels = channels
        self.feature_specs = {"image": FeatureSpec(channels, stride=1)}

    def forward(self, images):
        return {"image": images}


def embedder_of_pixels(channels: int = 3, **options) -> Embedder:
    constants = {"image_mean": (0.0,) * channels, "image_std": (1.0,) * channels}
    return Embedder(Identity(channels), Recipe("identity", **constants | options))


# ---- Preparation ----


@given(st.integers(5, 99), st.integers(5, 99), st.integers(1, 60), st.booleans(), st.booleans())
def test_images_are_resized_and_cropped_as_torchvision_does(height, width, size, whole, grey):
    image = photo(height, width)
    steps = [v2.Resize(size), *([] if whole else [v2.CenterCrop(size)])]
    picture = Image.fromarray(image)
    expected = v2.functional.pil_to_tensor(v2.Compose(steps)(picture.convert("L") if grey else picture))
    ours = embedder_of_pixels(1 if grey else 3, size=size, whole=whole).prepare(image)
    assert ours.dtype == torch.uint8
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


@pytest.mark.parametrize("size", [0, -5, 2.5, True])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(UserError, match=r"size is .* whole number"):
        Recipe("resnet18", size=size)


# ---- What is seen ----


def test_embeddings_are_what_torchvisions_classifier_pools(resnet18):
    path, model = resnet18
    embedder = build_embedder(Recipe("resnet18", str(path), size=64))
    images = [embedder.prepare(photo(seed=seed)) for seed in range(3)]
    normalised = v2.functional.normalize(torch.stack(images) / 255, MEAN, STD)
    with torch.no_grad():
        expected = create_feature_extractor(model, {"flatten": "pooled"})(normalised)["pooled"]
    embeddings = embedder.embed(images)
    assert (embeddings.shape, embeddings.dtype) == ((3, 512), np.float32)
    torch.testing.assert_close(torch.from_numpy(embeddings), expected, rtol=1e-5, atol=1e-5)


def test_images_of_several_sizes_are_each_seen_by_itself(resnet18):
    embedder = build_embedder(Recipe("resnet18", str(resnet18[0]), size=40, whole=True))
    images = [
        embedder.prepare(photo(*shape, seed=seed)) for seed, shape in enumerate([(50, 90), (70, 50), (50, 90), (33, 200)])
    ]
    together = embedder.embed(images)
    alone = np.concatenate([embedder.embed([image]) for image in images])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)
    assert embedder.embed([]).shape == (0, 512)


def test_the_mean_and_deviation_given_are_used():
    embedder = embedder_of_pixels(size=10, image_mean=(0.5, 0.25, 0.0), image_std=(0.5, 1.0, 2.0))
    image = embedder.prepare(np.full((10, 10, 3), 255, np.uint8))
    np.testing.assert_allclose(embedder.embed([image]), [[1, 0.75, 0.5]])


# ---- Checkpoints ----


def checkpoint(folder: Path, content: dict) -> Path:
    """A checkpoint of an untrained model."""
    dataset = "digits" if content["job"] == "classification" else "shapes"
    config = apply_overrides({"data": {"train": dataset, "val": dataset}} | content, [], origin="a test")
    categories = [Category(1, "one"), Category(2, "two")]
    model = job_of(config).build_model(categories, load_weights=False)
    save_checkpoint(folder / "best.pt", model=model.state_dict(), config=config, categories=categories)
    return folder / "best.pt"


SMALL = {"name": "resnet18", "norm": "gn"}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
CHECKPOINTS = {
    "detection": {"job": "detection", "model": {"backbone": SMALL, "head": {"name": "retinanet"}}},
    "detection otherwise normalised": {"job": "detection", "model": {"backbone": SMALL, "head": {"name": "fcos"} | HALF}},
    "detection on two maps": {
        "job": "detection",
        "model": {"backbone": SMALL | {"out_features": ["c2", "c3"]}, "head": {"name": "faster_rcnn"}},
    },
    "classification": {"job": "classification", "model": {"backbone": SMALL}},
    "classification of grey images, otherwise normalised": {
        "job": "classification",
        "model": {"backbone": SMALL, "head": {"image_mean": [0.5], "image_std": [0.25]}},
        "data": {"train": "digits", "val": "digits", "channels": 1},
    },
    "segmentation": {"job": "segmentation", "model": {"backbone": SMALL, "head": {"name": "fcn"}}},
    "segmentation on a pyramid": {
        "job": "segmentation",
        "model": {"backbone": SMALL, "pyramid": {"extra_level": None}, "head": {"name": "semantic_fpn"}},
    },
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_of_any_job_gives_its_backbones_coarsest_map(tmp_path, name):
    path = checkpoint(tmp_path, CHECKPOINTS[name])
    loaded = load_checkpoint(path)
    embedder = build_embedder(Recipe(str(path), size=64))
    image = embedder.prepare(photo())
    channels = 1 if "grey" in name else 3
    assert len(image) == channels
    two_maps = "two maps" in name
    body = build_backbone(**SMALL, in_channels=channels, out_features=["c2", "c3"] if two_maps else None).eval()
    prefix = "backbone.body." if any(key.startswith("backbone.body.") for key in loaded.model) else "backbone."
    own = {key.removeprefix(prefix): value for key, value in loaded.model.items() if key.startswith(prefix)}
    body.load_state_dict(own)
    mean, std = ([0.5] * channels, [0.25] * channels) if "otherwise" in name else (MEAN, STD)
    with torch.no_grad():
        maps = body(v2.functional.normalize(image / 255, mean, std)[None])
    expected = maps["c3" if two_maps else "c5"].mean((2, 3))
    torch.testing.assert_close(torch.from_numpy(embedder.embed([image])), expected, rtol=1e-5, atol=1e-6)
    assert embedder.recipe == Recipe(str(path), size=64, image_mean=tuple(mean), image_std=tuple(std))


# ---- Backbones by name ----


def test_a_backbone_of_timm_is_normalised_as_timm_says(tmp_path):
    model = timm.create_model("test_vit", num_classes=0)
    torch.save(model.state_dict(), tmp_path / "test_vit.pth")
    embedder = build_embedder(Recipe("timm/test_vit", str(tmp_path / "test_vit.pth"), size=160))
    assert embedder.recipe.image_mean == embedder.recipe.image_std == (0.5, 0.5, 0.5)
    image = embedder.prepare(photo())
    with torch.no_grad():
        tokens = model.eval().forward_features(image[None] / 255 * 2 - 1)
    expected = tokens[:, model.num_prefix_tokens :].mean(1)
    torch.testing.assert_close(torch.from_numpy(embedder.embed([image])), expected, rtol=1e-4, atol=1e-5)
    otherwise = Recipe("timm/test_vit", str(tmp_path / "test_vit.pth"), image_mean=MEAN, image_std=STD)
    assert build_embedder(otherwise).recipe == otherwise


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe("resnet18"), "resnet18 needs --weights.*random weights are of no use"),
        (Recipe("resnet81"), "no backbone 'resnet81'.*resnet18"),
        (Recipe("resnet18", "none.pth"), r"none\.pth"),
        (Recipe("none.pt"), r"no checkpoint at none\.pt"),
        (Recipe("runs"), r"runs is a folder.*runs/best\.pt"),
        (Recipe("notes.txt"), r"notes\.txt is no checkpoint of a training run, nor a backbone's name"),
        (Recipe("notes.txt", "w.pth"), "notes.txt is a file, and --weights goes with the name of a backbone"),
    ],
)
def test_a_source_that_is_none_is_refused(tmp_path, monkeypatch, recipe, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "notes.txt").write_text("not weights")
    with pytest.raises(UserError, match=message):
        build_embedder(recipe)


def test_bare_weights_in_a_checkpoints_place_are_refused(resnet18):
    with pytest.raises(UserError, match=r"no checkpoint of a training run.*resnet50 --weights .*resnet18\.pth"):
        build_embedder(Recipe(str(resnet18[0])))


def test_another_number_of_means_than_channels_is_refused(resnet18):
    with pytest.raises(UserError, match="image_mean has 1 numbers"):
        build_embedder(Recipe("resnet18", str(resnet18[0]), image_mean=(0.5,)))


def test_weights_that_diverged_are_refused(resnet18, tmp_path):
    state = resnet18[1].state_dict() | {"layer4.1.bn2.bias": torch.full((512,), float("nan"))}
    torch.save(state, tmp_path / "nan.pth")
    embedder = build_embedder(Recipe("resnet18", str(tmp_path / "nan.pth"), size=32))
    with pytest.raises(UserError, match="not finite"):
        embedder.probe()


# ---- Real weights ----


@pytest.mark.shared_data
def test_embeddings_of_a_real_backbone_are_torchvisions(shared):
    """ResNet-50 with the stride in the first 1x1 convolution."""
    path = shared / "weights" / "resnet50_v1_imagenet.safetensors"
    model = torchvision.models.resnet50()
    for stage in (model.layer2, model.layer3, model.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    model.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    model.fc = nn.Identity()
    model.eval()
    embedder = build_embedder(Recipe("resnet50_v1", str(path)))
    to_input = v2.Compose([v2.Resize(224), v2.CenterCrop(224), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)])
    for image in sorted((shared / "data" / "coco_cc_by" / "val").glob("*.jpg"))[:3]:
        batch = v2.functional.normalize(to_input(Image.open(image).convert("RGB")), MEAN, STD)[None]
        with torch.no_grad():
            expected = model(batch)
        ours = torch.from_numpy(embedder.embed([embedder.prepare(read_image(image))]))
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
        extracted = create_feature_extractor(model, {"avgpool": "pooled"})(batch)["pooled"].flatten(1)
        torch.testing.assert_close(ours, extracted.detach(), rtol=1e-4, atol=1e-4)
