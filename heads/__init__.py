"""What the network predicts: detectors on any backbone that meets the contract."""

from heads.faster_rcnn import faster_rcnn
from heads.mask_rcnn import mask_rcnn
from heads.registry import build_detector, list_detectors, register_detector

__all__ = ["build_detector", "faster_rcnn", "list_detectors", "mask_rcnn", "register_detector"]
