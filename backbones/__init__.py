"""Backbones for detection and segmentation: images in, multi-scale feature maps out.

>>> from torchvision.models.detection import FasterRCNN
>>> from backbones import build_fpn_backbone
>>> model = FasterRCNN(build_fpn_backbone("resnet50"), num_classes=91)
"""

from backbones import pyramids as _pyramids  # noqa: F401  (registers them)
from backbones import resnet_models as _resnet_models  # noqa: F401  (registers the ResNets)
from backbones.base import Backbone, FeatureSpec, select_features
from backbones.errors import UserError
from backbones.fpn import FeaturePyramid, FpnBackbone, build_fpn_backbone, register_pyramid
from backbones.inference import optimize_for_inference
from backbones.load_report import LoadReport
from backbones.registry import build_backbone, list_backbones, register_backbone
from backbones.weights import load_backbone_weights

__all__ = [
    "Backbone",
    "FeaturePyramid",
    "FeatureSpec",
    "FpnBackbone",
    "LoadReport",
    "UserError",
    "build_backbone",
    "build_fpn_backbone",
    "list_backbones",
    "load_backbone_weights",
    "optimize_for_inference",
    "register_backbone",
    "register_pyramid",
    "select_features",
]
