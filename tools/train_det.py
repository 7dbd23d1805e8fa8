"""Train a detector and report its COCO scores.

python tools/train_det.py configs/quickstart.yaml
python tools/train_det.py configs/frcnn_r50.yaml optimizer.lr=0.01 train.epochs=24
torchrun --nproc-per-node=8 tools/train_det.py configs/frcnn_r50.yaml --resume
"""

from engine.arguments import parse_with_settings, training_parser
from engine.cli import run_tool


def main() -> None:
    args = parse_with_settings(training_parser(__doc__, example="configs/quickstart.yaml"))

    # Imported here, for torch takes seconds to load and --help needs none of it.
    from engine.config_file import load_config
    from engine.train import train

    train(load_config(args.config, args.overrides, job="detection"), resume=args.resume)


if __name__ == "__main__":
    run_tool(main)
