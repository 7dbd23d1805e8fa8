"""From a model and a data set to predictions, scores and files: exact over any number of processes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backbones.errors import UserError
from engine.amp import autocast
from engine.checkpoint import Checkpoint, load_checkpoint
from engine.config import RunConfig
from engine.config_file import load_config
from engine.data.loader import BatchLoader
from engine.data.sampler import ShardSampler
from engine.distributed import World, start_world
from engine.files import make_folder
from engine.job import Evaluation, HasClasses, Job, job_of
from engine.preemption import StopSignals
from engine.progress import Reporter
from engine.scores import Score


@torch.no_grad()
def run_evaluation(
    job: Job[Any],
    model: nn.Module,
    dataset: Any,
    *,
    world: World,
    on_image: Callable[[int, int], None] | None = None,
    signals: StopSignals | None = None,
) -> Evaluation | None:
    """Run a model over a data set, each image once over all processes.

    Args:
        on_image: called with (images done, images to do) of this process.
        signals: what may break it off.

    Returns:
        On the main process the predictions of all; None on the others.

    Raises:
        Preempted: it was broken off, in all processes.
    """
    config = job.config
    sampler = ShardSampler(len(dataset), batch_size=config.eval.batch_size, rank=world.rank, world_size=world.size)
    loader = BatchLoader(dataset, sampler, num_workers=config.data.num_workers, device=world.device)
    evaluation = job.start_evaluation(dataset)
    was_training = model.training
    model.eval()
    seen: list[int] = []
    losses: dict[int, tuple[int, dict[str, float]]] = {}  # by a batch's first image: images, and their mean losses
    for images, targets in loader:
        with autocast(world.device, config.train.precision):
            images = [image.to(world.device, non_blocking=True) for image in images]
            predictions, batch_losses = job.evaluate_batch(model, images, targets)
        losses[int(targets[0]["image_id"])] = len(images), {name: float(value) for name, value in batch_losses.items()}
        for target, prediction in zip(targets, predictions, strict=True):
            evaluation.add(target, prediction)
            seen.append(int(target["image_id"]))
        if on_image is not None:
            on_image(len(seen), sampler.num_own_images)
        if signals is not None and signals.breaks_evaluation():
            break
    model.train(was_training)
    if signals is not None:
        signals.end_evaluation()
    parts = world.gather((seen, evaluation.collected(), losses), patient=True)
    if not world.is_main:
        return None
    everywhere = [image_id for image_ids, _, _ in parts for image_id in image_ids]
    assert len(set(everywhere)) == len(everywhere) == len(dataset), "an image was predicted twice, or not at all"
    evaluation.merge([part for _, part, _ in parts])
    evaluation.losses = _mean_losses({first: batch for _, _, batches in parts for first, batch in batches.items()})
    return evaluation


def _mean_losses(batches: dict[int, tuple[int, dict[str, float]]]) -> dict[str, float]:
    """Mean losses an image; batches are added up in one order on any number of processes."""
    total: dict[str, float] = {}
    for _, (count, batch) in sorted(batches.items()):
        for name, value in batch.items():
            total[name] = total.get(name, 0.0) + value * count
    images = sum(count for count, _ in batches.values())
    return {name: value / images for name, value in total.items()}


def open_source(
    source: str, overrides: Sequence[str], *, job: str | None = None, weights: str | None = None
) -> tuple[RunConfig, Checkpoint | None]:
    """The config of a checkpoint, and the checkpoint; or that of a YAML file, which needs weights of the whole model.

    Args:
        job: the job it must be for; None takes any.

    Raises:
        UserError: it is neither, is of another job, or is a config without weights; an override is wrong.
    """
    if Path(source).suffix in (".yaml", ".yml"):
        config = load_config(source, overrides, job=job)
        if weights is None:
            raise UserError(f"{source} is a config, which has no trained weights: add --weights PATH, or name a checkpoint.")
        return config, None
    checkpoint = load_checkpoint(source)
    return checkpoint.load_config(list(overrides), job=job), checkpoint


def build_trained_model(
    job: Job[Any], checkpoint: Checkpoint | None, classes: HasClasses, *, weights: str | None, reporter: Reporter
) -> nn.Module:
    """A model in evaluation mode with the weights of a checkpoint, or of a file, of which it is then said what became of it.

    Raises:
        UserError: the weights do not fit, or are of other classes than `classes`.
    """
    if checkpoint is not None:
        checkpoint.check_categories(classes)
        model = checkpoint.build_model(job.config)
    else:
        model = job.build_model(classes.categories, load_weights=False)
    if weights is not None:
        job.load_weights(model, weights, classes)
        report = getattr(model.backbone, "weights_report", None)
        for text in report.lines() if report is not None else ():
            reporter.line(text)
    return model.eval()


def evaluate(
    source: str, overrides: list[str], *, job: str, weights: str | None = None, output_dir: str | None = None
) -> list[Score]:
    """Score a checkpoint, or a config with a file of weights, on the config's validation set, and print the numbers.

    Args:
        source: a checkpoint, or a config's YAML file.
        job: what the source must be for.
        weights: a file of weights of the whole model, in place of the checkpoint's.
        output_dir: where predictions and scores are written; None for nowhere.

    Returns:
        The scores on the main process, an empty list on the others.

    Raises:
        UserError: something in the files or the config that the user can put right.
    """
    config, checkpoint = open_source(source, overrides, job=job, weights=weights)
    if output_dir is not None:
        make_folder(output_dir)  # before the work, not after it
    with start_world(config.device) as world:
        reporter = Reporter(world)
        its_job = job_of(config)
        if checkpoint is not None:
            its_job.take_classes(checkpoint.categories)
        dataset = its_job.build_validation_set(world)
        model = build_trained_model(its_job, checkpoint, dataset, weights=weights, reporter=reporter)
        reporter.line(f"{weights or source} on {len(dataset)} images of {dataset.path}")
        with reporter.bar("evaluating", len(dataset)) as show:
            evaluation = run_evaluation(
                its_job,
                model.to(world.device),
                dataset,
                world=world,
                on_image=lambda done, total: show(done * len(dataset) / total),
            )
        if evaluation is None:
            return []
        scores = evaluation.score(Path(output_dir) if output_dir else None)
        if all(score.value == -1 for score in scores):
            reporter.line(f"{dataset.path} has nothing to find: -1 stands for no score.")
        reporter.scores(scores)
        reporter.losses(evaluation.losses)
        reporter.per_class(scores)
        if output_dir:
            reporter.line(f"results and scores in {output_dir}")
        return scores
