"""Find what is wrong with the data of a config: images, boxes, masks, ids, classes, what is in both training and validation.

python tools/check_data.py configs/mrcnn_r50.yaml
python tools/check_data.py configs/frcnn_r50.yaml data.train.annotations=my/train.json ... --fix my/clean

Exit status: 0 where no error is found, 1 where one is, 2 where the check could not be done.
"""

import argparse
import sys

from engine.cli import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, such as configs/quickstart.yaml")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings in place of the file's")
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", default="data_check", help="for findings.json and worst.png (default data_check)"
    )
    parser.add_argument("--fix", metavar="FOLDER", help="write cleaned copies of the annotation files there")
    parser.add_argument("--count", type=int, default=24, help="how many of the worst to draw (default 24)")
    args = parser.parse_intermixed_args()
    if args.count < 1:
        parser.error("--count must be at least 1")

    # Imported here, for torch takes seconds to load and --help needs none of it.
    from engine.config_file import load_config
    from engine.data.doctor.doctor import check_data

    sys.exit(check_data(load_config(args.config, args.overrides), output=args.output, fix=args.fix, count=args.count))


if __name__ == "__main__":
    run_tool(main)
