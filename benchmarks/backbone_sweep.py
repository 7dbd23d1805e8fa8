"""Build every timm model on the meta device (shapes alone, no arithmetic), and say which ones are backbones.

python benchmarks/backbone_sweep.py --out /tmp/sweep.jsonl
"""

import argparse
import json
import zlib
from pathlib import Path

import torch

from backbones import UserError
from backbones.check_maps import check_maps
from backbones.zoos import timm as timm_zoo

SIZES = ((800, 1344), (97, 131))


def sweep_one(name: str) -> dict[str, str | bool]:
    """Whether a timm model builds and keeps its declared shapes at both sizes; else the sentence that says why not."""
    try:
        with torch.device("meta"):
            backbone = timm_zoo.build(name)
        for size in SIZES:
            check_maps(backbone, size=size)
    except UserError as error:
        return {"name": name, "passed": False, "why": str(error), "refused": True}
    except Exception as error:
        return {"name": name, "passed": False, "why": f"{type(error).__name__}: {error}"[:300], "refused": False}
    return {"name": name, "passed": True, "tiled": backbone.tile is not None, "plain": backbone.plain}


def main() -> None:
    """Go through all of timm's names that are not in the file yet, in an order that any beginning of is a fair sample."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="a line of JSON a model; what is there already is not done again"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    done = {json.loads(line)["name"] for line in args.out.read_text().splitlines()} if args.out.exists() else set()
    names = sorted(timm_zoo.names(), key=lambda name: zlib.crc32(name.encode()))
    with args.out.open("a") as file:
        for name in names:
            if name not in done:
                print(json.dumps(sweep_one(name)), file=file, flush=True)


if __name__ == "__main__":
    main()
