"""Batches of samples, loaded by worker processes, whose errors arrive here as they were raised."""

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from backbones.errors import UserError
from engine.data.dataset import Sample
from engine.data.replacement import Replaced, Replacing
from engine.data.sampler import GlobalBatchSampler, Key, ShardSampler
from engine.job import SampleSet
from engine.preemption import leave_signals_to_parent

Batch = tuple[list[Tensor], list[dict[str, Any]]]
_Loaded = tuple[Sample, list[str]] | UserError  # a sample, and the reasons it stands in for another


class BatchLoader:
    """Iterates over (images, targets), two lists, in the sampler's order. A target's `index` says which sample it is.

    Args:
        dataset: what to load from.
        sampler: the keys of each batch.
        num_workers: loader processes, at most one a core; the batches do not depend on it.
        device: where the batches go next; for a GPU they are pinned.
        replace: whether a training sample that cannot be read is replaced by another of its group; see `Replacing`.

    Raises, while iterating:
        UserError: a sample cannot be read, also where a worker process finds it, nor what was to stand in for it.
    """

    def __init__(
        self,
        dataset: SampleSet,
        sampler: GlobalBatchSampler | ShardSampler,
        *,
        num_workers: int,
        device: torch.device,
        replace: bool = False,
    ) -> None:
        replacing = None
        if replace:
            assert isinstance(sampler, GlobalBatchSampler), "a score on other images would be another score"
            replacing = Replacing(dataset, seed=sampler.seed, groups=sampler.groups)
        self._replaced = Replaced()
        self._loader = DataLoader(
            _ErrorsAsSamples(dataset, replacing),
            batch_sampler=sampler,
            num_workers=min(num_workers, available_cores()),
            collate_fn=_collate,
            worker_init_fn=leave_signals_to_parent,
            pin_memory=device.type == "cuda",
            # Nothing in a sample is drawn from this: it only keeps the loader off the global generator, which training uses.
            generator=torch.Generator().manual_seed(0),
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            if isinstance(batch, UserError):
                raise batch
            images, targets, replaced = batch
            for reasons in replaced:
                self._replaced.add(reasons)
            yield images, targets

    def take_replaced(self) -> Replaced:
        """What was replaced since this was last asked."""
        replaced, self._replaced = self._replaced, Replaced()
        return replaced


def available_cores() -> int:
    """Cores this process may use: fewer than the machine has in a container or a batch job."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _ErrorsAsSamples(Dataset[_Loaded]):
    """Gives a user's error in place of the sample: raised in a worker, it would arrive with a traceback as its text."""

    def __init__(self, dataset: SampleSet, replacing: Replacing | None) -> None:
        self.dataset = dataset
        self.replacing = replacing

    def __getitem__(self, key: int | Key) -> _Loaded:
        try:
            if self.replacing is not None:
                assert isinstance(key, tuple), "training samples are asked for by their epoch, too"
                return self.replacing[key]
            image, target = self.dataset[key]  # type: ignore[index]  # a set that repeats images takes longer keys
        except UserError as error:
            return error
        target["index"] = key[1] if isinstance(key, tuple) else key
        return (image, target), []


def _collate(samples: list[_Loaded]) -> tuple[list[Tensor], list[dict[str, Any]], list[list[str]]] | UserError:
    # Images of a batch differ in size until the model pads them, so they stay a list.
    loaded = []
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
        loaded.append(sample)
    images, targets = zip(*(sample for sample, _ in loaded), strict=True)
    return list(images), list(targets), [reasons for _, reasons in loaded if reasons]
