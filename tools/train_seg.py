"""Train a segmenter and report its mIoU.

python tools/train_seg.py configs/seg_shapes.yaml
python tools/train_seg.py configs/seg_deeplabv3_r50_voc.yaml optimizer.lr=0.005 train.epochs=60
torchrun --nproc-per-node=4 tools/train_seg.py configs/seg_deeplabv3_r50_voc.yaml --resume
"""

import argparse

from engine.cli import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, such as configs/seg_shapes.yaml")
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

    train(load_config(args.config, args.overrides, job="segmentation"), resume=args.resume)


if __name__ == "__main__":
    run_tool(main)
