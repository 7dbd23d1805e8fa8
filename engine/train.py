"""The training of a model, from a config to a finished run folder, whatever the job."""

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from backbones import Backbone, UserError
from engine.amp import autocast
from engine.build import build_optimizer, build_schedule, build_training_sampler, check_processes
from engine.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from engine.compilation import as_written
from engine.config import RunConfig
from engine.config_file import check_job, dump_config
from engine.data.dataset import sample_seed
from engine.data.loader import BatchLoader
from engine.data.prefetch import on_device
from engine.distributed import World, start_world
from engine.ema import average_model
from engine.evaluate import run_evaluation
from engine.files import make_folder
from engine.job import job_of
from engine.progress import Reporter, Speed, clock, peak_memory_gb
from engine.scores import Score
from engine.tracking import JsonlTracker, TensorBoardTracker, Tracker


def train(config: RunConfig, *, resume: str | None = None) -> list[Score]:
    """Train, evaluate, save and draw, all into `config.output_dir`, on this process and those torchrun started with it.

    Args:
        config: the run.
        resume: a checkpoint to go on from; "" for the run folder's last.pt, or the beginning where there is none.

    Returns:
        The last scores on the main process, an empty list on the others.

    Raises:
        UserError: something in the config, the data or the weights that the user can put right.
    """
    with start_world(config.device) as world:
        run = Run(config, world, resume=resume)
        try:
            return run.train()
        finally:
            run.close()


class Run:
    """A training run: everything it is made of, and the loop over it."""

    def __init__(self, config: RunConfig, world: World, *, resume: str | None) -> None:
        self.config = config
        self.job = job_of(config)
        self.world = world
        self.folder = Path(config.output_dir)
        self.reporter = Reporter(world)
        self.trackers: list[Tracker] = []
        check_processes(config, world)
        checkpoint = self._find_checkpoint(resume)

        torch.manual_seed(config.seed)  # what is initialised at random is the same in every process
        self.training_set, self.validation_set, self.model = self._build()
        self.categories = self.training_set.categories
        self.optimizer = build_optimizer(config, self.model)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=config.train.precision == "fp16")
        self.average: AveragedModel | None = None
        if config.train.ema is not None:
            self.average = average_model(self.model, decay=config.train.ema.decay)
        self.step = 0
        self.best = float("-inf")
        if checkpoint is not None:
            self._restore(checkpoint)
        self.sampler = build_training_sampler(config, self.training_set, world, start_step=self.step)
        self.learning_rate_factor = build_schedule(config, steps_per_epoch=self.sampler.steps_per_epoch)
        if config.train.compile:
            self.job.compile_model(self.model)
        self.parallel: nn.Module = self.model
        if world.size > 1:
            device_ids = [world.device.index] if world.device.type == "cuda" else None
            self.parallel = DistributedDataParallel(self.model, device_ids=device_ids, gradient_as_bucket_view=True)

    def train(self) -> list[Score]:
        """Run to the end of the last epoch; evaluate, save and draw on the way."""
        self._open_folder()
        self._describe()
        scores: list[Score] = []
        loader = BatchLoader(
            self.training_set, self.sampler, num_workers=self.config.data.num_workers, device=self.world.device
        )
        batches = on_device(loader, self.world.device)
        speed = Speed(batch_size=self.config.train.batch_size)
        self.parallel.train()
        with self.reporter.bar("training", self.sampler.total_steps) as show:
            while self.step < self.sampler.total_steps:
                speed.start()
                losses, image_ids = self._train_step(batches)
                speed.stop()
                self.step += 1
                show(self.step)
                if self.step == 1 or self.step % self.config.train.log_steps == 0:
                    self._log_step(losses, image_ids, speed)
                epoch, within = divmod(self.step, self.sampler.steps_per_epoch)
                if within == 0:
                    scores = self._end_epoch(epoch)
                elif self.config.train.checkpoint_steps and self.step % self.config.train.checkpoint_steps == 0:
                    self._save("last.pt")
        if not scores:
            self.reporter.line(f"{self.folder} was finished already, at step {self.step}.")
        return scores

    def close(self) -> None:
        """Close what the run has open."""
        for tracker in self.trackers:
            tracker.close()

    def _build(self) -> tuple[Any, Any, nn.Module]:
        config, world = self.config, self.world
        training_set = self.job.build_training_set(world)
        validation_set = self.job.build_validation_set(world)
        if training_set.categories != validation_set.categories:
            raise UserError(
                f"{training_set.path} and {validation_set.path} list different categories: "
                "a model trained on the one cannot be scored on the other."
            )
        if not world.is_main:
            world.barrier()  # the main process downloads the weights; the others find them in the cache
        model = self.job.build_model(training_set.categories, load_weights=True)
        if world.is_main:
            world.barrier()
        memory_format = torch.channels_last if config.train.channels_last else torch.contiguous_format
        return training_set, validation_set, model.to(world.device).to(memory_format=memory_format)

    def _train_step(self, batches: Any) -> tuple[dict[str, Tensor], list[int]]:
        """One optimizer step; gives the losses, averaged over its parts, and the ids of this process's images."""
        config, world = self.config, self.world
        # Whatever a layer draws (dropout, say) depends on the step alone, so that a resumed run draws the same.
        torch.manual_seed(sample_seed(config.seed, self.step, world.rank))
        factor = self.learning_rate_factor(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        totals: dict[str, Tensor] = {}
        image_ids: list[int] = []
        for part in range(config.train.accumulate):
            images, targets = next(batches)
            image_ids += [int(target["image_id"]) for target in targets]
            is_last = part == config.train.accumulate - 1
            if isinstance(self.parallel, DistributedDataParallel):
                self.parallel.require_backward_grad_sync = is_last  # gradients are exchanged once a step
            with autocast(world.device, config.train.precision):
                losses = self.job.losses(self.parallel, images, targets)
            loss = torch.stack(list(losses.values())).sum() / config.train.accumulate
            self.scaler.scale(loss).backward()
            for name, value in losses.items():
                totals[name] = totals.get(name, torch.zeros_like(value)) + value.detach() / config.train.accumulate
        self._check_finite(totals, image_ids)
        if config.train.clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), config.train.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.model)
        return totals, image_ids

    def _check_finite(self, losses: dict[str, Tensor], image_ids: list[int]) -> None:
        if all(math.isfinite(value) for value in torch.stack(list(losses.values())).tolist()):
            return
        named = ", ".join(f"{name} {float(value):.3g}" for name, value in losses.items())
        raise UserError(
            f"The loss is not finite at step {self.step + 1} ({named}), on images {image_ids}. Training has diverged: use a "
            f"lower optimizer.lr (now {self.config.optimizer.lr}), a longer schedule.warmup_steps, or train.clip_grad_norm=10. "
            f"The last checkpoint in {self.folder} is from before."
        )

    def _log_step(self, losses: dict[str, Tensor], image_ids: list[int], speed: Speed) -> None:
        """Print and record a step: losses averaged over the processes, the image ids of all of them."""
        values = {name: float(value) for name, value in losses.items()}
        gathered = self.world.gather((values, image_ids))
        if not self.world.is_main:
            return
        values = {name: sum(values[name] for values, _ in gathered) / len(gathered) for name in values}
        loss = sum(values.values())
        rate, left = speed.report(steps_left=self.sampler.total_steps - self.step)
        lr = self.optimizer.param_groups[0]["lr"]
        memory = peak_memory_gb(self.world.device)
        epoch = 1 + (self.step - 1) // self.sampler.steps_per_epoch
        parts = "  ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in values.items())
        self.reporter.line(
            f"epoch {epoch}/{self.config.train.epochs}  step {self.step}/{self.sampler.total_steps}  loss {loss:.3f} ({parts})"
            f"  lr {lr:.2e}  {rate:.1f} img/s  ETA {clock(left)}  {memory:.1f} GB"
        )
        record = {"epoch": epoch, "loss": loss, **values, "lr": lr, "images_per_second": rate, "memory_gb": memory}
        record["image_ids"] = [image_id for _, ids in gathered for image_id in ids]
        self._track("train", record)

    def _end_epoch(self, epoch: int) -> list[Score]:
        is_last = epoch == self.config.train.epochs
        scores: list[Score] = []
        if is_last or epoch % self.config.eval.every_epochs == 0:
            scores = self._evaluate(epoch, is_last=is_last)
        self._save("last.pt")
        return scores

    def _evaluate(self, epoch: int, *, is_last: bool) -> list[Score]:
        began = time.perf_counter()
        model = self.model if self.average is None else self.average.module
        self.world.share_buffers(model)
        with as_written(), self.reporter.bar("evaluating", len(self.validation_set)) as show:
            evaluation = run_evaluation(
                self.job,
                model,
                self.validation_set,
                world=self.world,
                on_image=lambda done, total: show(done * len(self.validation_set) / total),
            )
        scores: list[Score] = []
        if evaluation is not None:
            scores = evaluation.score(self.folder / "eval")
            seconds = time.perf_counter() - began
            self.reporter.line(f"epoch {epoch} on {len(self.validation_set)} validation images, in {clock(seconds)}:")
            self.reporter.scores(scores)
            self.reporter.losses(evaluation.losses)
            record: dict[str, Any] = {"epoch": epoch, "seconds": round(seconds, 1)}
            record |= {score.kind: {**score.stats, "per_class": score.per_class} for score in scores}
            if evaluation.losses:
                record["losses"] = dict(evaluation.losses)
            self._track("eval", record)
            if scores[-1].value > self.best:
                self.best = scores[-1].value
                self._save("best.pt", for_resume=False)
            if is_last:
                self.reporter.per_class(scores)
                drawn = evaluation.draw(self.folder / "predictions")
                self.reporter.line(
                    f"{len(drawn)} pictures in {self.folder / 'predictions'}, weights in {self.folder / 'best.pt'}"
                )
        self.world.barrier()
        return scores

    def _save(self, name: str, *, for_resume: bool = True) -> None:
        if not self.world.is_main:
            return
        weights = self.model if self.average is None else self.average.module
        training = None
        if for_resume:
            training = {
                "step": self.step,
                "best": self.best,
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "model": self.model.state_dict() if self.average is not None else None,
                "num_averaged": self.average.n_averaged if self.average is not None else None,
            }
        save_checkpoint(
            self.folder / name,
            model=weights.state_dict(),
            config=self.config,
            categories=self.categories,
            training=training,
        )

    def _find_checkpoint(self, resume: str | None) -> Checkpoint | None:
        last = self.folder / "last.pt"
        goes_on_here = resume is not None and (resume == "" or Path(resume).resolve().parent == self.folder.resolve())
        if resume and not Path(resume).is_file():
            # argparse takes the word after --resume for its PATH, also where it is an override.
            hint = " To resume from last.pt with this override, put it before --resume." if "=" in resume else ""
            raise UserError(f"There is no checkpoint at {resume}.{hint}")
        if last.exists() and not goes_on_here:
            raise UserError(f"{self.folder} holds a run already. Go on with it: --resume. Or start another: output_dir=FOLDER.")
        if resume is None:
            return None
        if resume == "" and not last.exists():
            self.reporter.line(f"There is no checkpoint in {self.folder} yet: starting from the beginning.")
            return None
        return load_checkpoint(resume or last)

    def _restore(self, checkpoint: Checkpoint) -> None:
        if checkpoint.training is None:
            raise UserError(f"{checkpoint.path} has weights alone; only last.pt can be resumed from.")
        self._check_same_run(checkpoint)
        checkpoint.check_categories(self.training_set)
        training = checkpoint.training
        self.model.load_state_dict(training["model"] or checkpoint.model)
        if self.average is not None:
            self.average.module.load_state_dict(checkpoint.model)
            self.average.n_averaged.copy_(training["num_averaged"])
        self.optimizer.load_state_dict(training["optimizer"])
        self.scaler.load_state_dict(training["scaler"])
        self.step, self.best = training["step"], training["best"]

    def _check_same_run(self, checkpoint: Checkpoint) -> None:
        """A run may go on for more epochs, elsewhere, or log and evaluate otherwise; what it learns from must be the same."""
        check_job(checkpoint.job, self.config.job, where=str(checkpoint.path))
        own = self.config.model_dump()
        for section in ("model", "data", "train", "optimizer", "seed"):
            before, now = checkpoint.config[section], own[section]
            if not isinstance(now, dict):
                before, now = {section: before}, {section: now}
            for key in now:
                if key in ("epochs", "num_workers", "log_steps", "checkpoint_steps", "val", "accumulate", "compile"):
                    continue
                if before.get(key) != now[key]:
                    name = section if key == section else f"{section}.{key}"
                    raise UserError(
                        f"{checkpoint.path} was trained with {name}={before.get(key)}, the config now says {now[key]}. "
                        "Resume with the same, or start another run: output_dir=FOLDER."
                    )

    def _open_folder(self) -> None:
        if not self.world.is_main:
            return
        make_folder(self.folder)
        (self.folder / "config.yaml").write_text(dump_config(self.config), encoding="utf-8")
        self.trackers = [
            JsonlTracker(self.folder / "metrics.jsonl", start_step=self.step),
            TensorBoardTracker(self.folder / "tensorboard", start_step=self.step),
        ]

    def _describe(self) -> None:
        config, line = self.config, self.reporter.line
        first, *more = self.job.describe(self.training_set, self.validation_set)
        processes = f"{self.world.size} processes" if self.world.size > 1 else "1 process"
        line(f"{first}, {processes}, {self.world.device.type}, in {self.folder}")
        for text in more:
            line(text)
        backbone = self.model.backbone
        assert isinstance(backbone, Backbone)
        for text in backbone.describe_stages():
            line(f"  {text}")
        trainable_layers = config.model.backbone.trainable_layers
        all_layers = len(backbone.stages())
        if config.model.backbone.weights is None and trainable_layers is not None and trainable_layers < all_layers:
            line("  frozen at random: there are no weights. Set model.backbone.weights, or leave out trainable_layers")
        for text in backbone.weights_report.lines() if backbone.weights_report is not None else ():
            line(text)
        if self.step:
            line(f"resumed at step {self.step} of {self.sampler.total_steps}")

    def _track(self, kind: str, values: dict[str, Any]) -> None:
        for tracker in self.trackers:
            tracker.log(kind, self.step, values)
