"""Time ours against torchvision's detector: the same weights and images, in turns, in one process.

python tools/benchmark.py
python tools/benchmark.py --head mask_rcnn --size 800 1333 --batch 1 8 --precision bf16 --device cuda -o results.json
python tools/benchmark.py --task training --size 320 320 --batch 2 --threads 2
"""

import argparse
import json
from pathlib import Path

from engine.cli import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head", choices=["faster_rcnn", "mask_rcnn"], default="faster_rcnn", help="on a ResNet-50 with FPN")
    parser.add_argument("--task", choices=["inference", "training"], default="inference")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), default=[800, 1066], help="of the images")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="images a step; several are measured in turn")
    parser.add_argument("--rounds", type=int, default=7, help="steps of each contender that are timed (default 7)")
    parser.add_argument("--precision", choices=["float32", "bf16", "fp16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's own choice)")
    parser.add_argument("--compile", action="store_true", help="also measure ours with the backbone under torch.compile")
    parser.add_argument(
        "--memory", action="store_true", help="on a CPU, also measure peak memory, each in a process of its own"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="where the figures are written as JSON")
    args = parser.parse_args()
    if min(args.size) < 64 or min(args.batch) < 1 or args.rounds < 1:
        parser.error("--size must be at least 64 x 64, --batch and --rounds at least 1")

    # Imported here, for torch takes seconds to load and --help needs none of it.
    import torch

    from engine.benchmark import agreement, contenders, describe_machine, measure, measure_memory, table, to_json
    from engine.distributed import start_world
    from engine.progress import Reporter

    if args.threads:
        torch.set_num_threads(args.threads)
    with start_world(args.device) as world:
        reporter = Reporter(world)
        size = (args.size[0], args.size[1])
        machine = describe_machine(world.device)
        reporter.line(", ".join(f"{key} {value}" for key, value in machine.items()))
        models = contenders(args.head, args.task, size=size, device=world.device, compiled=args.compile)
        if args.task == "inference":
            for name, difference in agreement(models, size=size).items():
                reporter.line(f"  {name}: maps differ from torchvision's by at most {difference:.1e} of their largest value")
        found = []
        for batch in args.batch:
            with reporter.bar(f"batch {batch}", args.rounds) as show:
                options = {"size": size, "batch_size": batch, "precision": args.precision}
                found += measure(models, args.task, rounds=args.rounds, on_round=show, **options)
            for one in found if args.memory and args.device == "cpu" else ():
                one.peak_memory_gb = measure_memory(one.contender, args.head, args.task, **options)
        columns = ["task", "batch", "contender", "median", "spread", "img/s", "ratio", "peak memory", "CUDA"]
        reporter.table(columns, table(found), title=f"{args.head} R50-FPN, {size[0]} x {size[1]}, {args.precision}")
        if args.output:
            Path(args.output).parent.mkdir(parents=True, exist_ok=True)
            settings = {key: value for key, value in vars(args).items() if key != "output"}
            Path(args.output).write_text(json.dumps(to_json(found, machine=machine, settings=settings), indent=2))
            reporter.line(f"figures in {args.output}")


if __name__ == "__main__":
    run_tool(main)
