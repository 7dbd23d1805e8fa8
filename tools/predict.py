"""Find objects in images: draw them, and write them as COCO results.

python tools/predict.py runs/quickstart/best.pt photo.jpg -o predictions
python tools/predict.py runs/frcnn_r50/best.pt holiday/ scans/*.png -o predictions --score 0.7
"""

import argparse

from engine.cli import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a .pt of a training run")
    parser.add_argument("inputs", metavar="IMAGE_OR_FOLDER", nargs="+", help="image files, or folders of them")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="folder for the pictures and results.json")
    parser.add_argument("--score", type=float, default=0.5, help="draw what scores at least this, from 0 to 1 (default 0.5)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: a GPU where there is one")
    args = parser.parse_args()
    if not 0 <= args.score <= 1:
        parser.error(f"--score {args.score} is not from 0 to 1")

    # Imported here, for torch takes seconds to load and --help needs none of it.
    from engine.predict import predict_images

    predict_images(args.checkpoint, args.inputs, output_dir=args.output, score_threshold=args.score, device=args.device)


if __name__ == "__main__":
    run_tool(main)
