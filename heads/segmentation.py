"""Semantic segmentation on any backbone: FCN, DeepLabv3, DeepLabv3+ and the semantic head of Panoptic FPN.

Long et al., Fully Convolutional Networks, https://arxiv.org/abs/1411.4038
Chen et al., Rethinking Atrous Convolution (DeepLabv3), https://arxiv.org/abs/1706.05587
Chen et al., Encoder-Decoder with Atrous Separable Convolution (DeepLabv3+), https://arxiv.org/abs/1802.02611
Kirillov et al., Panoptic Feature Pyramid Networks, https://arxiv.org/abs/1901.02446, section 3.2
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import ASPP, DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead

from backbones import Backbone, FeatureSpec, UserError
from backbones.check_maps import check_maps, declared_specs
from backbones.norms import norm_layer
from backbones.registry import ModuleRegistry
from heads.option_checks import check_counts

SEGMENTERS: ModuleRegistry[Callable[..., "Segmenter"]] = ModuleRegistry("segmenter", decorator="@register_segmenter")
register_segmenter = SEGMENTERS.register
# A label of pixels that are no example: PASCAL VOC's border between objects.
IGNORED = 255
AUXILIARY_WEIGHT = 0.5
# In a head's layers, which are trained from scratch: batch norm, over all processes or not, or group norm, for tiny batches.
HeadNorm = Literal["bn", "sync_bn", "gn"]


def ignored_label(num_classes: int) -> int:
    """The label of pixels that are no example: 255, or 65535 where 255 is a class."""
    return IGNORED if num_classes <= IGNORED else 65535


class Segmenter(nn.Module):
    """A backbone and a classifier of its maps' pixels: (B, C, H, W) normalised images -> class logits (B, num_classes, H, W).

    With targets, label maps (B, H, W) int64 in which 255 (`ignored_label`) is no example, `forward` gives losses: `loss`, and
    `loss_aux` (half the cross entropy of the auxiliary classifier) where there is one. Parameters are named as torchvision's
    `backbone`, `classifier` and `aux_classifier`.
    """

    def __init__(
        self, backbone: Backbone, classifier: nn.Module, aux_classifier: nn.Module | None = None, *, aux_feature: str = ""
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier
        self.aux_classifier = aux_classifier
        self.aux_feature = aux_feature

    def forward(self, images: Tensor, targets: Tensor | None = None) -> dict[str, Tensor]:
        """(B, C, H, W) -> {"out": (B, num_classes, H, W), perhaps "aux": the same}, or losses where there are targets."""
        features = self.backbone(images)
        outputs = {"out": self.classifier(features)}
        if self.aux_classifier is not None:
            outputs["aux"] = self.aux_classifier(features[self.aux_feature])
        size = images.shape[-2:]
        outputs = {
            name: F.interpolate(logits, size=size, mode="bilinear", align_corners=False) for name, logits in outputs.items()
        }
        if targets is None:
            return outputs
        losses = {"loss": pixel_cross_entropy(outputs["out"], targets)}
        if "aux" in outputs:
            losses["loss_aux"] = AUXILIARY_WEIGHT * pixel_cross_entropy(outputs["aux"], targets)
        return losses


def pixel_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean cross entropy of logits (B, K, H, W) over the pixels of (B, H, W) that are examples; zero where none is."""
    ignored = ignored_label(logits.shape[1])
    total = F.cross_entropy(logits.float(), targets, ignore_index=ignored, reduction="sum")
    return total / (targets != ignored).sum().clamp(min=1)


def build_segmenter(name: str, backbone: Backbone, num_classes: int, **options: Any) -> Segmenter:
    """Build a registered segmenter: fcn, deeplabv3, deeplabv3plus or semantic_fpn; or module:name for one of a module of yours.

    Args:
        backbone: a bare backbone, such as `build_backbone("resnet50", output_stride=8)`; for semantic_fpn one with a pyramid.
        num_classes: number of classes; here the background is one only if the labels say so.
        options: what the segmenter offers.

    Raises:
        UserError: unknown name or option, or a backbone the segmenter cannot be built on.
    """
    SEGMENTERS.check_options(name, options, besides=("backbone", "num_classes"))
    return SEGMENTERS.get(name)(backbone, num_classes, **options)


@register_segmenter("fcn")
def fcn(backbone: Backbone, num_classes: int, *, auxiliary: bool = False, norm: HeadNorm = "bn") -> Segmenter:
    """torchvision's FCN: two convolutions on the coarsest map.

    `fcn_resnet50` is built on `build_backbone("resnet50", output_stride=8, out_features=["c4", "c5"])`, with `auxiliary`.

    Args:
        auxiliary: also classify the map before the coarsest, which helps deep networks to train; it is not used afterwards.
        norm: in the head's layers: bn, sync_bn or gn.

    Raises:
        UserError: the backbone gives too few maps, or others than it declares.
    """
    name, coarsest = _levels(backbone)[-1]
    classifier = OnMap(name, FCNHead(coarsest.channels, num_classes))
    return _assemble(backbone, classifier, num_classes, auxiliary=auxiliary, norm=norm)


@register_segmenter("deeplabv3")
def deeplabv3(
    backbone: Backbone,
    num_classes: int,
    *,
    auxiliary: bool = False,
    atrous_rates: list[int] | None = None,
    norm: HeadNorm = "bn",
) -> Segmenter:
    """torchvision's DeepLabv3: the coarsest map seen at several dilations.

    `deeplabv3_resnet50` is built on `build_backbone("resnet50", output_stride=8, out_features=["c4", "c5"])`, with `auxiliary`.

    Args:
        auxiliary: as for `fcn`.
        atrous_rates: dilations of the 3x3 convolutions; left out, the paper's: 12, 24, 36 at a stride of 8, 6, 12, 18 from 16.
        norm: as for `fcn`.

    Raises:
        UserError: the backbone gives too few maps, or others than it declares.
    """
    name, coarsest = _levels(backbone)[-1]
    head = DeepLabHead(coarsest.channels, num_classes, tuple(_atrous_rates(atrous_rates, coarsest.stride)))
    return _assemble(backbone, OnMap(name, head), num_classes, auxiliary=auxiliary, norm=norm)


@register_segmenter("deeplabv3plus")
def deeplabv3plus(
    backbone: Backbone,
    num_classes: int,
    *,
    auxiliary: bool = False,
    atrous_rates: list[int] | None = None,
    low_level_channels: int = 48,
    norm: HeadNorm = "bn",
) -> Segmenter:
    """DeepLabv3+: what the coarsest map says, sharpened by the finest.

    Args:
        backbone: gives two maps or more; the finest, of stride 4 in the paper, is the low-level one.
        auxiliary: as for `fcn`.
        atrous_rates: as for `deeplabv3`.
        low_level_channels: what the finest map is reduced to.
        norm: as for `fcn`.

    Raises:
        UserError: the backbone gives too few maps, or others than it declares.
    """
    levels = _levels(backbone, at_least=2)
    (fine_name, fine), (coarse_name, coarse) = levels[0], levels[-1]
    check_counts({"low_level_channels": low_level_channels})
    rates = _atrous_rates(atrous_rates, coarse.stride)
    classifier = DeepLabPlusHead(
        fine_name, coarse_name, fine.channels, coarse.channels, num_classes, rates=rates, low_level_channels=low_level_channels
    )
    return _assemble(backbone, classifier, num_classes, auxiliary=auxiliary, norm=norm)


@register_segmenter("semantic_fpn")
def semantic_fpn(backbone: Backbone, num_classes: int, *, channels: int = 128) -> Segmenter:
    """The semantic branch of Panoptic FPN: every level of a pyramid is brought to the finest one's size, and all are summed.

    Args:
        backbone: has a pyramid; levels beyond stride 32 are not used.
        channels: of the sum.

    Raises:
        UserError: the backbone gives other maps than it declares.
    """
    check_counts({"channels": channels})
    levels = {name: spec for name, spec in _levels(backbone) if spec.stride <= 32}
    return Segmenter(backbone, SemanticFpnHead(levels, num_classes, channels=channels))


class OnMap(nn.Sequential):
    """Layers on one map of several, with the parameter names of the layers alone."""

    def __init__(self, name: str, layers: nn.Sequential) -> None:
        super().__init__(*layers)
        self.name = name

    def forward(self, features: dict[str, Tensor]) -> Tensor:  # it is given all maps
        """{name: (B, C, H, W)} -> (B, num_classes, H, W) of one."""
        return super().forward(features[self.name])


class DeepLabPlusHead(nn.Module):
    """The decoder of DeepLabv3+."""

    def __init__(
        self,
        fine_name: str,
        coarse_name: str,
        fine_channels: int,
        coarse_channels: int,
        num_classes: int,
        *,
        rates: Sequence[int],
        low_level_channels: int,
    ) -> None:
        super().__init__()
        self.fine_name, self.coarse_name = fine_name, coarse_name
        self.aspp = ASPP(coarse_channels, list(rates), 256)
        self.low_level = _convolution(fine_channels, low_level_channels, 1)
        self.decoder = nn.Sequential(
            _convolution(256 + low_level_channels, 256, 3),
            _convolution(256, 256, 3),
            nn.Conv2d(256, num_classes, kernel_size=1),
        )

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """{name: map} -> (B, num_classes, H, W) at the finest map's size."""
        fine = self.low_level(features[self.fine_name])
        coarse = self.aspp(features[self.coarse_name])
        enlarged = F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
        return self.decoder(torch.cat([enlarged, fine], dim=1))


class SemanticFpnHead(nn.Module):
    """A 3x3 convolution and a doubling for each halving of a level; the sum; a classifier."""

    def __init__(self, levels: dict[str, FeatureSpec], num_classes: int, *, channels: int) -> None:
        super().__init__()
        finest = min(spec.stride for spec in levels.values())
        self.branches = nn.ModuleDict()
        for name, spec in levels.items():
            doublings = round(math.log2(spec.stride / finest))
            given = [spec.channels] + [channels] * max(0, doublings - 1)
            self.branches[f"level{name}"] = nn.ModuleList(_group_convolution(c, channels) for c in given)
        self.doublings = {name: round(math.log2(spec.stride / finest)) for name, spec in levels.items()}
        self.predictor = nn.Conv2d(channels, num_classes, kernel_size=1)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """{name: level} -> (B, num_classes, H, W) at the finest level's size."""
        size = next(iter(features.values())).shape[-2:]
        total: Tensor | None = None
        for name, doublings in self.doublings.items():
            x = features[name]
            branch = self.branches[f"level{name}"]
            assert isinstance(branch, nn.ModuleList)
            for layer in branch:
                x = layer(x)
                if doublings:
                    x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            # A level whose sides were rounded up has grown past the finest one's.
            x = x[..., : size[0], : size[1]]
            total = x if total is None else total + x
        assert total is not None
        return self.predictor(total)


def _levels(backbone: Backbone, *, at_least: int = 1) -> list[tuple[str, FeatureSpec]]:
    specs = declared_specs(backbone)
    if len(specs) < at_least:
        raise UserError(
            f"The backbone gives {len(specs)} map ({', '.join(specs)}), and {at_least} are needed: name more out_features."
        )
    check_maps(backbone)
    return list(specs.items())


def _atrous_rates(given: list[int] | None, stride: int) -> list[int]:
    for rate in given or ():
        check_counts({"each of atrous_rates": rate})
    if given:
        return given
    return [rate * max(1, 16 // stride) for rate in (6, 12, 18)]


def _assemble(backbone: Backbone, classifier: nn.Module, num_classes: int, *, auxiliary: bool, norm: HeadNorm) -> Segmenter:
    aux_name, aux_classifier = "", None
    if auxiliary:
        aux_name, spec = _levels(backbone, at_least=2)[-2]
        aux_classifier = FCNHead(spec.channels, num_classes)
    for head in (classifier, aux_classifier):
        if head is not None and norm != "bn":
            _replace_batch_norms(head, norm)
    return Segmenter(backbone, classifier, aux_classifier, aux_feature=aux_name)


def _replace_batch_norms(head: nn.Module, norm: HeadNorm) -> None:
    """Nothing is lost: the head is new."""
    for module in list(head.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, norm_layer(norm)(child.num_features))


def _convolution(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def _group_convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(math.gcd(32, out_channels), out_channels), nn.ReLU(inplace=True))
