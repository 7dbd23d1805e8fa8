"""engine/detection/weights.py: weights of whole detectors, ours and torchvision's; nothing is loaded that does not fit."""

import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor

from backbones.errors import UserError
from engine.checkpoint import save_checkpoint
from engine.config_file import apply_overrides
from engine.data.annotations import load_annotations
from engine.data.dataset import CocoDataset
from engine.detection.build import build_model
from engine.detection.weights import load_detector_weights
from tests.engine.conftest import with_other_category


@pytest.fixture
def config(make_config):
    return make_config()


@pytest.fixture
def model(config):
    return build_model(config, num_classes=4, load_weights=True)


@pytest.fixture
def dataset(toy_data) -> CocoDataset:
    return CocoDataset(Path(toy_data["images"]), load_annotations(toy_data["annotations"]))


@pytest.fixture
def saved(config, model, dataset, tmp_path) -> Path:
    path = tmp_path / "some" / "best.pt"
    save_checkpoint(path, model=model.state_dict(), config=config, categories=dataset.categories)
    return path


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


class Intruder:
    """Unpickling one makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_of_ours_gives_its_weights_to_a_model(saved, config, model, dataset):
    other = build_model(config, num_classes=4, load_weights=False)
    nn.init.zeros_(other.rpn.head.conv[0][0].weight)
    load_detector_weights(other, saved, dataset)
    assert_equal(other.state_dict(), model.state_dict())


def test_a_checkpoint_of_ours_with_other_classes_gives_no_weights(saved, model, toy_data, tmp_path):
    other = with_other_category(toy_data["annotations"], tmp_path / "other.json", {"name": "stick"})
    with pytest.raises(UserError, match="trained on other classes"):
        load_detector_weights(model, saved, CocoDataset(Path(toy_data["images"]), load_annotations(other)))


@pytest.fixture(scope="module")
def torchvisions():
    """torchvision's own Mask R-CNN on a ResNet-18, its box head made small, with random weights."""
    torch.manual_seed(1)
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    parts = {"box_head": TwoMLPHead(256 * 49, 32), "box_predictor": FastRCNNPredictor(32, 4)}
    parts["mask_predictor"] = MaskRCNNPredictor(256, 256, 4)
    return MaskRCNN(backbone, min_size=64, max_size=128, box_score_thresh=0.0, box_detections_per_img=6, **parts).eval()


@pytest.fixture
def likewise(make_config):
    """The same architecture from a config."""
    content = make_config().model_dump()
    content["model"] = {"backbone": {"name": "resnet18", "norm": "frozen_bn"}}
    content["model"]["head"] = {"name": "mask_rcnn", "box_head_dim": 32, "box_score_thresh": 0.0, "box_detections_per_img": 6}
    return build_model(apply_overrides(content, [], origin="test"), num_classes=4, load_weights=False)


def old_name(key: str) -> str:
    """The key of torchvision before its version 0.13."""
    key = key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
    for blocks in ("inner_blocks", "layer_blocks"):
        for level in range(4):
            key = key.replace(f"fpn.{blocks}.{level}.0.", f"fpn.{blocks}.{level}.")
    for layer in range(4):
        key = key.replace(f"mask_head.{layer}.0.", f"mask_head.mask_fcn{layer + 1}.")
    return key


@pytest.mark.parametrize("rename", [str, old_name], ids=["new names", "old names"])
def test_torchvisions_detector_loads_and_predicts_as_torchvisions_own(torchvisions, likewise, rename, tmp_path, dataset):
    state_dict = {rename(key): value for key, value in torchvisions.state_dict().items()}
    if rename is old_name:
        olds = ["rpn.head.conv.weight", "backbone.fpn.inner_blocks.0.weight", "roi_heads.mask_head.mask_fcn1.weight"]
        assert set(olds) <= state_dict.keys()
    torch.save(state_dict, tmp_path / "weights.pth")
    load_detector_weights(likewise, tmp_path / "weights.pth", dataset)
    likewise.eval()
    image = torch.randint(0, 256, (3, 60, 80), dtype=torch.uint8)
    with torch.no_grad():
        expected, found = torchvisions([image / 255])[0], likewise([image])[0]
    assert len(expected["boxes"]) > 5
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-4)


def test_weights_that_lack_a_layer_are_refused_and_it_is_named(torchvisions, likewise, tmp_path, dataset):
    state_dict = dict(torchvisions.state_dict())
    del state_dict["rpn.head.cls_logits.weight"]
    torch.save(state_dict, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"missing rpn\.head\.cls_logits\.weight"):
        load_detector_weights(likewise, tmp_path / "weights.pth", dataset)


def test_a_missing_file_is_named(model, dataset, tmp_path):
    with pytest.raises(UserError, match=r"no weight file at .*none\.pth"):
        load_detector_weights(model, tmp_path / "none.pth", dataset)


def test_code_in_a_bare_pickle_is_refused_and_not_run(model, dataset, tmp_path):
    trace, path = tmp_path / "was run", tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps({"w": Intruder(trace)}, protocol=2))
    with pytest.raises(UserError):
        load_detector_weights(model, path, dataset)
    assert not trace.exists()
    pickle.loads(path.read_bytes())
    assert trace.exists(), "the file is not evil: this test shows nothing"
