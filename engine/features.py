"""Embeddings of a folder's images, and the file they are kept in. Written whole or not at all."""

import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from backbones.errors import UserError
from backbones.load_report import some
from backbones.registry import check_whole_number
from engine.data.dataset import read_image
from engine.data.loader import available_cores
from engine.distributed import World, start_world
from engine.embedder import Embedder, Recipe, build_embedder
from engine.files import make_folder
from engine.predict import find_images
from engine.progress import Reporter

FORMAT = 1
# What a file holds: the kind of each array's numbers, in numpy's letters, and how many dimensions it has.
ARRAYS = {"format": "i0", "embeddings": "f2", "file_names": "U1", "probe": "f1"}
ARRAYS |= {"source": "U0", "weights": "U0", "size": "i0", "whole": "b0", "image_mean": "f1", "image_std": "f1"}


@dataclass(frozen=True)
class Features:
    """The embeddings of some images, and how they were made."""

    embeddings: np.ndarray  # (N, C) float32, as the backbone gives them: not normalised
    file_names: list[str]  # N
    recipe: Recipe
    probe: np.ndarray  # (C,) float32, what the backbone makes of a picture that is always the same


class Embedded(NamedTuple):
    """What became of a batch."""

    embeddings: np.ndarray
    file_names: list[str]
    left_out: list[str]  # why, and which file


def extract_features(
    recipe: Recipe,
    inputs: Sequence[str],
    *,
    output: str,
    batch_size: int = 32,
    skip_unreadable: bool = False,
    device: str = "auto",
) -> Features | None:
    """Embed images, and write the features into the file `output`.

    Under torchrun whole batches are shared out over the processes, so that the features do not depend on their number.

    Args:
        recipe: the backbone, and how images are prepared for it.
        inputs: image files, and folders of them.
        output: a .npz file; one that is there is replaced at the end.
        batch_size: images of one pass in one process.
        skip_unreadable: leave out files that are no images, and name them; else they are refused, and nothing is written.

    Returns:
        The features on the main process, None on the others.

    Raises:
        UserError: as `build_embedder`; also a path that does not exist, an image that cannot be read, an output that cannot
            be written.
    """
    check_whole_number("batch_size", batch_size)
    paths = find_images(inputs)
    place = _writable(output)
    batches = {start: paths[start : start + batch_size] for start in range(0, len(paths), batch_size)}
    with start_world(device) as world, ThreadPoolExecutor(min(8, available_cores())) as pool:
        own = {start: batches[start] for start in list(batches)[world.rank :: world.size]}
        if not skip_unreadable:
            _check_all(pool, own)
        embedder = build_on(recipe, world)
        probe = embedder.probe()
        reporter = Reporter(world)
        embedded: dict[int, Embedded] = {}
        with reporter.bar("embedding", len(paths)) as show:
            for start, images in _read_ahead(pool, own, embedder):
                embedded[start] = _embed(embedder, images, skip_unreadable=skip_unreadable)
                show(start + len(images))
        merged = {start: part for shard in world.gather(embedded) for start, part in shard.items()}
        if not world.is_main:
            return None
        in_order = [merged[start] for start in sorted(merged)]
        for line in (line for part in in_order for line in part.left_out):
            reporter.line(f"left out: {line}")
        names = [name for part in in_order for name in part.file_names]
        features = Features(np.concatenate([part.embeddings for part in in_order]), names, embedder.recipe, probe)
        _check_embeddings(features)
        save_features(features, place)
        reporter.line(f"{len(names)} embeddings of {len(probe)} numbers each, from {embedder.recipe}: {place}")
        return features


def build_on(recipe: Recipe, world: World) -> Embedder:
    """The embedder of a recipe on a process's device; where weights are downloaded, the main process does it.

    Raises:
        UserError: as `build_embedder`.
    """
    if not world.is_main:
        world.barrier()
    embedder = build_embedder(recipe).to(world.device)
    if world.is_main:
        world.barrier()
    return embedder


def save_features(features: Features, path: Path) -> None:
    """Write features beside their place, then move them there: a reader sees the old file or the new one.

    Raises:
        UserError: they cannot be written.
    """
    recipe = features.recipe
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            np.savez(
                file,
                format=FORMAT,
                embeddings=features.embeddings,
                file_names=np.array(features.file_names, np.str_),
                probe=features.probe,
                source=recipe.source,
                weights=recipe.weights or "",
                size=recipe.size,
                whole=recipe.whole,
                image_mean=np.array(recipe.image_mean),
                image_std=np.array(recipe.image_std),
            )
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise UserError(f"The features cannot be written to {path} ({error.strerror}).") from None
    finally:
        part.unlink(missing_ok=True)


def load_features(path: str | Path) -> Features:
    """Read features that `save_features` wrote; no code in the file is ever run.

    Raises:
        UserError: the file is missing or damaged, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There are no features at {path}.")
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise ValueError("it is one array")
            content = {key: archive[key] for key in ARRAYS if key in archive}
    # A damaged or encrypted zip, an array that is none or is pickled, a size that no memory has.
    except (
        OSError,
        ValueError,
        EOFError,
        TypeError,
        MemoryError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise UserError(f"{path} cannot be read as features ({error or type(error).__name__}). Extract them again.") from None
    forms = {key: f"{array.dtype.kind}{array.ndim}" for key, array in content.items() if isinstance(array, np.ndarray)}
    wrong = [key for key, form in ARRAYS.items() if forms.get(key) != form]
    if wrong:
        raise UserError(
            f"{path} holds no features of tools/extract_features.py: without {some(wrong)}, or not as it should be."
        )
    if content["format"] != FORMAT:
        raise UserError(f"{path} has features of format {content['format']}; this version reads {FORMAT}.")
    try:
        recipe = Recipe(
            str(content["source"]),
            str(content["weights"]) or None,
            int(content["size"]),
            bool(content["whole"]),
            tuple(content["image_mean"].tolist()),
            tuple(content["image_std"].tolist()),
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    features = Features(content["embeddings"], content["file_names"].tolist(), recipe, content["probe"])
    if features.embeddings.shape != (len(features.file_names), *features.probe.shape):
        shapes = f"{features.embeddings.shape} for {len(features.file_names)} file names"
        raise UserError(f"{path} has embeddings of shape {shapes}: one of them is not whole. Extract them again.")
    return features


def _writable(output: str) -> Path:
    place = Path(output)
    if place.suffix != ".npz":
        raise UserError(f"The output {output} must be named *.npz.")
    if place.is_dir():
        raise UserError(f"{output} is a folder. Name a file.")
    make_folder(place.parent)
    return place


def _check_all(pool: ThreadPoolExecutor, batches: dict[int, list[Path]]) -> None:
    """Check that each file begins as an image does: what is none is known before the work, not after hours of it."""
    paths = [path for batch in batches.values() for path in batch]
    bad = [str(path) for path, good in zip(paths, pool.map(_begins_as_image, paths), strict=True) if not good]
    if bad:
        raise UserError(
            f"{len(bad)} of {len(paths)} files cannot be read as images: {some(bad)}. "
            "Replace them or take them out; with --skip-unreadable such files are left out."
        )


def _begins_as_image(path: Path) -> bool:
    try:
        with Image.open(path):
            return True
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False


def _read_ahead(
    pool: ThreadPoolExecutor, batches: dict[int, list[Path]], embedder: Embedder
) -> Iterator[tuple[int, dict[str, Tensor | UserError]]]:
    """Each batch by its number, prepared images or errors by file name; while it is used, the next one is read."""

    def read(path: Path) -> Tensor | UserError:
        try:
            return embedder.prepare(read_image(path, listed_in="the images given"))
        except UserError as error:
            return error

    def submit(paths: list[Path]) -> dict[str, Future[Tensor | UserError]]:
        return {str(path): pool.submit(read, path) for path in paths}

    following = [*list(batches.values())[1:], []]
    ahead = submit(next(iter(batches.values()), []))
    for number, paths in zip(batches, following, strict=False):
        current, ahead = ahead, submit(paths)
        yield number, {name: future.result() for name, future in current.items()}


def _embed(embedder: Embedder, images: dict[str, Tensor | UserError], *, skip_unreadable: bool) -> Embedded:
    good = {name: image for name, image in images.items() if isinstance(image, Tensor)}
    bad = [str(error) for error in images.values() if isinstance(error, UserError)]
    if bad and not skip_unreadable:
        raise UserError(f"{bad[0]} With --skip-unreadable such images are left out.")
    return Embedded(embedder.embed(list(good.values())), list(good), bad)


def _check_embeddings(features: Features) -> None:
    if not features.file_names:
        raise UserError("None of the images can be read.")
    finite = np.isfinite(features.embeddings).all(axis=1)
    if not finite.all():
        name = features.file_names[int(np.argmin(finite))]
        raise UserError(f"The embedding of {name} is not finite. The weights of {features.recipe} do not take such images.")
