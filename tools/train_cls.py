"""Train a classifier and report its accuracy.

python tools/train_cls.py configs/cls_digits.yaml
python tools/train_cls.py configs/cls_r18_fashion_mnist.yaml train.epochs=5
torchrun --nproc-per-node=8 tools/train_cls.py configs/cls_r50_imagenet.yaml --resume
"""

from engine.arguments import parse_with_settings, training_parser
from engine.cli import run_tool


def main() -> None:
    args = parse_with_settings(training_parser(__doc__, example="configs/cls_digits.yaml"))

    # Imported here, for torch takes seconds to load and --help needs none of it.
    from engine.config_file import load_config
    from engine.train import train

    train(load_config(args.config, args.overrides, job="classification"), resume=args.resume)


if __name__ == "__main__":
    run_tool(main)
