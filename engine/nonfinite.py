"""A loss or a gradient that is not finite: the step is not taken, on any process, and what led to it is kept."""

import json
import math
import platform
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from backbones.errors import UserError
from engine.checkpoint import save_checkpoint
from engine.config import RunConfig
from engine.data.dataset import sample_seed
from engine.data.prefetch import to_device
from engine.distributed import World
from engine.draw import save_picture
from engine.files import picture_names
from engine.job import Job, SampleSet
from engine.replay import Circumstances, Part, at_fault_alone, nonfinite_parameters, save_parts, total_loss, watched_step
from engine.resume import TrainingState
from engine.saving import LAST

KEPT = 5  # reports of each process: a run that skips could fill the disk
_NAMED = 16  # images that a message names, at most
_LEAST_SCALE = 1.0  # of fp16: a gradient that overflows at this scale overflows by itself


class StepGuard:
    """Goes with a step from its first loss to its gradients, and says whether the optimizer may take them.

    All processes decide alike without asking each other: a loss that is not finite makes all its gradients so, the exchange of
    the gradients carries that to every process, and each looks at the norm of what it got. Only where that is not finite do
    they talk. One number is read from the device a step, as the losses alone would need.

    Args:
        config, job, world, state: the run's.
        dataset: the training set, for names and pictures.
    """

    def __init__(self, config: RunConfig, *, job: Job[Any], world: World, state: TrainingState, dataset: SampleSet) -> None:
        self.config = config
        self.job = job
        self.world = world
        self.state = state
        self.dataset = dataset
        self.folder = Path(config.output_dir) / "nonfinite"
        self.norm = torch.zeros(())  # of the gradients, once `is_sound` was asked
        self.said = ""  # of the last step that was left out
        self.images: list[int] = []  # its images, on the processes at fault
        self._buffers = _Buffers(state.model)
        self._parts: list[Part] = []
        self._losses: list[dict[str, Tensor]] = []

    def begin(self) -> None:
        """A step begins."""
        self._buffers.keep()
        self._parts, self._losses = [], []

    def backward(self, losses: dict[str, Tensor], part: Part) -> None:
        """The backward pass of a part of the step, whose losses these are."""
        self._parts.append(part)
        self._losses.append({name: value.detach() for name, value in losses.items()})
        loss = total_loss(losses, parts=self.config.train.accumulate)
        scaled = self.state.scaler.scale(loss)
        # A term that is not finite may have a finite gradient, or none: no other process would know of it.
        scaled.backward(torch.where(loss.detach().isfinite(), 1.0, math.nan).to(scaled.dtype))

    def mean_losses(self) -> dict[str, Tensor]:
        """The losses, averaged over the step's parts."""
        return {name: sum(losses[name] for losses in self._losses) / len(self._losses) for name in self._losses[0]}  # type: ignore[misc]

    def is_sound(self) -> bool:
        """Whether the optimizer may take the step; the gradients are unscaled. False, alike on all processes, leaves it out.

        Raises:
            UserError: it may not, and the config says to stop there, or too many in a row had to be left out.
        """
        scaler = self.state.scaler
        scaler.unscale_(self.state.optimizer)
        gradients = [parameter.grad for parameter in self.state.model.parameters() if parameter.grad is not None]
        self.norm = get_total_norm(gradients)
        terms = [value.float() for losses in self._losses for value in losses.values()]
        norm, *values = torch.stack([self.norm.float(), *terms]).tolist()
        if math.isfinite(norm):
            self.state.skipped_in_a_row = 0
            self._parts = []  # its memory is the next batch's
            return True
        own = {
            "finite": all(math.isfinite(value) for value in values),
            "losses": {name: float(value) for name, value in self.mean_losses().items()},
            "images": [int(target["image_id"]) for _, targets in self._parts for target in targets],
        }
        everyone = self.world.broadcast(self.world.gather(own))
        at_fault = [rank for rank, one in enumerate(everyone) if not one["finite"]]
        if not at_fault and scaler.is_enabled() and scaler.get_scale() > _LEAST_SCALE:
            return True  # fp16 overflowed, as it does now and then: the scaler leaves the step out and scales less
        self._leave_out(everyone, at_fault, norm)
        return False

    def _leave_out(self, everyone: list[dict[str, Any]], at_fault: list[int], norm: float) -> None:
        state, train = self.state, self.config.train
        in_a_row = state.skipped_in_a_row + 1
        report = None
        reporting = at_fault or list(range(self.world.size))
        parameters = nonfinite_parameters(state.model)
        self._buffers.restore()
        if self.world.rank in reporting:
            report = self._report(norm, parameters)
        reports = self.world.broadcast(self.world.gather(report))
        self._buffers.restore()
        state.optimizer.zero_grad(set_to_none=True)
        if state.scaler.is_enabled():
            state.scaler.update(new_scale=state.scaler.get_scale())  # it forgets the step, and keeps its scale
        what = self._describe(everyone, reports, reporting, norm, parameters)
        report = reports[reporting[0]]
        assert report is not None, "who is at fault reports"
        if train.on_nonfinite == "stop" or in_a_row >= train.max_skipped:
            lines = [what, *self._advice(report), *self._where(report)]
            if in_a_row > 1:
                lines.append(f"It is the {_ordinal(in_a_row)} step in a row to be left out.")
            raise UserError("\n  ".join(lines))
        state.skipped, state.skipped_in_a_row = state.skipped + 1, in_a_row
        self.images = [image for rank in reporting for image in everyone[rank]["images"]]
        left_out = f"The step is left out, the {_ordinal(state.skipped)} of this run."
        self.said = "\n  ".join([f"{what} {left_out}", *self._where(report)])

    def _describe(
        self,
        everyone: list[dict[str, Any]],
        reports: list[dict[str, Any] | None],
        reporting: list[int],
        norm: float,
        parameters: list[str],
    ) -> str:
        first = reporting[0]
        own, report = everyone[first], reports[first]
        assert report is not None, "who is at fault reports"
        named = ", ".join(f"{name} {value:.3g}" for name, value in own["losses"].items())
        if own["finite"]:
            images = [image for one in everyone for image in one["images"]]
            what = (
                f"The gradient is not finite at step {self.state.step + 1} (norm {norm:.3g}, {parameters[0]} for one; {named})"
            )
        else:
            images = own["images"]
            what = f"The loss is not finite at step {self.state.step + 1} ({named})"
        where = f" in process {first}" if self.world.size > 1 and not own["finite"] else ""
        more = f" (processes {reporting[1:]} had such images, too)" if reporting[1:] and not own["finite"] else ""
        alone = report["alone"]
        suspects = f", of which {_ids(alone)} lead to it alone" if alone and not _is_most(report) else ""
        return f"{what}{where}, on images {_ids(images)}{suspects}{more}."

    def _advice(self, report: dict[str, Any]) -> list[str]:
        """What to do about it: from the images that lead to it alone it is known whose fault it may be."""
        lower = (
            f"a lower optimizer.lr (now {self.config.optimizer.lr:g}), a longer schedule.warmup_steps, "
            "or train.clip_grad_norm=10"
        )
        leaves_out = self.config.train.on_nonfinite == "skip"
        images = "put them right" if leaves_out else "train.on_nonfinite=skip leaves such steps out"
        if _is_most(report):
            count = f"{len(report['alone'])} of {report['images']} images lead"
            advice = f"{count} to it alone, so it is the weights that have diverged: use {lower}."
        else:
            advice = f"Training has diverged: use {lower}. Or an image or its annotations are at fault: {images}."
        saved = f"The last checkpoint in {self.config.output_dir} is from before."
        return [advice, saved if report["is_saved"] else "No checkpoint had been saved yet."]

    def _where(self, report: dict[str, Any]) -> list[str]:
        """Where the report is, and what went wrong with it."""
        lines = []
        if report["path"]:
            lines.append(f"To run it again, with all that it was given: python tools/replay.py {shlex.quote(report['path'])}")
        return lines + ([f"({report['error']})"] if report["error"] else [])

    # ---- The report ----

    def _report(self, norm: float, parameters: Sequence[str]) -> dict[str, Any]:
        """Write this process's report; gives its path, the images that are at fault alone, and what went wrong with it.

        Whatever goes wrong here must not hide why it is written.
        """
        step, rank = self.state.step, self.world.rank
        circumstances = Circumstances(
            sample_seed(self.config.seed, step, rank), self.config.train.precision, self.state.scaler.get_scale()
        )
        path = self.folder / f"step_{step + 1:06}_rank{rank}"
        part = path.with_name(f".{path.name}.partial")
        content = self._content(norm, parameters, circumstances)
        summary: dict[str, Any] = {"path": "", "alone": [], "error": "", "images": len(content["images"])}
        summary["is_saved"] = (self.folder.parent / LAST).is_file()
        try:
            notes = content["notes"]
            if self.world.size > 1 and any(isinstance(module, nn.SyncBatchNorm) for module in self.state.model.modules()):
                notes.append("Batch norms took the statistics of all processes' images, which are not here: losses may differ.")
            else:
                trace = watched_step(self.job, self.state.model, self._parts, circumstances)
                summary["alone"] = at_fault_alone(self.job, self.state.model, self._parts, circumstances)
                self._buffers.restore()
                content |= {"first_output": trace.output, "first_gradient": trace.gradient, "alone": summary["alone"]}
                if trace.is_finite:
                    notes.append("What is not finite came from another process, or does not come twice: this batch is finite.")
            if len([*self.folder.glob(f"step_*_rank{rank}")]) >= KEPT and self.config.train.on_nonfinite == "skip":
                return summary
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            save_parts(self._parts, part / "batch.pt")
            categories, model = self.dataset.categories, self.state.model.state_dict()
            save_checkpoint(part / "state.pt", model=model, config=self.config, categories=categories)
            notes += self._draw(part / "pictures")
            (part / "report.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
            shutil.rmtree(path, ignore_errors=True)  # of a run that came to this step before
            part.replace(path)
            summary["path"] = str(path)
        except Exception as error:
            summary["error"] = f"The report of this step could not be written: {type(error).__name__}: {error}"
            shutil.rmtree(part, ignore_errors=True)
        return summary

    def _content(self, norm: float, parameters: Sequence[str], circumstances: Circumstances) -> dict[str, Any]:
        return {
            "step": self.state.step + 1,
            "rank": self.world.rank,
            "processes": self.world.size,
            "job": self.config.job,
            "images": [
                {"id": int(target["image_id"]), "file": self._name(target), "part": number}
                for number, (_, targets) in enumerate(self._parts, start=1)
                for target in targets
            ],
            "losses": [{name: _number(float(value)) for name, value in losses.items()} for losses in self._losses],
            "gradient_norm": _number(norm),
            "parameters": list(parameters[:20]),
            "num_parameters": len(parameters),
            "first_output": None,
            "first_gradient": None,
            "alone": [],
            "learning_rate": self.state.optimizer.param_groups[0]["lr"],
            "precision": circumstances.precision,
            "loss_scale": circumstances.loss_scale,
            "channels_last": self.config.train.channels_last,
            "seed": self.config.seed,
            "step_seed": circumstances.seed,
            "device": self.world.device.type,
            "versions": {
                "python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__,
            },
            "notes": [],
        }  # fmt: skip

    def _name(self, target: dict[str, Any]) -> str:
        return self.dataset.name_of(target["index"]) if "index" in target else ""

    def _draw(self, folder: Path) -> list[str]:
        """A picture of each image with its targets; gives what could not be drawn."""
        cpu = torch.device("cpu")
        samples = [pair for part in self._parts for pair in zip(*to_device(part, cpu), strict=True)]
        names = picture_names([self._name(target) or str(int(target["image_id"])) for _, target in samples])
        notes = []
        for name, (image, target) in zip(names, samples, strict=True):
            try:
                save_picture(self.job.draw_sample(self.dataset, image, target), folder / f"{name}.png")
            except (ValueError, TypeError, RuntimeError, IndexError, OverflowError) as error:
                notes.append(f"No picture of {name}: {error}")
        return notes


class _Buffers:
    """A model's buffers as they were before a step: batch statistics change with the forward pass."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._kept: list[Tensor] = []

    def keep(self) -> None:
        buffers = list(self._model.buffers())
        if len(buffers) != len(self._kept) or any(a.shape != b.shape for a, b in zip(buffers, self._kept, strict=True)):
            self._kept = [buffer.clone() for buffer in buffers]
        elif buffers:
            torch._foreach_copy_(self._kept, buffers)

    def restore(self) -> None:
        for buffer, kept in zip(self._model.buffers(), self._kept, strict=True):
            buffer.copy_(kept)


def _is_most(report: dict[str, Any]) -> bool:
    """Whether more than half of the images, each by itself, lead to what is not finite: then it is no image's fault."""
    return bool(2 * len(report["alone"]) > report["images"])


def _ids(images: Sequence[int]) -> str:
    """The first of a batch's images: the report has all."""
    named, more = list(images[:_NAMED]), len(images) - _NAMED
    return f"{named} and {more} more" if more > 0 else str(named)


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else repr(value)  # JSON has no word for it
