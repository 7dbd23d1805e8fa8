"""MMDetection for the tests of its plug-out and of the documentation, where it is installed."""

import importlib
import sys
import types
import warnings

import pytest
import torchvision


class CompiledOperations(types.ModuleType):
    """In place of mmcv's compiled module: non-maximum suppression by torchvision, and nothing else that can be called."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args, **kwargs):
            raise RuntimeError(f"mmcv-lite has no {name}")

        return missing

    @staticmethod
    def nms(boxes, scores, *, iou_threshold, offset):
        assert offset == 0
        return torchvision.ops.nms(boxes, scores, iou_threshold)


@pytest.fixture(scope="session")
def mmdet():
    """The package, its detectors imported and our backbones registered."""
    with warnings.catch_warnings():  # those of mmdet, mmengine and mmcv about themselves, as they are imported
        warnings.simplefilter("ignore")
        for module in ("mmdet", "mmcv"):
            reason = "mmdet, mmengine and mmcv or mmcv-lite 2.1 are not installed"
            pytest.importorskip(module, reason=reason, exc_type=ImportError)
        try:
            importlib.import_module("mmcv._ext")
        except ImportError:
            sys.modules["mmcv._ext"] = CompiledOperations("mmcv._ext")
        importlib.import_module("mmengine.registry").init_default_scope("mmdet")
        importlib.import_module("mmdet.models")
        importlib.import_module("backbones.plugins.mmdet")
        return importlib.import_module("mmdet")
