"""Loading of a COCO file's annotations: time and memory, ours and pycocotools', each measurement in a process of its own.

python benchmarks/coco_size.py /tmp/instances_train2017.json
python benchmarks/annotation_store.py /tmp/instances_train2017.json -o benchmarks/results/annotation_store.json

Measured are the first load (ours leaves a store beside the file, pycocotools has none), a later one, and loader processes,
forked after a load as PyTorch's are, which go through all images once, in a random order, each taking its share, and read every
box and every polygon. Memory is beyond that of the imports: the peak while loading, and what the processes add together, by the
kernel's proportional set size, in which a page that n processes share counts 1/n in each. This needs Linux, for /proc.
"""

import argparse
import contextlib
import gc
import io
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

MB = 1e6


def memory(pid: int | str = "self") -> dict[str, float]:
    """Memory of a process in MB: Rss, Pss, Private."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kilobytes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    of = {"Rss": ["Rss"], "Pss": ["Pss"], "Private": ["Private_Clean", "Private_Dirty"]}
    return {name: sum(kilobytes[part] for part in parts) * 1024 / MB for name, parts in of.items()}


def peak() -> float:
    """The most resident memory since `reset_peak`, MB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / MB


def reset_peak() -> None:
    """Begin to look for the peak anew."""
    Path("/proc/self/clear_refs").write_text("5")


# ---- What is measured ----


def ours(path: str) -> Callable[[], tuple[int, Callable[[int], None]]]:
    """A function that loads; it gives the number of images, and a function that reads all of one's objects."""
    from engine.data.annotations import load_annotations
    from engine.data.dataset import CocoDataset

    def load() -> tuple[int, Callable[[int], None]]:
        table = load_annotations(path)
        dataset = CocoDataset(Path("images"), table)

        def read(index: int) -> None:
            dataset.instances(index)
            for row in range(table.offsets[index], table.offsets[index + 1]):
                table.segmentation(row)

        return len(dataset), read

    return load


def pycocotools(path: str) -> Callable[[], tuple[int, Callable[[int], None]]]:
    """As `ours`, with pycocotools' index."""
    from pycocotools.coco import COCO

    def load() -> tuple[int, Callable[[int], None]]:
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(path)
        ids = list(coco.imgs)

        def read(index: int) -> None:
            annotations = coco.loadAnns(coco.getAnnIds(imgIds=[ids[index]]))
            np.array([annotation["bbox"] for annotation in annotations], np.float32)
            for annotation in annotations:
                if isinstance(annotation["segmentation"], list):
                    for polygon in annotation["segmentation"]:
                        np.array(polygon)
                else:
                    np.array(annotation["segmentation"]["counts"])

        return len(ids), read

    return load


CONTENDERS = {"ours": ours, "pycocotools": pycocotools}


def measure_load(contender: str, path: str) -> dict[str, float]:
    """Seconds and MB of a load in this process."""
    load = CONTENDERS[contender](path)
    gc.collect()
    reset_peak()
    before, began, cpu = memory(), time.perf_counter(), time.process_time()
    kept = load()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    after = memory()
    assert kept[0]
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "imports_mb": before["Rss"],
        "peak_mb": peak() - before["Rss"],
        "kept_mb": after["Rss"] - before["Rss"],
    }


def measure_workers(contender: str, path: str, *, workers: int, task: str) -> dict[str, Any]:
    """What loader processes add to the memory of the one they are forked from.

    Args:
        task: `pass`: the images are shared among them; `all`: each reads every image; `idle`: they read nothing.
    """
    count, read = CONTENDERS[contender](path)()
    gc.collect()
    order = np.random.default_rng(0).permutation(count)
    alone = memory()["Pss"]
    context = multiprocessing.get_context("fork")
    done, leave = context.Semaphore(0), context.Event()

    def work(number: int) -> None:
        share = {"pass": order[number::workers], "all": order, "idle": order[:0]}[task]
        for index in share:
            read(int(index))
        done.release()
        leave.wait()

    processes = [context.Process(target=work, args=(number,)) for number in range(workers)]
    began = time.perf_counter()
    for process in processes:
        process.start()
    for _ in processes:
        done.acquire()
    seconds = time.perf_counter() - began
    each = [memory(process.pid or 0) for process in processes]
    added = memory()["Pss"] + sum(one["Pss"] for one in each) - alone
    leave.set()
    for process in processes:
        process.join()
    return {
        "seconds": seconds,
        "parent_pss_mb": alone,
        "added_pss_mb_each": added / workers,
        "private_mb_most": max(one["Private"] for one in each),
    }


# ---- In processes of their own ----


def in_a_process(*arguments: str) -> dict[str, Any]:
    """One measurement, by this file as a program."""
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_all(path: Path, *, rounds: int, workers: int) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Every measurement of every contender, in turns."""
    store = path.with_name(path.name + ".columns")
    found: dict[str, dict[str, list[dict[str, Any]]]] = {name: {} for name in CONTENDERS}
    for _ in range(rounds):
        for name in CONTENDERS:
            store.unlink(missing_ok=True)
            for kind in ("first load", "later load"):
                found[name].setdefault(kind, []).append(in_a_process(str(path), "--load", name))
    for name in CONTENDERS:
        # Every image in every process, with pycocotools, would take as much memory as there are processes.
        for task in ("idle", "pass", *(["all"] if name == "ours" else [])):
            options = ("--fork", name, "--task", task, "--workers", str(workers))
            found[name][f"{workers} workers, {task}"] = [in_a_process(str(path), *options)]
    return found


def describe(path: Path, note: str) -> dict[str, Any]:
    """The machine, the versions and the file."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": models[0].partition(":")[2].strip() if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("numpy", "msgspec", "pycocotools", "torch")},
        "file_mb": path.stat().st_size / MB,
        "store_mb": path.with_name(path.name + ".columns").stat().st_size / MB,
        "note": note,
    }


def main() -> None:
    """Measure, print a table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--rounds", type=int, default=3, help="loads of each kind; the median is printed")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--note", default="", help="what else the machine was doing, say")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE")
    for hidden in ("--load", "--fork", "--task"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        print(json.dumps(measure_load(args.load, str(args.path))))
    elif args.fork:
        print(json.dumps(measure_workers(args.fork, str(args.path), workers=args.workers, task=args.task)))
    else:
        found = measure_all(args.path, rounds=args.rounds, workers=args.workers)
        for name, kinds in found.items():
            for kind, measured in kinds.items():
                medians = {key: statistics.median(one[key] for one in measured) for key in measured[0]}
                print(f"{name:12s} {kind:16s} " + "  ".join(f"{key} {value:.2f}" for key, value in medians.items()))
        result = {"machine": describe(args.path, args.note), "measurements": found}
        if args.output:
            args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
