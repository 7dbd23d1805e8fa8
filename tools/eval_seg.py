"""Score a segmenter: mIoU, the IoU of each class, pixel accuracy.

python tools/eval_seg.py runs/seg_shapes/best.pt
python tools/eval_seg.py runs/seg_voc/best.pt "data.val={images: IMAGES, labels: LABELS}" -o scores
python tools/eval_seg.py configs/seg_deeplabv3_r50_voc.yaml --weights deeplabv3_resnet50.pth
"""

import argparse

from engine.arguments import parse_with_settings
from engine.cli import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="CONFIG_OR_CHECKPOINT", help="a YAML file, or a .pt of a training run")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings in place of the config's")
    parser.add_argument("--weights", metavar="PATH", help="weights of the whole segmenter; needed with a config")
    parser.add_argument("-o", "--output", metavar="FOLDER", help="where scores and confusion are written (default: nowhere)")
    args = parse_with_settings(parser)

    # Imported here, for torch takes seconds to load and --help needs none of it.
    from engine.evaluate import evaluate

    evaluate(args.source, args.overrides, job="segmentation", weights=args.weights, output_dir=args.output)


if __name__ == "__main__":
    run_tool(main)
