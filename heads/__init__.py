"""What the network predicts: detectors, segmenters and a classifier on any backbone that meets the contract."""

from heads.cascade_rcnn import cascade_mask_rcnn, cascade_rcnn
from heads.classifier import Classifier, classifier, load_classifier_weights
from heads.faster_rcnn import faster_rcnn
from heads.fcos import fcos
from heads.keypoint_rcnn import keypoint_rcnn
from heads.mask_rcnn import mask_rcnn
from heads.registry import build_detector, list_detectors, register_detector
from heads.retinanet import retinanet
from heads.segmentation import Segmenter, build_segmenter

__all__ = [
    "Classifier",
    "Segmenter",
    "build_detector",
    "build_segmenter",
    "cascade_mask_rcnn",
    "cascade_rcnn",
    "classifier",
    "faster_rcnn",
    "fcos",
    "keypoint_rcnn",
    "list_detectors",
    "load_classifier_weights",
    "mask_rcnn",
    "register_detector",
    "retinanet",
]
