"""Which images make up each batch: the same global batches on any number of processes, and exact shards in evaluation."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from engine.data.sampling import draw_repeats, epoch_length

# Of a training sample: its epoch and index, and, where the image comes again within the epoch, how often it has come before.
Key = tuple[int, int] | tuple[int, int, int]


class GlobalBatchSampler(Sampler[list[Key]]):
    """The training batches of one process, as (epoch, index) keys, from `start_step` to the end of the run.

    The batch of a step is chosen from (seed, epoch) for all processes together, then cut: into `accumulate` parts that follow
    each other, each of these into one slice a process. What is trained on in a step so depends on neither number.

    Args:
        num_images: size of the data set.
        batch_size: images of a step, over all processes and parts.
        epochs: number of epochs; an image that would make an epoch's last batch incomplete waits for another epoch.
        groups: (num_images,) a group for each image; batches mix groups only in what is left at the end. None for one group.
        repeat_factors: (num_images,) how often each image comes in an epoch on average, at least 1: an epoch is then as long as
            their sum, so that it still holds every image, and all epochs have the same number of steps. The second time an
            image comes, its key is (epoch, index, 1): it is augmented in another way. None: each comes once.
        rank, world_size: this process, and how many there are.
        accumulate: parts a step's batch is split into.
        seed: of the order.
        start_step: the first step to give.
    """

    def __init__(
        self,
        num_images: int,
        *,
        batch_size: int,
        epochs: int,
        groups: np.ndarray | None = None,
        repeat_factors: np.ndarray | None = None,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        seed: int = 0,
        start_step: int = 0,
    ) -> None:
        assert batch_size % (world_size * accumulate) == 0, "checked where the config meets the number of processes"
        self.num_images = num_images
        self.batch_size = batch_size
        self.groups = np.zeros(num_images, np.int64) if groups is None else groups
        self.repeat_factors = repeat_factors
        self.rank = rank
        self.world_size = world_size
        self.accumulate = accumulate
        self.seed = seed
        self.start_step = start_step
        length = num_images if repeat_factors is None else epoch_length(repeat_factors)
        self.steps_per_epoch = max(1, length // batch_size)
        self.total_steps = epochs * self.steps_per_epoch

    def __len__(self) -> int:
        return max(0, self.total_steps - self.start_step) * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        batches: list[np.ndarray] = []
        for step in range(self.start_step, self.total_steps):
            epoch, place = divmod(step, self.steps_per_epoch)
            if not batches or place == 0:
                batches = self.global_batches(epoch)
            parts = batches[place].reshape(self.accumulate, self.world_size, -1)
            for part in parts:
                yield [self._key(epoch, int(number)) for number in part[self.rank]]

    def _key(self, epoch: int, number: int) -> Key:
        repeat, index = divmod(number, self.num_images)
        return (epoch, index, repeat) if repeat else (epoch, index)

    def global_batches(self, epoch: int) -> list[np.ndarray]:
        """The images of each step of an epoch, (batch_size,) each, over all processes.

        An image is given by its index, plus the number of images for each time that it has come in this epoch before.
        """
        generator = np.random.default_rng([self.seed, epoch])
        numbers = np.arange(self.num_images)
        if self.repeat_factors is not None:
            repeats = draw_repeats(self.repeat_factors, generator)
            earlier = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
            numbers = np.repeat(numbers, repeats) + self.num_images * earlier
        order = numbers[generator.permutation(len(numbers))]
        if len(order) < self.batch_size:  # a set smaller than a batch: go round it
            return [np.resize(order, self.batch_size)]
        group_of = self.groups[order % self.num_images]
        full, rest = [], []
        for group in np.unique(self.groups):
            members = order[group_of == group]
            num_full = len(members) // self.batch_size
            full += np.split(members[: num_full * self.batch_size], num_full) if num_full else []
            rest.append(members[num_full * self.batch_size :])
        left = np.concatenate(rest)
        num_left = len(left) // self.batch_size
        full += np.split(left[: num_left * self.batch_size], num_left) if num_left else []
        return [full[i] for i in generator.permutation(len(full))[: self.steps_per_epoch]]


class ShardSampler(Sampler[list[int]]):
    """Evaluation batches of one process: every image once over all processes, none twice, none left out.

    The batches are those of a single process, dealt out in turn, so that an image meets the same neighbours, and the same
    padding, on any number of processes.
    """

    def __init__(self, num_images: int, *, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        starts = range(rank * batch_size, num_images, world_size * batch_size)
        self._batches = [list(range(start, min(start + batch_size, num_images))) for start in starts]

    @property
    def num_own_images(self) -> int:
        """Images of this process."""
        return sum(len(batch) for batch in self._batches)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)
