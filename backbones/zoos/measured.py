"""A foreign model as a backbone: its maps' strides, channels and layout are measured with a real forward pass."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.base import Backbone, FeatureSpec
from backbones.errors import UserError

LEVELS = {2: "c1", 4: "c2", 8: "c3", 16: "c4", 32: "c5"}
STEM = re.compile(r"(^|[._])(stem|conv_stem|patch_embed|patch_embeds[._]0|patch_embed_?1|embeddings|embedder)([._]|$)")
STAGES = ("stem", "stage1", "stage2", "stage3", "stage4")
# What a model may raise on an image it cannot take, and only such.
MODEL_ERRORS = (
    RuntimeError,
    ValueError,
    AssertionError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    ZeroDivisionError,
    NotImplementedError,
)


@dataclass(frozen=True)
class Map:
    """One map a model gives: its place among the outputs, and what was measured of it."""

    index: int
    channels: int
    stride: Fraction
    channels_last: bool


@dataclass(frozen=True)
class Measurement:
    """What a model gives for images whose sides are multiples of `multiple` (1 for any), in the model's own pixels.

    `scale` is how many of the image's pixels one of the model's is to span, so that every stride is a power of two.
    With `tiled`, the model takes images of `multiple` x `multiple` pixels only.
    """

    multiple: int
    maps: tuple[Map, ...]
    scale: Fraction = Fraction(1)
    tiled: bool = False

    def size(self) -> tuple[int, int]:
        """A size to run the model at, in its own pixels."""
        return (self.multiple, self.multiple) if self.tiled else sizes(self.multiple)[0]

    def specs(self) -> dict[str, FeatureSpec]:
        """The last map of each stride from 2 to 32, by level, finest first."""
        return {level: FeatureSpec(found.channels, int(found.stride)) for level, found in self.levels().items()}

    def levels(self) -> dict[str, Map]:
        """As `specs`, with what was measured."""
        last = {found.stride: found for found in self.maps}
        return {level: last[Fraction(stride)] for stride, level in LEVELS.items() if Fraction(stride) in last}


def as_list(output: Any) -> list[Tensor]:
    """A model's output as a list of maps: of a list, a tuple, a dictionary, or transformers' BackboneOutput."""
    maps = getattr(output, "feature_maps", output)
    return list(maps.values()) if isinstance(maps, Mapping) else list(maps)


def measure(
    body: nn.Module, in_channels: int, multiples: Iterable[int], *, name: str, own_size: int | None = None
) -> Measurement:
    """Find the least padding with which a model gives maps of whole strides, whatever the image's size.

    A model that takes images of one size only gets larger ones in tiles of it.

    Black images are run in evaluation mode; nothing random is drawn.

    Args:
        body: gives its maps for a batch of images.
        multiples: of the images' sides, tried in this order; 1 tries odd sizes.
        name: what errors call the model.
        own_size: height and width of the one image that the model is known to take.

    Raises:
        UserError: no multiple will do; the message says what was measured, and what was expected.
    """
    problem = ""
    for multiple in dict.fromkeys(multiples):
        try:
            first, second = (_measure_at(body, in_channels, size, exact=multiple > 1) for size in sizes(multiple))
        except UserError as error:
            problem = str(error)
            continue
        if [(found.stride, found.channels) for found in first] != [(found.stride, found.channels) for found in second]:
            problem = "its maps' strides or channels depend on the size of the image"
            continue
        return _usable(Measurement(multiple, tuple(first)), name)
    if own_size is not None:
        try:
            maps = _measure_at(body, in_channels, (own_size, own_size), exact=True)
        except UserError as error:
            raise UserError(f"{name} cannot be a backbone: {error}.") from error
        return _usable(Measurement(own_size, tuple(maps), tiled=True), name)
    raise UserError(f"{name} cannot be a backbone for images of any size: {problem}.")


def _usable(found: Measurement, name: str) -> Measurement:
    """With strides in the image's pixels; a UserError where none is one of a detector's."""
    scale = _scale(found.maps)
    found = replace(found, scale=scale, maps=tuple(replace(m, stride=m.stride * scale) for m in found.maps))
    if not set(found.levels()) - {"c1"}:
        strides = ", ".join(str(m.stride) for m in found.maps)
        raise UserError(f"{name} cannot be a backbone: expected maps of stride 4, 8, 16 or 32, measured {strides or 'none'}.")
    return found


def sizes(multiple: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Two sizes (height, width) to measure at: odd and even multiples, of at least 64 pixels where that is not large."""
    if multiple == 1:
        return (65, 130), (96, 33)
    least = max(1, -(-64 // multiple)) | 1
    return (least * multiple, (least + 1) * multiple), ((least + 2) * multiple, least * multiple)


def _scale(maps: Sequence[Map]) -> Fraction:
    """By how much to enlarge the model's pixels so that strides become powers of two: 8/7 for a patch of 14 pixels."""
    odd = {_odd_part(found.stride) for found in maps}
    part = odd.pop() if len(odd) == 1 else 1
    return Fraction(2 ** round(math.log2(part)), part)


def _odd_part(stride: Fraction) -> int:
    number = stride.numerator
    return number // (number & -number) if stride.denominator == 1 else 1


@torch.no_grad()
def _measure_at(body: nn.Module, in_channels: int, size: tuple[int, int], *, exact: bool) -> list[Map]:
    try:
        outputs = run(body, in_channels, size)
    except MODEL_ERRORS as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"it does not take an image of {size[0]} x {size[1]} pixels ({line[:160].rstrip('.')})") from error
    return [measured for i, output in enumerate(outputs) if (measured := _read(output, i, size, exact=exact))]


def run(body: nn.Module, in_channels: int, size: tuple[int, int]) -> list[Tensor]:
    """The maps of one black image, the model in evaluation mode and left in the mode it was in."""
    reference = next((p for p in body.parameters() if p.is_floating_point()), torch.empty(0))
    image = torch.zeros(1, in_channels, *size, dtype=reference.dtype, device=reference.device)
    modes = {module: module.training for module in body.modules()}
    body.eval()
    try:
        return as_list(body(image))
    finally:
        for module, mode in modes.items():
            module.training = mode


def _read(output: Tensor, index: int, size: tuple[int, int], *, exact: bool) -> Map | None:
    if not isinstance(output, Tensor) or output.ndim != 4:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(f"a map should be (batch, channels, height, width), measured {shape}")
    for channels_last in (False, True):
        height, width = output.shape[1:3] if channels_last else output.shape[2:]
        stride = _stride(size, (height, width), exact=exact)
        if stride is not None:
            return Map(index, output.shape[3 if channels_last else 1], stride, channels_last)
    wanted = "sides that divide the image's evenly" if exact else "sides of ceil(image / stride), stride a power of two"
    raise UserError(f"for an image of {size[0]} x {size[1]} pixels it gives a map {tuple(output.shape)}, expected {wanted}")


def _stride(size: tuple[int, int], sides: tuple[int, int], *, exact: bool) -> Fraction | None:
    if exact:
        strides = {Fraction(whole, side) for whole, side in zip(size, sides, strict=True)}
        stride = strides.pop()
        return stride if not strides and stride.denominator == 1 else None
    for power in range(8):
        if all(-(-whole // 2**power) == side for whole, side in zip(size, sides, strict=True)):
            return Fraction(2**power)
    return None


def choose(measurement: Measurement, out_features: Sequence[str] | None, *, name: str) -> dict[str, Map]:
    """The maps to return, finest first: those asked for, or all but c1.

    Raises:
        UserError: one that the model does not give.
    """
    levels = measurement.levels()
    if out_features is None:
        return {level: found for level, found in levels.items() if level != "c1"}
    for level in out_features:
        if level not in levels:
            raise UserError(f"out_features names {level!r}, but {name} gives {', '.join(levels)}.")
    if not out_features:
        raise UserError(f"out_features is empty. Name at least one of {', '.join(levels)}, or leave it out for all.")
    return {level: found for level, found in levels.items() if level in out_features}


def reached_parameters(maps: Sequence[Tensor], body: nn.Module) -> list[set[str]]:
    """For each map, the names of the parameters that its gradient reaches. The maps need their graph."""
    names = {id(parameter): name for name, parameter in body.named_parameters()}
    return [{names[found] for found in _leaves(output) if found in names} for output in maps]


def _leaves(output: Tensor) -> set[int]:
    seen, waiting, leaves = set(), [output.grad_fn], set()
    if output.grad_fn is None:
        return {id(output)}
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        waiting.extend(following for following, _ in node.next_functions)
    return leaves


def stages_by_map(
    body: nn.Module, in_channels: int, measurement: Measurement, is_stem: Callable[[str], bool]
) -> dict[str, int]:
    """The stage (0 the stem, k the one that c_(k+1) is the first to need) of each parameter that a map depends on."""
    outputs = run(body, in_channels, measurement.size())
    levels = measurement.levels()
    stages: dict[str, int] = {}
    for level, reached in zip(
        levels, reached_parameters([outputs[found.index] for found in levels.values()], body), strict=True
    ):
        number = int(level.removeprefix("c")) - 1
        for name in reached:
            stages.setdefault(name, number)
    first = min(stages.values(), default=0)
    of_first = [name for name, stage in stages.items() if stage == first]
    stem = {name for name in of_first if is_stem(name)}
    if first > 0 and len(stem) in (0, len(of_first)):
        stem = {name for name in of_first if STEM.search(name)}
    return {name: 0 if name in stem else stage for name, stage in stages.items()}


class MeasuredBackbone(Backbone):
    """A foreign model whose maps have been measured; images are padded, scaled and their maps cut to size around it.

    Padding is of zeros, right and below, up to the multiple of pixels that the model was seen to need. A model that takes one
    size only sees the image in tiles of that size, each on its own, and their maps are put together again.

    Args:
        body: gives the chosen maps alone, in order.
        chosen: what was measured of them, by level.
        measurement: the padding, scale (8/7 makes a patch of 14 pixels span 16 of the image) and tiles that the model needs.
        plain: whether maps of one stride are all the model has.
        stage_of: the stage of each parameter, by name. Parameters that no chosen map depends on are never trained.
        name: what errors call it.

    Raises:
        UserError: a real forward pass gives other maps than these.
    """

    def __init__(
        self,
        body: nn.Module,
        chosen: dict[str, Map],
        *,
        in_channels: int,
        measurement: Measurement,
        plain: bool,
        stage_of: Mapping[str, int],
        name: str,
    ) -> None:
        super().__init__()
        self.body = body
        self.in_channels = in_channels
        self.plain = plain
        self.name = name
        self.feature_specs = {level: FeatureSpec(found.channels, int(found.stride)) for level, found in chosen.items()}
        self._channels_last = [found.channels_last for found in chosen.values()]
        self._scale = scale = measurement.scale
        self.tile = measurement.multiple if measurement.tiled else None
        # In the image's own pixels, and such that what the model gets is a whole number of its pixels.
        self._multiple = math.lcm((measurement.multiple * scale).numerator, scale.numerator)
        self._stage_of = self._verify(stage_of)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, C_in, H, W) -> {"c2": (B, channels, ceil(H / 4), ceil(W / 4)), ...}, as feature_specs."""
        height, width = images.shape[-2:]
        fitted = self._fit(images)
        maps = as_list(self.body(fitted if self.tile is None else cut(fitted, self.tile)))
        features = {}
        for (level, spec), found, channels_last in zip(self.feature_specs.items(), maps, self._channels_last, strict=True):
            if channels_last:
                found = found.permute(0, 3, 1, 2).contiguous()
            if self.tile is not None:
                found = put_together(found, len(images), fitted.shape[-2] // self.tile)
            features[level] = found[..., : -(-height // spec.stride), : -(-width // spec.stride)]
        return features

    def stages(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        """The stem, and the four stages that c2, c3, c4 and c5 are the first to need; empty where the model has none."""
        stages: dict[str, list[nn.Module | nn.Parameter]] = {name: [] for name in STAGES}
        self._sort(self.body, "", stages, 0)
        return stages

    def _fit(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        padding = -width % self._multiple, -height % self._multiple
        if any(padding):
            images = F.pad(images, (0, padding[0], 0, padding[1]))
        if self._scale != 1:
            size = [side * self._scale.denominator // self._scale.numerator for side in images.shape[-2:]]
            images = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
        return images

    def _verify(self, stage_of: Mapping[str, int]) -> dict[str, int | None]:
        """Check the maps with a real forward pass, and give each parameter's stage; None where no map depends on it."""
        size = sizes(self._multiple)[0]
        with torch.enable_grad():
            for parameter in self.body.parameters():
                parameter.requires_grad_(parameter.is_floating_point())
            try:
                maps = run(self, self.in_channels, size)
            except MODEL_ERRORS as error:
                line = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise UserError(f"{self.name} cannot be a backbone: {line}") from error
            for (level, spec), found in zip(self.feature_specs.items(), maps, strict=True):
                expected = (1, spec.channels, -(-size[0] // spec.stride), -(-size[1] // spec.stride))
                if tuple(found.shape) != expected:
                    raise UserError(
                        f"{self.name} cannot be a backbone: for an image of {size[0]} x {size[1]} pixels level {level!r} is "
                        f"{tuple(found.shape)}, expected {expected}."
                    )
            reached = reached_parameters(maps, self.body)
        stages: dict[str, int | None] = {name: None for name, _ in self.body.named_parameters()}
        for level, names in zip(self.feature_specs, reached, strict=True):
            for name in names:
                if stages[name] is None:
                    stages[name] = stage_of.get(name, int(level.removeprefix("c")) - 1)
        by_parameter = {id(parameter): stages[name] for name, parameter in self.body.named_parameters()}
        for parameter in self.body.parameters():
            parameter.requires_grad_(by_parameter[id(parameter)] is not None)
        # Shared parameters have several names.
        return {name: by_parameter[id(p)] for name, p in self.body.named_parameters(remove_duplicate=False)}

    def _sort(self, module: nn.Module, prefix: str, stages: dict[str, list[nn.Module | nn.Parameter]], previous: int) -> int:
        """Put a module into the stage all its parameters are of, or else its parts; gives the last stage put into."""
        found = {self._stage_of.get(prefix + name) for name, _ in module.named_parameters()}
        if len(found) <= 1 and None not in found:
            # What has no parameters, such as a dropout, goes with what comes before it.
            stage = next(iter(found), previous)
            assert stage is not None
            stages[STAGES[stage]].append(module)
            return stage
        for name, parameter in module.named_parameters(recurse=False):
            own_stage = self._stage_of[prefix + name]
            if own_stage is not None:
                stages[STAGES[own_stage]].append(parameter)
        for name, child in module.named_children():
            previous = self._sort(child, f"{prefix}{name}.", stages, previous)
        return previous


def cut(images: Tensor, side: int) -> Tensor:
    """(B, C, h * side, w * side) -> (B * h * w, C, side, side), row by row."""
    batch, channels, height, width = images.shape
    tiles = images.reshape(batch, channels, height // side, side, width // side, side)
    return tiles.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, side, side)


def put_together(tiles: Tensor, batch: int, rows: int) -> Tensor:
    """The inverse of `cut` for the tiles' maps: (B * h * w, C, a, b) -> (B, C, h * a, w * b), h being `rows`."""
    channels, height, width = tiles.shape[1:]
    grid = tiles.reshape(batch, rows, -1, channels, height, width)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, rows * height, -1)
