"""Say what a model sees in images: draw it, and write it down; objects as COCO results, classes with their probabilities.

python tools/predict.py runs/quickstart/best.pt photo.jpg -o predictions
python tools/predict.py runs/frcnn_r50/best.pt holiday/ scans/*.png -o predictions --score 0.7
python tools/predict.py configs/cls_r50_imagenet.yaml photo.jpg -o predictions --weights resnet50-11ad3fa6.pth
"""

import argparse

from engine.arguments import parse_with_set_option
from engine.cli import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="CHECKPOINT_OR_CONFIG", help="a .pt of a training run, or a YAML file")
    parser.add_argument("inputs", metavar="IMAGE_OR_FOLDER", nargs="+", help="image files, or folders of them")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="folder for the pictures and results.json")
    parser.add_argument("--weights", metavar="PATH", help="weights of the whole model; needed with a config")
    parser.add_argument("--set", metavar="key=value", action="append", default=[], help="a setting in place of the config's")
    parser.add_argument(
        "--score", type=float, default=0.5, help="draw objects that score at least this, from 0 to 1 (default 0.5)"
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: a GPU where there is one")
    args = parse_with_set_option(parser, paths="inputs")
    if not 0 <= args.score <= 1:
        parser.error(f"--score {args.score} is not from 0 to 1")

    # Imported here, for torch takes seconds to load and --help needs none of it.
    from engine.predict import predict_images

    predict_images(
        args.source,
        args.inputs,
        output_dir=args.output,
        score_threshold=args.score,
        device=args.device,
        weights=args.weights,
        overrides=args.set,
    )


if __name__ == "__main__":
    run_tool(main)
