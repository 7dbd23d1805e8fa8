"""Weights that were trained in another library's computation, changed so that ours gives the same result."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backbones.errors import UserError
from backbones.layouts import CAFFE2, DETECTRON2, OPENMMLAB, TIMM_RESNETV2
from backbones.weight_matching import Match, is_adaptable, is_unweighted_offset

# What our images are normalised by, red first, on a scale of 0 to 1; torchvision's.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class Conversion:
    """The tensors for a backbone, by its keys, and what was done to them."""

    tensors: dict[str, Tensor]
    filled: list[str]  # keys of tensors that are not in the file, and follow from what it is
    notes: list[str]


def convert(model: nn.Module, match: Match, *, in_channels: int, source: str) -> Conversion:
    """The tensors of a match, so that the model computes with them what the file's own library does.

    - Weights from Caffe, as detectron2 starts from, have norms without statistics, and take blue, green and red from 0 to 255,
      with the mean subtracted. The statistics are filled in, and the first convolution is made to take our normalised images.
      Those of ResNeXt take images that are divided by ImageNet's deviations, too (detectron2's PIXEL_STD for them).
      The mean is ImageNet's, so that this is exact. Where a file states another (`pixel_mean`), that is noted.
    - Other files of detectron2's do not say what their images are: they are taken to be as ours, which is noted.
    - Deformable convolutions weigh their samples by a sigmoid elsewhere, by twice that here, or not at all elsewhere.
    - A first convolution for 3 channels is adapted to another number of them as timm does, and one for 1 channel likewise.

    Raises:
        UserError: the model would compute something else: its strides lie elsewhere, its convolutions are not standardised.
    """
    given = match.state_dict.tensors
    tensors = {key: given[theirs] for key, theirs in match.found.items()}
    own = model.state_dict()
    notes: list[str] = []
    filled: list[str] = []
    if match.layout is TIMM_RESNETV2 and f"{match.target}conv1.weight" in match.found and not _statistics(tensors):
        raise UserError(
            f"{source} holds a ResNet of BiT, whose convolutions standardise their weights; a ResNet here does not. "
            "Give weights of a timm resnetv2 with batch norm."
        )
    if match.layout not in (CAFFE2, DETECTRON2) and _looks_like_caffe(tensors, match.target):
        notes.append(
            "The norms have no statistics of their own, as in weights from Caffe, which take BGR images from 0 to 255 and have "
            "their strides in the first 1x1 convolutions. The names do not say so, and nothing was converted."
        )
    if match.layout in (CAFFE2, DETECTRON2):
        notes += _from_caffe(model, match, tensors, filled, source=source)
    if match.layout in (DETECTRON2, OPENMMLAB):
        _set_sample_weights(tensors)
    for key, tensor in tensors.items():
        if is_adaptable(own[key], tensor, in_channels):
            tensors[key] = adapt_channels(tensor, in_channels)
            notes.append(f"{key} adapted from {tensor.shape[1]} to {in_channels} channels")
        elif is_unweighted_offset(own[key], tensor, key):
            tensors[key] = torch.cat([tensor, tensor.new_zeros(len(own[key]) - len(tensor), *tensor.shape[1:])])
    return Conversion(tensors, filled, notes)


def adapt_channels(weight: Tensor, in_channels: int) -> Tensor:
    """A convolution's weight (out, 3 or 1, h, w) -> (out, in_channels, h, w), as timm's: 1 channel is given the sum over all 3;

    more are given the three, or the one, in turn, scaled so that what they add up to stays.
    """
    weight = weight.float()
    if in_channels == 1:
        return weight.sum(dim=1, keepdim=True)
    turns = torch.arange(in_channels) % weight.shape[1]
    return weight[:, turns] * (weight.shape[1] / in_channels)


def _statistics(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in tensors.items() if key.endswith(STATISTICS)}


def _do_nothing(statistics: dict[str, Tensor]) -> bool:
    """Whether there are statistics, all of them mean 0 and variance 1, or 1 - eps."""
    plain = (
        tensor.allclose(torch.full_like(tensor, 1.0 if key.endswith("var") else 0.0), atol=1e-4)
        for key, tensor in statistics.items()
    )
    return bool(statistics) and all(plain)


def _looks_like_caffe(tensors: dict[str, Tensor], target: str) -> bool:
    """Whether a ResNet's norms have no statistics, and yet have been trained: the scales of their channels differ."""
    statistics = _statistics(tensors)
    scales = [tensors.get(key.replace("running_var", "weight")) for key in statistics if key.endswith("running_var")]
    trained = any(scale is not None and not scale.allclose(scale.mean()) for scale in scales)
    return trained and f"{target}layer1.0.conv1.weight" in tensors and _do_nothing(statistics)


def _from_caffe(model: nn.Module, match: Match, tensors: dict[str, Tensor], filled: list[str], *, source: str) -> list[str]:
    notes = []
    statistics = _statistics(tensors)
    if not statistics:
        for key, value in model.state_dict().items():
            if key.startswith(match.target) and key.endswith(STATISTICS):
                norm = model.get_submodule(key.rpartition(".")[0])
                tensors[key] = torch.full_like(value, 1 - float(getattr(norm, "eps", 1e-5)) if key.endswith("var") else 0.0)
                filled.append(key)
        if match.layout is CAFFE2 and not filled:
            raise UserError(
                f"{source} holds norms that only scale and shift, and {type(model).__name__}'s normalise by groups. "
                "Build the backbone with norm='frozen_bn' or norm='bn'."
            )
    # Files that went through detectron2 may have statistics, those of a norm that does nothing; group norms have none.
    without_statistics = bool(filled) or _do_nothing(statistics)
    grouped = _has_groups(tensors, match.target)
    if without_statistics and not grouped and (block := bottleneck_with_stride_in_3x3(model)) is not None:
        raise UserError(
            f"{source} holds weights of the original ResNet (v1), whose stride is in the first 1x1 convolution of a block; in "
            f"{type(model).__name__}'s {block} it is in the 3x3. Build the backbone with stride_in_1x1=True."
        )
    mean, std = _stated_statistics(match.state_dict.tensors)
    if mean is None and (without_statistics or match.layout is CAFFE2):
        mean = [255 * value for value in reversed(IMAGENET_MEAN)]
        std = [255 * value for value in reversed(IMAGENET_STD)] if grouped else [1.0] * 3
    stem = f"{match.target}conv1.weight"
    if mean is None or std is None or stem not in tensors:
        return [
            "Channel order and scale of the images are not in the file: taken to be RGB with ImageNet's mean and deviation."
        ]
    is_bgr = mean[0] < mean[2]  # blue is the darkest of ImageNet's channels
    weight = tensors[stem].float()
    if is_bgr:
        weight, mean, std = weight.flip(1), mean[::-1], std[::-1]
        notes.append(f"{stem}: BGR images made RGB")
    scale = torch.tensor([255 * ours / theirs for ours, theirs in zip(IMAGENET_STD, std, strict=True)])
    if not scale.allclose(torch.ones(3), atol=1e-3):
        weight = weight * scale[:, None, None]
        notes.append(f"{stem}: images from 0 to 255 made our normalised ones")
    tensors[stem] = weight
    if max(abs(255 * ours - theirs) for ours, theirs in zip(IMAGENET_MEAN, mean, strict=True)) > 0.5:
        notes.append(f"The file's mean colour (RGB {mean}) is not ImageNet's: this difference was not made up for.")
    return notes


def _stated_statistics(given: dict[str, Tensor]) -> tuple[list[float] | None, list[float] | None]:
    """The mean and deviation of the images, which detectron2's older checkpoints hold."""
    found: list[list[float] | None] = []
    for name in ("pixel_mean", "pixel_std"):
        tensors = [tensor for key, tensor in given.items() if key.rpartition(".")[2] == name and tensor.numel() == 3]
        found.append([float(value) for value in tensors[0].flatten()] if tensors else None)
    mean, std = found
    return (mean, std) if mean and std else (None, None)


def _has_groups(tensors: dict[str, Tensor], target: str) -> bool:
    weight = tensors.get(f"{target}layer1.0.conv2.weight")
    return weight is not None and weight.shape[1] < weight.shape[0]


def _set_sample_weights(tensors: dict[str, Tensor]) -> None:
    """Halve the weights of deformable convolutions whose samples have weights, offsets of 3 numbers: ours doubles those."""
    for key in [key for key in tensors if key.endswith(".offset_and_mask.weight")]:
        weight = key.replace(".offset_and_mask.", ".")
        if weight in tensors and len(tensors[key]) == 3 * tensors[weight].shape[2:].numel():
            tensors[weight] = tensors[weight] / 2


def bottleneck_with_stride_in_3x3(model: nn.Module) -> str | None:
    """The name of the first bottleneck whose 3x3 convolution has the stride, not the 1x1 before it; None: there is none."""
    for name, module in model.named_modules():
        strides = getattr(getattr(module, "conv2", None), "stride", (1, 1))
        if isinstance(getattr(module, "conv3", None), nn.Module) and isinstance(strides, tuple) and max(strides) > 1:
            return name
    return None
