"""Which image has which label map: folders, file names, lists of names."""

from collections.abc import Sequence
from pathlib import Path

from backbones.errors import UserError
from engine.data.sources import Split
from engine.files import IMAGE_SUFFIXES
from engine.segmentation.config import ImageFiles

_LAYOUT = """
PASCAL VOC 2012, for one, is laid out like this:
  VOC2012/JPEGImages/2007_000032.jpg ...                   data.{split}.images
  VOC2012/SegmentationClass/2007_000032.png ...            data.{split}.labels
  VOC2012/ImageSets/Segmentation/train.txt                 data.{split}.list, the names to use
configs/seg_shapes.yaml needs no download."""


def find_pairs(files: ImageFiles, *, split: Split) -> tuple[list[tuple[Path, Path]], list[str]]:
    """The path of each image and of its label map, in the order of the list or of the names, and notes for a person.

    Raises:
        UserError: a folder or the list is missing, there are no images, a name is of no image or of two, or stands twice in
            the list, or an image has no label map; the message names the first such.
    """
    assert files.labels is not None
    images, labels = Path(files.images), Path(files.labels)
    for key, folder in (("images", images), ("labels", labels)):
        if not folder.is_dir():
            raise UserError(f"data.{split}.{key}: there is no folder {folder}{_LAYOUT.format(split=split)}")
    by_name = _index_images(images, files, labels=labels, split=split)
    names = sorted(by_name) if files.list is None else _read_list(Path(files.list), by_name, images, split=split)
    there = {path.relative_to(labels).as_posix() for path in labels.rglob(f"*{files.label_suffix}")}
    without = [name for name in names if name + files.label_suffix not in there]
    if without:
        suffix_hint = "" if there else f" The folder has no file that ends in {files.label_suffix}: data.{split}.label_suffix."
        raise UserError(
            f"{len(without)} of {len(names)} images have no label map; the first is {by_name[without[0]]}, and there is no "
            f"{labels / (without[0] + files.label_suffix)}. Add it, or name the images to use in a file: "
            f"data.{split}.list=FILE.{suffix_hint}"
        )
    pairs = [(by_name[name], labels / (name + files.label_suffix)) for name in names]
    unused = len(there) - len(pairs)
    notes = [f"left out: {unused} label maps of {labels} without an image"] if unused and files.list is None else []
    return pairs, notes


def _index_images(folder: Path, files: ImageFiles, *, labels: Path, split: Split) -> dict[str, Path]:
    """The images by name: their path below the folder, without `image_suffix` or, where none is given, without any ending."""
    by_name: dict[str, Path] = {}
    for path in sorted(folder.rglob(f"*{files.image_suffix}")):
        in_labels = labels != folder and labels in path.parents  # a folder of label maps within that of the images
        if in_labels or path.suffix.lower() not in IMAGE_SUFFIXES or not path.is_file():
            continue
        relative = path.relative_to(folder)
        whole = relative.as_posix()
        name = whole.removesuffix(files.image_suffix) if files.image_suffix else relative.with_suffix("").as_posix()
        if name in by_name:
            raise UserError(
                f"{by_name[name]} and {path} have the same name but for the ending. Say what the images end in: "
                f"data.{split}.image_suffix={path.suffix}"
            )
        by_name[name] = path
    if not by_name:
        wanted = files.image_suffix or ", ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(f"data.{split}.images: the folder {folder} has no images ({wanted}).")
    return by_name


def _read_list(path: Path, by_name: dict[str, Path], folder: Path, *, split: Split) -> Sequence[str]:
    if not path.is_file():
        raise UserError(f"data.{split}.list: there is no file {path}. It holds the names of images, one a line.")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"data.{split}.list: {path} cannot be read as text: {error}.") from None
    names: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if not name:
            continue
        if name in names:
            raise UserError(f"{path}, line {number}: {name} stands in line {names[name]} already. An image counts once.")
        if name not in by_name:
            ending = next((known for known, image in by_name.items() if name == image.relative_to(folder).as_posix()), None)
            hint = f" Names stand without ending: {ending}." if ending is not None else " Each line is a name without ending."
            raise UserError(f"{path}, line {number}: there is no image {name!r} in {folder}.{hint}")
        names[name] = number
    if not names:
        raise UserError(f"data.{split}.list: {path} names no image.")
    return list(names)
