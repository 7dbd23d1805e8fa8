"""A training sample that cannot be read is replaced by another, the same wherever and however often it is asked for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from backbones.errors import UserError
from engine.build import build_training_sampler
from engine.data.loader import BatchLoader
from engine.data.mixing import PartnerError
from engine.data.replacement import TRIES, Replaced, Replacing
from engine.data.sampler import GlobalBatchSampler, ShardSampler
from engine.detection.build import build_training_set
from engine.distributed import World
from tests.engine.conftest import write_coco

CPU = torch.device("cpu")


class Numbers:
    """Sample i is the number i; some cannot be read."""

    def __init__(self, count: int, broken: set[int], *, partners: dict[int, int] | None = None) -> None:
        self.count, self.broken, self.partners = count, broken, partners or {}
        self.categories: list[Any] = []
        self.path = Path("numbers")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: int | tuple[int, ...]) -> tuple[Tensor, dict[str, Any]]:
        epoch, index, *_ = key if isinstance(key, tuple) else (0, key)
        try:
            self._read(index)
            if index in self.partners:
                try:
                    self._read(self.partners[index])
                except UserError as error:
                    raise PartnerError(f"with {error}") from error
        except PartnerError as error:
            raise UserError(f"number {index}: {error}") from error
        return torch.full((3, 1, 1), index % 256, dtype=torch.uint8), {"image_id": torch.tensor(index), "seed": epoch}

    def _read(self, index: int) -> None:
        if index in self.broken:
            raise UserError(f"{index} is broken")

    def name_of(self, index: int) -> str:
        return str(index)

    def shape_groups(self) -> None:
        return None


def replacing(numbers: Numbers, *, groups: np.ndarray | None = None, seed: int = 0) -> Replacing:
    return Replacing(numbers, seed=seed, groups=np.zeros(len(numbers), np.int64) if groups is None else groups)


def test_what_can_be_read_is_not_replaced():
    dataset = replacing(Numbers(4, {1}))
    for index in (0, 2, 3):
        (image, target), reasons = dataset[5, index]
        assert int(image[0, 0, 0]) == target["index"] == index
        assert target["seed"] == 5
        assert reasons == []


@given(st.integers(2, 40), st.data())
def test_another_of_the_group_stands_in_and_always_the_same(count, data):
    broken = data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=max(1, count // 8)))
    groups = np.array(data.draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)))
    index, epoch = data.draw(st.sampled_from(sorted(broken))), data.draw(st.integers(0, 9))
    usable = [i for i in range(count) if groups[i] == groups[index] and i not in broken]
    dataset = replacing(Numbers(count, broken), groups=groups)
    if not usable:
        with pytest.raises(UserError, match="broken"):
            dataset[epoch, index]
        return
    try:
        (_, target), reasons = dataset[epoch, index]
    except UserError:
        assert len(broken) >= TRIES, "so many in a row were broken"
        return
    assert target["index"] in usable
    assert target["seed"] == epoch, "the epoch is the sample's own"
    assert reasons[0] == f"{index} is broken"
    again, _ = replacing(Numbers(count, broken), groups=groups)[epoch, index]
    assert again[1]["index"] == target["index"]


def test_the_draw_depends_on_seed_epoch_index_and_return():
    numbers = Numbers(1000, {3, 4})

    def stands_in(*key: int, seed: int = 0) -> int:
        return replacing(numbers, seed=seed)[key][0][1]["index"]

    drawn = [stands_in(0, 3), stands_in(1, 3), stands_in(0, 4), stands_in(0, 3, 1), stands_in(0, 3, seed=1)]
    assert len(set(drawn)) == 5


def test_a_set_that_is_broken_as_a_whole_ends_after_a_few_tries():
    with pytest.raises(UserError, match=rf"^{TRIES} training samples.* The first: 7 is broken The last: \d+ is broken$"):
        replacing(Numbers(100, set(range(100))))[0, 7]


def test_the_only_one_of_its_group_says_what_is_wrong_with_it():
    with pytest.raises(UserError, match=r"^2 is broken$"):
        replacing(Numbers(4, {2}), groups=np.array([0, 0, 1, 0]))[0, 2]


def test_a_broken_partner_is_what_is_named():
    numbers = Numbers(20, {9}, partners={1: 9, 2: 9})
    dataset = replacing(numbers)
    assert [dataset[0, index][1] for index in (1, 2)] == [["with 9 is broken"]] * 2


def test_a_broken_image_that_a_mosaic_wants_is_named_once(make_config, tmp_path):
    """Every sample that it is mixed into is replaced, or its partners would be others on another number of processes."""
    data = write_coco(tmp_path / "data", 12, sizes=((64, 64),))
    path = Path(data["images"], "003.png")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    config = make_config("data.augmentations=[{name: mosaic, size: 64, p: 0.7}]", data=data)
    dataset = build_training_set(config)
    sampler = build_training_sampler(config, dataset, World(0, 1, CPU))

    def batches(workers: int) -> tuple[list[Tensor], Replaced]:
        loader = BatchLoader(dataset, sampler, num_workers=workers, device=CPU, replace=True)
        return [image for images, _ in loader for image in images], loader.take_replaced()

    images, replaced = batches(0)
    assert replaced.samples > 1, "it was wanted by others, too"
    assert len(replaced.reasons) == 1
    assert replaced.reasons[0].startswith(f"The image {path} cannot be read")
    again, replaced_again = batches(1)
    assert replaced_again == replaced
    assert all(torch.equal(one, other) for one, other in zip(images, again, strict=True))


def test_the_loader_trains_on_the_same_with_workers_and_processes_and_after_a_resume():
    numbers = Numbers(12, {2, 5})

    def batches(**options: Any) -> list[list[int]]:
        workers = options.pop("workers", 0)
        sampler = GlobalBatchSampler(12, batch_size=4, epochs=2, **options)
        loader = BatchLoader(numbers, sampler, num_workers=workers, device=CPU, replace=True)
        return [[int(target["image_id"]) for target in targets] for _, targets in loader]

    alone = batches()
    assert not {2, 5} & {index for batch in alone for index in batch}
    assert batches(workers=2) == alone
    assert batches(start_step=4) == alone[4:]
    first, second = (batches(rank=rank, world_size=2) for rank in (0, 1))
    assert [a + b for a, b in zip(first, second, strict=True)] == alone


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_counts_and_names_each_reason_once(workers):
    sampler = GlobalBatchSampler(12, batch_size=4, epochs=3)
    loader = BatchLoader(Numbers(12, {2, 5}), sampler, num_workers=workers, device=CPU, replace=True)
    list(loader)
    replaced = loader.take_replaced()
    assert replaced.samples == 6
    assert sorted(replaced.reasons) == ["2 is broken", "5 is broken"]
    assert loader.take_replaced() == Replaced()


def test_without_leave_to_replace_the_error_is_raised():
    sampler = GlobalBatchSampler(12, batch_size=4, epochs=1)
    with pytest.raises(UserError, match=r"^2 is broken$"):
        list(BatchLoader(Numbers(12, {2}), sampler, num_workers=0, device=CPU))
    with pytest.raises(UserError, match=r"^2 is broken$"):
        list(BatchLoader(Numbers(12, {2}), ShardSampler(12, batch_size=1), num_workers=0, device=CPU))


def test_validation_cannot_be_asked_to_replace():
    with pytest.raises(AssertionError):
        BatchLoader(Numbers(12, {2}), ShardSampler(12, batch_size=1), num_workers=0, device=CPU, replace=True)


def test_counts_of_several_processes_are_put_together():
    total = Replaced()
    assert total.merge([Replaced(2, ["a"]), Replaced(1, ["a", "b"])]) == ["a", "b"]
    assert total.merge([Replaced(1, ["b"]), Replaced(3, ["c"])]) == ["c"]
    assert total == Replaced(7, ["a", "b", "c"])
