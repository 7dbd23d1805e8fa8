"""Batches of samples, loaded by worker processes, whose errors arrive here as they were raised."""

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from backbones.errors import UserError
from engine.data.dataset import Sample
from engine.data.sampler import GlobalBatchSampler, ShardSampler
from engine.job import SampleSet

Batch = tuple[list[Tensor], list[dict[str, Any]]]


class BatchLoader:
    """Iterates over (images, targets), two lists, in the sampler's order.

    Args:
        dataset: what to load from.
        sampler: the keys of each batch.
        num_workers: loader processes, at most one a core; the batches do not depend on it.
        device: where the batches go next; for a GPU they are pinned.

    Raises, while iterating:
        UserError: a sample cannot be read, also where a worker process finds it.
    """

    def __init__(
        self,
        dataset: SampleSet,
        sampler: GlobalBatchSampler | ShardSampler,
        *,
        num_workers: int,
        device: torch.device,
    ) -> None:
        self._loader = DataLoader(
            _ErrorsAsSamples(dataset),
            batch_sampler=sampler,
            num_workers=min(num_workers, available_cores()),
            collate_fn=_collate,
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
            yield batch


def available_cores() -> int:
    """Cores this process may use: fewer than the machine has in a container or a batch job."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _ErrorsAsSamples(Dataset["Sample | UserError"]):
    """Gives a user's error in place of the sample: raised in a worker, it would arrive with a traceback as its text."""

    def __init__(self, dataset: SampleSet) -> None:
        self.dataset = dataset

    def __getitem__(self, key: int | tuple[int, int]) -> "Sample | UserError":
        try:
            return self.dataset[key]
        except UserError as error:
            return error


def _collate(samples: "list[Sample | UserError]") -> Batch | UserError:
    # Images of a batch differ in size until the model pads them, so they stay a list.
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)
