"""engine/data/image_cache.py: what is kept is what was decoded, in this process and in those of a loader."""

import copy
import multiprocessing
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine.data.annotations import load_annotations
from engine.data.dataset import CocoDataset
from engine.data.image_cache import ImageCache
from engine.data.loader import BatchLoader
from engine.data.sampler import ShardSampler
from engine.distributed import World

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
SHAPES = np.array([[3, 5], [4, 4], [1, 7]])


def image(index, seed=0):
    return np.random.default_rng([seed, index]).integers(0, 256, (*SHAPES[index], 3), dtype=np.uint8)


def test_an_image_comes_back_as_it_was_put_whatever_the_order():
    cache = ImageCache(SHAPES)
    assert all(cache.get(index) is None for index in range(3))
    for index in (2, 0):
        cache.put(index, image(index))
    np.testing.assert_array_equal(cache.get(0), image(0))
    np.testing.assert_array_equal(cache.get(2), image(2))
    assert cache.get(1) is None
    cache.get(0)[:] = 0
    np.testing.assert_array_equal(cache.get(0), image(0))  # it was a copy


def test_an_image_of_another_shape_is_not_kept():
    cache = ImageCache(SHAPES)
    cache.put(0, image(1))
    assert cache.get(0) is None


def test_the_size_is_that_of_the_pixels():
    assert ImageCache.size_of(np.array([[1000, 1000], [500, 2000]])) == pytest.approx(0.006)
    assert ImageCache.size_of(np.zeros((0, 2), int)) == 0


def test_nothing_is_left_in_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cache = ImageCache(SHAPES)
    cache.put(0, image(0))
    assert list(tmp_path.iterdir()) == []
    cache.close()
    cache.close()
    assert cache.get(0) is None
    cache.put(0, image(0))


def test_a_full_disk_ends_the_keeping_and_nothing_else(monkeypatch):
    cache = ImageCache(SHAPES)
    cache.put(0, image(0))

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        cache.put(1, image(1))
    cache.put(1, image(1))
    assert cache.get(1) is None
    np.testing.assert_array_equal(cache.get(0), image(0))


def _fill(cache, index):
    cache.put(index, image(index))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_share_it_however_they_are_started(method):
    cache = ImageCache(SHAPES)
    process = multiprocessing.get_context(method).Process(target=_fill, args=(cache, 1))
    process.start()
    process.join()
    assert process.exitcode == 0
    np.testing.assert_array_equal(cache.get(1), image(1))


def test_a_copy_goes_without():
    cache = ImageCache(SHAPES)
    cache.put(0, image(0))
    other = copy.deepcopy(cache)
    assert other.get(0) is None
    other.put(0, image(0))
    del other
    np.testing.assert_array_equal(cache.get(0), image(0))


def _share(rank, barrier, results):
    class Joined(World):
        def barrier(self):
            barrier.wait(timeout=30)

        def broadcast(self, value):
            return f"of {os.getppid()}"

    cache = ImageCache(SHAPES, world=Joined(rank, 2, torch.device("cpu")))
    if rank == 0:
        cache.put(1, image(1))
    barrier.wait(timeout=30)
    found = cache.get(1)
    results.put(found is not None and bool((found == image(1)).all()))


def test_the_processes_of_a_machine_share_one():
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_share, args=(rank, barrier, results)) for rank in range(2)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60), results.get(timeout=60)] == [True, True]
    for process in processes:
        process.join()
    assert not (Path(tempfile.gettempdir()) / f"vertebra-images-of {os.getpid()}").exists()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_data_set_decodes_an_image_once(noise_set, monkeypatch, num_workers):
    images, annotations = noise_set
    table = load_annotations(annotations)
    cache = ImageCache(np.stack([table.heights, table.widths], axis=1))
    dataset, plain = CocoDataset(images, table, image_cache=cache), CocoDataset(images, table)
    for again in (False, True):
        if again:
            monkeypatch.setattr(Image, "open", None)  # forked loaders have this, too
        sampler = ShardSampler(len(dataset), batch_size=2)
        batches = list(BatchLoader(dataset, sampler, num_workers=num_workers, device=torch.device("cpu")))
        assert sum(len(batch) for batch, _ in batches) == len(dataset)
    monkeypatch.undo()
    for index in range(len(dataset)):
        assert torch.equal(dataset[index][0], plain[index][0])
