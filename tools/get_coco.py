"""Download COCO 2017 to where the configs expect it: all of it, or a few hundred images to try.

python tools/get_coco.py
python tools/get_coco.py /disk/coco --splits val2017
python tools/get_coco.py --mini 300

All of it is 20 GB (27 with test2017), and twice that while train2017.zip is unpacked. A download that was stopped goes on where
it was when the command is given again; what is there already and whole is left as it is. With --mini, the annotations (250 MB)
and N images of each split come, and the annotation files are cut to them; that takes 1.5 GB of memory.
"""

import argparse

from engine.cli import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", nargs="?", help="default: data/coco; with --mini data/coco_mini")
    parser.add_argument(
        "--splits",
        nargs="+",
        choices=["train2017", "val2017", "test2017"],
        default=["train2017", "val2017"],
        help="default: train2017 val2017; test2017 has no annotations",
    )
    parser.add_argument("--mini", metavar="N", type=int, help="only N images of each split, chosen by --seed")
    parser.add_argument("--seed", type=int, default=0, help="which images --mini takes (default 0)")
    parser.add_argument("--url", metavar="ADDRESS", help="a mirror's (default: http://images.cocodataset.org)")
    parser.add_argument("--keep-archives", action="store_true", help="keep the zip files when they are unpacked")
    args = parser.parse_args()
    if args.mini is not None and args.mini < 1:
        parser.error("--mini must be at least 1")
    if args.mini is not None and "test2017" in args.splits:
        parser.error("--mini takes images of train2017 and val2017: the annotations of test2017 are not published")

    # Imported here, for torch takes seconds to load and --help needs none of it.
    from engine.data.coco import URL, get_coco, get_mini_coco
    from engine.distributed import start_world
    from engine.progress import Reporter

    with start_world("cpu") as world:
        options = {"splits": args.splits, "url": (args.url or URL).rstrip("/"), "keep_archives": args.keep_archives}
        options["reporter"] = Reporter(world)
        if args.mini is None:
            get_coco(args.folder or "data/coco", **options)
        else:
            get_mini_coco(args.folder or "data/coco_mini", count=args.mini, seed=args.seed, **options)


if __name__ == "__main__":
    run_tool(main)
