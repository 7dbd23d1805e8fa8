"""Our backbones as encoders of segmentation_models_pytorch: `smp.Unet("vertebra_resnet50", encoder_weights=None)`.

Importing this module registers our own ResNets; `register_encoder` adds any other backbone, or a ResNet with options.
"""

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from backbones.base import FeatureSpec
from backbones.errors import UserError
from backbones.plugins.common import all_specs, build, missing_framework
from backbones.registry import list_backbones
from backbones.resnet import ResNet

try:
    from segmentation_models_pytorch.encoders import encoders
    from segmentation_models_pytorch.encoders._base import EncoderMixin
except ImportError as error:
    raise missing_framework("backbones.plugins.segmentation_models_pytorch", "segmentation-models-pytorch", error) from error


class VertebraEncoder(nn.Module, EncoderMixin):
    """A backbone that gives the image and its maps of strides 2, 4, ..., one for each of `depth` halvings.

    A backbone without a map of stride 2, as most but the ResNets, gives one of no channels in its place, as smp's own encoders
    of timm models do.

    Args:
        name: as `build_backbone` takes it.
        depth: number of halvings, 1 to 5.
        output_stride: 32, or 16 or 8 for a backbone that has the option.
        options: of `build_backbone`, or with `pyramid` of `build_fpn_backbone`.

    Raises:
        UserError: as those two; also maps that do not halve as often as `depth` says.
    """

    _is_torch_scriptable = False  # maps come in a dictionary

    def __init__(self, name: str, *, depth: int = 5, output_stride: int = 32, **options: Any) -> None:
        nn.Module.__init__(self)
        self.options: dict[str, Any] = {"name": name} | options
        self._depth, self._in_channels, self._output_stride = depth, 3, output_stride
        specs = _by_halving(self.options, depth)
        self.map_names = [map_name for map_name, _ in specs]
        self._out_channels = [3, *(spec.channels for _, spec in specs)]
        self.backbone = self._build()

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C_in, H, W) -> the image, then (B, out_channels[i], H / 2**i, W / 2**i), or past the output stride H / that."""
        maps = self.backbone(x)
        absent = x.new_empty(x.shape[0], 0, x.shape[2] // 2, x.shape[3] // 2)
        return [x, *(absent if name is None else maps[name] for name in self.map_names)]

    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
        """Take images of `in_channels` channels: smp's own adaptation of the first convolution. What is frozen stays so."""
        frozen = [name for name, parameter in self.named_parameters() if not parameter.requires_grad]
        super().set_in_channels(in_channels, pretrained=pretrained or self.options.get("weights") is not None)
        self.backbone.in_channels = in_channels
        for name in frozen:
            self.get_parameter(name).requires_grad_(False)

    def get_stages(self) -> dict[int, Sequence[nn.Module]]:
        """{stride: modules} of a ResNet.

        Raises:
            UserError: other backbones do not say which module makes which stride.
        """
        if not isinstance(self.backbone, ResNet):
            raise UserError(f"{type(self.backbone).__name__} does not say which module makes which stride.")
        return {2 ** int(name[1:]): [layer] for name, layer in self.backbone.layers().items()}

    def make_dilated(self, output_stride: int) -> None:
        """Trade the last strides for dilation, down to an output stride of 16 or 8; the weights stay.

        Raises:
            UserError: the backbone has no option `output_stride`, or not this one.
        """
        if output_stride != self._output_stride:
            self._output_stride = output_stride
            dilated = self._build().train(self.training)
            dilated.load_state_dict(self.backbone.state_dict())
            self.backbone = dilated

    def _build(self) -> Any:
        chosen: dict[str, Any] = {"in_channels": self._in_channels}
        if self.options.get("pyramid") is None:
            chosen["out_features"] = [name for name in self.map_names if name is not None]
        if self._output_stride != 32:
            chosen["output_stride"] = self._output_stride
        return build(**self.options | chosen)


def register_encoder(name: str, *, encoder_name: str | None = None, **options: Any) -> str:
    """Enter a backbone among smp's encoders; gives the name smp's models take.

    Args:
        name: as `build_backbone` takes it.
        encoder_name: name in smp. Left out: vertebra_ and the name, with _ for what is no letter or digit.
        options: of `build_backbone`, such as `weights` or `norm`, or with `pyramid` of `build_fpn_backbone`.

    Raises:
        UserError: no such backbone or option, maps that smp has no use for, or a name that smp has already.
    """
    encoder_name = encoder_name or f"vertebra_{re.sub('[^A-Za-z0-9]', '_', name)}"
    if encoder_name in encoders:
        raise UserError(f"segmentation_models_pytorch has an encoder {encoder_name!r} already. Give encoder_name=, another.")
    _by_halving({"name": name} | options, depth=2)
    _register(encoder_name, {"name": name} | options)
    return encoder_name


def _register(encoder_name: str, params: dict[str, Any]) -> None:
    encoders[encoder_name] = {"encoder": VertebraEncoder, "pretrained_settings": {}, "params": params}


def _by_halving(options: dict[str, Any], depth: int) -> list[tuple[str | None, FeatureSpec]]:
    """The map of each stride 2, 4, ..., 2**depth; where there is none of stride 2, no name and no channels."""
    if not 1 <= depth <= 5:
        raise UserError(f"encoder_depth is {depth}: give a number from 1 to 5.")
    specs = all_specs(**options)
    by_stride = {spec.stride: (name, spec) for name, spec in reversed(specs.items())}
    chosen: list[tuple[str | None, FeatureSpec]] = []
    for stride in (2**i for i in range(1, depth + 1)):
        if stride == 2 and stride not in by_stride and depth > 1:
            chosen.append((None, FeatureSpec(0, 2)))
        elif stride in by_stride:
            chosen.append(by_stride[stride])
        else:
            have = ", ".join(f"{name} {spec.stride}" for name, spec in specs.items())
            raise UserError(
                f"An encoder of depth {depth} has maps of strides 2 to {2**depth}; {options['name']} has none of {stride} "
                f"({have}). Give a smaller encoder_depth, or pyramid='simple' for maps of one stride."
            )
    return chosen


for _name in list_backbones("*resne*"):
    if "/" not in _name:
        _register(f"vertebra_{_name}", {"name": _name})
