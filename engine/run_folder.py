"""What a run writes: checkpoints, the numbers of its steps, scores and pictures. A disk that is full does not end it."""

from pathlib import Path
from typing import Any

from backbones.errors import UserError
from engine.checkpoint import checkpoint_content, copy_checkpoint
from engine.config import RunConfig
from engine.config_file import dump_config
from engine.data.annotations import Category
from engine.distributed import World
from engine.files import FolderError, WriteErrors, is_gone, make_folder, write_whole
from engine.job import Evaluation
from engine.preemption import Preempted
from engine.progress import Reporter
from engine.resume import TrainingState
from engine.saving import BEST, KEPT, LAST, PREVIOUS, CheckpointWriter, copied
from engine.scores import Score
from engine.tracking import JsonlTracker, TensorBoardTracker, Tracker


class RunFolder:
    """The folder of a run, which the main process alone writes to. What cannot be written is told, and tried again later.

    Args:
        config: the run.
        world: the processes.
        reporter: prints.
        state: what is saved.
        categories: the classes, which every checkpoint names.
        num_images: of the training set, by which a resume sees that it is the same.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        world: World,
        reporter: Reporter,
        state: TrainingState,
        categories: list[Category],
        num_images: int,
    ) -> None:
        self.config = config
        self.world = world
        self.reporter = reporter
        self.state = state
        self.categories = categories
        self.num_images = num_images
        self.path = Path(config.output_dir)
        self.trackers: list[Tracker] = []
        self.errors = WriteErrors(reporter.line)
        self.writer = CheckpointWriter(self.path, errors=self.errors, best=state.best)
        self._saved = (state.step, state.evaluation_due)

    def open(self, *, start: Path | None = None) -> None:
        """Make it, and take out of it what the checkpoint that the run goes on from does not know of.

        Args:
            start: the checkpoint that the user named to go on from. Where it is an earlier one of this folder, it becomes the
                last, so that a run that is started again does not go on from the one that was turned away from.

        Raises:
            UserError: it cannot be written to.
        """
        if not self.world.is_main:
            return
        make_folder(self.path)
        for name in (LAST, PREVIOUS, BEST):
            if (self.path / name).is_dir():
                raise UserError(f"{self.path / name} is a folder, where a checkpoint is to be written. Move it elsewhere.")
        step, due = self.state.step, self.state.evaluation_due
        try:
            for left in self.path.glob("*.part"):  # by a run that was killed as it wrote
                left.unlink()
            if start is not None and start.resolve().parent == self.path.resolve() and start.name != LAST:
                copy_checkpoint(start, self.path / LAST, previous=self.path / PREVIOUS)
            write_whole(self.path / "config.yaml", dump_config(self.config).encode())
            lines = JsonlTracker(self.path / "metrics.jsonl", start_step=step, evaluates_again=due, errors=self.errors)
            again = lines.last_records if due else None
            events = TensorBoardTracker(self.path / "tensorboard", start_step=step, again=again, errors=self.errors)
        except OSError as error:
            raise UserError(
                f"{error.filename or self.path} cannot be written ({error.strerror}). "
                "Put that right, or name another folder: output_dir=FOLDER."
            ) from None
        self.trackers = [lines, events]

    def track(self, kind: str, values: dict[str, Any]) -> None:
        """Record numbers of the step that has ended."""
        for tracker in self.trackers:
            tracker.log(kind, self.state.step, values)

    def save(self, *names: str) -> None:
        """Copy the state as it is, and have it written under these names, in this order; best.pt gets the weights alone."""
        self._saved = (self.state.step, self.state.evaluation_due)
        if not self.world.is_main:
            return
        self._flush()  # a checkpoint is not to know of steps whose lines may be lost
        state = {"model": self.state.weights.state_dict(), "training": self.state.to_resume()}
        state["training"] |= {"processes": self.world.size, "num_images": self.num_images}
        state, ready = copied(state, self.world.device)
        self.writer.save(
            {
                name: checkpoint_content(
                    model=state["model"],
                    config=self.config,
                    categories=self.categories,
                    training=None if name == BEST else state["training"],
                )
                for name in names
            },
            best=self.state.best,
            step=self.state.step,
            ready=ready,
        )

    def kept(self, epoch: int) -> list[str]:
        """The name under which the checkpoint of an epoch is kept, if it is."""
        every = self.config.train.keep_every_epochs
        return [KEPT.format(epoch)] if every is not None and epoch % every == 0 else []

    def score(self, evaluation: Evaluation) -> list[Score]:
        """The scores, and their files in `eval`."""
        try:
            scores = evaluation.score(self.path / "eval")
        except (OSError, FolderError) as error:
            self.errors.failed("eval/", error, then="the next evaluation tries again")
            return evaluation.score()
        self.errors.succeeded("eval/")
        return scores

    def draw(self, evaluation: Evaluation) -> None:
        """Pictures, in `predictions`."""
        folder = self.path / "predictions"
        try:
            drawn = evaluation.draw(folder)
        except (OSError, FolderError) as error:
            self.errors.failed("predictions/", error, then="its pictures are left out")
            return
        pictures = f"{len(drawn)} pictures in {folder}, " if drawn else ""
        self.reporter.line(f"{pictures}weights in {self.path / BEST}")

    def finish(self) -> None:
        """Try to write what could not be written once more.

        Raises:
            UserError: something still cannot be; the message names it.
        """
        self.writer.finish()
        self._flush()
        if self.errors.count:
            self.reporter.line(f"{self.errors.count} times a file could not be written")
        if self.errors.unwritten:
            missing = ", ".join(f"{what} ({why})" for what, why in self.errors.unwritten.items())
            raise UserError(
                f"The training has ended, but in {self.path} this could not be written: {missing}. What is there is whole. "
                "Put that right, and give the same command with --resume: it goes on from the last good checkpoint."
            )

    def leave(self, stop: Preempted, *, total_steps: int) -> None:
        """Save what is not saved yet, and say how to go on; all processes leave together."""
        if self._saved != (self.state.step, self.state.evaluation_due):
            self.save(LAST)
        self.writer.finish()
        self._flush()
        why = self.errors.unwritten.get(LAST)
        saved = f"saved in {self.path / LAST}" if why is None else f"{LAST} could not be written ({why}), and is of before"
        self.reporter.line(
            f"stopped by {stop.signal} after step {self.state.step} of {total_steps}: {saved}. "
            "To go on, the same command with --resume."
        )
        self.world.barrier()  # torchrun ends the others when the first leaves

    def close(self) -> None:
        """Close what is open."""
        try:
            self.writer.join()
        finally:
            for tracker in self.trackers:
                tracker.close()

    def _flush(self) -> None:
        if self.trackers and is_gone(self.path / "config.yaml"):
            self.reporter.line(
                f"warning: {self.path} was deleted. Training goes on and writes it again, but not the checkpoints of before."
            )
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                write_whole(self.path / "config.yaml", dump_config(self.config).encode())
            except OSError as error:
                self.errors.failed("config.yaml", error, then="it is left out")
        for tracker in self.trackers:
            tracker.flush()
