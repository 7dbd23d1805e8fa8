"""Train a classifier and report its accuracy.

python tools/train_cls.py configs/cls_digits.yaml
python tools/train_cls.py configs/cls_r18_fashion_mnist.yaml train.epochs=5
torchrun --nproc-per-node=8 tools/train_cls.py configs/cls_r50_imagenet.yaml --resume
"""

import argparse

from engine.cli import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, such as configs/cls_digits.yaml")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings in place of the file's")
    parser.add_argument(
        "--resume",
        metavar="PATH",
        nargs="?",
        const="",
        help="go on from a checkpoint; without PATH from the run folder's last.pt",
    )
    args = parser.parse_intermixed_args()

    # Imported here, for torch takes seconds to load and --help needs none of it.
    from engine.config_file import load_config
    from engine.train import train

    train(load_config(args.config, args.overrides, job="classification"), resume=args.resume)


if __name__ == "__main__":
    run_tool(main)
