"""Where a data set is: COCO-format files a user names, or an embedded set by its name."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from backbones.errors import UserError
from backbones.registry import Registry

Split = Literal["train", "val"]

# An embedded data set: a split -> (images folder, annotation file), written on first use.
DATASETS: Registry[Callable[[Split], tuple[Path, Path]]] = Registry("embedded data set")
register_dataset = DATASETS.register


@register_dataset("shapes")
def shapes(split: Split) -> tuple[Path, Path]:
    """Five classes of drawn shapes with masks, rendered into the cache folder."""
    from engine.data.shapes import render_shapes

    return render_shapes(split)


@dataclass(frozen=True, slots=True)
class CocoPaths:
    """An images folder and an annotation file, both seen to exist."""

    images: Path
    annotations: Path


COCO_LAYOUT = """
COCO 2017 is laid out like this (images and annotations from https://cocodataset.org/#download):
  data/coco/train2017/000000000009.jpg ...
  data/coco/val2017/000000000139.jpg ...
  data/coco/annotations/instances_train2017.json
  data/coco/annotations/instances_val2017.json
python tools/get_coco.py fetches it; with --mini 300, a few of its images.
Other data in COCO's format: data.{split}.images=FOLDER data.{split}.annotations=FILE
From VOC, YOLO, masks or LabelMe: python tools/convert_to_coco.py --help
configs/quickstart.yaml needs no download."""


def find_paths(images: str, annotations: str, *, split: Split) -> CocoPaths:
    """Check that the files of a data set are there.

    Raises:
        UserError: the folder or the file is missing; the message says how COCO is laid out and what needs no download.
    """
    layout = COCO_LAYOUT.format(split=split)
    if not Path(annotations).is_file():
        raise UserError(f"data.{split}.annotations: there is no file {annotations}{layout}")
    if not Path(images).is_dir():
        raise UserError(f"data.{split}.images: there is no folder {images}{layout}")
    return CocoPaths(Path(images), Path(annotations))
