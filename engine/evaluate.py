"""From a model and a data set to predictions, scores and files: exact over any number of processes."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backbones.errors import UserError
from engine.amp import autocast
from engine.build import build_model, build_validation_set, iou_types
from engine.checkpoint import load_checkpoint, load_detector_weights
from engine.coco_eval import Backend, IouType, Score, load_ground_truth, score_results
from engine.config_file import load_config
from engine.data.dataset import CocoDataset
from engine.data.loader import BatchLoader
from engine.data.sampler import ShardSampler
from engine.distributed import World, start_world
from engine.files import make_folder
from engine.progress import Reporter
from engine.results import check_results, read_results, rows_of_type, to_rows

Rows = list[dict[str, Any]]


@torch.no_grad()
def predict_dataset(
    model: nn.Module,
    dataset: CocoDataset,
    *,
    world: World,
    batch_size: int = 1,
    num_workers: int = 0,
    precision: str = "float32",
    on_image: Callable[[int, int], None] | None = None,
) -> Rows | None:
    """Run a model over a data set, each image once over all processes.

    Args:
        on_image: called with (images done, images to do) of this process.

    Returns:
        On the main process, COCO results rows in the data set's order, in each image's own pixels; None on the others.
    """
    sampler = ShardSampler(len(dataset), batch_size=batch_size, rank=world.rank, world_size=world.size)
    loader = BatchLoader(dataset, sampler, num_workers=num_workers, device=world.device)
    was_training = model.training
    model.eval()
    rows: dict[int, Rows] = {}
    for images, targets in loader:
        with autocast(world.device, precision):
            predictions = model([image.to(world.device, non_blocking=True) for image in images])
        for target, prediction in zip(targets, predictions, strict=True):
            image_id = int(target["image_id"])
            rows[image_id] = to_rows(image_id, prediction, dataset.annotations.categories)
        if on_image is not None:
            on_image(len(rows), sum(len(batch) for batch in sampler))
    model.train(was_training)
    shards = world.gather(rows)
    if not world.is_main:
        return None
    merged = {image_id: image_rows for shard in shards for image_id, image_rows in shard.items()}
    assert len(merged) == sum(len(shard) for shard in shards) == len(dataset), "an image was predicted twice, or not at all"
    return [row for image_id in dataset.annotations.image_ids.tolist() for row in merged[image_id]]


def score_predictions(
    rows: Rows,
    annotations: Path,
    *,
    iou_types: Sequence[IouType],
    backend: Backend,
    keypoint_sigmas: Sequence[float] | None = None,
    output_dir: Path | None = None,
) -> list[Score]:
    """Score predictions as each of `iou_types`, and write results and scores into `output_dir`, if one is given.

    Written: `bbox_results.json`, `segm_results.json`, `keypoints_results.json` in COCO's results format, and `scores.json`: the
    numbers, and the AP of each class.

    Raises:
        UserError: another number of `keypoint_sigmas` is given than there are keypoints.
    """
    ground_truth = load_ground_truth(annotations)
    if output_dir is not None:
        make_folder(output_dir)
    scores = []
    for iou_type in iou_types:
        results = rows_of_type(rows, iou_type)
        if output_dir is not None:
            (output_dir / f"{iou_type}_results.json").write_text(json.dumps(results))
        scores.append(score_results(ground_truth, results, iou_type=iou_type, backend=backend, keypoint_sigmas=keypoint_sigmas))
    if output_dir is not None:
        content = {score.iou_type: {"stats": score.stats, "per_class": score.per_class} for score in scores}
        (output_dir / "scores.json").write_text(json.dumps({"backend": backend, **content}, indent=2))
    return scores


def evaluate_results(results: str, annotations: str, *, iou_type: IouType, backend: Backend) -> Score:
    """Score a COCO results file and print COCO's numbers.

    Raises:
        UserError: a file is missing or malformed, or the results name images or categories the annotations do not list.
    """
    rows = read_results(results, iou_type=iou_type)
    ground_truth = load_ground_truth(annotations)
    check_results(rows, ground_truth, source=results)
    score = score_results(ground_truth, rows, iou_type=iou_type, backend=backend)
    print(f"{iou_type}:", *score.lines(), sep="\n")
    return score


def evaluate_detector(
    source: str, overrides: list[str], *, weights: str | None = None, output_dir: str | None = None
) -> list[Score]:
    """Score a checkpoint, or a config with a file of weights, on the config's validation set, and print COCO's numbers.

    Returns:
        The scores of boxes and perhaps masks on the main process, an empty list on the others.

    Raises:
        UserError: something in the files or the config that the user can put right.
    """
    checkpoint = None
    if Path(source).suffix in (".yaml", ".yml"):
        config = load_config(source, overrides)
        if weights is None:
            raise UserError(f"{source} is a config, which has no trained weights: add --weights PATH, or name a checkpoint.")
    else:
        checkpoint = load_checkpoint(source)
        config = checkpoint.load_config(overrides)
    if output_dir is not None:
        make_folder(output_dir)  # before the work, not after it
    with start_world(config.device) as world:
        reporter = Reporter(world)
        dataset = build_validation_set(config, world=world)
        if checkpoint is not None:
            checkpoint.check_categories(dataset.annotations)
            model = checkpoint.build_model(config)
        else:
            table = dataset.annotations
            model = build_model(
                config, num_classes=len(table.class_names), num_keypoints=table.num_keypoints, load_weights=False
            )
        if weights is not None:
            load_detector_weights(model, weights, dataset.annotations)
        reporter.line(f"{weights or source} on {len(dataset)} images of {dataset.annotations.path}")
        with reporter.bar("evaluating", len(dataset)) as show:
            rows = predict_dataset(
                model.to(world.device),
                dataset,
                world=world,
                batch_size=config.eval.batch_size,
                num_workers=config.data.num_workers,
                precision=config.train.precision,
                on_image=lambda done, total: show(done * len(dataset) / total),
            )
        if rows is None:
            return []
        scores = score_predictions(
            rows,
            dataset.annotations.path,
            iou_types=iou_types(config),
            keypoint_sigmas=config.eval.keypoint_sigmas,
            backend=config.eval.backend,
            output_dir=Path(output_dir) if output_dir else None,
        )
        reporter.scores(scores)
        reporter.per_class(scores)
        if output_dir:
            reporter.line(f"results and scores in {output_dir}")
        return scores
