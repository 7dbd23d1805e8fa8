"""What the network predicts: detectors and a classifier on any backbone that meets the contract."""

from heads.classifier import Classifier, classifier, load_classifier_weights
from heads.faster_rcnn import faster_rcnn
from heads.mask_rcnn import mask_rcnn
from heads.registry import build_detector, list_detectors, register_detector

__all__ = [
    "Classifier",
    "build_detector",
    "classifier",
    "faster_rcnn",
    "list_detectors",
    "load_classifier_weights",
    "mask_rcnn",
    "register_detector",
]
