"""The ResNets by name. Each takes the options of `backbones.resnet.ResNet` by keyword; bottlenecks also `stride_in_1x1`."""

from functools import partial
from typing import Any

from backbones.errors import UserError
from backbones.registry import register_backbone
from backbones.resnet import ResNet
from backbones.resnet_blocks import BasicBlock, Bottleneck

BASIC = {"18": (2, 2, 2, 2), "34": (3, 4, 6, 3)}
BOTTLENECK = {"50": (3, 4, 6, 3), "101": (3, 4, 23, 3), "152": (3, 8, 36, 3)}
CIFAR_DEPTHS = (20, 32, 44, 56, 110, 1202)


def _register_basic(name: str, depths: tuple[int, ...], **preset: Any) -> None:
    @register_backbone(name, inherits=ResNet)
    def build(**options: Any) -> ResNet:
        return ResNet(BasicBlock, depths, **preset | options)


def _register_bottleneck(
    name: str,
    depths: tuple[int, ...],
    *,
    groups: int = 1,
    width_per_group: int = 64,
    stride_in_1x1: bool = False,
    **preset: Any,
) -> None:
    in_1x1 = stride_in_1x1

    @register_backbone(name, inherits=ResNet)
    def build(*, stride_in_1x1: bool = in_1x1, **options: Any) -> ResNet:
        block = partial(Bottleneck, groups=groups, width_per_group=width_per_group, stride_in_1x1=stride_in_1x1)
        return ResNet(block, depths, **preset | options)


def _cifar_depths(depth: int) -> tuple[int, int, int]:
    if depth < 8 or (depth - 2) % 6:
        raise UserError(f"A CIFAR ResNet has 6n + 2 layers, such as 20, 56 or 110; depth {depth} is not of that form.")
    return ((depth - 2) // 6,) * 3


# Section 4.2 of the paper: a 3x3 stem of 16 channels, three stages (strides 1, 2, 4) of 2n layers each, shortcuts A.
CIFAR: dict[str, Any] = {"stem": "3x3", "width": 16, "shortcut": "A"}


@register_backbone("cifar_resnet", inherits=ResNet)
def cifar_resnet(*, depth: int = 20, **options: Any) -> ResNet:
    """The ResNet for CIFAR, of `depth` = 6n + 2 layers: maps c0, c1 and c2 of strides 1, 2 and 4.

    Raises:
        UserError: a depth of another form; also as ResNet.
    """
    return ResNet(BasicBlock, _cifar_depths(depth), **CIFAR | options)


for _depth in CIFAR_DEPTHS:
    _register_basic(f"cifar_resnet{_depth}", _cifar_depths(_depth), **CIFAR)
for _size, _depths in BASIC.items():
    _register_basic(f"resnet{_size}", _depths)
    _register_basic(f"resnet{_size}d", _depths, stem="deep", shortcut="D")
    _register_basic(f"seresnet{_size}", _depths, squeeze_excitation=True)
    _register_basic(f"resnetv2_{_size}", _depths, pre_activation=True)
for _size, _depths in BOTTLENECK.items():
    _register_bottleneck(f"resnet{_size}", _depths)
    _register_bottleneck(f"resnet{_size}_v1", _depths, stride_in_1x1=True)
    _register_bottleneck(f"resnet{_size}c", _depths, stem="deep")
    _register_bottleneck(f"resnet{_size}d", _depths, stem="deep", shortcut="D")
    _register_bottleneck(f"seresnet{_size}", _depths, squeeze_excitation=True)
    _register_bottleneck(f"resnetv2_{_size}", _depths, pre_activation=True)
_register_bottleneck("resnext50_32x4d", BOTTLENECK["50"], groups=32, width_per_group=4)
_register_bottleneck("resnext101_32x8d", BOTTLENECK["101"], groups=32, width_per_group=8)
_register_bottleneck("resnext101_64x4d", BOTTLENECK["101"], groups=64, width_per_group=4)
_register_bottleneck("wide_resnet50_2", BOTTLENECK["50"], width_per_group=128)
_register_bottleneck("wide_resnet101_2", BOTTLENECK["101"], width_per_group=128)
