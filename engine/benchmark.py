"""Ours against torchvision's detectors: the same weights, the same images, in turns, in one process."""

import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d

from backbones import build_fpn_backbone, optimize_for_inference
from engine.amp import autocast
from heads import build_detector

Task = Literal["inference", "training"]
HEADS: dict[str, type[nn.Module]] = {"faster_rcnn": FasterRCNN, "mask_rcnn": MaskRCNN}
REFERENCE = "torchvision"
CLASSES = 91


@dataclass
class Measurement:
    """One contender at one task. Times are seconds a step."""

    contender: str
    task: Task
    batch_size: int
    seconds: list[float]
    peak_memory_gb: float | None = None
    cuda: dict[str, int] = field(default_factory=dict)  # host-device synchronisations and kernel launches of a step

    @property
    def median(self) -> float:
        """Median seconds a step."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, over the median."""
        if len(self.seconds) < 4:
            return (max(self.seconds) - min(self.seconds)) / 2 / self.median
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / 2 / self.median


def contenders(
    head: str, task: Task, *, size: tuple[int, int], device: torch.device, compiled: bool = False
) -> dict[str, nn.Module]:
    """torchvision's R50-FPN detector and ours with the same random weights: as built, and optimised for inference.

    Batch norms are frozen, as they are where torchvision's detector comes with weights. The weights are such that there are
    detections, so that masks are computed, too. Images of `size` (H, W) are not resized.
    """
    names = [REFERENCE, "ours"]
    if task == "inference":
        names.append("ours, optimized")
    if compiled:
        names.append("ours, compiled" if task == "training" else "ours, optimized, compiled")
    return {name: contender(name, head, task, size=size, device=device) for name in names}


def contender(name: str, head: str, task: Task, *, size: tuple[int, int], device: torch.device) -> nn.Module:
    """One of the `contenders`; while it is built, there is at most one more."""
    sizes = {"min_size": min(size), "max_size": max(size)}
    theirs = HEADS[head](_resnet_fpn_extractor(resnet50(norm_layer=FrozenBatchNorm2d), 3), CLASSES, **sizes)
    _fill(theirs, seed=0)
    with torch.no_grad():
        theirs.get_parameter("roi_heads.box_predictor.cls_score.weight").mul_(5)  # sure of itself, right or wrong
    model: nn.Module = theirs
    if name != REFERENCE:
        model = _ours(head, sizes)
        model.load_state_dict(theirs.state_dict(), strict=True)
    del theirs
    model = model.to(device).train(task == "training")
    if "optimized" in name:
        return optimize_for_inference(model, compile_backbone="compiled" in name)
    if "compiled" in name:
        model.get_submodule("backbone").compile(dynamic=False)
    return model


def _ours(head: str, sizes: dict[str, int]) -> nn.Module:
    return build_detector(head, build_fpn_backbone("resnet50", norm="frozen_bn", trainable_layers=3), CLASSES, **sizes)


def measure(
    models: dict[str, nn.Module],
    task: Task,
    *,
    size: tuple[int, int],
    batch_size: int,
    rounds: int,
    precision: str = "float32",
    on_round: Callable[[int], None] | None = None,
) -> list[Measurement]:
    """Time the models in turns on the same images (H, W) of random pixels, after a round to warm up; nothing is loaded."""
    device = next(iter(models.values())).get_submodule("backbone").parameters().__next__().device
    images, targets = _batch(size, batch_size, device)
    steps = {name: _step(model, task, images, targets, precision) for name, model in models.items()}
    results = {name: Measurement(name, task, batch_size, []) for name in models}
    for number in range(rounds + 1):
        for name, step in steps.items():
            _synchronize(device)
            began = time.perf_counter()
            step()
            _synchronize(device)
            if number:
                results[name].seconds.append(time.perf_counter() - began)
        if on_round is not None:
            on_round(number)
    if device.type == "cuda":
        for name, step in steps.items():
            torch.cuda.reset_peak_memory_stats(device)
            step()
            results[name].peak_memory_gb = torch.cuda.max_memory_allocated(device) / 1e9
            results[name].cuda = _count_cuda_calls(step)
    return list(results.values())


def measure_memory(
    name: str, head: str, task: Task, *, size: tuple[int, int], batch_size: int, precision: str = "float32"
) -> float:
    """Peak memory (GB) of a process on the CPU that does nothing but two such steps."""
    arguments = [name, head, task, str(size[0]), str(size[1]), str(batch_size), precision, str(torch.get_num_threads())]
    done = subprocess.run(
        [sys.executable, "-c", "import sys, engine.benchmark as b; b.report_memory(*sys.argv[1:])", *arguments],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(done.stdout.split()[-1])


def report_memory(name: str, head: str, task: Task, height: str, width: str, batch: str, precision: str, threads: str) -> None:
    """What `measure_memory` runs in a process of its own: prints its peak in GB."""
    torch.set_num_threads(int(threads))
    size = (int(height), int(width))
    model = contender(name, head, task, size=size, device=torch.device("cpu"))
    measure({name: model}, task, size=size, batch_size=int(batch), rounds=1, precision=precision)
    print(peak_bytes() / 1e9)


def peak_bytes() -> int:
    """Peak memory of this process."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux counts the parent's peak into ru_maxrss
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def agreement(models: dict[str, nn.Module], *, size: tuple[int, int]) -> dict[str, float]:
    """The largest difference of the backbone's maps from torchvision's, over their largest value, for each contender."""
    device = next(models[REFERENCE].parameters()).device
    images, _ = _batch(size, 1, device)
    differences = {}
    with torch.no_grad():
        expected = models[REFERENCE].get_submodule("backbone")(images[0][None])
        for name, model in models.items():
            found = model.get_submodule("backbone")(images[0][None])
            differences[name] = max(float((found[k] - expected[k]).abs().max() / expected[k].abs().max()) for k in expected)
    return differences


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Processor or GPU, and versions."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = models[0] if models else name
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
    }


def table(measurements: Sequence[Measurement]) -> list[list[str]]:
    """Rows of text: task, batch, contender, median, spread, images a second, ratio to torchvision's, memory, CUDA's calls."""
    rows = []
    for one in measurements:
        reference = next(
            m for m in measurements if (m.contender, m.task, m.batch_size) == (REFERENCE, one.task, one.batch_size)
        )
        rows.append([
            one.task, str(one.batch_size), one.contender, f"{one.median * 1e3:.0f} ms", f"±{one.spread:.0%}",
            f"{one.batch_size / one.median:.2f}", f"{reference.median / one.median:.2f}x",
            "" if one.peak_memory_gb is None else f"{one.peak_memory_gb:.2f} GB",
            ", ".join(f"{count} {what}" for what, count in one.cuda.items()),
        ])  # fmt: skip
    return rows


def to_json(measurements: Sequence[Measurement], *, machine: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """All of it, for a file."""
    return {"machine": machine, "settings": settings, "measurements": [asdict(one) for one in measurements]}


def _step(
    model: nn.Module, task: Task, images: list[Tensor], targets: list[dict[str, Tensor]], precision: str
) -> Callable[[], None]:
    device = images[0].device
    if task == "inference":

        def infer() -> None:
            with torch.inference_mode(), autocast(device, precision):
                model(images)

        return infer
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.0)  # the weights stay the same, for all and in every round

    def train() -> None:
        with autocast(device, precision):
            losses = model(images, [dict(target) for target in targets])
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return train


def _batch(size: tuple[int, int], batch_size: int, device: torch.device) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Random images of (H, W) and twenty objects in each, with masks, the way COCO's are on average three times over."""
    generator = torch.Generator().manual_seed(0)
    height, width = size
    images = [torch.rand(3, height, width, generator=generator).to(device) for _ in range(batch_size)]
    targets = []
    for _ in range(batch_size):
        corners = torch.rand(20, 2, generator=generator) * torch.tensor([width, height]) * 0.7
        boxes = torch.cat(
            [corners, corners + 8 + torch.rand(20, 2, generator=generator) * torch.tensor([width, height]) * 0.25], 1
        )
        masks = torch.zeros(20, height, width, dtype=torch.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
            mask[top:bottom, left:right] = 1
        labels = torch.randint(1, CLASSES, (20,), generator=generator)
        targets.append({"boxes": boxes.to(device), "labels": labels.to(device), "masks": masks.to(device)})
    return images, targets


def _fill(model: nn.Module, *, seed: int) -> None:
    """Random weights under which activations stay finite and some boxes score more than the threshold."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        if name.endswith("running_var"):
            low, high = 0.5, 1.5
        elif tensor.ndim == 1:
            low, high = (0.5, 1.0) if name.endswith("weight") else (-0.2, 0.2)
        else:
            high = (3 / tensor[0].numel()) ** 0.5
            low = -high
        tensor.uniform_(low, high, generator=generator)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _count_cuda_calls(step: Callable[[], None]) -> dict[str, int]:
    """Synchronisations of host and device, and kernel launches, in one step."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    ) as profile:
        step()
    names = [event.name for event in profile.events()]
    waits = sum("Synchronize" in name for name in names)
    launches = sum("LaunchKernel" in name for name in names)
    return {"synchronisations": waits, "launches": launches}
