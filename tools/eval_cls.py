"""Score a classifier: the share of images whose class is the most probable, or among the five most probable.

python tools/eval_cls.py runs/cls_digits/best.pt
python tools/eval_cls.py runs/cls_r50_imagenet/best.pt data.val.images=IMAGES -o scores
python tools/eval_cls.py configs/cls_r50_imagenet.yaml --weights resnet50-11ad3fa6.pth
"""

import argparse

from engine.arguments import parse_with_settings
from engine.cli import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="CONFIG_OR_CHECKPOINT", help="a YAML file, or a .pt of a training run")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings in place of the config's")
    parser.add_argument("--weights", metavar="PATH", help="weights of the whole classifier; needed with a config")
    parser.add_argument("-o", "--output", metavar="FOLDER", help="where predictions and scores are written (default: nowhere)")
    args = parse_with_settings(parser)

    # Imported here, for torch takes seconds to load and --help needs none of it.
    from engine.evaluate import evaluate

    evaluate(args.source, args.overrides, job="classification", weights=args.weights, output_dir=args.output)


if __name__ == "__main__":
    run_tool(main)
