"""Draw training samples as the network is given them: augmented, with boxes, masks and names.

python tools/show_data.py configs/quickstart.yaml
python tools/show_data.py configs/mrcnn_r50_lsj.yaml -o samples.png --count 24
"""

import argparse

from engine.arguments import parse_with_settings
from engine.cli import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, such as configs/quickstart.yaml")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings in place of the file's")
    parser.add_argument("-o", "--output", metavar="FILE", default="samples.png", help="the picture (default samples.png)")
    parser.add_argument("--count", type=int, default=16, help="number of samples, spread over the data set (default 16)")
    parser.add_argument("--epoch", type=int, default=0, help="whose random choices to show, counted from 0 (default 0)")
    args = parse_with_settings(parser)
    if args.count < 1 or args.epoch < 0:
        parser.error("--count must be at least 1, and --epoch at least 0")

    # Imported here, for torch takes seconds to load and --help needs none of it.
    from engine.config_file import load_config
    from engine.show import show_samples

    show_samples(load_config(args.config, args.overrides), args.output, count=args.count, epoch=args.epoch)


if __name__ == "__main__":
    run_tool(main)
