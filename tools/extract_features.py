"""Write a backbone's features of images into a file, and find images by them.

python tools/extract_features.py runs/quickstart/best.pt photos/ -o features.npz
python tools/extract_features.py resnet50 --weights IMAGENET1K_V2 photos/ more/*.png -o features.npz
python tools/extract_features.py features.npz --query photo.jpg --neighbours 5 -p nearest.png
python tools/extract_features.py features.npz --pairs 0.95

Features are the mean of the backbone's coarsest map, without pyramid or head: embeddings (N, C) float32, not normalised, and
file_names (N), in a file that numpy.load reads. Files that are no images are named, and nothing is written, unless they are to
be skipped: then they are named and left out. Similarities are cosines, 1 for the same.
"""

import argparse

from engine.cli import add_import_option, import_modules, run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE", help="a .pt of a training run, or a backbone's name; to search, a .npz")
    parser.add_argument("inputs", metavar="IMAGE_OR_FOLDER", nargs="*", help="image files, or folders of them")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: a GPU where there is one")
    make = parser.add_argument_group("to write features")
    make.add_argument("-o", "--output", metavar="FILE", help="the .npz file; written at the end, whole or not at all")
    make.add_argument("--weights", metavar="NAME_OR_PATH", help="of a backbone by name: IMAGENET1K_V1, pretrained, a file")
    make.add_argument("--size", type=int, default=224, help="shorter side of an image, whose middle is taken (default 224)")
    make.add_argument("--whole", action="store_true", help="take the whole image, not the square in its middle")
    make.add_argument("--mean", metavar=("R", "G", "B"), type=float, nargs=3, help="from 0 to 1 (default: the source's)")
    make.add_argument("--std", metavar=("R", "G", "B"), type=float, nargs=3, help="standard deviation, as --mean")
    make.add_argument("--batch-size", type=int, default=32, help="images at a time (default 32)")
    make.add_argument("--skip-unreadable", action="store_true", help="leave out files that are no images (default: stop)")
    add_import_option(parser)
    search = parser.add_argument_group("to search them")
    search.add_argument("--query", metavar="IMAGE", action="append", help="print what is most like it; may be given again")
    search.add_argument("--neighbours", type=int, default=5, help="how many for each query (default 5)")
    search.add_argument("-p", "--picture", metavar="FILE", help="draw queries and neighbours into this PNG")
    search.add_argument(
        "--pairs", metavar="SIMILARITY", type=float, help="print the pairs of images that are at least so alike"
    )
    args = parser.parse_intermixed_args()
    given = {name for name, value in vars(args).items() if value != parser.get_default(name)}
    if args.query or args.pairs is not None:
        makes = given & {"output", "weights", "size", "whole", "mean", "std", "batch_size", "skip_unreadable"}
        if makes or args.inputs:
            parser.error("a search takes a .npz and --query IMAGE, again for each, --neighbours, -p; or a .npz and --pairs")
        if args.query and args.pairs is not None:
            parser.error("--query and --pairs: one at a time")
    elif not args.inputs or not args.output:
        parser.error("give images and -o FILE.npz, or to search a .npz, --query IMAGE or --pairs SIMILARITY")
    if given & {"neighbours", "picture"} and not args.query:
        parser.error("--neighbours and -p go with --query")
    if args.neighbours < 1 or args.size < 1 or args.batch_size < 1:
        parser.error("--neighbours, --size and --batch-size must be at least 1")

    # Imported here, for torch takes seconds to load and --help needs none of it.
    from engine.embedder import Recipe
    from engine.features import extract_features
    from engine.retrieval import find_pairs, find_similar

    import_modules(args.modules)
    if args.query:
        find_similar(args.source, args.query, count=args.neighbours, picture=args.picture, device=args.device)
    elif args.pairs is not None:
        find_pairs(args.source, threshold=args.pairs)
    else:
        mean, std = args.mean and tuple(args.mean), args.std and tuple(args.std)
        recipe = Recipe(args.source, args.weights, args.size, args.whole, mean, std)
        extract_features(
            recipe,
            args.inputs,
            output=args.output,
            batch_size=args.batch_size,
            skip_unreadable=args.skip_unreadable,
            device=args.device,
        )


if __name__ == "__main__":
    run_tool(main)
