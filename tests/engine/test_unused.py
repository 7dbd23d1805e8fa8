"""Parameters without a gradient are looked for by the main process alone: no layer of it may wait for the others."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engine.distributed import start_world
from engine.job import job_of
from engine.unused import parameters_without_gradient


class Synchronized(nn.SyncBatchNorm):
    """In training it asks all processes for their images' mean, as the real one does, which runs on GPUs alone."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)
        mean = x.detach().mean((0, 2, 3))
        dist.all_reduce(mean)
        return x - mean[:, None, None] / dist.get_world_size()


class Unused(nn.Module):
    """Counts for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x


def _look(config) -> None:
    with start_world("cpu", step_minutes=0.5) as world:
        job = job_of(config)
        dataset = job.build_training_set(world)
        model = job.build_model(dataset.categories, load_weights=False)
        body = model.backbone.body if hasattr(model.backbone, "body") else model.backbone
        body.bn1 = nn.Sequential(Synchronized(64), Unused())
        names = parameters_without_gradient(config, job, model, dataset, world)
        assert body.bn1[0].training
        print(world.rank, names)


def test_a_norm_over_all_processes_does_not_wait_for_them(on_processes, make_config, toy_data):
    config = make_config("train.batch_size=2", "model.backbone.norm=bn", data=toy_data)
    ended = on_processes(2, _look, config)
    assert [one.status for one in ended] == [0, 0], [one.output for one in ended]
    for rank, one in enumerate(ended):
        (line,) = [line for line in one.output.splitlines() if line.startswith(f"{rank} ")]
        assert line.endswith("bn1.1.scale']"), line
        assert line.count(",") == 0
