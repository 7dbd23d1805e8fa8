"""Weights of whole classifiers: ours, and those that other libraries publish."""

from pathlib import Path

from backbones.weights import load_pickled_tensors
from engine.checkpoint import load_checkpoint
from engine.config_file import check_job
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
    if path.suffix != ".safetensors" and path.is_file():
        content = load_pickled_tensors(path)
        if isinstance(content, dict) and "categories" in content:
            checkpoint = load_checkpoint(path)
            check_job(checkpoint.job, "classification", where=str(path))
            checkpoint.check_categories(classes)
    model.backbone.weights_report = load_classifier_weights(model, path)
