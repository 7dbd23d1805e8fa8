"""ResNet, and what became of it: ResNeXt, Wide, B, C, D, SE, v2, dilated, deformable, and the form for CIFAR.

He et al., Deep Residual Learning for Image Recognition, https://arxiv.org/abs/1512.03385
The blocks are in resnet_blocks.py. Parameters are named as torchvision names them, so that its checkpoints load unchanged.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn
from torchvision.ops import DeformConv2d

from backbones.base import Backbone, FeatureSpec, select_features
from backbones.errors import UserError, did_you_mean
from backbones.norms import NormLayer, norm_layer
from backbones.resnet_blocks import (
    BasicBlock,
    Bottleneck,
    PreActivationBasicBlock,
    PreActivationBottleneck,
    ResidualBlock,
    Shortcut,
)
from backbones.resnet_parts import DeformableConv2d, checkpointed

Stem = Literal["7x7", "deep", "3x3"]


class ResNet(Backbone):
    """A stem (stride 4) and four stages of residual blocks, which give c2, c3, c4 and c5 (strides 4, 8, 16, 32).

    Args:
        block: BasicBlock, Bottleneck, or a `partial` of one with options of its own.
        depths: number of blocks in each stage: four for ImageNet, three for CIFAR.
        in_channels: channels of the images.
        norm: name of the normalisation layer.
        out_features: which maps to return; also c1, the stem's (stride 2). Stages above the last of them are not built.
        width: channels of the stem and of the first stage's blocks; each stage doubles them.
        stem: 7x7 (stride 2 and a pooling of stride 2), deep (three 3x3 in place of the 7x7, ResNet-C), or 3x3 (stride 1 and no
            pooling, as for CIFAR: the maps are then c0, c1, c2, c3).
        shortcut: A, B, C or D; see resnet_blocks.ResidualBlock.make_shortcut.
        pre_activation: norms and activations before the convolutions (v2). c5 is then normalised; the other maps are sums.
        squeeze_excitation: weigh the channels of each residual.
        output_stride: 8 or 16 trades the strides of the last stages for dilation (https://arxiv.org/abs/1606.00915), 32 none.
        deformable_stages: those of c2..c5 whose 3x3 convolutions sample freely.
        stochastic_depth: probability to leave out the last block in training; less for those before it
            (https://arxiv.org/abs/1603.09382).
        zero_init_last_norm: start each block as the identity (https://arxiv.org/abs/1706.02677, section 5.1).
        checkpoint_blocks: keep only the blocks' inputs for the backward pass, and compute the rest again: True, or the stages
            where that is done, such as [c2, c3], whose maps are the largest.

    Raises:
        UserError: an unknown norm, feature, stage or stem, or a number out of range.
    """

    def __init__(
        self,
        block: Callable[..., ResidualBlock],
        depths: Sequence[int],
        /,
        *,
        in_channels: int = 3,
        norm: str = "bn",
        out_features: Sequence[str] | None = None,
        width: int = 64,
        stem: Stem = "7x7",
        shortcut: Shortcut = "B",
        pre_activation: bool = False,
        squeeze_excitation: bool = False,
        output_stride: Literal[8, 16, 32] = 32,
        deformable_stages: list[str] | None = None,
        stochastic_depth: float = 0.0,
        zero_init_last_norm: bool = False,
        checkpoint_blocks: bool | Sequence[str] = False,
    ) -> None:
        super().__init__()
        if not isinstance(width, int) or isinstance(width, bool) or width < 1:
            raise UserError(f"width is {width!r}: give a whole number of at least 1.")
        _check_choice("stem", stem, ("7x7", "deep", "3x3"))
        _check_choice("shortcut", shortcut, ("A", "B", "C", "D"))
        _check_choice("output_stride", output_stride, (8, 16, 32))
        if not 0 <= stochastic_depth < 1:
            raise UserError(f"stochastic_depth is {stochastic_depth}: give a probability from 0 up to, not including, 1.")
        if pre_activation:
            block = _pre_activated(block)
        expansion = _class_of(block).expansion
        stem_stride = 1 if stem == "3x3" else 4
        strides = [min(stem_stride * 2**i, output_stride) for i in range(len(depths))]
        # C_k is the map of stride 2**k; where dilation keeps a stage's map large, its name stays.
        names = [f"c{i + (0 if stem == '3x3' else 2)}" for i in range(len(depths))]
        specs = {name: FeatureSpec(width * 2**i * expansion, strides[i]) for i, name in enumerate(names)}
        stem_specs = {"c1": FeatureSpec(width, 2)} if stem != "3x3" else {}
        self.feature_specs = select_features(stem_specs | specs, out_features or (names if out_features is None else ()))
        num_stages = max((names.index(name) + 1 for name in self.feature_specs if name in names), default=0)
        self._stage_names = names
        _check_stages("deformable_stages", deformable_stages or (), names)
        if not isinstance(checkpoint_blocks, bool):
            _check_stages("checkpoint_blocks", checkpoint_blocks, names)

        self.in_channels = in_channels
        self.checkpoint_blocks = checkpoint_blocks
        make_norm = norm_layer(norm)
        self.conv1 = _stem_convolution(stem, in_channels, width, make_norm)
        # In v2 the first block normalises what the stem gives.
        self.bn1 = nn.Identity() if pre_activation else make_norm(width)
        self.relu = nn.Identity() if pre_activation else nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if stem == "3x3" else nn.MaxPool2d(kernel_size=3, stride=2, padding=1)

        stage_in_channels, dilation, built = width, 1, 0
        for i, depth in enumerate(depths[:num_stages]):
            stride = 1 if i == 0 else strides[i] // strides[i - 1]
            first_dilation, dilation = dilation, dilation * (2 if i > 0 and stride == 1 else 1)
            blocks: list[nn.Module] = []
            for j in range(depth):
                blocks.append(
                    block(
                        stage_in_channels,
                        width * 2**i,
                        stride=stride if j == 0 else 1,
                        norm=make_norm,
                        shortcut=shortcut,
                        dilation=dilation,
                        first_dilation=first_dilation if j == 0 else dilation,
                        deformable=names[i] in (deformable_stages or ()),
                        squeeze_excitation=squeeze_excitation,
                        drop_probability=stochastic_depth * built / max(1, sum(depths) - 1),
                    )
                )
                stage_in_channels, built = width * 2**i * expansion, built + 1
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        if pre_activation and num_stages == len(depths):
            self.norm = make_norm(stage_in_channels)

        self._initialise(zero_init_last_norm=zero_init_last_norm)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, C_in, H, W) -> {"c2": (B, C, H / 4, W / 4), ..., "c5": (B, 8 * C, H / 32, W / 32)}, C = width * expansion."""
        x = self.relu(self.bn1(self.conv1(images)))
        features = {"c1": x} if "c1" in self.feature_specs and "c1" not in self._stage_names else {}
        x = self.maxpool(x)
        for name, layer in self.layers().items():
            x = self._run(name, layer, x)
            if name in self.feature_specs:
                features[name] = x
        last = self._stage_names[-1]
        if "norm" in self._modules and last in features:
            features[last] = self.norm(features[last]).relu()
        return features

    def layers(self) -> dict[str, nn.Sequential]:
        """The residual stages by the name of the feature map each gives."""
        stages = {name: self._modules.get(f"layer{i}") for i, name in enumerate(self._stage_names, start=1)}
        return {name: stage for name, stage in stages.items() if isinstance(stage, nn.Sequential)}

    def stages(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        """The stem and layer1..layer4, which `trainable_layers` counts from the end."""
        stages: dict[str, list[nn.Module | nn.Parameter]] = {"stem": [self.conv1, self.bn1]}
        layers: list[nn.Module] = list(self.layers().values())
        for i in range(len(self._stage_names)):
            # Stages that were not built count, too: trainable_layers means the same for any out_features.
            stages[f"layer{i + 1}"] = [*layers[i : i + 1]]
        if "norm" in self._modules:
            stages[f"layer{len(self._stage_names)}"].append(self.norm)
        return stages

    def _run(self, name: str, layer: nn.Sequential, x: Tensor) -> Tensor:
        chosen = self.checkpoint_blocks if isinstance(self.checkpoint_blocks, bool) else name in self.checkpoint_blocks
        if not (chosen and self.training and any(p.requires_grad for p in layer.parameters())):
            return layer(x)
        for block in layer:
            x = checkpointed(block, x)
        return x

    def _initialise(self, *, zero_init_last_norm: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d | DeformConv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for module in self.modules():
            if isinstance(module, DeformableConv2d):
                module.reset_offsets()
            elif isinstance(module, ResidualBlock) and zero_init_last_norm:
                weight = module.get_submodule(module.last_norm).weight
                assert isinstance(weight, Tensor)
                nn.init.zeros_(weight)


def _check_choice(option: str, value: Any, choices: Sequence[Any]) -> None:
    if value not in choices:
        raise UserError(f"{option} is {value!r}: give one of {', '.join(str(choice) for choice in choices)}.")


def _check_stages(option: str, given: Sequence[str], names: Sequence[str]) -> None:
    if isinstance(given, str):
        raise UserError(f"{option} is {given!r}: give a list, such as [{given!r}].")
    for name in given:
        if name not in names:
            raise UserError(f"{option} names {name!r}.{did_you_mean(name, names)}")


def _class_of(block: Callable[..., ResidualBlock]) -> type[ResidualBlock]:
    found = block.func if isinstance(block, partial) else block
    assert isinstance(found, type)
    assert issubclass(found, ResidualBlock)
    return found


def _pre_activated(block: Callable[..., ResidualBlock]) -> Callable[..., ResidualBlock]:
    forms = {BasicBlock: PreActivationBasicBlock, Bottleneck: PreActivationBottleneck}
    options = block.keywords if isinstance(block, partial) else {}
    return partial(forms[_class_of(block)], **options)


def _stem_convolution(stem: Stem, in_channels: int, width: int, norm: NormLayer) -> nn.Module:
    if stem == "3x3":
        return nn.Conv2d(in_channels, width, kernel_size=3, padding=1, bias=False)
    if stem == "7x7":
        return nn.Conv2d(in_channels, width, kernel_size=7, stride=2, padding=3, bias=False)

    def layers() -> Iterator[nn.Module]:
        half = width // 2
        for given, stride in ((in_channels, 2), (half, 1)):
            yield nn.Conv2d(given, half, kernel_size=3, stride=stride, padding=1, bias=False)
            yield norm(half)
            yield nn.ReLU(inplace=True)
        yield nn.Conv2d(half, width, kernel_size=3, padding=1, bias=False)

    return nn.Sequential(*layers())
