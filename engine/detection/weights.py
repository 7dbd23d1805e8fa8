"""Weights of whole detectors: ours, and those torchvision publishes."""

from pathlib import Path

from torch import nn

from backbones.weights import check_fit, load_tensors, read_state_dict
from engine.checkpoint import check_own
from engine.job import HasClasses


def load_detector_weights(model: nn.Module, path: str | Path, dataset: HasClasses) -> None:
    """Load a file of weights of a whole detector: a checkpoint of ours, or torchvision's of the same architecture.

    A checkpoint of ours must have the classes of `dataset`. Files of bare weights do not say theirs.

    Raises:
        UserError: the file is missing, does not fit (the message names the keys), or is of other classes or another job.
    """
    path = Path(path)
    check_own(path, job="detection", classes=dataset)
    # torchvision's files from before its version 0.13 name a few layers otherwise.
    state_dict = {_modern_name(key): value for key, value in read_state_dict(path).items()}
    check_fit(model, state_dict, source=str(path))
    load_tensors(model, state_dict)


def _modern_name(key: str) -> str:
    for old, new in (("rpn.head.conv.weight", "rpn.head.conv.0.0.weight"), ("rpn.head.conv.bias", "rpn.head.conv.0.0.bias")):
        if key == old:
            return new
    parts = key.split(".")
    if len(parts) == 5 and parts[1] == "fpn" and parts[2] in ("inner_blocks", "layer_blocks"):
        return ".".join([*parts[:4], "0", parts[4]])
    if key.startswith("roi_heads.mask_head.mask_fcn"):
        layer = int(parts[2].removeprefix("mask_fcn")) - 1
        return f"roi_heads.mask_head.{layer}.0.{parts[3]}"
    return key
