"""CONTRIBUTING.md: its example of a backbone keeps the contract, by name, in Python and in a config."""

import re
import sys
from pathlib import Path

import pytest

from backbones import FeatureSpec, build_fpn_backbone
from backbones.check import check_backbone
from backbones.registry import BACKBONES
from engine.config_file import apply_overrides

ROOT = Path(__file__).parents[1]


@pytest.fixture
def my_folder(tmp_path, monkeypatch):
    """A folder that holds the example, and nothing of it known before or after."""
    (code,) = re.findall(r"```python\n(# my_backbone\.py\n.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    (tmp_path / "my_backbone.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(BACKBONES, "_constructors", dict(BACKBONES._constructors))
    monkeypatch.setattr(BACKBONES, "_modules", {})
    monkeypatch.delitem(sys.modules, "my_backbone", raising=False)
    yield tmp_path
    sys.modules.pop("my_backbone", None)


@pytest.mark.usefixtures("my_folder")
def test_the_example_backbone_keeps_the_contract_and_builds_by_name_everywhere():
    assert list(check_backbone("my_backbone:two_convolutions", width=32))[-1].endswith("with pyramid fpn")
    backbone = build_fpn_backbone("my_backbone:two_convolutions", width=32, out_channels=16)
    assert backbone.body.feature_specs == {"c3": FeatureSpec(32, 8), "c4": FeatureSpec(64, 16)}
    data = {"train": "shapes", "val": "shapes"}
    config = apply_overrides(
        {"data": data}, ["model.backbone={name: my_backbone:two_convolutions, width: 32}"], origin="this test"
    )
    assert config.model.backbone.options() == {"width": 32}
