"""Several processes exchange their gradients and nothing else, and to the same bits after a resume."""

import copy
import json
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from backbones.errors import UserError
from engine.build import check_processes
from engine.checkpoint import load_checkpoint
from engine.config import DistributedConfig
from engine.distributed import World, start_world
from engine.parallel import buffers_count_in_training, parallelize, synchronize_batch_norms
from engine.train import train

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class Shifted(nn.Module):
    """Its buffer counts in training."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


def small_model(*, shifted: bool = False) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 500, 3), nn.BatchNorm2d(500)]
    head = [nn.Flatten(), nn.LazyLinear(1)]
    model = nn.Sequential(*layers, *([Shifted()] if shifted else []), *head)
    model(torch.zeros(2, 3, 8, 8))
    return model


# ---- Exact resume ----


@pytest.mark.parametrize(("size", "norm"), [(3, "gn"), (2, "bn")])
def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(on_processes, make_config, toy_data, tmp_path, size, norm):
    """From three processes on, the order in which numbers are added up depends on how gradients are laid out; and batch
    statistics are each process's own."""

    def run(epochs: int, name: str, **resume: str) -> None:
        common = ("schedule.milestones=[9.0]", f"model.backbone.norm={norm}", "eval.every_epochs=9", "optimizer.lr=0.02")
        config = make_config(f"train.batch_size={2 * size}", f"train.epochs={epochs}", *common, data=toy_data, name=name)
        ended = on_processes(size, train, config, **resume)
        assert [one.status for one in ended] == [0] * size, [one.output for one in ended]

    run(3, "whole")
    run(1, "stopped")
    run(3, "stopped", resume="")
    whole, stopped = (load_checkpoint(tmp_path / name / "last.pt").model for name in ("whole", "stopped"))
    assert [key for key in whole if not torch.equal(whole[key], stopped[key])] == []


# ---- What a step exchanges ----


def _exchange(folder: str, options: dict[str, object], shifted: bool) -> None:
    """Two steps, of which the second is recorded: its collectives, and the gradients."""
    with start_world("cpu") as world:
        parallel = parallelize(small_model(shifted=shifted), DistributedConfig(**options), world)
        images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(world.rank))
        for _ in range(2):
            parallel.zero_grad()
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                parallel(images).square().mean().backward()
        collectives = [event.name.removeprefix("gloo:") for event in profile.events() if event.name.startswith("gloo:")]
        first = next(parallel.parameters())
        said = {"collectives": collectives, "gradient": first.grad.flatten().tolist()}
        Path(folder, f"{world.rank}.json").write_text(json.dumps(said))


@pytest.mark.parametrize(
    ("options", "shifted", "expected"),
    [
        ({}, False, ["all_reduce"]),  # the gradients fill one bucket
        ({"static_graph": True}, False, ["all_reduce"]),
        ({"gradient_compression": "bf16"}, False, ["all_reduce"]),
        ({"gradient_compression": "fp16"}, False, ["all_reduce"]),
        # The batch norms' go with them: floats, and counts.
        ({}, True, ["broadcast", "broadcast", "all_reduce"]),
    ],
    ids=["plain", "static", "bf16", "fp16", "buffers"],
)
def test_a_step_exchanges_its_gradients_and_buffers_only_where_they_count(on_processes, tmp_path, options, shifted, expected):
    ended = on_processes(2, _exchange, str(tmp_path), options, shifted)
    assert [one.status for one in ended] == [0, 0], [one.output for one in ended]
    said = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert said[0]["collectives"] == expected
    assert said[0]["gradient"] == said[1]["gradient"]
    parts = []
    for rank in range(2):
        model = small_model(shifted=shifted)
        images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(rank))
        model(images).square().mean().backward()
        parts.append(next(model.parameters()).grad.flatten())
    wanted, given = (parts[0] + parts[1]) / 2, torch.tensor(said[0]["gradient"])
    rounding = 2e-2 if options.get("gradient_compression") == "bf16" else 5e-3 if options.get("gradient_compression") else 1e-6
    assert float((given - wanted).norm()) < rounding * float(wanted.norm())
    if "gradient_compression" in options:
        assert not torch.equal(given, wanted)


class WithOtherStrides(torch.autograd.Function):
    """A weight (N, C, 1, 1) whose gradient has strides of its own, as that of some 1 x 1 convolutions."""

    @staticmethod
    def forward(context, weight):
        return weight.clone()

    @staticmethod
    def backward(context, gradient):
        size = gradient.shape[1]
        return torch.empty(gradient.numel()).as_strided(gradient.shape, (size, 1, size, size)).copy_(gradient)


class Pointwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, WithOtherStrides.apply(self.weight))


def _step_with_other_strides() -> None:
    with start_world("cpu") as world:
        parallel = parallelize(Pointwise(), DistributedConfig(static_graph=True), world)
        parallel(torch.ones(2, 8, 4, 4)).mean().backward()
        warnings.warn("Grad strides do not match bucket view strides, says another", stacklevel=1)


def test_the_warning_of_a_gradients_strides_is_kept_from_the_user_and_no_other(on_processes):
    for one in on_processes(2, _step_with_other_strides):
        assert one.status == 0, one.output
        assert one.output.count("Warning") == 1, one.output
        assert "UserWarning: Grad strides do not match bucket view strides, says another" in one.output


# ---- Options ----


def test_one_process_is_not_wrapped():
    model = small_model()
    options = DistributedConfig(sync_batch_norm=True, gradient_compression="bf16")
    assert synchronize_batch_norms(model, options, World(0, 1, CPU)) is model
    assert parallelize(model, options, World(0, 1, CPU)) is model


def test_batch_norms_are_synchronized_under_their_own_names():
    model = small_model()
    synchronized = synchronize_batch_norms(copy.deepcopy(model), DistributedConfig(sync_batch_norm=True), World(0, 2, GPU))
    assert [type(layer).__name__ for layer in synchronized][1:5:3] == ["SyncBatchNorm"] * 2
    assert list(synchronized.state_dict()) == list(model.state_dict())
    untouched = synchronize_batch_norms(model, DistributedConfig(), World(0, 2, GPU))
    assert not any(isinstance(layer, nn.SyncBatchNorm) for layer in untouched.modules())


def test_batch_norms_are_not_synchronized_on_several_cpus():
    with pytest.raises(UserError, match=r"distributed\.sync_batch_norm needs GPUs"):
        synchronize_batch_norms(small_model(), DistributedConfig(sync_batch_norm=True), World(0, 2, CPU))


def test_a_static_graph_and_accumulation_are_refused(make_config):
    config = make_config("distributed.static_graph=true", "train.accumulate=2", "train.batch_size=4")
    with pytest.raises(UserError, match=r"distributed\.static_graph .* train\.accumulate=2"):
        check_processes(config, World(0, 2, CPU))


def test_only_buffers_that_count_in_training_are_sent(small_detector):
    assert buffers_count_in_training(Shifted())
    assert buffers_count_in_training(small_model(shifted=True))
    assert not buffers_count_in_training(small_model())
    for norm in ("frozen_bn", "bn", "gn"):
        assert not buffers_count_in_training(small_detector(backbone={"norm": norm})), norm
