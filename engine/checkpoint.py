"""Checkpoints: all that is needed to use a model, and to go on training it. Written whole or not at all."""

import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from typing_extensions import Buffer

from backbones.errors import UserError
from backbones.weights import check_fit, load_pickled_tensors
from engine.config import RunConfig
from engine.config_file import apply_overrides, check_job
from engine.data.annotations import Category
from engine.files import replacing
from engine.job import HasClasses, job_of

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds."""

    path: Path
    model: dict[str, Tensor]  # the weights to use: the average, where one is kept
    config: dict[str, Any]
    categories: list[Category]
    training: dict[str, Any] | None  # what a resume needs; None in best.pt

    def load_config(self, overrides: list[str] | None = None, *, job: str | None = None) -> RunConfig:
        """Its config, with `key=value` overrides.

        Args:
            job: the job it must be for; None takes any.

        Raises:
            UserError: an override is wrong, the checkpoint is of another job, or its model is made by a module that is not
                imported yet (`module:name`), and no override names it: nobody's file runs code here by being opened.
        """
        check_job(self.job, job, where=str(self.path))
        return apply_overrides(self.config, overrides or [], origin=str(self.path), job=self.job, is_trusted=False)

    @property
    def job(self) -> str:
        """The job it was trained for."""
        return self.config.get("job", "detection")

    def build_model(self, config: RunConfig) -> nn.Module:
        """The model it was saved from, in evaluation mode.

        Raises:
            UserError: the weights do not fit the config.
        """
        model = job_of(config).build_model(self.categories, load_weights=False)
        check_fit(model, self.model, source=str(self.path))
        model.load_state_dict(self.model)
        return model.eval()

    def check_categories(self, dataset: HasClasses) -> None:
        """Check that a data set has the classes the model was trained on.

        Raises:
            UserError: it has others; the message names the first that differs.
        """
        if self.categories == dataset.categories:
            return
        raise UserError(
            f"{self.path} was trained on other classes than {dataset.path} has: "
            f"{first_difference(self.categories, dataset.categories)}. "
            "Name a data set with the same categories, or train a model on this one."
        )


def first_difference(ours: list[Category], theirs: list[Category]) -> str:
    """In which category two lists differ first, or in how many there are, for a message."""
    for our, their in zip(ours, theirs, strict=False):
        if (our.name, our.id) != (their.name, their.id):
            return f"{our.name!r} (id {our.id}) against {their.name!r} (id {their.id})"
        if our != their:
            names = " against ".join(", ".join(category.keypoints) or "none" for category in (our, their))
            return f"the keypoints of {our.name!r}: {names}"
    return f"{len(ours)} classes against {len(theirs)}"


def save_checkpoint(
    path: Path,
    *,
    model: dict[str, Tensor],
    config: RunConfig,
    categories: list[Category],
    training: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint; see `write_checkpoint`."""
    write_checkpoint(path, checkpoint_content(model=model, config=config, categories=categories, training=training))


def checkpoint_content(
    *,
    model: dict[str, Tensor],
    config: RunConfig,
    categories: list[Category],
    training: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What a checkpoint file is to hold, tensors on the CPU."""
    return {
        "format": FORMAT,
        "model": {key: value.detach().cpu() for key, value in model.items()},
        "config": config.model_dump(),
        "categories": [
            {"id": category.id, "name": category.name, "keypoints": list(category.keypoints)} for category in categories
        ],
        "training": training,
    }


def write_checkpoint(path: Path, content: dict[str, Any], *, previous: Path | None = None) -> None:
    """Write a checkpoint beside its place, flush it to the disk, and move it there: there is never half of one.

    Args:
        path: its place.
        content: of `checkpoint_content`.
        previous: where the file that was at `path` goes; None to write over it.

    Raises:
        OSError: it could not be written; what was at `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, previous=previous) as file:
        patient = _PatientFile(file)
        torch.save(content, patient)  # type: ignore[arg-type]  # all it needs of a file
        if patient.error is not None:
            raise patient.error


def copy_checkpoint(source: Path, path: Path, *, previous: Path) -> None:
    """Copy a checkpoint's file, with the care of `write_checkpoint`; `previous` may be the source.

    Raises:
        OSError: it could not be written; what was at `path` is as it was.
    """
    with source.open("rb") as original, replacing(path, previous=previous) as file:
        shutil.copyfileobj(original, file)


class _PatientFile:
    """Keeps the first error of a file: PyTorch's writer, stopped half-way, hides it behind one of its own."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Buffer) -> int:
        """Write, unless that has failed before; the number of bytes taken."""
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Nothing: the file is flushed when it is whole."""


def load_checkpoint(path: str | Path, *, verify: bool = True) -> Checkpoint:
    """Read a checkpoint; no code in the file is ever run.

    Args:
        path: the file.
        verify: whether to compare every record with its checksum, which takes about a second for each GB.

    Raises:
        UserError: it is missing, truncated or damaged, or not a checkpoint of this library.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no checkpoint at {path}.")
    if verify:
        check_records(path)
    content = load_pickled_tensors(path)
    if not isinstance(content, dict) or not {"format", "model", "config", "categories"} <= content.keys():
        raise UserError(
            f"{path} is no checkpoint of a training run here (it lacks model, config or categories). "
            "For bare weights give the config, too: CONFIG --weights PATH."
        )
    if content["format"] != FORMAT:
        raise UserError(f"{path} has checkpoint format {content['format']}; this version reads {FORMAT}.")
    categories = [Category(c["id"], c["name"], tuple(c.get("keypoints", ()))) for c in content["categories"]]
    return Checkpoint(path, content["model"], content["config"], categories, content.get("training"))


def check_records(path: Path) -> None:
    """Compare what is in a checkpoint with the checksums (CRC-32) that were written with it, if it is a zip archive.

    PyTorch writes a checksum for each tensor and does not look at it again.

    Raises:
        UserError: something differs.
    """
    try:
        if not zipfile.is_zipfile(path):
            return  # truncated, or nothing of ours: the reader says what
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # a flipped bit can lead anywhere: NotImplementedError, struct.error, ...
        damaged = str(error) or type(error).__name__
    if damaged is not None:
        raise UserError(f"{path} is damaged: what is in it is not what was written ({damaged}). Use another, or copy it again.")


def check_own(path: Path, *, job: str, classes: HasClasses) -> None:
    """Check that a file of weights, if it is a checkpoint of ours, is of this job and these classes; others do not say theirs.

    Raises:
        UserError: it is of another job or of other classes.
    """
    if path.suffix == ".safetensors" or not path.is_file():
        return
    content = load_pickled_tensors(path)
    if isinstance(content, dict) and "categories" in content:
        checkpoint = load_checkpoint(path)
        check_job(checkpoint.job, job, where=str(path))
        checkpoint.check_categories(classes)
