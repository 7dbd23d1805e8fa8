"""A process that keeps the others waiting is named."""

import time

import pytest
import torch

from engine.distributed import World, start_world
from engine.lateness import COMPUTES, LOADS, StepWatch


def _step(late: str) -> None:
    with start_world("cpu") as world:
        watch = StepWatch(world, step_minutes=0.05)
        watch.at(7, LOADS)
        if world.rank == 1 and late == "loading":
            time.sleep(15)
        if world.rank == 1 and late == "outside":
            watch.pause()
            time.sleep(15)
        watch.at(7, COMPUTES)
        torch.distributed.all_reduce(torch.zeros(1))
        watch.pause()
        time.sleep(4)  # as long as an evaluation takes
        world.barrier()
        watch.close()


@pytest.mark.parametrize(
    ("late", "said"),
    [
        ("loading", "in step 7 for process 1, which loads its images for step 7. The run ends here"),
        ("outside", "in step 7 for process 1, which is in no step."),
    ],
)
def test_the_late_process_is_named(on_processes, late, said):
    first, second = on_processes(2, _step, late)
    assert first.status == 1
    assert said in first.output, first.output
    assert first.output.startswith("[process 0] has waited 2.7 s in step 7 for")
    assert first.output.count("\n") == 1
    assert second.status != 0


def test_outside_of_steps_nobody_is_late(on_processes):
    ended = on_processes(2, _step, "nobody")
    assert [one.status for one in ended] == [0, 0], [one.output for one in ended]


def test_one_process_waits_for_nobody():
    watch = StepWatch(World(0, 1, torch.device("cpu")), step_minutes=1e-6)
    watch.at(1, COMPUTES)
    time.sleep(0.05)
    watch.close()
