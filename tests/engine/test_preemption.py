"""A run that is told to stop finishes its step, saves, says so, and leaves with the status that belongs to the signal."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import engine.distributed
import engine.train
from engine.checkpoint import load_checkpoint
from engine.data.loader import BatchLoader
from engine.data.sampler import ShardSampler
from engine.detection.config import DetectionConfig
from engine.distributed import World, start_world
from engine.preemption import STOP_SIGNALS, Preempted, StopSignals
from engine.tracking import JsonlTracker
from engine.train import train
from tests.engine.test_resume import assert_same_end

ALONE = World(0, 1, torch.device("cpu"))
ROOT = Path(__file__).parents[2]


def signal_at(monkeypatch: pytest.MonkeyPatch, number: int, *, step: int, kind: str = "train", rank: int | None = None) -> None:
    """Have this process sent a signal when it has logged a step."""
    log = JsonlTracker.log

    def log_and_signal(tracker: JsonlTracker, logged: str, at: int, values: dict[str, Any]) -> None:
        log(tracker, logged, at, values)
        if (logged, at) == (kind, step):
            os.kill(os.getpid(), number)

    monkeypatch.setattr(JsonlTracker, "log", log_and_signal)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)], ids=["TERM", "INT", "USR1"]
)
def test_it_saves_after_the_step_says_how_to_go_on_and_ends_the_same(
    stateful,
    uninterrupted,
    tmp_path,
    monkeypatch,
    capsys,
    number,
    status,
):
    before = [signal.getsignal(one) for one in STOP_SIGNALS]
    with monkeypatch.context() as patch:
        signal_at(patch, number, step=5)
        with pytest.raises(Preempted) as stopped:
            train(stateful())
    assert stopped.value.code == status
    assert [signal.getsignal(one) for one in STOP_SIGNALS] == before
    assert load_checkpoint(tmp_path / "run" / "last.pt").training["step"] == 5
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == (
        f"stopped by {signal.Signals(number).name} after step 5 of 9: saved in {tmp_path / 'run' / 'last.pt'}. "
        "To go on, the same command with --resume."
    )
    train(stateful(), resume="")
    assert_same_end(tmp_path / "run", uninterrupted.folder)


def test_an_evaluation_is_broken_off_and_done_again(stateful, uninterrupted, tmp_path, monkeypatch, capsys):
    evaluated = []
    run_evaluation = engine.train.run_evaluation

    def evaluate_and_signal(*arguments: Any, on_image: Any, **options: Any) -> Any:
        def on_image_and_signal(done: int, total: int) -> None:
            evaluated.append(done)
            if len(evaluated) == 2:
                os.kill(os.getpid(), signal.SIGTERM)

        return run_evaluation(*arguments, on_image=on_image_and_signal, **options)

    with monkeypatch.context() as patch:
        patch.setattr(engine.train, "run_evaluation", evaluate_and_signal)
        with pytest.raises(Preempted):
            train(stateful())
    assert evaluated == [1, 2], "seven images, of which two were looked at"
    training = load_checkpoint(tmp_path / "run" / "last.pt").training
    assert (training["step"], training["evaluation_due"]) == (3, True)
    assert not (tmp_path / "run" / "best.pt").exists()
    train(stateful(), resume="")
    assert_same_end(tmp_path / "run", uninterrupted.folder)


def _train_and_signal(config: DetectionConfig, *, rank: int, in_evaluation: bool) -> None:
    """One process alone gets a signal, in its third step, or in the evaluation."""
    if int(os.environ["RANK"]) == rank:
        calls: list[int] = []
        owner, name = (StopSignals, "breaks_evaluation") if in_evaluation else (engine.train.Run, "_train_step")
        original = getattr(owner, name)

        def call(*arguments: Any) -> Any:
            calls.append(1)
            if len(calls) == (1 if in_evaluation else 3):
                os.kill(os.getpid(), signal.SIGTERM)
            return original(*arguments)

        setattr(owner, name, call)
    train(config)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("in_evaluation", [False, True], ids=["step", "evaluation"])
def test_one_process_of_two_that_is_told_to_stop_stops_both_after_one_step(
    on_processes, make_config, toy_data, tmp_path, rank, in_evaluation
):
    every = 1 if in_evaluation else 5
    config = make_config("train.batch_size=2", "train.epochs=5", f"eval.every_epochs={every}", data=toy_data)  # 15 steps
    ended = on_processes(2, _train_and_signal, config, rank=rank, in_evaluation=in_evaluation)
    assert [one.status for one in ended] == [143, 143], [one.output for one in ended]
    training = load_checkpoint(tmp_path / "run" / "last.pt").training
    if in_evaluation:
        assert (training["step"], training["evaluation_due"]) == (3, True)
    else:
        assert training["step"] == 5, "found after three steps; two more are taken, so that all can have read of it"
    assert ended[0].output.count("stopped by SIGTERM after step") == 1
    assert "stopped by" not in ended[1].output
    assert "Traceback" not in "".join(one.output for one in ended)


def _stop_and_be_slow_to_see_it(rank: int) -> None:
    with start_world("cpu") as world:
        world.gather(world.rank)
        if world.rank == rank:
            engine.distributed.time = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: time.sleep(2))
        else:
            time.sleep(0.5)  # the other one has looked, and is to look again in 1.5 s
        world.barrier()
        raise Preempted(signal.SIGTERM)


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_that_stop_together_wait_until_all_have_seen_it(on_processes, rank):
    """The main process holds the store that the others look into."""
    ended = on_processes(2, _stop_and_be_slow_to_see_it, rank)
    assert [(one.status, one.output) for one in ended] == [(143, "")] * 2


def test_a_second_signal_ends_at_once():
    code = (
        "import os, signal, torch\n"
        "from engine.distributed import World\n"
        "from engine.preemption import StopSignals\n"
        "with StopSignals(World(0, 1, torch.device('cpu'))) as signals:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print(signals.received, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('still here')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "15\n"
    assert done.returncode == -signal.SIGINT
    assert done.stderr == "\nSIGTERM: the run ends its step and saves; a second one ends it at once, unsaved\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_under_torchrun_the_echo_of_a_signal_is_not_a_second_one(monkeypatch, capfd, number):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    with StopSignals(ALONE) as signals:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert signals.received == number
    # It also sends SIGTERM where another process has failed: nothing is saved then.
    assert ("the run ends its step and saves" in capfd.readouterr().err) == (number == signal.SIGINT)


def test_loader_processes_outlive_what_reaches_the_whole_group(toy_job):
    job = toy_job()
    dataset = job.build_training_set()
    sampler = ShardSampler(len(dataset), batch_size=1)
    batches = iter(BatchLoader(dataset, sampler, num_workers=1, device=torch.device("cpu")))
    next(batches)
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    workers = [int(child) for child in children if b"spawn_main" not in Path(f"/proc/{child}/cmdline").read_bytes()]
    for number in STOP_SIGNALS:
        for worker in workers:
            if "resource_tracker" not in Path(f"/proc/{worker}/cmdline").read_text():
                os.kill(worker, number)
    time.sleep(0.1)
    assert len(list(batches)) == len(dataset) - 1
