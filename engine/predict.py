"""Predictions for image files that belong to no data set."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from backbones.errors import UserError
from engine.data.dataset import read_image
from engine.distributed import start_world
from engine.evaluate import build_trained_model, open_source
from engine.files import IMAGE_SUFFIXES, make_folder, picture_names
from engine.job import job_of
from engine.progress import Reporter


def find_images(inputs: Sequence[str]) -> list[Path]:
    """The image files among files and folders, folders searched with what is below them, in order, none twice.

    Raises:
        UserError: a path that does not exist, or a folder without images.
    """
    found: list[Path] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            if not inside:
                raise UserError(f"The folder {path} has no images ({', '.join(sorted(IMAGE_SUFFIXES))}).")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"There is no image or folder {path}.")
    return list(dict.fromkeys(found))


@torch.no_grad()
def predict_images(
    source: str,
    inputs: Sequence[str],
    *,
    output_dir: str,
    score_threshold: float = 0.5,
    device: str = "auto",
    weights: str | None = None,
    overrides: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Say what a model sees in images; write a picture each and `results.json` into `output_dir`.

    `results.json` has the rows its job makes of each image, with `image_id` and `file_name`; images are numbered from 1 in the
    order they are listed. A detector's rows are in COCO's results format with the training data's category ids. Under torchrun
    the images are shared out over the processes.

    Args:
        source: a checkpoint, or a config's YAML file, whose job then says the classes.
        weights: a file of weights of the whole model; needed with a config.
        overrides: `key=value` in place of the config's.

    Returns:
        The rows on the main process, an empty list on the others.

    Raises:
        UserError: a path does not exist, an image cannot be read, the source is neither, or the weights do not fit.
    """
    paths = find_images(inputs)
    if Path(source).suffix not in (".yaml", ".yml") and any(override.startswith("data.classes") for override in overrides):
        raise UserError(f"{source} was trained on classes of its own, which a setting cannot change: leave out data.classes.")
    config, checkpoint = open_source(source, overrides, weights=weights)
    job = job_of(config)
    folder = make_folder(output_dir)
    # Where the pictures go beside the images, none takes an image's place.
    beside = [path.stem for path in paths if path.resolve().parent == folder.resolve() and path.suffix == ".png"]
    pictures = [folder / f"{name}.png" for name in picture_names(paths, taken=beside)]
    with start_world(device) as world:
        reporter = Reporter(world)
        classes = checkpoint or job.build_classes(world)
        model = build_trained_model(job, checkpoint, classes, weights=weights, reporter=reporter).to(world.device)
        rows: dict[int, list[dict[str, Any]]] = {}
        with reporter.bar("predicting", len(paths)) as show:
            for image_id in range(1 + world.rank, len(paths) + 1, world.size):
                path = paths[image_id - 1]
                image = read_image(path)
                prediction = job.predict(model, [job.prepare(image).to(world.device)])[0]
                said, found = job.present(
                    image, prediction, classes.categories, picture=pictures[image_id - 1], score_threshold=score_threshold
                )
                rows[image_id] = [row | {"image_id": image_id, "file_name": str(path)} for row in found]
                print(f"{path}: {said}")
                show(min(image_id, len(paths)))
        merged = {image_id: found for shard in world.gather(rows) for image_id, found in shard.items()}
        if not world.is_main:
            return []
        flat = [row for image_id in sorted(merged) for row in merged[image_id]]
        results = folder / "results.json"
        results.write_text(json.dumps(flat))
        reporter.line(f"{len(flat)} rows in {results}")
        return flat
