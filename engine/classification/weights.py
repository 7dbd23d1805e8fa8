"""Weights of whole classifiers: ours, and those that other libraries publish."""

from pathlib import Path

from engine.checkpoint import check_own
from engine.job import HasClasses
from heads.classifier import Classifier, load_classifier_weights


def load_weights(model: Classifier, path: str | Path, classes: HasClasses) -> None:
    """Load a file of weights of a whole classifier: a checkpoint of ours, or another library's of the same architecture.

    A checkpoint of ours must have the classes of `classes`. Files of bare weights do not say theirs. What became of each tensor
    is kept as the backbone's `weights_report`.

    Raises:
        UserError: the file is missing, does not fit, or is of other classes or of another job.
    """
    path = Path(path)
    check_own(path, job="classification", classes=classes)
    model.backbone.weights_report = load_classifier_weights(model, path)
