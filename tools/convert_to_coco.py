"""Write labels of another format as a COCO file, which training takes.

python tools/convert_to_coco.py voc VOC2012/JPEGImages VOC2012/Annotations -o train.json --list VOC2012/ImageSets/Main/train.txt
python tools/convert_to_coco.py yolo birds/data.yaml -o birds/val.json --split val
python tools/convert_to_coco.py yolo images/train labels/train -o train.json --classes classes.txt
python tools/convert_to_coco.py masks stage1_train -o nuclei.json --classes nucleus
python tools/convert_to_coco.py masks images maps -o train.json --values classes --classes cat dog
python tools/convert_to_coco.py labelme photos -o train.json

LABELS may be left out where labels lie beside images, or where a data.yaml names them. Images are not copied. So that the
files of two splits have the same classes, give the second the first: --classes train.json.
"""

import argparse
from pathlib import Path

from engine.cli import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("format", choices=["voc", "yolo", "masks", "labelme"], help="what the labels are")
    parser.add_argument("images", metavar="IMAGES", type=Path, help="folder of images; of yolo, or the data.yaml")
    parser.add_argument("labels", metavar="LABELS", type=Path, nargs="?", help="folder of labels (default: beside the images)")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, required=True, help="the COCO file to write")
    parser.add_argument("--classes", metavar="NAME", nargs="+", help="in order; or one .txt, .names, .yaml or COCO .json file")
    parser.add_argument(
        "--split", choices=["train", "val", "test"], default="train", help="which this is, and is read of a data.yaml"
    )
    parser.add_argument(
        "--unlabelled", choices=["keep", "leave-out"], help="images without labels (yolo: keep; else leave-out)"
    )
    voc = parser.add_argument_group("voc")
    voc.add_argument("--list", metavar="FILE", type=Path, help="names of the images to take, a line each")
    voc.add_argument("--difficult", choices=["crowd", "keep", "drop"], help="crowd (default): neither learnt nor scored")
    voc.add_argument("--zero-based", action="store_true", help="boxes count pixels from 0 (LabelImg), not 1 as VOC's")
    masks = parser.add_argument_group("masks")
    masks.add_argument(
        "--values", choices=["instances", "classes", "binary"], help="what a map's values are (default instances)"
    )
    masks.add_argument("--ignore-value", metavar="VALUE", type=int, help="of pixels that are neither object nor background")
    args = parser.parse_args()
    own = {"voc": {"list", "difficult", "zero_based"}, "masks": {"values", "ignore_value"}}
    for name in sorted(set().union(*own.values()) - own.get(args.format, set())):
        if getattr(args, name) != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')} is no option of {args.format}")

    # Imported here, for torch takes seconds to load and --help needs none of it.
    from engine.data.converters import labelme, png_masks, yolo
    from engine.data.converters import voc as voc_xml
    from engine.data.converters.classes import read_classes
    from engine.data.converters.coco_writer import check_output, data_arguments

    check_output(args.output)
    keep = args.unlabelled == "keep" or (args.unlabelled is None and args.format == "yolo")
    common = {"classes": read_classes(args.classes) if args.classes else None, "keep_unlabelled": keep}
    if args.format == "voc":
        options = {"listed": args.list, "difficult": args.difficult or "crowd", "zero_based": args.zero_based}
        writer = voc_xml.convert_voc(args.images, args.labels or args.images, **options, **common)
    elif args.format == "yolo":
        writer = yolo.convert_yolo(args.images, args.labels, split=args.split, **common)
    elif args.format == "masks":
        options = {"values": args.values or "instances", "ignore_value": args.ignore_value}
        writer = png_masks.convert_masks(args.images, args.labels, **options, **common)
    else:
        writer = labelme.convert_labelme(args.images, args.labels, output=args.output, **common)
    writer.write(args.output)
    print(*writer.summary(), sep="\n")
    print(f"{args.output} is written. Use it with")
    print(data_arguments("train" if args.split == "train" else "val", writer.root, args.output))


if __name__ == "__main__":
    run_tool(main)
