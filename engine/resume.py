"""What of a run changes from step to step, and how it comes back from a checkpoint of the same run."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from backbones.errors import UserError
from engine.checkpoint import Checkpoint, load_checkpoint
from engine.config import RunConfig
from engine.config_file import check_job
from engine.distributed import World
from engine.job import SampleSet
from engine.progress import Reporter
from engine.saving import BEST, KEPT_PATTERN, LAST, PREVIOUS

# What may be another in a run that goes on: how long it is, where it computes, what it logs.
FREE_KEYS = (
    *("data.val", "data.num_workers", "data.cache_images"),
    *(
        "train.epochs",
        "train.log_steps",
        "train.checkpoint_steps",
        "train.keep_every_epochs",
        "train.accumulate",
        "train.compile",
    ),
    *("data.on_fault", "train.on_nonfinite", "train.max_skipped"),  # a run that stopped at a fault may go on past it
)


@dataclass
class TrainingState:
    """All that a step changes, and how far the run has come."""

    model: nn.Module
    average: AveragedModel | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    best: float = float("-inf")
    skipped: int = 0
    """Steps left out, for their loss or gradient was not finite."""
    skipped_in_a_row: int = 0
    evaluation_due: bool = False
    """Whether the step ended an epoch that is still to be evaluated: a run that is killed meanwhile goes on with that."""

    @property
    def weights(self) -> nn.Module:
        """The model to evaluate and to use: the average, where one is kept."""
        return self.model if self.average is None else self.average.module

    def to_resume(self) -> dict[str, Any]:
        """What a checkpoint needs besides `weights` for a run to go on from it."""
        return {
            "step": self.step,
            "best": self.best,
            "evaluation_due": self.evaluation_due,
            "skipped": [self.skipped, self.skipped_in_a_row],
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "model": self.model.state_dict() if self.average is not None else None,
            "num_averaged": self.average.n_averaged if self.average is not None else None,
        }

    def restore(self, weights: dict[str, Tensor], training: dict[str, Any]) -> None:
        """Take what a checkpoint of the same run holds."""
        self.model.load_state_dict(training["model"] or weights)
        if self.average is not None:
            self.average.module.load_state_dict(weights)
            self.average.n_averaged.copy_(training["num_averaged"])
        self.optimizer.load_state_dict(training["optimizer"])
        self.scaler.load_state_dict(training["scaler"])
        self.step, self.best = training["step"], training["best"]
        self.evaluation_due = training.get("evaluation_due", False)
        self.skipped, self.skipped_in_a_row = training.get("skipped", (0, 0))


def find_checkpoint(folder: Path, resume: str | None, *, world: World, reporter: Reporter) -> Checkpoint | None:
    """The checkpoint a run in `folder` goes on from, the same on all processes; None for the beginning.

    Args:
        folder: of the run.
        resume: its path; "" for the newest good one of the folder, if it has any; None for none, unless a scheduler has started
            the run again.
        world: the processes; the main one decides.
        reporter: told what is skipped.

    Raises:
        UserError: there is none at the path, it cannot be resumed from, or the folder holds a run that would be written over.
    """
    checkpoint: Checkpoint | None = None
    path: Path | None = None
    error = ""
    restarts = [restart for restart in world.gather(_restart()) if restart is not None]
    if world.is_main:
        try:
            checkpoint = _choose(folder, resume, restarts[0] if restarts else None, reporter=reporter)
            path = checkpoint.path if checkpoint is not None else None
        except UserError as refusal:
            error = str(refusal)
    path, error = world.broadcast((path, error))
    if error:
        raise UserError(error)
    if path is not None and checkpoint is None:
        if not path.is_file():
            raise UserError(
                f"{path} is not there on every machine: output_dir must be on a file system that all of them share."
            )
        checkpoint = load_checkpoint(path, verify=False)
    return checkpoint


def _choose(folder: Path, resume: str | None, restart: str | None, *, reporter: Reporter) -> Checkpoint | None:
    places = [folder / LAST, *_newest_first([folder / PREVIOUS, *folder.glob(KEPT_PATTERN)])]
    own = [path for path in places if os.path.lexists(path)]  # a link that leads nowhere is of a run, too
    if restart is not None and (own or resume is None):
        # Also where --resume PATH began the run: what it has done since is in its own folder.
        reporter.line(f"started again by {restart}: going on from where it was")
        resume = ""
    goes_on_here = resume is not None and (resume == "" or Path(resume).resolve().parent == folder.resolve())
    if resume and not Path(resume).is_file():
        # argparse takes the word after --resume for its PATH, also where it is an override.
        hint = " To resume from last.pt with this override, put it before --resume." if "=" in resume else ""
        if Path(resume).is_dir():
            file = Path(resume) / LAST
            hint = f" It is a folder: name a file in it ({file}), or give --resume alone for the newest of output_dir."
        raise UserError(f"There is no checkpoint at {resume}.{hint}")
    if not goes_on_here and (own or (folder / BEST).exists()):
        raise UserError(f"{folder} holds a run already. Go on with it: --resume. Or start another: output_dir=FOLDER.")
    if resume is None:
        return None
    if resume:
        return _load(Path(resume))
    if not own and (folder / BEST).exists():
        raise UserError(
            f"{folder} has no checkpoint to go on from, and a {BEST} that a run from the beginning would write over. "
            f"Move {BEST} elsewhere, or name another folder: output_dir=FOLDER."
        )
    if not own:
        reporter.line(f"There is no checkpoint in {folder} yet: starting from the beginning.")
        return None
    skipped = (
        []
        if own[0].name == LAST
        else [f"{folder / LAST} is not there: it was deleted, or the run was killed as it was replaced."]
    )
    for path in own:
        try:
            checkpoint = _load(path)
        except UserError as refusal:
            skipped.append(str(refusal))
            continue
        for reason in skipped:
            reporter.line(f"skipped: {reason}")
        return checkpoint
    begin_anew = "To begin anew, delete them, or name another folder: output_dir=FOLDER."
    raise UserError("\n  ".join([f"No checkpoint in {folder} can be resumed from:", *skipped, begin_anew]))


def _newest_first(paths: list[Path]) -> list[Path]:
    """Files by when they were written; not by their steps, for a run may have gone back to an earlier one."""
    return sorted(paths, key=lambda path: path.stat().st_mtime_ns if path.exists() else 0, reverse=True)


def _load(path: Path) -> Checkpoint:
    checkpoint = load_checkpoint(path)
    if checkpoint.training is None:
        raise UserError(f"{checkpoint.path} has weights alone; only last.pt can be resumed from.")
    return checkpoint


def _restart() -> str | None:
    """Who has started this process anew, if it is not its first start."""
    for who, name in (("torchrun", "TORCHELASTIC_RESTART_COUNT"), ("SLURM", "SLURM_RESTART_COUNT")):
        count = os.environ.get(name, "0")
        if count.isdigit() and int(count):
            return f"{who} (restart {count})"
    return None


def check_same_run(checkpoint: Checkpoint, config: RunConfig, *, processes: int) -> list[str]:
    """A run may go on for more epochs, elsewhere, or log and evaluate otherwise; what it learns from must be the same.

    A key that came into the config after the checkpoint counts as its default.

    Returns:
        Lines on what has changed that may, but makes other weights than those of a run that was not stopped.

    Raises:
        UserError: something else differs; the message names the keys.
    """
    check_job(checkpoint.job, config.job, where=str(checkpoint.path))
    saved, own = checkpoint.load_config().model_dump(), config.model_dump()
    refused = []
    for section in ("model", "data", "train", "optimizer", "seed"):
        for name, before, now in _differences(section, saved[section], own[section]):
            if ".".join(name.split(".")[:2]) not in FREE_KEYS:
                refused.append(f"{name}={before}, the config now says {now}")
    if refused:
        raise UserError(
            f"{checkpoint.path} was trained with {'; with '.join(refused)}. "
            "Resume with the same, or start another run: output_dir=FOLDER."
        )
    lines = []
    differences = _differences("train.epochs", saved["train"]["epochs"], own["train"]["epochs"])
    differences += _differences("schedule", saved["schedule"], own["schedule"])
    if differences:
        named = ", ".join(f"{name} is {now}, was {before}" for name, before, now in differences)
        lines.append(f"{named}: the learning rate follows the new schedule from here")
    changes = []
    assert checkpoint.training is not None, "find_checkpoint gives no other"
    count = checkpoint.training.get("processes", processes)
    if count != processes:
        changes.append(f"resumed on {processes} {'process' if processes == 1 else 'processes'}, was {count}: the same batches")
    for name in ("train.compile", "train.accumulate", "distributed.gradient_compression", "distributed.sync_batch_norm"):
        section, key = name.split(".")
        for _, before, now in _differences(name, saved[section][key], own[section][key]):
            changes.append(f"{name} is {now}, was {before}")
    if changes:
        changes.append("  the weights will differ a little from those of a run that was not changed")
    return lines + changes


def check_same_images(checkpoint: Checkpoint, dataset: SampleSet) -> None:
    """Check that a training set is as large as it was: which images a step takes depends on that.

    Raises:
        UserError: it is not.
    """
    assert checkpoint.training is not None, "find_checkpoint gives no other"
    before = checkpoint.training.get("num_images", len(dataset))
    if before != len(dataset):
        raise UserError(
            f"{checkpoint.path} was trained on {before} images, {dataset.path} now gives {len(dataset)}: the run cannot go on "
            "where it was. Put the files back, or start another run: output_dir=FOLDER."
        )


def _differences(name: str, before: Any, now: Any) -> list[tuple[str, Any, Any]]:
    """The keys of a config, or of a part of it, whose values differ, with both; a key that is not there counts as none."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = dict.fromkeys([*now, *before])
        if before.get("name") != now.get("name"):  # another thing has other options
            keys = {"name": None}
        return [found for key in keys for found in _differences(f"{name}.{key}", before.get(key), now.get(key))]
    return [(name, before, now)] if before != now else []
