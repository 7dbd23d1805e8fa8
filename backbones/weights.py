"""Weights into a backbone: what torchvision publishes, by name, or a file; never code from a file, never a silent misfit."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from backbones.errors import UserError, did_you_mean
from backbones.load_plan import make_plan, plan_load
from backbones.load_report import LoadReport, misfit, shape
from backbones.weight_files import (
    WEIGHT_FILE_SUFFIXES,
    StateDict,
    load_pickled_tensors,
    read_state_dict,
    unwrap_state_dict,
)

__all__ = [
    "WEIGHT_FILE_SUFFIXES",
    "LoadReport",
    "check_fit",
    "download_torchvision_weights",
    "load_backbone_weights",
    "load_pickled_tensors",
    "load_published_weights",
    "load_tensors",
    "read_state_dict",
    "unwrap_state_dict",
]


def load_published_weights(backbone: nn.Module, weights: str, *, architecture: str) -> LoadReport:
    """Load `weights` into `backbone`: a name torchvision publishes for `architecture`, or the path of a file.

    Raises:
        UserError: no such name or file, a download that failed, or weights that do not fit.
    """
    if Path(weights).suffix in WEIGHT_FILE_SUFFIXES or "/" in weights or Path(weights).exists():
        return load_backbone_weights(backbone, weights)
    state_dict = StateDict("", download_torchvision_weights(architecture, weights), ())
    plan = make_plan(backbone, [state_dict], source=f"{architecture}'s weights {weights}")
    plan.check(allow_partial=False)
    return plan.carry_out()


def load_backbone_weights(model: nn.Module, path: str | Path, *, allow_partial: bool = False) -> LoadReport:
    """Load a backbone from a file of nearly any origin, and say what became of each tensor in it.

    The backbone may lie in the file under any prefix (`module.`, `backbone.body.`, `module.encoder_q.`, ...) within any
    dictionaries (`state_dict`, `teacher`, ...), named as torchvision, timm, detectron2, Caffe2, MMDetection or Hugging Face
    name a ResNet, or as the model itself does, whatever it is. The reading that fits most of the model's tensors is taken.
    Where several fit equally, a teacher goes before its student, MoCo's query encoder before its momentum copy, and a weight
    average (`ema`) before what it averages, as timm does. Heads, other parts of a detector, stages that were not built and
    batch counters are left out. A model with a pyramid gets the pyramid, too, where the file has one like it.
    What is converted on the way is said in `conversions.convert`.

    Args:
        model: any module; for images of other than 3 channels, its attribute `in_channels` says how many.
        path: a file of PyTorch's, safetensors, or a pickle of arrays (.pkl). No code in it is ever run.
        allow_partial: load what fits where some does not, and report the rest; else nothing is loaded then.

    Raises:
        UserError: the file is missing, is not a weight file, is of another architecture, or does not fit; the message names
            the keys.
    """
    plan = plan_load(model, path)
    plan.check(allow_partial=allow_partial)
    return plan.carry_out()


def download_torchvision_weights(architecture: str, name: str) -> dict[str, Tensor]:
    """The state dict torchvision publishes under `name`, from its cache or downloaded and checked against its hash.

    Raises:
        UserError: torchvision publishes no such weights, or they cannot be downloaded.
    """
    advice = "give the path of a .pth or .safetensors file instead, or none (model.backbone.weights=null in a config)"
    try:
        published = torchvision.models.get_model_weights(architecture)
    except ValueError:
        raise UserError(f"torchvision publishes no weights for {architecture!r}; {advice}, not {name!r}.") from None
    if name not in published.__members__:
        hint = did_you_mean(name, [*published.__members__, "DEFAULT"])
        raise UserError(f"torchvision publishes no weights {name!r} for {architecture}.{hint} Or {advice}.")
    entry = published[name]
    try:
        return entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
    # URLError is an OSError; a wrong hash a RuntimeError; a web page saved in the file's place cannot be unpickled.
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise UserError(
            f"The weights {name} of {architecture} could not be downloaded from {entry.url} ({error}). "
            f"Where there is no network, fetch that file elsewhere and pass its path: model.backbone.weights=PATH, or put it "
            f"into {torch.hub.get_dir()}/checkpoints/."
        ) from error


def check_fit(model: nn.Module, state_dict: Mapping[str, Tensor], *, source: str) -> None:
    """Check that a state dict has just the model's keys, in the model's shapes.

    Batch-norm counters (`num_batches_tracked`) may be missing or left over: frozen and live batch norm differ in them.

    Raises:
        UserError: it does not; the message names the missing, left-over and misshapen keys.
    """
    expected = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    given = {key: value for key, value in state_dict.items() if not key.endswith("num_batches_tracked")}
    problems = misfit(
        [key for key in expected if key not in given],
        [key for key in given if key not in expected],
        [
            f"{key} is {shape(given[key])} in the file and {shape(expected[key])} in the model"
            for key in expected
            if key in given and given[key].shape != expected[key].shape
        ],
    )
    if problems:
        raise UserError(
            f"{source} does not fit {type(model).__name__}: {problems}. "
            "Check that the architecture and its options are those the weights were made for."
        )


def load_tensors(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load a state dict that `check_fit` has passed, whichever of the two has the counters of batch norm."""
    own = model.state_dict()
    counters = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")}
    model.load_state_dict({**counters, **{key: value for key, value in state_dict.items() if key in own}}, strict=True)
