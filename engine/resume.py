"""What of a run changes from step to step, and how it comes back from a checkpoint of the same run."""

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
from engine.progress import Reporter

# What may be another in a run that goes on: how long it is, where it computes, what it logs.
FREE_KEYS = (
    *("epochs", "num_workers", "log_steps", "checkpoint_steps", "val", "accumulate", "compile", "cache_images"),
    *("on_fault", "on_nonfinite", "max_skipped"),  # a run that stopped at a fault may go on past it
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

    @property
    def weights(self) -> nn.Module:
        """The model to evaluate and to use: the average, where one is kept."""
        return self.model if self.average is None else self.average.module

    def to_resume(self) -> dict[str, Any]:
        """What a checkpoint needs besides `weights` for a run to go on from it."""
        return {
            "step": self.step,
            "best": self.best,
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
        self.skipped, self.skipped_in_a_row = training.get("skipped", (0, 0))


def find_checkpoint(folder: Path, resume: str | None, *, reporter: Reporter) -> Checkpoint | None:
    """The checkpoint a run in `folder` goes on from; None for the beginning.

    Args:
        resume: its path; "" for the folder's own, if it has one; None for none.

    Raises:
        UserError: there is none at the path, it cannot be resumed from, or the folder holds a run that would be written over.
    """
    last = folder / "last.pt"
    goes_on_here = resume is not None and (resume == "" or Path(resume).resolve().parent == folder.resolve())
    if resume and not Path(resume).is_file():
        # argparse takes the word after --resume for its PATH, also where it is an override.
        hint = " To resume from last.pt with this override, put it before --resume." if "=" in resume else ""
        raise UserError(f"There is no checkpoint at {resume}.{hint}")
    if last.exists() and not goes_on_here:
        raise UserError(f"{folder} holds a run already. Go on with it: --resume. Or start another: output_dir=FOLDER.")
    if resume is None:
        return None
    if resume == "" and not last.exists():
        reporter.line(f"There is no checkpoint in {folder} yet: starting from the beginning.")
        return None
    checkpoint = load_checkpoint(resume or last)
    if checkpoint.training is None:
        raise UserError(f"{checkpoint.path} has weights alone; only last.pt can be resumed from.")
    return checkpoint


def check_same_run(checkpoint: Checkpoint, config: RunConfig) -> None:
    """A run may go on for more epochs, elsewhere, or log and evaluate otherwise; what it learns from must be the same.

    Raises:
        UserError: something else differs; the message names the key.
    """
    check_job(checkpoint.job, config.job, where=str(checkpoint.path))
    own = config.model_dump()
    for section in ("model", "data", "train", "optimizer", "seed"):
        before, now = checkpoint.config[section], own[section]
        if not isinstance(now, dict):
            before, now = {section: before}, {section: now}
        for key in now:
            if key not in FREE_KEYS and before.get(key) != now[key]:
                name = section if key == section else f"{section}.{key}"
                raise UserError(
                    f"{checkpoint.path} was trained with {name}={before.get(key)}, the config now says {now[key]}. "
                    "Resume with the same, or start another run: output_dir=FOLDER."
                )
