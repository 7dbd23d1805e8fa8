"""ResNet, ResNeXt and Wide ResNet.

He et al., Deep Residual Learning for Image Recognition, https://arxiv.org/abs/1512.03385
Xie et al., Aggregated Residual Transformations, https://arxiv.org/abs/1611.05431
Zagoruyko and Komodakis, Wide Residual Networks, https://arxiv.org/abs/1605.07146

Parameters are named as torchvision names them, so that its checkpoints load unchanged.
"""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from backbones.base import Backbone, FeatureSpec
from backbones.errors import UserError, did_you_mean
from backbones.norms import NormLayer, norm_layer
from backbones.registry import register_backbone


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (B, C_in, H, W) -> (B, channels, ceil(H / stride), ceil(W / stride))."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, *, stride: int, norm: NormLayer) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.bn2 = norm(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(in_channels, channels, stride=stride, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut: (B, C_in, H, W) -> (B, 4 * channels, ceil(H / stride), ceil(W / stride)).

    The stride is in the 3x3 convolution, which is what torchvision trains ("v1.5"). The paper and the Caffe weights have it in
    the first 1x1: `stride_in_1x1`.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int,
        norm: NormLayer,
        groups: int = 1,
        width_per_group: int = 64,
        stride_in_1x1: bool = False,
    ) -> None:
        super().__init__()
        width = channels * width_per_group // 64 * groups
        out_channels = channels * self.expansion
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=1, stride=stride_1x1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, stride=stride_3x3, padding=1, groups=groups, bias=False)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, out_channels, kernel_size=1, bias=False)
        self.bn3 = norm(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(in_channels, out_channels, stride=stride, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += self.downsample(x)
        return self.relu(out)


def shortcut(in_channels: int, out_channels: int, *, stride: int, norm: NormLayer) -> nn.Module:
    """The identity where the shape stays the same, else a 1x1 projection (the paper's option B)."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)
    return nn.Sequential(convolution, norm(out_channels))


class ResNet(Backbone):
    """A stem (stride 4) and four stages of residual blocks, which give c2, c3, c4 and c5 (strides 4, 8, 16, 32).

    Args:
        block: makes one block from (in_channels, channels, stride=, norm=).
        expansion: a stage's output channels over its `channels`: 1 for BasicBlock, 4 for Bottleneck.
        depths: number of blocks in each of the four stages.
        in_channels: channels of the images.
        norm: name of the normalisation layer.
        out_features: which of c2..c5 to return. Stages above the last of them are not built.

    Raises:
        UserError: an unknown norm or feature name.
    """

    def __init__(
        self,
        block: Callable[..., nn.Module],
        *,
        expansion: int,
        depths: Sequence[int],
        in_channels: int = 3,
        norm: str = "bn",
        out_features: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        all_specs = {f"c{2 + i}": FeatureSpec(64 * 2**i * expansion, stride=4 * 2**i) for i in range(4)}
        self.feature_specs = select_features(all_specs, out_features)
        num_stages = 1 + max(list(all_specs).index(name) for name in self.feature_specs)

        make_norm = norm_layer(norm)
        self.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = make_norm(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)

        stage_in_channels = 64
        for i, depth in enumerate(depths[:num_stages]):
            channels = 64 * 2**i
            blocks = [block(stage_in_channels, channels, stride=1 if i == 0 else 2, norm=make_norm)]
            stage_in_channels = channels * expansion
            blocks += [block(stage_in_channels, channels, stride=1, norm=make_norm) for _ in range(depth - 1)]
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, C_in, H, W) -> {"c2": (B, 64 * expansion, H / 4, W / 4), ..., "c5": (B, 512 * expansion, H / 32, W / 32)}."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        features = {}
        for name, layer in self.layers().items():
            x = layer(x)
            if name in self.feature_specs:
                features[name] = x
        return features

    def layers(self) -> dict[str, nn.Module]:
        """The residual stages by the name of the feature map each gives."""
        names = ("layer1", "layer2", "layer3", "layer4")
        return {f"c{i}": self.get_submodule(name) for i, name in enumerate(names, start=2) if name in self._modules}

    def stages(self) -> dict[str, list[nn.Module]]:
        """The stem and layer1..layer4, which `trainable_layers` counts from the end."""
        layers = list(self.layers().values())
        # Stages that were not built count, too: trainable_layers means the same for any out_features.
        return {"stem": [self.conv1, self.bn1], **{f"layer{i + 1}": layers[i : i + 1] for i in range(4)}}


def select_features(all_specs: dict[str, FeatureSpec], names: Sequence[str] | None) -> dict[str, FeatureSpec]:
    """The chosen feature maps, or all, highest resolution first.

    Raises:
        UserError: a name that is not among them, or none chosen.
    """
    for name in names or ():
        if name not in all_specs:
            raise UserError(f"out_features names {name!r}.{did_you_mean(name, all_specs)}")
    if names is not None and len(names) == 0:
        raise UserError(f"out_features is empty. Name at least one of {', '.join(all_specs)}, or leave it out for all.")
    return {name: spec for name, spec in all_specs.items() if names is None or name in names}


def _register_basic(name: str, depths: tuple[int, int, int, int]) -> None:
    @register_backbone(name)
    def build(*, in_channels: int = 3, norm: str = "bn", out_features: Sequence[str] | None = None) -> ResNet:
        return ResNet(BasicBlock, expansion=1, depths=depths, in_channels=in_channels, norm=norm, out_features=out_features)


def _register_bottleneck(name: str, depths: tuple[int, int, int, int], *, groups: int = 1, width_per_group: int = 64) -> None:
    @register_backbone(name)
    def build(
        *,
        in_channels: int = 3,
        norm: str = "bn",
        out_features: Sequence[str] | None = None,
        stride_in_1x1: bool = False,
    ) -> ResNet:
        block = partial(Bottleneck, groups=groups, width_per_group=width_per_group, stride_in_1x1=stride_in_1x1)
        return ResNet(block, expansion=4, depths=depths, in_channels=in_channels, norm=norm, out_features=out_features)


_register_basic("resnet18", (2, 2, 2, 2))
_register_basic("resnet34", (3, 4, 6, 3))
_register_bottleneck("resnet50", (3, 4, 6, 3))
_register_bottleneck("resnet101", (3, 4, 23, 3))
_register_bottleneck("resnet152", (3, 8, 36, 3))
_register_bottleneck("resnext50_32x4d", (3, 4, 6, 3), groups=32, width_per_group=4)
_register_bottleneck("resnext101_32x8d", (3, 4, 23, 3), groups=32, width_per_group=8)
_register_bottleneck("resnext101_64x4d", (3, 4, 23, 3), groups=64, width_per_group=4)
_register_bottleneck("wide_resnet50_2", (3, 4, 6, 3), width_per_group=128)
_register_bottleneck("wide_resnet101_2", (3, 4, 23, 3), width_per_group=128)
