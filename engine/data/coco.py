"""COCO 2017 on this disk, as the configs expect it: all of it, or a few hundred images to try."""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from backbones.errors import UserError, did_you_mean
from engine.data.converters.coco_writer import data_arguments, write_json
from engine.data.cut import cut_coco
from engine.data.download import GO_ON, WAITS, ask_version, download, megabytes
from engine.data.unpack import check_free_space, check_sha256, unpack, unpacked_size
from engine.files import make_folder
from engine.progress import Reporter

URL = "http://images.cocodataset.org"
SPLITS = ("train2017", "val2017", "test2017")
_LARGE = 10**8  # bytes; what takes longer than a few seconds
_MINI = "mini.json"  # the file that says of a folder that its annotation files are cut


@dataclass(frozen=True, slots=True)
class Archive:
    """A published zip file. COCO states no checksums; these are TensorFlow Datasets', which others found too."""

    address: str  # below the server's
    size: int  # bytes
    sha256: str
    unpacked: float = 1.02  # times its size that its files take; they come from it stored or packed, with a rest of a block
    images: int = 0
    annotations: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The file's name."""
        return self.address.rpartition("/")[2]


ARCHIVES = {
    "annotations": Archive(
        "annotations/annotations_trainval2017.zip",
        size=252_907_541,
        sha256="113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
        unpacked=3.5,
        annotations=tuple(
            f"{kind}_{split}.json" for kind in ("captions", "instances", "person_keypoints") for split in SPLITS[:2]
        ),
    ),
    "val2017": Archive(
        "zips/val2017.zip",
        size=815_585_330,
        sha256="4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
        images=5_000,
    ),
    "train2017": Archive(
        "zips/train2017.zip",
        size=19_336_861_798,
        sha256="69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
        images=118_287,
    ),
    "test_info": Archive(
        "annotations/image_info_test2017.zip",
        size=1_144_034,
        sha256="e52f412dd7195ac8f98d782b44c6dd30ea10241e9f42521f67610fbe055a74f8",
        unpacked=20,
        annotations=("image_info_test2017.json", "image_info_test-dev2017.json"),
    ),
    "test2017": Archive(
        "zips/test2017.zip",
        size=6_646_970_404,
        sha256="c7908c3c9f94ba2f3340ebbeec58c25db6be8774f18d68c2f15d0e369d95baba",
        images=40_670,
    ),
}


def get_coco(
    folder: str | Path,
    *,
    splits: Sequence[str] = SPLITS[:2],
    url: str = URL,
    keep_archives: bool = False,
    reporter: Reporter,
    waits: tuple[float, ...] = WAITS,
) -> None:
    """Download and unpack COCO 2017's images and annotations. What is there and whole is left as it is.

    Each archive is checked against its published SHA-256 where it has the published size, and its files against their CRCs.

    Args:
        splits: of train2017, val2017 and test2017.
        url: the server; a mirror has the same files below `zips/` and `annotations/`.
        keep_archives: keep the zip files when they are unpacked.
        waits: see `download`.

    Raises:
        UserError: as `download`, `unpack`; also a split that there is not, a disk without room.
    """
    folder = make_folder(folder)
    _check_splits(splits)
    if (folder / _MINI).is_file():
        raise UserError(f"{folder} holds a cut of COCO ({folder / _MINI}), with files of the same names. Name another folder.")
    wanted = ["annotations"] if {"train2017", "val2017"} & set(splits) else []
    wanted += [name for name in ("val2017", "train2017") if name in splits]
    wanted += ["test_info", "test2017"] if "test2017" in splits else []
    missing = []
    for name in wanted:
        if _is_there(folder, name):
            reporter.line(f"{name}: there already")
        else:
            missing.append(ARCHIVES[name])
    _check_room(folder, missing, url=url, keep_archives=keep_archives, waits=waits)
    for archive in missing:
        path = _fetch(folder, archive, url=url, reporter=reporter, waits=waits)
        names = _unpack(path, folder, reporter=reporter)
        sizes = {name: (folder / name).stat().st_size for name in names}
        write_json(_receipt(folder, archive), sizes)
        if not keep_archives:
            path.unlink()
    reporter.line(f"COCO 2017 is in {folder}: {', '.join(wanted)}.")


def get_mini_coco(
    folder: str | Path,
    *,
    count: int,
    splits: Sequence[str] = SPLITS[:2],
    seed: int = 0,
    url: str = URL,
    keep_archives: bool = False,
    reporter: Reporter,
    waits: tuple[float, ...] = WAITS,
) -> None:
    """Download COCO's annotations and `count` images of each split, and cut the annotation files to these images.

    The images are chosen by the seed alone, so that two who take the same number have the same ones.

    Args:
        splits: of train2017 and val2017.
        url: as in `get_coco`; a mirror also has each image, as `val2017/000000000139.jpg`.

    Raises:
        UserError: as `get_coco`; also more images than a split has, an image that is none.
    """
    folder = make_folder(folder)
    _check_splits(splits)
    if "test2017" in splits:
        raise UserError("There is no cut of test2017: its annotations are not published.")
    recipe = {"count": count, "seed": seed}
    _check_mini_folder(folder, recipe)
    uncut = [split for split in splits if not _instances(folder, split).is_file()]
    if uncut:
        archive = ARCHIVES["annotations"]
        _check_room(folder, [archive], url=url, keep_archives=True, waits=waits)
        path = _fetch(folder, archive, url=url, reporter=reporter, waits=waits)
        for split in uncut:
            _cut_annotations(path, folder, split, recipe)
        if not keep_archives:
            path.unlink()
    for split in splits:
        images = _read_json(_instances(folder, split))["images"]
        _fetch_images(folder, split, images, url=url, reporter=reporter, waits=waits)
        reporter.line(f"{split}: {len(images)} images")
    reporter.line(f"The cut of COCO 2017 is in {folder}. Use it with")
    keys = {"train2017": "train", "val2017": "val"}
    reporter.line(" ".join(data_arguments(keys[split], folder / split, _instances(folder, split)) for split in splits))


def _check_splits(splits: Sequence[str]) -> None:
    for split in splits:
        if split not in SPLITS:
            raise UserError(f"COCO 2017 has no split {split!r}.{did_you_mean(split, SPLITS)}")


def _check_mini_folder(folder: Path, recipe: dict[str, int]) -> None:
    """Check that a folder holds no COCO whose files would be replaced by cut ones."""
    try:
        before = json.loads((folder / _MINI).read_text())
    except FileNotFoundError:
        full = next(iter(sorted((folder / "annotations").glob("*.json"))), None)
        if full is not None:
            raise UserError(
                f"{folder} holds other annotations ({full}), which a cut would replace. Name another folder."
            ) from None
        return
    except (OSError, ValueError):
        before = None
    if before != recipe:
        raise UserError(f"{folder} holds another cut of COCO ({before}, not {recipe}). Name another folder, or delete it.")


def _receipt(folder: Path, archive: Archive) -> Path:
    """The file that says what an archive held, written when all of it was unpacked."""
    return folder / f".{archive.name}.unpacked.json"


def _is_there(folder: Path, name: str) -> bool:
    """Whether an archive's files are all there: with the sizes they had in it; as many as it has where another unpacked it."""
    archive = ARCHIVES[name]
    receipt = _receipt(folder, archive)
    if receipt.is_file():
        sizes = json.loads(receipt.read_text())
        return all((folder / inner).is_file() and (folder / inner).stat().st_size == size for inner, size in sizes.items())
    if archive.images:
        return sum(1 for _ in (folder / name).glob("*.jpg")) == archive.images
    return all((folder / "annotations" / inner).is_file() for inner in archive.annotations)


def _check_room(folder: Path, missing: list[Archive], *, url: str, keep_archives: bool, waits: tuple[float, ...]) -> None:
    """Check that the disk has room for the archives and their files at each moment of the work."""
    peak = held = 0
    for archive in missing:
        path = folder / archive.name
        size = ask_version(f"{url}/{archive.address}", waits=waits).size or archive.size
        there = sum(file.stat().st_size for file in (path, path.with_name(f"{path.name}.part")) if file.is_file())
        to_fetch = max(0, size - there)
        peak = max(peak, held + to_fetch + int(size * archive.unpacked))
        held += int(size * archive.unpacked) + (to_fetch if keep_archives else -min(there, size))
    if missing:
        check_free_space(folder, peak, what=f"download and unpack {', '.join(archive.name for archive in missing)}")


def _fetch(folder: Path, archive: Archive, *, url: str, reporter: Reporter, waits: tuple[float, ...]) -> Path:
    """An archive's file, whole; one that is there with the server's size is taken as it is."""
    address = f"{url}/{archive.address}"
    path = folder / archive.name
    size = ask_version(address, waits=waits).size
    if not path.is_file():
        reporter.line(f"{archive.name}: {megabytes(size or archive.size)} from {address}")
        with _progress(reporter, archive.name, size or archive.size) as show:
            download(address, path, on_progress=show, on_note=reporter.line, waits=waits)
    elif size is not None and path.stat().st_size != size:
        raise UserError(
            f"{path} has {path.stat().st_size} bytes, the server's {size}: it is not whole, or another version. "
            f"Delete it; or, if it is the beginning of the file, go on from there by naming it {path.name}.part."
        )
    if path.stat().st_size == archive.size:
        with _progress(reporter, f"SHA-256 of {archive.name}", archive.size) as show:
            check_sha256(path, archive.sha256, on_progress=show)
    else:
        reporter.line(
            f"{archive.name} has not the size of the published file: each file's CRC is checked, but not its SHA-256."
        )
    return path


def _unpack(path: Path, folder: Path, *, reporter: Reporter) -> list[str]:
    reporter.line(f"{path.name}: unpacking")
    with _progress(reporter, f"unpacking {path.name}", unpacked_size(path)) as show:
        return unpack(path, folder, on_progress=show)


@contextmanager
def _progress(reporter: Reporter, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows how many bytes of `total` are done: a bar of megabytes on a terminal; elsewhere, of much, a line each tenth."""
    tenths = 0

    def in_lines(done: int) -> None:
        nonlocal tenths
        if done * 10 // total > tenths:
            tenths = done * 10 // total
            reporter.line(f"{what}: {megabytes(done)} of {megabytes(total)}")

    with reporter.bar(f"{what}, MB", total // 10**6) as show:
        if reporter.console.is_terminal:
            yield lambda done: show(done // 10**6)
        else:
            yield in_lines if total >= _LARGE else lambda done: None


def _instances(folder: Path, split: str) -> Path:
    return folder / "annotations" / f"instances_{split}.json"


def _cut_annotations(archive: Path, folder: Path, split: str, recipe: dict[str, int]) -> None:
    """Write a split's annotation files with `count` of its images alone, and their annotations; all categories stay.

    The instances come last, so that where they are, all is.
    """
    count, seed = recipe["count"], recipe["seed"]
    whole = folder / "whole"
    ids: set[int] = set()

    def choose(images: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if not ids:
            if count > len(images):
                raise UserError(f"{split} has {len(images)} images, not {count}.")
            ids.update(random.Random(seed).sample(sorted(image["id"] for image in images), count))
        return sorted((image for image in images if image["id"] in ids), key=lambda image: image["id"])

    contents: dict[str, dict[str, Any]] = {}
    for kind in ("instances", "person_keypoints"):
        name = f"annotations/{kind}_{split}.json"
        if unpack(archive, whole, only=name.__eq__):
            contents[kind] = cut_coco(whole / name, choose)
            (whole / name).unlink()
        elif kind == "instances":
            raise UserError(f"{archive} has no {name}. Delete it, and fetch it from another mirror.")
    write_json(folder / _MINI, recipe)
    for kind in sorted(contents, reverse=True):
        write_json(folder / "annotations" / f"{kind}_{split}.json", contents[kind])
    for empty in (whole / "annotations", whole):
        empty.rmdir()


def _fetch_images(
    folder: Path, split: str, images: list[dict[str, Any]], *, url: str, reporter: Reporter, waits: tuple[float, ...]
) -> None:
    """Download images, eight at a time; those that are there and whole are left."""
    make_folder(folder / split)
    fetch: Callable[[dict[str, Any]], None] = partial(_fetch_image, folder / split, url=f"{url}/{split}", waits=waits)
    with reporter.bar(f"{split}, images", len(images)) as show, ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(fetch, image) for image in images]
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                show(done)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _fetch_image(folder: Path, image: dict[str, Any], *, url: str, waits: tuple[float, ...]) -> None:
    name = image["file_name"]
    if Path(name).name != name:
        raise UserError(f"Image {image['id']} of the annotations has the file name {name!r}, which is no plain name.")
    path = folder / name
    if not path.is_file():
        download(f"{url}/{name}", path, waits=waits)
    try:
        with Image.open(path) as opened:
            size = opened.size
            opened.load()
    except (OSError, SyntaxError, ValueError):
        raise UserError(f"{path} is no whole image. Delete it. {GO_ON}") from None
    if size != (image["width"], image["height"]):
        raise UserError(
            f"{path} is {size[0]} x {size[1]} pixels, not {image['width']} x {image['height']}: it is another image."
        )


def _read_json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_bytes())
    assert isinstance(content, dict)
    return content
