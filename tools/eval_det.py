"""Score a detector, or a results file that exists, with COCO's numbers.

python tools/eval_det.py runs/quickstart/best.pt
python tools/eval_det.py runs/frcnn_r50/best.pt data.val.images=IMAGES data.val.annotations=FILE
python tools/eval_det.py configs/frcnn_r50.yaml --weights fasterrcnn_resnet50_fpn.pth
python tools/eval_det.py --results RESULTS.json --annotations INSTANCES.json --type segm
python tools/eval_det.py --results runs/frcnn_r50 --report FOLDER --against runs/cascade_r50

--report explains the score on a page: classes, curves, sizes, kinds of error, and the worst images.
"""

import argparse

from engine.arguments import parse_with_settings
from engine.cli import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="CONFIG_OR_CHECKPOINT", nargs="?", help="a YAML file, or a .pt of a training run")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings in place of the config's")
    parser.add_argument("--weights", metavar="PATH", help="weights of the whole detector; needed with a config")
    where_results_go = "where the results and scores are written (default: the report's folder; without --report nowhere)"
    parser.add_argument("-o", "--output", metavar="FOLDER", help=where_results_go)
    parser.add_argument("--results", metavar="FILE", help="score this COCO results file, or a run's; no model is run")
    parser.add_argument("--annotations", metavar="FILE", help="the ground truth for --results")
    parser.add_argument("--type", choices=["bbox", "segm", "keypoints"], help="what --results holds (default: bbox)")
    parser.add_argument("--report", metavar="FOLDER", help="write report.html here, which explains the score")
    parser.add_argument("--images", metavar="FOLDER", help="the images of --annotations, for the report to draw")
    parser.add_argument("--against", metavar="RESULTS_OR_RUN", help="other results, or a run's folder, to compare with")
    parser.add_argument("--backend", choices=["hotcoco", "pycocotools"], help="the scorer (default: the config's, or hotcoco)")
    args = parse_with_settings(parser)
    if args.results and (args.source or args.weights):
        parser.error("--results scores a file and runs no model: leave out CONFIG_OR_CHECKPOINT and --weights")
    if args.results and not args.annotations and not args.report:
        parser.error("--results needs --annotations")
    if (args.images or args.against) and not args.report:
        parser.error("--images and --against go with --report")
    if not args.results and not args.source:
        parser.error("give a config, a checkpoint, or --results and --annotations")
    if (args.annotations or args.images) and not args.results:
        what = "--annotations" if args.annotations else "--images"
        parser.error(f"{what} goes with --results; for a model set data.val.images=... data.val.annotations=...")

    # Imported here, for torch takes seconds to load and --help needs none of it.
    from engine.detection.evaluate import evaluate_results
    from engine.detection.report.sources import evaluate_and_report, report_results
    from engine.evaluate import evaluate

    overrides = [*args.overrides, *([f"eval.backend={args.backend}"] if args.backend else [])]
    if args.results and args.report:
        given = {"annotations": args.annotations, "images": args.images, "iou_type": args.type, "against": args.against}
        report_results(args.results, args.report, **given)
    elif args.results:
        evaluate_results(args.results, args.annotations, iou_type=args.type or "bbox", backend=args.backend or "hotcoco")
    elif args.report:
        where = {"weights": args.weights, "output_dir": args.output, "against": args.against}
        evaluate_and_report(args.source, overrides, args.report, **where)
    else:
        evaluate(args.source, overrides, job="detection", weights=args.weights, output_dir=args.output)


if __name__ == "__main__":
    run_tool(main)
