"""What stands in for a training sample that cannot be read: another one, the same on any number of processes and workers."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Dataset

from backbones.errors import UserError
from engine.data.mixing import PartnerError
from engine.data.sampler import Key

if TYPE_CHECKING:
    from engine.data.dataset import Sample
    from engine.job import SampleSet

TRIES = 5  # in a row: where half of the images are broken, one sample in 32 ends the run
_REPLACING = 0x5EED  # keeps these draws apart from the sample's own, which come from the same numbers


@dataclass
class Replaced:
    """What was replaced: how often, and for what reasons; a reason names its file."""

    samples: int = 0
    reasons: list[str] = field(default_factory=list)

    def add(self, reasons: list[str]) -> None:
        """Take a sample that was replaced for these reasons, one for each that could not be read."""
        self.samples += 1
        self.reasons += [reason for reason in reasons if reason not in self.reasons]

    def merge(self, others: "list[Replaced]") -> list[str]:
        """Take what others counted; gives the reasons that are new."""
        known = len(self.reasons)
        for other in others:
            self.samples += other.samples
            self.reasons += [reason for reason in other.reasons if reason not in self.reasons]
        return self.reasons[known:]


class Replacing(Dataset["tuple[Sample, list[str]]"]):
    """A training set in which a sample that cannot be read is replaced by another of its group.

    Which one depends on (seed, epoch, index) alone. `dataset[key]` is a sample, and the reasons it stands in for another: none
    where it does not.

    Args:
        dataset: what to read from.
        seed: of the draws.
        groups: (N,) the group of each image, of which a batch holds one.
    """

    def __init__(self, dataset: "SampleSet", *, seed: int, groups: np.ndarray) -> None:
        self.dataset = dataset
        self.seed = seed
        self.groups = groups

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> "tuple[Sample, list[str]]":
        reasons: list[str] = []
        for candidate in self._candidates(key):
            try:
                image, target = self.dataset[candidate]  # type: ignore[index]  # a set that repeats images takes longer keys
            except UserError as error:
                reasons.append(_reason(error))
                continue
            target["index"] = candidate[1]
            return (image, target), reasons
        several = len(reasons) > 1
        raise UserError(
            f"{len(reasons)} training samples that were to stand in for each other cannot be used. The first: {reasons[0]} "
            f"The last: {reasons[-1]}"
            if several
            else reasons[0]
        )

    def _candidates(self, key: Key) -> Iterator[Key]:
        """The key, and those that may stand in for it; nothing is drawn before the second is asked for."""
        yield key
        epoch, index, *repeat = key
        others = np.flatnonzero(self.groups == self.groups[index])
        others = others[others != index]
        generator = np.random.default_rng([self.seed, epoch, index, *repeat, _REPLACING])
        for other in generator.choice(others, size=min(TRIES - 1, len(others)), replace=False).tolist():
            yield epoch, other


def _reason(error: BaseException) -> str:
    """What is wrong, without the sample that it was to be mixed into: a file is named once, whoever met it."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, PartnerError):
        cause = cause.__cause__
    return str(cause or error)
