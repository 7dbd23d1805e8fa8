"""A run that is killed again and again, and resumed each time, against one that is left alone: the same bits, on a CPU.

python benchmarks/kills.py -o benchmarks/results/kills.json

A small detector learns the embedded shapes. Kills come at moments drawn from a seed, uniform over a quarter of the run;
every third as a checkpoint is being written. Of two processes under torchrun now all are killed, torchrun included, now one.
Then a run is told to stop (SIGTERM) again and again. Minutes for each number of processes.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.benchmark import describe_machine
from engine.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[1]
RUN = (
    *(
        "model.head={name: faster_rcnn, anchor_scale: 6, rpn_post_nms_top_n_train: 100, box_head_dim: 32}",
        "model.backbone.out_features=[c3, c4]",
        "model.pyramid.out_channels=16",
    ),
    *(
        "model.head.box_head_dim=32",
        "data.min_size=[32, 48]",
        "data.max_size=48",
        "data.augmentations=[{name: horizontal_flip}]",
    ),
    *("train.batch_size=16", "train.epochs=2", "train.log_steps=1", "train.checkpoint_steps=3", "train.keep_every_epochs=1"),
    *("eval.every_epochs=1", "eval.pictures=2", "eval.batch_size=8", "device=cpu"),
)
CHANGING = ("time", "seconds", "images_per_second", "memory_gb")  # from one run to the next
LIMIT = 600  # seconds a start may take


class Start:
    """A start of the tool on a folder, killed with all it has started when it is left."""

    def __init__(self, folder: Path, processes: int, overrides: tuple[str, ...]) -> None:
        self.folder = folder
        command = [sys.executable]
        if processes > 1:
            command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command += ["tools/train_det.py", "configs/quickstart.yaml", *RUN, *overrides, f"output_dir={folder}", "--resume"]
        self._started: set[int] = set()  # torchrun's workers are in sessions of their own
        began = time.time()
        self.output = folder.with_name(f"{folder.name}.txt")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with self.output.open("a") as output:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            )
        config = folder / "config.yaml"  # written as the training begins
        while not (config.exists() and config.stat().st_mtime >= began - 0.01) and self.process.poll() is None:
            time.sleep(0.005)
        self.began = time.monotonic()

    def wait(self, seconds: float = LIMIT) -> int | None:
        """Its exit status; None if it is still running after so many seconds."""
        try:
            return self.process.wait(timeout=max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return None

    def wait_for_save(self) -> None:
        """Until a checkpoint is being written."""
        while self.process.poll() is None and not any(self.folder.glob("*.pt.part")):
            pass

    def kill(self, *, one: bool, number: int = signal.SIGKILL) -> None:
        """Send a signal to everything, or to one of torchrun's workers alone."""
        started = _children(self.process.pid)
        self._started |= {*started, *(child for process in started for child in _children(process))}
        if one and started:
            os.kill(started[-1], number)
        else:
            self._send(number)

    def end(self) -> None:
        """Nothing of it is left."""
        self._send(signal.SIGKILL)
        self.process.wait()

    def _send(self, number: int) -> None:
        for process in (self.process.pid, *self._started):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)


def _children(process: int) -> list[int]:
    path = Path(f"/proc/{process}/task/{process}/children")
    try:
        return [int(child) for child in path.read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def run_killed(
    folder: Path,
    whole: Path,
    *,
    seconds: float,
    kills: int,
    processes: int,
    rng: random.Random,
    overrides: tuple[str, ...] = (),
) -> list[dict[str, Any]]:
    """Runs in folders of their own, each killed and resumed until it ends, until there were so many kills; what was done."""
    done: list[dict[str, Any]] = []
    runs = 0
    while len(done) < kills:
        own = folder / f"run_{runs}"
        runs += 1
        while True:
            start = Start(own, processes, overrides)
            at_save = len(done) % 3 == 2
            one = processes > 1 and len(done) % 2 == 1
            if len(done) < kills and start.wait(rng.uniform(0, seconds / 4)) is None:
                if at_save:
                    start.wait_for_save()
                after = time.monotonic() - start.began
                parts = [path.name for path in own.glob("*.pt.part")]
                start.kill(one=one)
                status = start.wait()
                start.end()
                if status != 0:
                    done.append({"run": runs, "seconds": round(after, 2), "one_of_two": one, "being_written": parts})
                    print(f"kill {len(done)}: {done[-1]}", flush=True)
                    continue
            else:
                status = start.wait()
            start.end()
            assert status == 0, f"status {status}: {start.output.read_text()[-3000:]}"
            break
        found = differences(whole, own)
        assert not found, f"{own} differs: {found}"
        print(f"run {runs} ended as the one that was left alone", flush=True)
    return done


def run_stopped(folder: Path, whole: Path, *, stops: int, processes: int, rng: random.Random) -> list[int]:
    """A run that is sent SIGTERM and resumed so many times; the statuses it ended with."""
    statuses = []
    lines = len(metrics(whole))
    while True:
        start = Start(folder, processes, ())
        if len(statuses) == stops:
            status = start.wait()
            start.end()
            assert status == 0, f"status {status}: {start.output.read_text()[-3000:]}"
            break
        # By lines, not by time: a machine that is less busy than before would have it end unstopped.
        target = (len(statuses) + rng.random()) * lines / (stops + 1)
        while start.wait(0.01) is None and _count_lines(folder) < target:
            pass
        if start.wait(0) is None:
            # To torchrun, which passes it on; or, every second time, to one of its workers alone.
            if processes > 1 and len(statuses) % 2:
                start.kill(one=True, number=signal.SIGTERM)
            else:
                start.process.terminate()
        status = start.wait()
        start.end()
        assert status, f"it ended before it was stopped: {start.output.read_text()[-3000:]}"
        statuses.append(status)
    said = start.output.read_text().count("stopped by SIGTERM after step")
    assert said == stops, f"{said} of {stops} said that they have saved"
    found = differences(whole, folder)
    assert not found, f"{folder} differs: {found}"
    return statuses


def differences(first: Path, second: Path) -> list[str]:
    """What of two finished runs is not the same."""
    found = []
    names = sorted({path.name for folder in (first, second) for path in folder.glob("*.pt")})
    for name in names:
        if not all((folder / name).exists() for folder in (first, second)):
            found.append(name)
            continue
        one, two = (load_checkpoint(folder / name) for folder in (first, second))
        found += [f"{name}{where}" for where in _differences([one.model, one.training], [two.model, two.training])]
    for what, read in (("metrics.jsonl", metrics), ("tensorboard", scalars), ("eval", scored)):
        if read(first) != read(second):
            found.append(what)
    return found


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics, without what changes from one run to the next."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in CHANGING} for line in lines]


def _count_lines(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The same for TensorBoard."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.endswith(CHANGING)]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def scored(folder: Path) -> dict[str, bytes]:
    """The files of the last evaluation."""
    return {path.name: path.read_bytes() for path in (folder / "eval").iterdir()}


def _differences(first: Any, second: Any, path: str = "") -> list[str]:
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        return [found for key in first for found in _differences(first[key], second[key], f"{path}/{key}")]
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        return [found for i, pair in enumerate(zip(first, second, strict=True)) for found in _differences(*pair, f"{path}/{i}")]
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return [] if torch.equal(first, second) else [path]
    return [] if type(first) is type(second) and first == second else [path]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="for each number of processes")
    parser.add_argument("--stops", type=int, default=3, help="by SIGTERM, for each number of processes")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", metavar="FILE")
    args = parser.parse_args()
    results: dict[str, Any] = {"machine": describe_machine(torch.device("cpu")), "seed": args.seed, "processes": {}}
    for processes in args.processes:
        rng = random.Random(args.seed * 100 + processes)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            start = Start(folder / "whole", processes, ())
            status = start.wait()
            assert status == 0, start.output.read_text()[-3000:]
            seconds = time.monotonic() - start.began
            print(f"{processes} processes, left alone: {seconds:.1f} s, {len(metrics(folder / 'whole'))} lines", flush=True)
            of = {"processes": processes, "rng": rng}
            kills = run_killed(folder / "killed", folder / "whole", kills=args.kills, seconds=seconds, **of)
            statuses = run_stopped(folder / "stopped", folder / "whole", stops=args.stops, **of)
            print(
                f"stopped by SIGTERM {args.stops} times (status {statuses}), it ended as the one that was left alone",
                flush=True,
            )
            results["processes"][processes] = {"seconds": round(seconds, 1), "kills": kills, "statuses": statuses}
    if args.output:
        Path(args.output).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
