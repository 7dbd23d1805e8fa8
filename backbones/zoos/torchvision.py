"""torchvision's classifiers as backbones: `torchvision/<name>`.

The maps are outputs of whole blocks, found by torchvision's own feature extraction (torch.fx). Parameters keep their names.
"""

import fnmatch
import inspect
import warnings
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from backbones.base import Backbone
from backbones.conversions import adapt_channels
from backbones.errors import UserError, did_you_mean
from backbones.norms import check_conversion, convert_batch_norms
from backbones.weights import (
    WEIGHT_FILE_SUFFIXES,
    LoadReport,
    check_fit,
    download_torchvision_weights,
    load_backbone_weights,
    load_tensors,
)
from backbones.zoos.measured import MODEL_ERRORS, MeasuredBackbone, choose, measure, stages_by_map

MULTIPLES = (1, 32, 64, 128)
# Classifiers of one image size, and the like of them in timm that take any.
FIXED_SIZE = {"vit_": "timm/vit_base_patch16_224", "maxvit_": "timm/maxvit_tiny_tf_224"}
# Children that are sequences of stages, and those that are no part of a backbone.
CONTAINERS = ("features", "layers", "trunk_output")
CLASSIFIER = ("avgpool", "classifier", "dropout", "fc", "flatten", "head", "heads", "permute")
# Where a model's constructor has them: no auxiliary classifiers, the initialisation it will have in future.
CONSTRUCTION = {"aux_logits": False, "init_weights": False}


def names(pattern: str = "*") -> list[str]:
    """torchvision's classifiers that match a shell-style pattern, sorted."""
    return sorted(fnmatch.filter(torchvision.models.list_models(module=torchvision.models), pattern))


def check_name(name: str) -> None:
    """Check that torchvision has a classifier of that name.

    Raises:
        UserError: it has none; the message names the nearest.
    """
    if name not in names():
        raise UserError(f"torchvision has no classifier {name!r}.{did_you_mean(name, names())}")


def build(
    name: str,
    *,
    weights: str | None = None,
    in_channels: int = 3,
    norm: str = "bn",
    out_features: list[str] | None = None,
    **options: Any,
) -> Backbone:
    """A torchvision classifier's body with its maps by stride, c2..c5.

    Args:
        name: as torchvision.models.list_models() has it.
        weights: a name torchvision publishes, the path of a file of the classifier, or nothing.
        in_channels: channels of the images; the first convolution's weights are adapted.
        norm: bn leaves the model's own norms; frozen_bn and sync_bn turn batch norms into those.
        out_features: which maps; also c1, where there is one.
        options: of torchvision's constructor, such as stochastic_depth_prob.

    Raises:
        UserError: no such model, weights that cannot be had or do not fit, or maps that a detector cannot use.
    """
    check_name(name)
    check_conversion(norm, f"torchvision/{name}")
    for prefix, other in FIXED_SIZE.items():
        if name.startswith(prefix):
            raise UserError(
                f"torchvision/{name} cannot be a backbone: it takes images of one size only. {other} is alike, and takes any."
            )
    title = f"torchvision/{name}"
    model = create(name, options)
    if in_channels != 3:
        replace_first_convolution(model, in_channels, title)
    units = find_units(model, title)
    try:
        everything = create_feature_extractor(model, return_nodes=list(units.values()))
        measurement = measure(everything, in_channels, MULTIPLES, name=title)
    except UserError:
        raise
    except MODEL_ERRORS as error:
        raise UserError(f"{title} cannot be a backbone: its blocks cannot be taken apart ({_line(error)}).") from error
    chosen = choose(measurement, out_features, name=title)
    blocks, nodes = list(units), list(units.values())
    first_block = blocks[next(iter(measurement.levels().values())).index]
    stage_of = stages_by_map(everything, in_channels, measurement, lambda key: not key.startswith(f"{first_block}."))
    body = create_feature_extractor(model, return_nodes={nodes[found.index]: level for level, found in chosen.items()})
    body.in_channels = in_channels
    report = load(body, weights, name, in_channels) if weights is not None else None
    backbone = MeasuredBackbone(
        convert_batch_norms(body, norm),
        chosen,
        in_channels=in_channels,
        measurement=measurement,
        plain=len({found.stride for found in measurement.maps}) == 1,
        stage_of=stage_of,
        name=title,
    )
    backbone.weights_report = report
    return backbone


def create(name: str, options: dict[str, Any]) -> nn.Module:
    """The classifier with random weights, on the current default device.

    Raises:
        UserError: an option that its constructor does not take.
    """
    builder = torchvision.models.get_model_builder(name)
    model_class = inspect.signature(builder).return_annotation
    known = inspect.signature(model_class).parameters if inspect.isclass(model_class) else {}
    settings = {key: value for key, value in CONSTRUCTION.items() if key in known} | options
    try:
        try:
            return torchvision.models.get_model(name, weights=None, **settings)
        except NotImplementedError:  # RegNet computes its widths with tensors
            device = torch.get_default_device()
            with torch.device("cpu"):
                return torchvision.models.get_model(name, weights=None, **settings).to(device)
    except (TypeError, ValueError) as error:
        raise UserError(f"torchvision/{name} cannot be built with {options}: {_line(error)}.") from error


def find_units(model: nn.Module, title: str) -> dict[str, str]:
    """The whole blocks, in the order they end, and the names of the graph nodes at which they do.

    Blocks are the model's children; of a sequence of stages, its members.

    Raises:
        UserError: torch.fx cannot follow the model.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            training, evaluation = get_graph_node_names(model)
    except MODEL_ERRORS as error:
        raise UserError(f"{title} cannot be a backbone: torch.fx cannot follow it ({_line(error)}).") from error
    in_both = [node for node in evaluation if node in set(training)]
    last: dict[str, str] = {}
    for node in in_both:
        unit = _unit(model, node)
        if unit is not None:
            last.pop(unit, None)
            last[unit] = node
    return last


def _unit(model: nn.Module, node: str) -> str | None:
    """The block a graph node lies in; None for the classifier's, and for what lies in no module."""
    first, *rest = node.split(".")
    if first in CLASSIFIER or first not in dict(model.named_children()):
        return None
    return f"{first}.{rest[0]}" if first in CONTAINERS and rest else first


def replace_first_convolution(model: Any, in_channels: int, title: str) -> None:
    """Give the convolution that sees the image another number of channels, initialised anew as the old one was.

    Raises:
        UserError: the model does not begin with a convolution of 3 channels.
    """
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            if module.in_channels != 3 or module.groups != 1:
                break
            first = nn.Conv2d(
                in_channels,
                module.out_channels,
                module.kernel_size,  # type: ignore[arg-type]
                stride=module.stride,  # type: ignore[arg-type]
                padding=module.padding,  # type: ignore[arg-type]
                bias=module.bias is not None,
            )
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, first)
            # torchvision's GoogLeNet and Inception mix the channels themselves, where they transform their input.
            model.transform_input = False
            return
    raise UserError(f"{title} takes images of 3 channels only: it does not begin with a convolution of 3 channels.")


def load(body: nn.Module, weights: str, name: str, in_channels: int) -> LoadReport | None:
    """Load weights that torchvision publishes, or a file, into a classifier's body; its head is left out.

    Raises:
        UserError: they cannot be had, or do not fit.
    """
    if Path(weights).suffix in WEIGHT_FILE_SUFFIXES or "/" in weights or Path(weights).exists():
        return load_backbone_weights(body, weights)
    state_dict = download_torchvision_weights(name, weights)
    own = body.state_dict()
    fitting = {key: value for key, value in state_dict.items() if key in own}
    for key, value in fitting.items():
        if value.ndim == 4 and value.shape[1] == 3 and own[key].shape[1] == in_channels:
            fitting[key] = adapt_channels(value, in_channels)
    check_fit(body, fitting, source=f"{name}'s weights {weights}")
    load_tensors(body, fitting)
    return None


def _line(error: Exception) -> str:
    return str(error).splitlines()[0][:200].rstrip(".") if str(error) else type(error).__name__
