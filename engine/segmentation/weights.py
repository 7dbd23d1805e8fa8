"""Weights of whole segmenters: ours, and those torchvision publishes."""

from pathlib import Path

from torch import nn

from backbones.errors import UserError
from backbones.weights import check_fit, load_tensors, read_state_dict
from engine.checkpoint import check_own
from engine.job import HasClasses


def load_segmenter_weights(model: nn.Module, path: str | Path, dataset: HasClasses) -> None:
    """Load a file of weights of a whole segmenter: a checkpoint of ours, or torchvision's of the same architecture.

    A checkpoint of ours must have the classes of `dataset`. Files of bare weights do not say theirs.

    Raises:
        UserError: the file is missing, does not fit (the message names the keys), or is of other classes or another job.
    """
    path = Path(path)
    check_own(path, job="segmentation", classes=dataset)
    state_dict = read_state_dict(path)
    try:
        check_fit(model, state_dict, source=str(path))
    except UserError as error:
        in_file = any(key.startswith("aux_classifier.") for key in state_dict)
        in_model = getattr(model, "aux_classifier", None) is not None
        if in_file == in_model:
            raise
        hint = f"Its auxiliary classifier: model.head.auxiliary={str(in_file).lower()}."
        raise UserError(f"{error} {hint}") from None
    load_tensors(model, state_dict)
