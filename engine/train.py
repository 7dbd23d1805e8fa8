"""The training of a model, from a config to a finished run folder, whatever the job."""

import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from backbones import Backbone, UserError
from engine.amp import autocast
from engine.build import build_optimizer, build_schedule, build_training_sampler, check_processes
from engine.checkpoint import first_difference
from engine.compilation import as_written
from engine.config import RunConfig
from engine.data.dataset import sample_seed
from engine.data.loader import BatchLoader
from engine.data.prefetch import on_device
from engine.data.replacement import Replaced
from engine.distributed import World, start_world
from engine.durations import clock
from engine.ema import average_model
from engine.evaluate import run_evaluation
from engine.job import job_of
from engine.lateness import COMPUTES, LOADS, StepWatch
from engine.nonfinite import StepGuard
from engine.parallel import parallelize, synchronize_batch_norms
from engine.preemption import Preempted, StopSignals
from engine.progress import Reporter, Speed, peak_memory_gb
from engine.resume import TrainingState, check_same_images, check_same_run, find_checkpoint
from engine.run_folder import RunFolder
from engine.saving import BEST, LAST
from engine.scores import Score
from engine.seeding import seed_everything
from engine.unused import parameters_without_gradient


def train(config: RunConfig, *, resume: str | None = None) -> list[Score]:
    """Train, evaluate, save and draw, all into `config.output_dir`, on this process and those torchrun started with it.

    Args:
        config: the run.
        resume: a checkpoint to go on from; "" for the newest good one in the run folder, or the beginning where there is none.

    Returns:
        The last scores on the main process, an empty list on the others.

    Raises:
        UserError: something in the config, the data or the weights that the user can put right, or files that could not be
            written, at the end.
        Preempted: a signal (SIGTERM, SIGINT, SIGUSR1) told it to stop, and it has saved.
    """
    waits = config.distributed
    with start_world(config.device, step_minutes=waits.step_minutes, wait_minutes=waits.wait_minutes) as world:
        run = Run(config, world, resume=resume)
        try:
            with run.signals:
                return run.train()
        finally:
            run.close()


class Run:
    """A training run: everything it is made of, and the loop over it."""

    def __init__(self, config: RunConfig, world: World, *, resume: str | None) -> None:
        self.config = config
        self.job = job_of(config)
        self.world = world
        self.reporter = Reporter(world)
        self.signals = StopSignals(world)
        check_processes(config, world)
        checkpoint = find_checkpoint(Path(config.output_dir), resume, world=world, reporter=self.reporter)

        # The checkpoint that the user has named, where that is the one.
        self.start = checkpoint.path if checkpoint is not None and resume and checkpoint.path == Path(resume) else None

        seed_everything(config.seed)  # what is initialised at random is the same in every process
        self.training_set, self.validation_set, self.model = self._build()
        ema = config.train.ema
        self.state = TrainingState(
            model=self.model,
            average=average_model(self.model, decay=ema.decay) if ema is not None else None,
            optimizer=build_optimizer(config, self.model),
            scaler=torch.amp.GradScaler(world.device.type, enabled=config.train.precision == "fp16"),
        )
        self.resumed: list[str] = []
        if checkpoint is not None:
            self.resumed = check_same_run(checkpoint, config, processes=world.size)
            checkpoint.check_categories(self.training_set)
            check_same_images(checkpoint, self.training_set)
            assert checkpoint.training is not None, "or find_checkpoint had refused it"
            self.state.restore(checkpoint.model, checkpoint.training)
            self.resumed.insert(0, f"resumed from {checkpoint.path}")
        categories = self.training_set.categories
        self.folder = RunFolder(
            config,
            world=world,
            reporter=self.reporter,
            state=self.state,
            categories=categories,
            num_images=len(self.training_set),
        )
        self.sampler = build_training_sampler(config, self.training_set, world, start_step=self.state.step)
        self.loader = BatchLoader(
            self.training_set,
            self.sampler,
            num_workers=config.data.num_workers,
            device=world.device,
            replace=config.data.on_fault == "skip",
        )
        self.replaced = Replaced()
        self.learning_rate_factor = build_schedule(config, steps_per_epoch=self.sampler.steps_per_epoch)
        if config.train.compile:
            self.job.compile_model(self.model)
        self.unused = parameters_without_gradient(config, self.job, self.model, self.training_set, world)
        self.parallel = parallelize(self.model, config.distributed, world, some_are_unused=bool(self.unused))
        self.watch = StepWatch(world, step_minutes=config.distributed.step_minutes)
        self.guard = StepGuard(config, job=self.job, world=world, state=self.state, dataset=self.training_set)

    def train(self) -> list[Score]:
        """Run to the end of the last epoch; evaluate, save and draw on the way.

        Raises:
            Preempted: it was told to stop, and has saved.
        """
        self.folder.open(start=self.start)
        self._describe()
        try:
            return self._train()
        except Preempted as stop:
            self.folder.leave(stop, total_steps=self.sampler.total_steps)
            raise

    def _train(self) -> list[Score]:
        scores: list[Score] = []
        if self.state.evaluation_due:  # it was killed meanwhile
            scores = self._evaluate(self.state.step // self.sampler.steps_per_epoch)
        speed = Speed(batch_size=self.config.train.batch_size)
        self.parallel.train()
        batches = on_device(self.loader, self.world.device)
        with closing(batches), self.reporter.bar("training", self.sampler.total_steps) as show:
            while self.state.step < self.sampler.total_steps:
                self.signals.check_step(self.state.step)
                speed.start()
                losses, image_ids = self._train_step(batches)
                speed.stop()
                self.state.step += 1
                show(self.state.step)
                if losses is None:
                    self.reporter.line(self.guard.said)
                    self.folder.track("nonfinite", {"skipped": self.state.skipped, "image_ids": self.guard.images})
                elif self.state.step == 1 or self.state.step % self.config.train.log_steps == 0:
                    self._log_step(losses, image_ids, speed)
                epoch, within = divmod(self.state.step, self.sampler.steps_per_epoch)
                if within == 0:
                    scores = self._end_epoch(epoch)
                elif self.config.train.checkpoint_steps and self.state.step % self.config.train.checkpoint_steps == 0:
                    self.folder.save(LAST)
        self._take_replaced(self.world.gather(self.loader.take_replaced()), at_the_end=True)
        if not scores:
            self.reporter.line(f"{self.folder.path} was finished already, at step {self.state.step}.")
        self.folder.finish()
        return scores

    def close(self) -> None:
        """Close what the run has open."""
        self.watch.close()
        self.folder.close()

    def _build(self) -> tuple[Any, Any, nn.Module]:
        config, world = self.config, self.world
        training_set = self.job.build_training_set(world)
        validation_set = self.job.build_validation_set(world)
        if training_set.categories != validation_set.categories:
            difference = first_difference(training_set.categories, validation_set.categories)
            raise UserError(
                f"{training_set.path} and {validation_set.path} list different categories: {difference}. "
                "A model trained on the one cannot be scored on the other."
            )
        if not world.is_main:
            world.barrier()  # the main process downloads the weights; the others find them in the cache
        model = self.job.build_model(training_set.categories, load_weights=True)
        if world.is_main:
            world.barrier()
        model = synchronize_batch_norms(model, config.distributed, world)
        memory_format = torch.channels_last if config.train.channels_last else torch.contiguous_format
        return training_set, validation_set, model.to(world.device).to(memory_format=memory_format)

    def _train_step(self, batches: Any) -> tuple[dict[str, Tensor] | None, list[int]]:
        """One optimizer step; gives the losses, averaged over its parts, and the ids of this process's images.

        There are no losses where the step is left out, on all processes, for they or the gradients are not finite.
        """
        config, world = self.config, self.world
        # Whatever a layer draws (dropout, say) depends on the step alone, so that a resumed run draws the same.
        seed_everything(sample_seed(config.seed, self.state.step, world.rank))
        factor = self.learning_rate_factor(self.state.step)
        for group in self.state.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        image_ids: list[int] = []
        self.guard.begin()
        for part in range(config.train.accumulate):
            self.watch.at(self.state.step + 1, LOADS)
            images, targets = next(batches)
            self.watch.at(self.state.step + 1, COMPUTES)
            image_ids += [int(target["image_id"]) for target in targets]
            is_last = part == config.train.accumulate - 1
            if isinstance(self.parallel, DistributedDataParallel):
                self.parallel.require_backward_grad_sync = is_last  # gradients are exchanged once a step
            with autocast(world.device, config.train.precision):
                losses = self.job.losses(self.parallel, images, targets)
            self.guard.backward(losses, (images, targets))
        if not self.guard.is_sound():
            return None, image_ids
        if config.train.clip_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), config.train.clip_grad_norm, self.guard.norm)
        self.state.scaler.step(self.state.optimizer)
        self.state.scaler.update()
        self.state.optimizer.zero_grad(set_to_none=True)
        if self.state.average is not None:
            self.state.average.update_parameters(self.model)
        return self.guard.mean_losses(), image_ids

    def _log_step(self, losses: dict[str, Tensor], image_ids: list[int], speed: Speed) -> None:
        """Print and record a step: losses averaged over the processes, the image ids of all of them."""
        values = {name: float(value) for name, value in losses.items()}
        gathered = self.world.gather((values, image_ids, self.loader.take_replaced()))
        if not self.world.is_main:
            return
        self._take_replaced([replaced for _, _, replaced in gathered])
        values = {name: sum(values[name] for values, _, _ in gathered) / len(gathered) for name in values}
        loss = sum(values.values())
        rate, left = speed.report(steps_left=self.sampler.total_steps - self.state.step)
        lr = self.state.optimizer.param_groups[0]["lr"]
        memory = peak_memory_gb(self.world.device)
        epoch = 1 + (self.state.step - 1) // self.sampler.steps_per_epoch
        parts = "  ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in values.items())
        self.reporter.line(
            f"epoch {epoch}/{self.config.train.epochs}  step {self.state.step}/{self.sampler.total_steps}"
            f"  loss {loss:.3f} ({parts})  lr {lr:.2e}  {rate:.1f} img/s  ETA {clock(left)}  {memory:.1f} GB"
        )
        record = {"epoch": epoch, "loss": loss, **values, "lr": lr, "images_per_second": rate, "memory_gb": memory}
        record["image_ids"] = [image_id for _, ids, _ in gathered for image_id in ids]
        self.folder.track("train", record)

    def _take_replaced(self, parts: list[Replaced], *, at_the_end: bool = False) -> None:
        """Name each file once that could not be read, whose images were replaced; in the end, say how often that was."""
        for reason in self.replaced.merge(parts):
            self.reporter.line(f"replaced in training by another image: {reason}")
        if at_the_end and self.replaced.samples:
            count, reasons = self.replaced.samples, self.replaced.reasons
            self.reporter.line(
                f"training samples that were replaced by others: {count}; faults, each named above: {len(reasons)}"
            )
            self.folder.track("replaced", {"samples": count, "reasons": reasons})

    def _end_epoch(self, epoch: int) -> list[Score]:
        self.watch.pause()
        if epoch == self.config.train.epochs or epoch % self.config.eval.every_epochs == 0:
            self.state.evaluation_due = True
            self.folder.save(LAST)
            return self._evaluate(epoch)
        self.folder.save(LAST, *self.folder.kept(epoch))
        return []

    def _evaluate(self, epoch: int) -> list[Score]:
        """Score the epoch that has ended; what follows from it is in the checkpoints when it is no longer due."""
        began = time.perf_counter()
        is_last = epoch == self.config.train.epochs
        model = self.state.weights
        self.world.share_buffers(model)
        with as_written(), self.reporter.bar("evaluating", len(self.validation_set)) as show:
            evaluation = run_evaluation(
                self.job,
                model,
                self.validation_set,
                world=self.world,
                on_image=lambda done, total: show(done * len(self.validation_set) / total),
                signals=self.signals,
            )
        scores: list[Score] = []
        names = [LAST, *self.folder.kept(epoch)]
        if evaluation is not None:
            scores = self.folder.score(evaluation)
            seconds = time.perf_counter() - began
            self.reporter.line(f"epoch {epoch} on {len(self.validation_set)} validation images, in {clock(seconds)}:")
            self.reporter.scores(scores)
            self.reporter.losses(evaluation.losses)
            record: dict[str, Any] = {"epoch": epoch, "seconds": round(seconds, 1)}
            record |= {score.kind: {**score.stats, "per_class": score.per_class} for score in scores}
            if evaluation.losses:
                record["losses"] = dict(evaluation.losses)
            self.folder.track("eval", record)
            if scores[-1].value > self.state.best:
                self.state.best = scores[-1].value
                names.insert(0, BEST)
            if is_last:
                self.reporter.per_class(scores)
                self.folder.draw(evaluation)
        self.state.evaluation_due = False
        self.folder.save(*names)
        self.world.barrier()
        return scores

    def _describe(self) -> None:
        config, line = self.config, self.reporter.line
        first, *more = self.job.describe(self.training_set, self.validation_set)
        processes = f"{self.world.size} processes" if self.world.size > 1 else "1 process"
        line(f"{first}, {processes}, {self.world.device.type}, in {self.folder.path}")
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
        if self.world.device.type == "cuda":
            line(
                "on a GPU a run is not the same to the last bit when it is repeated: the gradients of RoIAlign and of indexing "
                "are added up in any order, and cuDNN may choose other kernels"
            )
        for text in self.resumed:
            line(text)
        if self.unused:
            others = f" and {len(self.unused) - 3} more" if len(self.unused) > 3 else ""
            line(f"no gradient reaches {', '.join(self.unused[:3])}{others}: each step is searched for such, which takes time")
        step, total = self.state.step, self.sampler.total_steps
        if step > total:
            line(f"nothing is left to train: it is at step {step}, and train.epochs asks for {total}")
        elif step:
            line(f"resumed at step {step} of {total}")
