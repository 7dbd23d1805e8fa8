"""Train a segmenter and report its mIoU.

python tools/train_seg.py configs/seg_shapes.yaml
python tools/train_seg.py configs/seg_deeplabv3_r50_voc.yaml optimizer.lr=0.005 train.epochs=60
torchrun --nproc-per-node=4 tools/train_seg.py configs/seg_deeplabv3_r50_voc.yaml --resume
"""

from engine.arguments import parse_with_settings, training_parser
from engine.cli import run_tool


def main() -> None:
    args = parse_with_settings(training_parser(__doc__, example="configs/seg_shapes.yaml"))

    # Imported here, for torch takes seconds to load and --help needs none of it.
    from engine.config_file import load_config
    from engine.train import train

    train(load_config(args.config, args.overrides, job="segmentation"), resume=args.resume)


if __name__ == "__main__":
    run_tool(main)
