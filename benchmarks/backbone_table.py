"""Write docs/backbones.md: what every backbone was seen to do, by the name that `build_backbone` takes.

python benchmarks/backbone_sweep.py --out /tmp/sweep.jsonl
python benchmarks/backbone_table.py --sweep /tmp/sweep.jsonl --cache /tmp/table.jsonl

Each row is measured once and kept in the cache, so that a run can go on where another stopped; `--only "timm/*"` measures some.
"""

import argparse
import fnmatch
import json
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from backbones import Backbone, UserError, build_backbone, build_fpn_backbone, list_backbones
from backbones.check_maps import check_maps
from heads import faster_rcnn

SIZES = ((800, 1344), (97, 131))
# Larger ones are not trained.
LARGEST_ON_CPU = 100e6
OUT = Path(__file__).parents[1] / "docs" / "backbones.md"


def smallest_of_each_family() -> list[str]:
    """One of timm's names for each of its modules: the one with the fewest parameters among the first by name that pass."""
    chosen = []
    for module in timm.list_modules():
        names = [name for name in timm.list_models(module=module) if "/" not in name]
        by_size = sorted(names, key=_size_of_name)
        chosen += [f"timm/{name}" for name in by_size[:1]]
    return chosen


def _size_of_name(name: str) -> tuple[int, str]:
    """A rank of sizes by the words in a name: building all of them to count their parameters would take an hour."""
    words = (
        "femto",
        "atto",
        "pico",
        "nano",
        "tiny",
        "_t",
        "xxs",
        "_xs",
        "small",
        "_s",
        "micro",
        "b0",
        "18",
        "26",
        "050",
        "lite",
    )
    sizes = ("large", "huge", "giant", "xlarge", "base", "_b", "_l", "152", "200", "101", "gigantic", "so400m")
    return (sum(word in name for word in sizes) * 2 - min(1, sum(word in name for word in words)), name)


def row_names() -> list[str]:
    """The rows: all of ours, one of each of timm's families, torchvision's classifiers and transformers' model types."""
    return [*list_backbones(), *smallest_of_each_family(), *list_backbones("torchvision/*"), *list_backbones("hf/*")]


def options_of(name: str) -> dict[str, Any]:
    """What a name cannot be built without."""
    return {"depth": 20} if name == "cifar_resnet" else {}


def measure_row(name: str) -> dict[str, Any]:
    """Build a backbone, hold its shapes against its promise, count, and train one step in Faster R-CNN."""
    options = options_of(name)
    try:
        with torch.device("meta"):
            backbone = build_backbone(name, **options)
    except UserError as error:
        return {"name": name, "refused": str(error)}
    except NotImplementedError:
        backbone = build_backbone(name, **options).to("meta")
    row: dict[str, Any] = {"name": name, "parameters": sum(p.numel() for p in backbone.parameters() if p.requires_grad)}
    row["maps"] = {level: [spec.channels, spec.stride] for level, spec in backbone.feature_specs.items()}
    row["plain"] = backbone.plain
    row["tiled"] = getattr(backbone, "tile", None)
    for size in SIZES:
        check_maps(backbone, size=size)
    row["shapes"] = True
    row["gflops"] = gflops(backbone)
    row["trains"] = train(name, options) if row["parameters"] <= LARGEST_ON_CPU else None
    return row


def gflops(backbone: Backbone) -> float | None:
    """Multiply-adds counted twice, of one image of 800 x 1344, as torch.utils.flop_counter counts them."""
    image = torch.empty(1, backbone.in_channels, *SIZES[0], device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        backbone.eval()(image)
    return counter.get_total_flops() / 1e9


def train(name: str, options: dict[str, Any]) -> bool:
    """Whether one step of Faster R-CNN on a small image gives finite losses, and every trained parameter a gradient."""
    torch.manual_seed(0)
    # The CIFAR forms have maps of strides 1, 2 and 4: nothing but images as small as theirs is meant for them.
    size = (32, 48) if name.startswith("cifar") else (64, 96)
    body = build_fpn_backbone(name, out_channels=32, **options)
    model = faster_rcnn(body, 3, min_size=size[0], max_size=size[1], box_head_dim=16, rpn_post_nms_top_n_train=30).train()
    target = {"boxes": torch.tensor([[4.0, 4.0, 28.0, 28.0]]), "labels": torch.tensor([1])}
    losses: dict[str, Tensor] = model([torch.rand(3, *size), torch.rand(3, *size)], [target, target])
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    reached = all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    return bool(total.isfinite()) and reached


def write(rows: list[dict[str, Any]], missing: list[str], sweep: list[dict[str, Any]], total: int) -> str:
    """The page; `missing` names the rows that are yet to be measured, `total` is how many models timm has."""
    lines = [PREFACE, *sweep_section(sweep, total)]
    for title, prefix in SECTIONS.items():
        of_section = [row for row in rows if _section(row["name"]) == prefix]
        unmeasured = sum(_section(name) == prefix for name in missing)
        lines += ["", f"## {title}", ""]
        lines += [f"{unmeasured} more of this section have not been measured yet.", ""] if unmeasured else []
        lines += ["| name | maps: channels (stride) | notes | shapes | trains | parameters | GFLOPs |"]
        lines += ["|---|---|---|---|---|---:|---:|"]
        lines += [table_line(row) for row in of_section if "parameters" in row]
        refused = [row for row in of_section if "refused" in row]
        if refused:
            lines += ["", "Refused at build:", "", *[f"- `{row['name']}`: {row['refused']}" for row in refused]]
        failed = [row for row in of_section if "failed" in row]
        if failed:
            lines += ["", "Failed:", "", *[f"- `{row['name']}`: {row['failed']}" for row in failed]]
    return "\n".join(lines) + "\n"


def _untried(row: dict[str, Any]) -> bool:
    return "parameters" in row and row.get("trains") is None and row["parameters"] <= LARGEST_ON_CPU


def _section(name: str) -> str:
    return name.partition("/")[0] if "/" in name else ""


SECTIONS = {"Our own": "", "timm, one of each family": "timm", "torchvision": "torchvision", "transformers": "hf"}
PREFACE = """# Backbones

Do not edit: this page is made by

    python benchmarks/backbone_sweep.py --out SWEEP
    python benchmarks/backbone_table.py --sweep SWEEP --cache CACHE

What each column says was measured, with random weights:

- **shapes**: the declared maps were (channels, ceil(height / stride), ceil(width / stride)) for images of 800 x 1344 and
  97 x 131 pixels. This ran on PyTorch's meta device, which computes shapes and no values. Where a model of another library is
  built for real, one real forward pass verifies its maps again.
- **trains**: a step of Faster R-CNN on two images of 64 x 96 pixels (32 x 48 for the CIFAR forms), on a CPU, gave finite
  losses, and a gradient to every parameter that trains. Not tried (-) above 100 million parameters.
- **parameters** of the backbone that train, and **GFLOPs** of one image of 800 x 1344, padding included, as
  `torch.utils.flop_counter` counts matrix products, convolutions and attention, a multiplication and an addition as two.
  What it does not know (recurrent layers, deformable convolutions) is not in it.
- **plain**: maps of one stride alone; the pyramid is ViTDet's. **tiles of N**: the model takes images of N x N pixels only, so
  larger ones are cut into tiles that it sees one by one, as attention windows do, with no context across their borders.
"""


def sweep_section(sweep: list[dict[str, Any]], total: int) -> list[str]:
    """What became of all of timm's models."""
    passed = [entry for entry in sweep if entry["passed"]]
    refused = [entry for entry in sweep if not entry["passed"] and entry["refused"]]
    other = [entry for entry in sweep if not entry["passed"] and not entry["refused"]]
    scope = "all" if len(sweep) == total else f"{len(sweep)}, the first by a hash of the name,"
    share = 100 * len(passed) / max(1, len(sweep))
    text = (
        f"Of its {total} models, {scope} were built and run at both sizes on the meta device. **{len(passed)} of {len(sweep)} "
        f"({share:.1f} %) pass**: {sum(entry['plain'] for entry in passed)} of these are plain, "
        f"{sum(entry['tiled'] for entry in passed)} see larger images in tiles. {len(refused)} are refused at build with a "
        f"sentence, {len(other)} fail in another way."
    )
    lines = [f"## All of timm {timm.__version__}", "", text]
    if refused or other:
        lines += [
            "",
            *[f"- `timm/{entry['name']}`: {entry['why']}" for entry in sorted(refused + other, key=lambda e: e["name"])],
        ]
    return lines


def table_line(row: dict[str, Any]) -> str:
    """One row."""
    maps = ", ".join(f"{level} {channels} ({stride})" for level, (channels, stride) in row["maps"].items())
    notes = ", ".join(filter(None, ["plain" if row["plain"] else "", f"tiles of {row['tiled']}" if row["tiled"] else ""]))
    shapes = "yes" if row.get("shapes") else row.get("why", "no")
    trains = {True: "yes", False: "no", None: "-"}[row.get("trains")]
    count = f"{row['gflops']:.1f}" if row.get("gflops") is not None else "-"
    return f"| `{row['name']}` | {maps} | {notes} | {shapes} | {trains} | {row['parameters']:,} | {count} |"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; none where it is not there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    """Measure what the cache lacks, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweep", type=Path, required=True, help="what backbone_sweep.py wrote")
    parser.add_argument("--cache", type=Path, required=True, help="a line of JSON a row; what is there is not measured again")
    parser.add_argument("--only", default="*", help="a shell-style pattern of the names to measure now")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    done = {row["name"]: row for row in read_lines(args.cache)}
    names = row_names()
    for name in names:
        if (name in done and not _untried(done[name])) or not fnmatch.fnmatch(name, args.only):
            continue
        try:
            done[name] = measure_row(name)
        except Exception as error:
            done[name] = {"name": name, "failed": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        with args.cache.open("a") as file:
            print(json.dumps(done[name]), file=file, flush=True)
    sweep = read_lines(args.sweep)
    rows, missing = [done[name] for name in names if name in done], [name for name in names if name not in done]
    OUT.write_text(write(rows, missing, sweep, len(timm.list_models())), encoding="utf-8")


if __name__ == "__main__":
    main()
