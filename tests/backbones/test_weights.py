"""backbones/weights.py: files and published weights go in whole, or a message says why not; no file runs code."""

import argparse
import pickle
import re
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from timm.models import adapt_input_conv
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from backbones import Backbone, FeatureSpec, UserError, build_backbone, build_fpn_backbone, load_backbone_weights
from backbones.weights import load_pickled_tensors, load_published_weights, read_state_dict


@pytest.fixture
def stem():
    """The smallest backbone there is: the stem and first stage of a ResNet-18."""
    return build_backbone("resnet18", out_features=["c2"])


@pytest.fixture
def state_dict(stem, randomize):
    """Other weights for it."""
    return {
        key: value.clone() for key, value in randomize(build_backbone("resnet18", out_features=["c2"])).state_dict().items()
    }


def save(content, path):
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


def assert_holds(model, state_dict):
    for key, value in model.state_dict().items():
        assert torch.equal(value, state_dict[key].to(value.dtype)), key


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_files_load_into_a_float32_model(suffix, dtype, stem, state_dict, tmp_path):
    content = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state_dict.items()}
    load_backbone_weights(stem, save(content, tmp_path / f"weights{suffix}"))
    assert_holds(stem, content)
    assert {parameter.dtype for parameter in stem.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state_dict: {"model": state_dict, "epoch": 3},
        lambda state_dict: {"state_dict": state_dict, "best": 0.5},
        lambda state_dict: {f"module.{key}": value for key, value in state_dict.items()},
        lambda state_dict: {"model": {f"module.{key}": value for key, value in state_dict.items()}},
    ],
    ids=["model", "state_dict", "module-prefix", "model-with-module-prefix"],
)
def test_wrappers_are_taken_off(wrap, stem, state_dict, tmp_path):
    load_backbone_weights(stem, save(wrap(state_dict), tmp_path / "weights.pth"))
    assert_holds(stem, state_dict)


def test_module_prefix_is_taken_off_safetensors_too(stem, state_dict, tmp_path):
    content = {f"module.{key}": value for key, value in state_dict.items()}
    load_backbone_weights(stem, save(content, tmp_path / "weights.safetensors"))
    assert_holds(stem, state_dict)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_whole_classifier_loads_without_its_classifier(suffix, tmp_path, randomize):
    classifier = randomize(torchvision.models.resnet18()).state_dict()
    path = save(classifier, tmp_path / f"weights{suffix}")
    for out_features in (None, ["c2"], ["c3"]):  # stages that are not built are left out, too
        backbone = build_backbone("resnet18", out_features=out_features, norm="bn")
        load_backbone_weights(backbone, path)
        assert_holds(backbone, classifier)


def test_batch_norm_counters_may_be_missing_or_left_over(stem, state_dict, tmp_path):
    bare = {key: value for key, value in state_dict.items() if "num_batches_tracked" not in key}
    load_backbone_weights(stem, save(bare, tmp_path / "bare.pth"))
    assert_holds(stem, state_dict)
    frozen = build_backbone("resnet18", out_features=["c2"], norm="frozen_bn")
    load_backbone_weights(frozen, save(state_dict, tmp_path / "whole.pth"))
    assert_holds(frozen, state_dict)


def test_every_key_that_does_not_fit_is_named_and_nothing_is_loaded(stem, state_dict, tmp_path):
    before = {key: value.clone() for key, value in stem.state_dict().items()}
    state_dict["head.weight"] = state_dict.pop("layer1.0.conv1.weight")
    state_dict["conv1.weight"] = torch.zeros(64, 4, 7, 7)
    path = save(state_dict, tmp_path / "weights.pth")
    with pytest.raises(UserError) as error:
        load_backbone_weights(stem, path)
    message = str(error.value)
    assert str(path) in message
    assert "missing layer1.0.conv1.weight;" in message
    assert "not in the model head.weight;" in message
    assert "conv1.weight is 64x4x7x7 in the file and 64x3x7x7 in the model" in message
    assert_holds(stem, before)


def test_weights_of_another_architecture_are_refused_in_a_few_lines(tmp_path):
    with torch.device("meta"):
        deeper = build_backbone("resnet34")
    path = save(
        {key: torch.zeros(value.shape) for key, value in deeper.state_dict().items()}, tmp_path / "resnet34.safetensors"
    )
    with pytest.raises(UserError, match=r"not in the model layer1\.2\..* and \d+ more") as error:
        load_backbone_weights(build_backbone("resnet18"), path)
    assert len(str(error.value)) < 1000


def test_a_missing_file_is_named(stem, tmp_path):
    path = tmp_path / "nowhere.pth"
    with pytest.raises(UserError, match=re.escape(str(path))):
        load_backbone_weights(stem, path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_named(suffix, kept, stem, state_dict, tmp_path):
    path = save(state_dict, tmp_path / f"weights{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(UserError, match=re.escape(str(path))):
        load_backbone_weights(stem, path)


@pytest.fixture(scope="module")
def old_pickle(tmp_path_factory):
    """A state dict in the format of PyTorch before 1.6, which most published files have."""
    path = tmp_path_factory.mktemp("old") / "weights.pth"
    torch.save({"conv1.weight": torch.ones(8), "bn1.bias": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    return path


def test_old_files_are_read(old_pickle):
    assert {key: value.tolist() for key, value in read_state_dict(old_pickle).items()} == {
        "conv1.weight": [1.0] * 8,
        "bn1.bias": [1.0] * 3,
    }


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_old_files_cut_short_anywhere_are_named(old_pickle, data, tmp_path):
    content = old_pickle.read_bytes()
    path = tmp_path / "cut.pth"
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(UserError, match=re.escape(str(path))):
        read_state_dict(path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200))
def test_files_of_other_bytes_are_named(content, tmp_path):
    path = tmp_path / "noise.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(path))):
        read_state_dict(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "text", ["<html>404: not found</html>\n", "version https://git-lfs.github.com/spec/v1\noid sha256:1\n"]
)
def test_a_text_file_is_named(suffix, text, stem, tmp_path):
    path = tmp_path / f"weights{suffix}"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(str(path))):
        load_backbone_weights(stem, path)


@pytest.mark.parametrize("content", [[torch.zeros(3)], {"epoch": 3}, torch.zeros(3), {0: torch.zeros(3)}, {}], ids=repr)
def test_a_file_without_named_tensors_is_refused(content, stem, tmp_path):
    path = save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="holds no named tensors"):
        load_backbone_weights(stem, path)


class TouchesAFile:
    """Unpickling one runs code."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_refused_and_not_run(zipped, stem, state_dict, tmp_path):
    trace = tmp_path / "trace"
    pickle.loads(pickle.dumps(TouchesAFile(trace)))
    assert trace.exists(), "the trap does not work"
    trace.unlink()

    path = tmp_path / "weights.pth"
    torch.save(state_dict | {"trap": TouchesAFile(trace)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=re.escape(f"{path} was not loaded") + ".*could run code"):
        load_backbone_weights(stem, path)
    assert not trace.exists()


def test_a_weight_file_means_frozen_batch_norm_and_three_trained_stages(tmp_path, randomize):
    classifier = randomize(torchvision.models.resnet18()).state_dict()
    backbone = build_backbone("resnet18", weights=str(save(classifier, tmp_path / "weights.pth")))
    assert_holds(backbone, classifier)
    assert isinstance(backbone.bn1, FrozenBatchNorm2d)
    trained = {name.split(".")[0] for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert trained == {"layer2", "layer3", "layer4"}


def test_norm_and_trained_stages_given_win_over_those_of_a_weight_file(tmp_path, randomize):
    path = save(randomize(torchvision.models.resnet18()).state_dict(), tmp_path / "weights.pth")
    backbone = build_backbone("resnet18", weights=str(path), norm="bn", trainable_layers=5)
    assert isinstance(backbone.bn1, nn.BatchNorm2d)
    assert all(parameter.requires_grad for parameter in backbone.parameters())


def replace_download(monkeypatch, download):
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)


@pytest.mark.parametrize("name", ["IMAGENET1K_V1", "DEFAULT"])
def test_published_weights_are_torchvision_own_checked_against_their_hash(name, monkeypatch, randomize):
    classifier = randomize(torchvision.models.resnet18()).state_dict()
    asked = []

    def download(url, **options):
        asked.append((url, options["check_hash"], options["weights_only"]))
        return classifier

    replace_download(monkeypatch, download)
    backbone = build_backbone("resnet18", weights=name)
    assert asked == [(torchvision.models.ResNet18_Weights[name].url, True, True)]
    assert_holds(backbone, classifier)


@pytest.mark.parametrize(
    "failure",
    [
        URLError("Name or service not known"),
        TimeoutError("timed out"),
        RuntimeError('invalid hash value (expected "f37072fd", got "0")'),
        pickle.UnpicklingError("a proxy's error page lies in the cache"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_a_failed_download_says_what_to_fetch_and_how_to_pass_it(failure, monkeypatch):
    def download(url, **options):
        raise failure

    replace_download(monkeypatch, download)
    url = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
    with pytest.raises(UserError, match=rf"IMAGENET1K_V1 of resnet18.*{re.escape(url)}.*weights=PATH") as error:
        build_backbone("resnet18", weights="IMAGENET1K_V1")
    assert str(failure) in str(error.value)


@pytest.mark.parametrize(("name", "nearest"), [("IMAGENET1K_V2", "IMAGENET1K_V1"), ("imagenet1k_v1", "IMAGENET1K_V1")])
def test_unknown_published_weights_suggest_the_nearest(name, nearest):
    with pytest.raises(UserError, match=rf"no weights '{name}' for resnet18.*Did you mean '{nearest}'\?.*path of a \.pth"):
        build_backbone("resnet18", weights=name)


# --- partial loads ---


def test_a_partial_load_is_refused_unless_asked_for(stem, state_dict, tmp_path):
    before = {key: value.clone() for key, value in stem.state_dict().items()}
    del state_dict["layer1.1.conv2.weight"]
    state_dict["bn1.weight"] = torch.ones(32)
    state_dict["layer1.2.conv1.weight"] = torch.ones(64, 64, 3, 3)
    path = save(state_dict, tmp_path / "weights.pth")
    with pytest.raises(
        UserError, match=r"missing layer1\.1\.conv2\.weight; not in the model layer1\.2\.conv1\.weight; bn1\.weight"
    ):
        load_backbone_weights(stem, path)
    assert_holds(stem, before)

    report = load_backbone_weights(stem, path, allow_partial=True)
    assert not report.complete
    assert report.missing == ["layer1.1.conv2.weight"]
    assert report.misshapen == {"bn1.weight": "bn1.weight"}
    assert report.ignored == {"not in the model": ["layer1.2.conv1.weight"]}
    own = {"layer1.1.conv2.weight", "bn1.weight"}
    assert_holds(stem, {key: before[key] if key in own else value for key, value in (before | state_dict).items()})
    for name in [*own, "layer1.2.conv1.weight"]:
        assert name in str(report)


def test_quantised_weights_are_refused(stem, state_dict, tmp_path):
    state_dict["layer1.0.conv1.weight"] = torch.ones(64, 64, 3, 3, dtype=torch.int8)
    path = save(state_dict, tmp_path / "weights.pth")
    with pytest.raises(
        UserError, match=r"layer1\.0\.conv1\.weight is 64x64x3x3 \(int8\) in the file and 64x64x3x3 in the model"
    ):
        load_backbone_weights(stem, path)


def test_of_two_backbones_in_a_file_the_report_names_the_other(stem, state_dict, tmp_path):
    content = {f"{name}.{key}": value for name in ("colour", "depth") for key, value in state_dict.items()}
    report = load_backbone_weights(stem, save(content, tmp_path / "weights.pth"))
    assert report.prefix == "depth."  # the shorter
    assert report.notes == ["The weights under 'colour.' fit as well, and were not used."]


def test_even_a_partial_load_needs_the_architecture(stem, tmp_path):
    path = save({"features.0.weight": torch.ones(64, 3, 7, 7), "bn1.weight": torch.ones(64)}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"another architecture.*such as conv1\.weight.*such as features\.0\.weight"):
        load_backbone_weights(stem, path, allow_partial=True)


# --- other numbers of channels ---


@pytest.mark.parametrize("in_channels", [1, 2, 4, 7])
@pytest.mark.parametrize("name", ["resnet18", "resnet18d"])
def test_the_stem_is_adapted_to_other_channels_as_timm_does(name, in_channels, tmp_path, randomize):
    rgb = randomize(build_backbone(name, out_features=["c2"]))
    path = save(rgb.state_dict(), tmp_path / "weights.pth")
    stem = build_backbone(name, out_features=["c2"], in_channels=in_channels)
    report = load_backbone_weights(stem, path)
    first = "conv1.weight" if name == "resnet18" else "conv1.0.weight"
    assert report.notes == [f"{first} adapted from 3 to {in_channels} channels"]
    expected = adapt_input_conv(in_channels, rgb.state_dict()[first])
    torch.testing.assert_close(stem.state_dict()[first], expected, rtol=1e-6, atol=0)
    assert_holds(stem, rgb.state_dict() | {first: stem.state_dict()[first]})


@torch.no_grad()
def test_a_grey_image_gives_what_it_gives_as_three_equal_channels(state_dict, stem, tmp_path):
    path = save(state_dict, tmp_path / "weights.pth")
    load_backbone_weights(stem, path)
    grey = build_backbone("resnet18", out_features=["c2"], in_channels=1, weights=str(path)).eval()
    image = torch.randn(1, 1, 32, 32)
    expected = stem.eval()(image.expand(1, 3, 32, 32))["c2"]
    torch.testing.assert_close(grey(image)["c2"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("in_channels", [2, 3, 5])
@torch.no_grad()
def test_weights_for_grey_images_see_the_same_in_equal_channels(in_channels, tmp_path, randomize):
    """As a detector in colour does that starts from a classifier of grey images."""
    grey = randomize(build_backbone("cifar_resnet", depth=8, in_channels=1)).eval()
    coloured = build_backbone("cifar_resnet", depth=8, in_channels=in_channels).eval()
    report = load_backbone_weights(coloured, save(grey.state_dict(), tmp_path / "weights.pth"))
    assert report.notes == [f"conv1.weight adapted from 1 to {in_channels} channels"]
    assert set(report.used) >= {key for key in grey.state_dict() if not key.endswith("num_batches_tracked")}
    image = torch.randn(1, 1, 32, 32)
    expected = grey(image)["c2"]
    torch.testing.assert_close(coloured(image.expand(1, in_channels, 32, 32))["c2"], expected, rtol=1e-4, atol=1e-4)


# --- pyramids and other backbones ---


@pytest.fixture(scope="module")
def small_fpn():
    return build_fpn_backbone("cifar_resnet", depth=8, out_channels=8)


def test_a_file_of_a_body_alone_leaves_the_pyramid_untouched(small_fpn, tmp_path, randomize):
    body = randomize(build_backbone("cifar_resnet", depth=8)).state_dict()
    before = {key: value.clone() for key, value in small_fpn.state_dict().items()}
    report = load_backbone_weights(small_fpn, save(body, tmp_path / "body.pth"))
    assert_holds(small_fpn, before | {f"body.{key}": value for key, value in body.items()})
    (untouched,) = report.not_from_file.values()
    assert untouched == [key for key in before if key.startswith("fpn.")]
    assert "the pyramid, which was not touched" in str(report)


def test_a_pyramid_that_does_not_fit_is_refused(small_fpn, tmp_path, randomize):
    other = randomize(build_fpn_backbone("cifar_resnet", depth=8, out_channels=4))
    path = save(other.state_dict(), tmp_path / "fpn.pth")
    with pytest.raises(UserError, match=r"fpn\.inner_blocks\.0\.0\.weight is 4x16x1x1 in the file and 8x16x1x1 in the model"):
        load_backbone_weights(small_fpn, path)
    load_backbone_weights(small_fpn.body, path)
    assert_holds(small_fpn.body, other.body.state_dict())


class Own(Backbone):
    """A user's, with names that no library has."""

    def __init__(self):
        super().__init__()
        self.begin = nn.Conv2d(3, 4, 4, stride=4)
        self.blocks = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.feature_specs = {"c2": FeatureSpec(4, 4)}


def test_any_module_loads_its_own_names_under_any_prefix(tmp_path, randomize):
    theirs, ours = randomize(Own()).state_dict(), Own()
    detector = {f"detector.net.{key}": value for key, value in theirs.items()} | {"detector.rpn.weight": torch.ones(3)}
    report = load_backbone_weights(ours, save({"weights": {"last": detector}}, tmp_path / "detector.ckpt"))
    assert (report.container, report.prefix) == ("weights/last", "detector.net.")
    assert_holds(ours, theirs)


# --- the account of every key ---

NOISE = ["fc.weight", "head.fc.bias", "projection_head.0.weight", "layer9.0.conv1.weight", "body.layer4.0.bn1.weight",
         "x.queue", "rpn.head.weight", "neck.lateral_convs.0.conv.weight", "something", "conv1.weight", "fpn.extra.weight",
         "bn1.num_batches_tracked"]  # fmt: skip


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_key_is_accounted_for_exactly_once(data, tmp_path, small_fpn):
    model = small_fpn if data.draw(st.booleans()) else small_fpn.body
    keys = list(small_fpn.state_dict())
    dropped = data.draw(st.sets(st.sampled_from(keys), max_size=20))
    reshaped = data.draw(st.sets(st.sampled_from(keys), max_size=5))
    prefix = data.draw(st.sampled_from(["", "module.", "backbone.", "a.b."]))
    noise = data.draw(st.sets(st.sampled_from(NOISE)))
    tensors = {f"{prefix}{key}": torch.randn(2, 3) if key in reshaped else torch.randn(value.shape).to(value.dtype)
               for key, value in small_fpn.state_dict().items() if key not in dropped}  # fmt: skip
    tensors = {key: torch.ones(2) for key in noise} | tensors
    container = data.draw(st.sampled_from(["", "state_dict", "teacher"]))
    content = {container: tensors, "epoch": 3} if container else tensors
    path = save(content, tmp_path / "weights.pth")

    before = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        load_backbone_weights(model, path)
        refused = False
    except UserError:
        refused = True
        assert_holds(model, before)
    try:
        report = load_backbone_weights(model, path, allow_partial=True)
    except UserError:
        assume(False)
    assert (report.container, report.others) == (container, ("epoch",) if container else ())
    theirs = [*report.used.values(), *report.misshapen.values(), *(key for keys in report.ignored.values() for key in keys)]
    assert sorted(theirs) == sorted(tensors)
    unneeded = [key for keys in report.not_from_file.values() for key in keys]
    assert sorted([*report.used, *report.misshapen, *report.missing, *unneeded]) == sorted(model.state_dict())
    assert_holds(model, before | {key: tensors[their] for key, their in report.used.items()})
    assert refused == bool(report.missing or report.misshapen or "not in the model" in report.ignored)


def test_the_report_is_a_short_text(tmp_path, randomize):
    classifier = randomize(torchvision.models.resnet18()).state_dict()
    path = save({"model": classifier, "epoch": 3}, tmp_path / "weights.pth")
    backbone = build_backbone("resnet18", out_features=["c2"], norm="frozen_bn", in_channels=1)
    report = load_published_weights(backbone, str(path), architecture="resnet18")
    lines = str(report).splitlines()
    assert lines == report.lines()
    assert lines[0].startswith(f"{path}: {len(backbone.state_dict())} tensors used;")
    assert lines[0].endswith("in its entry 'model'")
    assert "  ignored, classifier: fc.weight, fc.bias" in lines
    assert any(re.fullmatch("  ignored, stages that are not built: layer2.*and [0-9]+ more", line) for line in lines)
    assert lines[-2:] == ["  beside the weights: epoch", "  conv1.weight adapted from 3 to 1 channels"]
    assert len(str(report)) < 1000


# --- pickles ---


def test_pickles_of_arrays_and_torch_files_of_that_name_are_read(stem, state_dict, tmp_path):
    arrays = tmp_path / "arrays.pkl"
    arrays.write_bytes(pickle.dumps({"model": {key: value.numpy() for key, value in state_dict.items()}}))
    for path in (
        arrays,
        save(state_dict, tmp_path / "torch.pkl"),
        tmp_path / "old.pkl",
    ):
        if path.name == "old.pkl":
            torch.save(state_dict, path, _use_new_zipfile_serialization=False)
        stem = build_backbone("resnet18", out_features=["c2"])
        load_backbone_weights(stem, path)
        assert_holds(stem, state_dict)
    assert load_published_weights(stem, str(arrays), architecture="resnet18").container == "model"


def test_what_a_program_lets_torch_load_is_as_before(stem, state_dict, tmp_path):
    path = save({"model": state_dict, "args": argparse.Namespace()}, tmp_path / "weights.pth")
    before = set(torch.serialization.get_safe_globals())
    load_backbone_weights(stem, path)
    assert set(torch.serialization.get_safe_globals()) == before
    with torch.serialization.safe_globals([argparse.Namespace]):
        load_backbone_weights(stem, path)
        assert argparse.Namespace in torch.serialization.get_safe_globals()


@pytest.mark.parametrize(
    "beside",
    [argparse.Namespace(lr=0.1, data="imagenet"), np.float64(76.1), np.float32(0.5), np.int64(3), np.bool_(True)],
    ids=lambda beside: type(beside).__name__,
)
def test_command_lines_and_scores_that_scripts_save_with_the_weights_are_no_hindrance(beside, stem, state_dict, tmp_path):
    path = save({"model": state_dict, "beside": beside}, tmp_path / "weights.pth")
    assert load_pickled_tensors(path)["beside"] == beside
    report = load_backbone_weights(stem, path)
    assert report.others == ("beside",)
    assert_holds(stem, state_dict)


# --- really trained weights ---


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "file", "options"),
    [
        ("resnet18", "resnet18_imagenet_trunk.safetensors", {}),
        ("resnet50", "resnet50_v1_imagenet.safetensors", {"stride_in_1x1": True}),
    ],
)
def test_really_trained_weights_load_with_nothing_missed(name, file, options, shared):
    path = shared / "weights" / file
    content = {key: value for key, value in load_file(path).items() if not key.startswith("fc.")}
    backbone = build_backbone(name, weights=str(path), norm="bn", **options)
    assert set(content) == set(backbone.state_dict())
    assert_holds(backbone, content)
    assert torch.isfinite(backbone.eval()(torch.randn(1, 3, 64, 64))["c5"]).all()


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("depth", "file"), [(20, "12fca82f"), (32, "d509ac18"), (44, "014dd654"), (56, "4bfd9763")]
)  # fmt: skip
def test_cifar_weights_load_with_nothing_left_over_but_the_classifier(depth, file, shared):
    path = shared / "weights" / "cifar10_resnets" / f"resnet{depth}-{file}.th"
    backbone = build_backbone(f"cifar_resnet{depth}", norm="frozen_bn")
    report = load_backbone_weights(backbone, path)
    assert (report.container, report.prefix, report.others) == ("state_dict", "module.", ("best_prec1",))
    assert report.ignored == {"classifier": ["module.linear.weight", "module.linear.bias"]}
    assert report.used == {key: f"module.{key}" for key in backbone.state_dict()}
    assert (report.missing, report.misshapen, report.not_from_file, report.notes) == ([], {}, {}, [])
    assert_holds(backbone, read_state_dict(path))


@pytest.mark.shared_data
def test_weights_of_mobilenet_are_refused_in_a_sentence(shared):
    path = shared / "weights" / "mobilenet_v2-b0353104.pth"
    with pytest.raises(
        UserError, match=r"does not fit ResNet: it is of another architecture.*features\.0\.0\.weight.*Build the"
    ):
        load_backbone_weights(build_backbone("resnet50"), path, allow_partial=True)
