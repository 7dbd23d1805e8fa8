"""What several processes cost: measured with one and two of them here, and on paper for eight machines of eight GPUs.

python benchmarks/scaling.py -o benchmarks/results/scaling.json

The paper part counts the gradients of each config; bandwidths and the time of a step without an exchange are assumptions.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from engine.benchmark import describe_machine
from engine.config_file import load_config
from engine.job import job_of

ROOT = Path(__file__).parents[1]
CONFIGS = ("frcnn_r50", "mrcnn_r50", "retinanet_r50", "fcos_r50", "frcnn_r101", "cls_r50_imagenet")
CLASSES = {"detection": 80, "classification": 1000}

# ---- On paper ----
# A step of 16 images on 8 V100 without any exchange: detectron2's model zoo gives 0.21 s an iteration for Faster R-CNN R50-FPN.
STEP_SECONDS, BACKWARD_SHARE = 0.21, 0.6
GPUS, MACHINES = 8, 8
NVLINK = 200e9  # bytes a second of a ring within a machine
EFFICIENCY = 0.85  # of a network's nominal rate
NETWORKS = {"10 Gb/s": 10, "100 Gb/s": 100, "200 Gb/s": 200, "400 Gb/s": 400, "8 x 200 Gb/s": 1600}
LAST_BUCKET = 25 * 2**20  # bytes whose exchange begins when the backward pass has ended


def gradient_bytes(name: str) -> int:
    """Bytes of float32 gradients that a step of a config exchanges."""
    config = load_config(ROOT / "configs" / f"{name}.yaml", [])
    job: Any = job_of(config)
    model = job.build_model(_categories(CLASSES[config.job]), load_weights=False)
    return 4 * sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def exchange_seconds(size: float, processes: int, bandwidth: float) -> float:
    """A ring all-reduce: each process sends and receives 2 (n - 1) / n of the gradients, through its slowest link."""
    return 2 * (processes - 1) / processes * size / bandwidth


def on_paper(size: float) -> list[dict[str, Any]]:
    """The exchange on 64 GPUs for each network, in float32 and in bf16, and what of it a step waits for."""
    rows = []
    processes = GPUS * MACHINES
    for name, gigabits in NETWORKS.items():
        for compressed in (False, True):
            bytes_sent = size / 2 if compressed else size
            bandwidth = min(NVLINK, gigabits * 1e9 / 8 * EFFICIENCY)
            exchange = exchange_seconds(bytes_sent, processes, bandwidth)
            last = exchange * min(1.0, LAST_BUCKET / size)
            hidden = STEP_SECONDS * BACKWARD_SHARE
            waited = max(last, exchange - hidden)
            rows.append(
                {
                    "network": name,
                    "gradients": "bf16" if compressed else "float32",
                    "exchange_ms": round(1000 * exchange, 1),
                    "waited_ms": round(1000 * waited, 1),
                    "efficiency": round(STEP_SECONDS / (STEP_SECONDS + waited), 3),
                }
            )
    return rows


# ---- Measured ----


def images_per_second(processes: int, folder: Path, *, options: tuple[str, ...] = ()) -> float:
    """Of the quickstart's training on larger images, each process on a thread of its own, without the first steps."""
    settings = ["train.epochs=1", "train.log_steps=5", "train.ema=null", "data.num_workers=0", "eval.pictures=0", "device=cpu"]
    settings += ["train.batch_size=8", "data.min_size=224", "data.max_size=224"]  # the sum of 2 MB is not all there is to do
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    tool = [str(ROOT / "tools" / "train_det.py"), str(ROOT / "configs" / "quickstart.yaml")]
    command = [sys.executable, *launch, *tool, *settings, *options, f"output_dir={folder}"]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(line["images_per_second"] for line in lines if line["kind"] == "train" and line["step"] > 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="0: the paper part alone")
    parser.add_argument("-o", "--output", metavar="FILE")
    args = parser.parse_args()
    sizes = {name: gradient_bytes(name) for name in CONFIGS}
    result: dict[str, Any] = {"gradient_bytes": sizes, "on paper, frcnn_r50": on_paper(sizes["frcnn_r50"])}
    if args.rounds:
        rates: dict[str, list[float]] = {}
        kinds = {
            "1 process": (1, ()),
            "2 processes": (2, ()),
            "2 processes, bf16": (2, ("distributed.gradient_compression=bf16",)),
        }
        with tempfile.TemporaryDirectory() as folder:
            for number in range(args.rounds):  # in turns, so that what else the machine does meets all alike
                for title, (processes, options) in kinds.items():
                    run = Path(folder, f"{title} {number}".replace(",", ""))
                    rates.setdefault(title, []).append(round(images_per_second(processes, run, options=options), 2))
                    print(title, rates[title][-1], flush=True)
        result["measured images a second"] = {
            "machine": describe_machine(torch.device("cpu")),
            "cores": os.cpu_count(),
            "medians": {title: statistics.median(values) for title, values in rates.items()},
            "all": rates,
        }
    text = json.dumps(result, indent=1)
    print(text)
    if args.output:
        Path(args.output).write_text(text + "\n")


def _categories(count: int) -> Any:
    from engine.data.annotations import Category

    return [Category(number, str(number)) for number in range(1, count + 1)]


if __name__ == "__main__":
    main()
