"""docs/plugins.md: its examples run, each in the framework it is about."""

import importlib
import re
import types
import warnings
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[3] / "docs" / "plugins.md"
BLOCKS = {
    heading: re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for heading, text in re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
}

# The warnings are those of the frameworks about themselves.
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::ImportWarning"
)


def need(*modules):
    """Skip the test if one of these modules cannot be imported."""
    for module in modules:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip(module, reason=f"{module} is not installed", exc_type=ImportError)


def run(code):
    names = {}
    exec(compile(code, str(PAGE), "exec"), names)
    return types.SimpleNamespace(**names)


def test_there_is_an_example_for_each_framework():
    counts = {heading: len(blocks) for heading, blocks in BLOCKS.items()}
    assert counts == {"transformers": 1, "MMDetection": 2, "detectron2": 1, "segmentation_models_pytorch": 1, "timm": 1}


def test_transformers():
    need("transformers")
    model = run(BLOCKS["transformers"][0]).model.eval()
    assert model.model.backbone.intermediate_channel_sizes == [2048]
    assert model(torch.rand(1, 3, 64, 64)).logits.shape == (1, 100, 4)


def test_segmentation_models_pytorch():
    need("segmentation_models_pytorch")
    made = run(BLOCKS["segmentation_models_pytorch"][0])
    assert made.model.eval()(torch.rand(1, 3, 64, 64)).shape == (1, 1, 64, 64)
    assert isinstance(made.model.encoder.backbone.bn1, torch.nn.GroupNorm)


def test_timm():
    need("timm")
    made = run(BLOCKS["timm"][0])
    assert [level.shape[2] for level in made.maps] == [16, 8, 4, 2]
    assert made.model.feature_info.channels() == [256] * 5


def test_mmdetection(mmdet, tmp_path):
    # mmengine finds "mmdet::" by pkg_resources, which newer setuptools do not have.
    code = BLOCKS["MMDetection"][0].replace("mmdet::", f"{Path(mmdet.__file__).parent}/.mim/configs/")
    config_file = tmp_path / "config.py"
    config_file.write_text(code)
    config = importlib.import_module("mmengine.config").Config.fromfile(str(config_file))
    model = mmdet.registry.MODELS.build(config.model)
    assert model.backbone.channels == list(config.model.neck.in_channels)
    assert [level.shape[1] for level in model.extract_feat(torch.rand(1, 3, 64, 64))] == [256] * 5
    made = vars(run(BLOCKS["MMDetection"][1]))
    lines = re.findall(r"^(channels\(.*\))  # (.*)$", BLOCKS["MMDetection"][1], re.MULTILINE)
    assert [repr(eval(line, made)) for line, _ in lines] == [said for _, said in lines]


def test_detectron2():
    need("detectron2.modeling")
    model = run(BLOCKS["detectron2"][0]).model.eval()
    assert list(model.backbone.output_shape()) == ["p2", "p3", "p4", "p5", "p6"]
    assert len(model([{"image": torch.zeros(3, 64, 64)}])) == 1
