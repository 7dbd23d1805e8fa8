"""The contract of a backbone, run on one of yours.

python -m backbones.check my_module:my_backbone
python -m backbones.check resnet50 output_stride=16 "out_features=['c3', 'c4']"

It prints a line for each promise that is kept, and ends with status 1 and one sentence at the first that is not.
"""

import argparse
import ast
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from backbones.base import Backbone
from backbones.check_maps import ContractError, check_maps, declared_specs
from backbones.errors import UserError
from backbones.fpn import PYRAMIDS, FpnBackbone
from backbones.registry import build_backbone

ODD_SIZES = ((97, 65), (33, 130), (101, 203))  # height, width, pixels


def check_backbone(name: str, **options: Any) -> Iterator[str]:
    """Check all that a backbone promises, one promise after the other; gives a line for each that is kept.

    Args:
        name: a registered name, or `module:name`, as `build_backbone` takes it.
        options: as for `build_backbone`.

    Raises:
        UserError: it cannot be built.
        ContractError: it breaks a promise; the message says where, what was found and what was expected.
    """
    torch.manual_seed(0)
    backbone = build_backbone(name, **options)
    specs = declared_specs(backbone)
    yield "builds: " + ", ".join(f"{name} {spec.channels} channels, stride {spec.stride}" for name, spec in specs.items())
    check_maps(backbone)
    for size in ODD_SIZES:
        check_maps(backbone, size=size)
    yield "maps are as declared, on odd sizes too: " + ", ".join(f"{height} x {width}" for height, width in ODD_SIZES)
    check_batch(backbone)
    yield "a batch gives what its images give one by one"
    check_gradients(backbone)
    yield "a gradient reaches every parameter that trains"
    check_freezing(backbone)
    yield f"freezing holds: {', '.join(backbone.stages())}"
    pyramid = check_detector(backbone)
    yield f"trains in torchvision's FasterRCNN, with pyramid {pyramid}"


@torch.no_grad()
def check_batch(backbone: Backbone) -> None:
    """Check that an image's maps do not depend on the other images of its batch, in evaluation mode."""
    backbone.eval()
    images = _images(backbone, 2)
    images[1] = 3 * images[1] - 1  # of another mean and spread than the first
    together = backbone(images)
    for i in range(2):
        for name, alone in backbone(images[i : i + 1]).items():
            if not alone.isfinite().all():
                raise ContractError(f"Level {name!r} of an ordinary image is not finite.")
            if alone.dtype != images.dtype:
                raise ContractError(f"Level {name!r} is {alone.dtype} for an image of {images.dtype}: keep the image's type.")
            difference = float((together[name][i] - alone[0]).abs().max())
            if not difference <= 1e-3 * max(1.0, float(alone.abs().max())):
                raise ContractError(f"Level {name!r} of an image differs by {difference:.3g} when another image is beside it.")


def check_gradients(backbone: Backbone) -> None:
    """Check that a training step gives every parameter that trains a finite gradient: many processes hang without."""
    _step(backbone)
    for name, parameter in backbone.named_parameters():
        if parameter.requires_grad and parameter.grad is None:
            raise ContractError(
                f"Parameter {name} trains and gets no gradient: no map depends on it. Leave it out, or freeze it."
            )
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            raise ContractError(f"Parameter {name} gets a gradient that is not finite.")


def check_freezing(backbone: Backbone) -> None:
    """Check every number of trainable layers: what is frozen has no gradient, and its batch statistics stay."""
    count = len(backbone.stages())
    parts = [part for stage in backbone.stages().values() for part in stage]
    held = {id(p) for part in parts for p in ([part] if isinstance(part, nn.Parameter) else part.parameters())}
    for name, parameter in backbone.named_parameters():
        if parameter.requires_grad and id(parameter) not in held:
            raise ContractError(f"Parameter {name} is in no stage that `stages` gives, so that nothing can freeze it.")
    for trainable_layers in (*range(count), count):
        backbone.freeze(trainable_layers)
        frozen = [part for parts in list(backbone.stages().values())[: count - trainable_layers] for part in parts]
        modules = [part for part in frozen if isinstance(part, nn.Module)]
        buffers = [buffer for module in modules for buffer in module.buffers()]
        before = [buffer.clone() for buffer in buffers]
        _step(backbone)
        for part in frozen:
            for parameter in [part] if isinstance(part, nn.Parameter) else part.parameters():
                if parameter.requires_grad or parameter.grad is not None:
                    raise ContractError(f"With trainable_layers={trainable_layers} a parameter of a frozen stage still trains.")
        if not all(torch.equal(buffer, old) for buffer, old in zip(buffers, before, strict=True)):
            raise ContractError(
                f"With trainable_layers={trainable_layers} a frozen stage's statistics move: let `train` call Backbone.train."
            )


def check_detector(backbone: Backbone) -> str:
    """Check a training step in torchvision's Faster R-CNN, on the first pyramid that fits; gives that pyramid's name."""
    try:
        name = "simple" if backbone.plain else "fpn"
        pyramid = PYRAMIDS.get(name)(backbone.feature_specs, out_channels=32)
    except UserError:  # strides that do not double
        name = "single"
        pyramid = PYRAMIDS.get(name)(backbone.feature_specs, out_channels=32)
    levels = FpnBackbone(backbone, pyramid)
    pooled = [level for level, spec in levels.feature_specs.items() if spec.stride <= 32] or [*levels.feature_specs][:1]
    model = FasterRCNN(
        levels,
        num_classes=3,
        min_size=128,
        max_size=192,
        image_mean=[0.0] * backbone.in_channels,
        image_std=[1.0] * backbone.in_channels,
        rpn_anchor_generator=AnchorGenerator(
            tuple((8 * spec.stride,) for spec in levels.feature_specs.values()),
            ((0.5, 1.0, 2.0),) * len(levels.feature_specs),
        ),
        box_roi_pool=MultiScaleRoIAlign(pooled, output_size=7, sampling_ratio=2),
        rpn_post_nms_top_n_train=50,
    )
    target = {"boxes": torch.tensor([[10.0, 20.0, 90.0, 100.0]]), "labels": torch.tensor([1])}
    losses: dict[str, Tensor] = model.train()(list(_images(backbone, 2, height=128, width=160)), [target, target])
    for loss, value in losses.items():
        if not value.isfinite():
            raise ContractError(f"In torchvision's FasterRCNN {loss} is {float(value)} at the first step.")
    torch.stack(list(losses.values())).sum().backward()
    return name


def _images(backbone: Backbone, count: int, *, height: int = 96, width: int = 160) -> Tensor:
    return torch.rand(count, backbone.in_channels, height, width)


def _step(backbone: Backbone) -> None:
    backbone.train()
    backbone.zero_grad(set_to_none=True)
    loss = torch.stack([level.square().mean() for level in backbone(_images(backbone, 2)).values()]).sum()
    if loss.requires_grad:
        loss.backward()


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"{text!r} is no option: give name=value, such as norm=gn.")
    words = {"true": True, "false": False, "null": None}  # as a config has them
    if value.lower() in words:
        return name, words[value.lower()]
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def main() -> None:
    """Check the backbone that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m backbones.check", description="Check what a backbone promises.")
    parser.add_argument("name", metavar="NAME", help="a registered name, or module:name for one in a file of your own")
    parser.add_argument("options", metavar="option=value", nargs="*", help="as for build_backbone")
    args = parser.parse_args()
    try:
        for line in check_backbone(args.name, **dict(_option(option) for option in args.options)):
            print(line, flush=True)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(1 if isinstance(error, ContractError) else 2)


if __name__ == "__main__":
    main()
