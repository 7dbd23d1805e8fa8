"""What the tests share: one seed, the way to the real data, random weights, a small detector, its targets and a step of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

from backbones import build_fpn_backbone
from heads import build_detector

SHARED = Path(__file__).parents[2] / "shared"

# The tests' tensors are tiny: a second thread saves nothing, and on a busy machine costs twenty times the time.
torch.set_num_threads(1)

# No deadline, for on a shared machine any example may take long; and the same examples each time, so that a test fails for
# what was changed, never by chance. New ones are looked for with --hypothesis-profile=explore.
settings.register_profile("vertebra", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile("vertebra")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if SHARED.is_dir():
        return
    for item in items:
        if item.get_closest_marker("shared_data"):
            item.add_marker(pytest.mark.skip(reason=f"needs the real data and weights in {SHARED}"))


@pytest.fixture
def shared() -> Path:
    """The folder of real data and weights; for tests marked `shared_data`."""
    return SHARED


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def randomize() -> Callable[[nn.Module], nn.Module]:
    """A function that gives a module random weights and batch statistics, and returns it; even deep networks stay finite."""

    def fill(module: nn.Module) -> nn.Module:
        for name, tensor in module.state_dict().items():
            if name.endswith("num_batches_tracked"):
                tensor.zero_()
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.ndim == 1:
                low, high = (0.5, 1.0) if name.endswith("weight") else (-0.2, 0.2)
                tensor.uniform_(low, high)
            else:
                bound = (3 / tensor[0].numel()) ** 0.5
                tensor.uniform_(-bound, bound)
        return module

    return fill


@pytest.fixture(scope="session")
def small_detector() -> Callable[..., nn.Module]:
    """A function that builds a detector that is quick to train: a ResNet-18 with a thin pyramid and thin heads."""

    def build(head: str = "faster_rcnn", *, backbone: dict[str, Any] | None = None, **options: Any) -> nn.Module:
        body = build_fpn_backbone(**{"name": "resnet18", "norm": "frozen_bn", "out_channels": 16} | (backbone or {}))
        thin = {"min_size": 64, "max_size": 128, "box_head_dim": 16, "rpn_post_nms_top_n_train": 40}
        if head == "mask_rcnn":
            thin |= {"mask_head_dim": 8, "mask_head_layers": 1}
        return build_detector(head, body, **{"num_classes": 4} | thin | options)

    return build


@pytest.fixture(scope="session")
def make_target() -> Callable[..., dict[str, Any]]:
    """A function that makes a target from lists of boxes and of crowd boxes; with `size` (H, W), also the boxes' masks."""

    def make(
        boxes: list[list[float]],
        *,
        crowd: list[list[float]] | None = None,
        size: tuple[int, int] | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        rows = torch.tensor([*boxes, *(crowd or [])], dtype=torch.float32).reshape(-1, 4)
        target: dict[str, Any] = {"boxes": rows, "labels": 1 + torch.arange(len(rows)) % 3}
        if crowd is not None:
            target["iscrowd"] = torch.tensor([0] * len(boxes) + [1] * len(crowd), dtype=torch.int64)
        if size is not None:
            target["masks"] = _filled(rows, size)
        return target | more

    return make


@pytest.fixture
def odd_batch(make_target: Callable[..., dict[str, Any]]) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Two images of odd sizes with three objects and one, masks too."""
    sizes = [(97, 131), (75, 143)]
    boxes = [[[5, 9, 60, 80], [70, 20, 120, 90], [50, 4, 66, 30]], [[30, 10, 100, 70]]]
    targets = [make_target(rows, size=size) for rows, size in zip(boxes, sizes, strict=True)]
    return [torch.rand(3, *size) for size in sizes], targets


@pytest.fixture(scope="session")
def train_step() -> Callable[..., dict[str, Tensor]]:
    """A function that gives the losses of a batch, having checked that every trained parameter gets a finite gradient.

    On one process of many, a parameter without a gradient would hang the others.
    """

    def step(model: nn.Module, images: list[Tensor], targets: list[dict[str, Any]]) -> dict[str, Tensor]:
        losses = model.train()(images, targets)
        assert all(torch.isfinite(loss) for loss in losses.values()), losses
        sum(losses.values()).backward()
        trained = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert [name for name, gradient in trained.items() if gradient is None] == []
        assert [name for name, gradient in trained.items() if not gradient.isfinite().all()] == []
        return losses

    return step


def _filled(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    masks = torch.zeros((len(boxes), *size), dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    return masks
