"""Run a step again whose loss or gradient was not finite, and say where it leaves the finite numbers.

python tools/replay.py runs/frcnn_r50/nonfinite/step_000123_rank0
python tools/replay.py runs/frcnn_r50/nonfinite/step_000123_rank0 --device cpu

Its exit status is 0 where the step is again not finite, and 3 where it is finite this time.
"""

import argparse
import sys

from engine.cli import add_import_option, import_modules, run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", metavar="FOLDER", help="a folder of OUTPUT_DIR/nonfinite")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: a GPU where there is one")
    add_import_option(parser)
    args = parser.parse_args()

    # Imported here, for torch takes seconds to load and --help needs none of it.
    from engine.replay import replay

    import_modules(args.modules)
    if not replay(args.report, device=args.device):
        sys.exit(3)


if __name__ == "__main__":
    run_tool(main)
