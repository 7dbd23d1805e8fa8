"""engine/classification/cifar.py: against torchvision's reading of the same files."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torchvision

from backbones.errors import UserError
from engine.classification.cifar import load_cifar
from engine.classification.sources import cifar10, cifar100

SETS = {
    "CIFAR10": ("labels", "label_names", [f"kind {i}" for i in range(10)]),
    "CIFAR100": ("fine_labels", "fine_label_names", [f"kind {i}" for i in range(100)]),
}


def write_cifar(folder: Path, name: str, *, count: int = 6) -> Path:
    """Write a set's files, small, as they are published."""
    published = getattr(torchvision.datasets, name)
    key, names_key, class_names = SETS[name]
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for file, _ in [*published.train_list, *published.test_list]:
        labels = rng.integers(0, len(class_names), count)
        data = rng.integers(0, 256, (count, 3072)).astype(np.uint8)
        content = {"data": data, key: labels.tolist(), "batch_label": "text", "filenames": ["a.png"] * count}
        (folder / file).write_bytes(pickle.dumps(content, protocol=2))
    (folder / published.meta["filename"]).write_bytes(pickle.dumps({names_key: class_names}, protocol=2))
    return folder


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("name", SETS)
def test_files_are_read_as_torchvision_reads_them(name, split, tmp_path, monkeypatch):
    published = getattr(torchvision.datasets, name)
    write_cifar(tmp_path / published.base_folder, name)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)  # of the published files alone
    theirs = published(str(tmp_path), train=split == "train")
    folder, class_names, labels, images = load_cifar(name, root=str(tmp_path), split=split)
    assert folder == tmp_path / published.base_folder
    assert class_names == theirs.classes
    assert labels.tolist() == theirs.targets
    assert (images == theirs.data).all()


def test_they_are_sets_by_name_and_may_lie_in_the_folder_that_is_named(tmp_path):
    write_cifar(tmp_path / "ten", "CIFAR10")
    write_cifar(tmp_path / "hundred", "CIFAR100")
    assert (len(cifar10("train", root=str(tmp_path / "ten"))), len(cifar10("val", root=str(tmp_path / "ten")))) == (30, 6)
    images = cifar100("val", root=str(tmp_path / "hundred"))
    assert len(images.class_names) == 100
    assert images.read(5).shape == (32, 32, 3)


def test_without_files_and_network_it_ends_with_what_is_wanted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(UserError, match="the files of CIFAR10 are not there, and cannot be downloaded") as caught:
        load_cifar("CIFAR10", root=str(tmp_path / "root"), split="val")
    for part in ("data.val: ", "cifar-10-batches-py/data_batch_1\n", "cifar-10-batches-py/test_batch\n", "kriz/cifar.html"):
        assert part in str(caught.value)
    assert "downloading it from http://127.0.0.1:9/" in capsys.readouterr().out
    assert not (tmp_path / "root").exists()


class Attack:
    def __reduce__(self):
        return print, ("code from the file",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 10]}, "is no batch of CIFAR's images"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, "is no batch of CIFAR's images"),
        ({"data": np.zeros((2, 3072), np.float32), "labels": [0, 1]}, "is no batch of CIFAR's images"),
        ({"labels": [0, 1]}, "is no batch of CIFAR's images"),
        ({"data": np.zeros((2, 3072), np.uint8)}, "is no batch of CIFAR's images"),
        ([1, 2], "is no batch of CIFAR's images"),
        ({"data": Attack()}, "was not loaded: it holds more than arrays"),
    ],
)
def test_files_of_other_content_are_refused_and_named(tmp_path, content, message, capsys):
    write_cifar(tmp_path / "ten", "CIFAR10")
    (tmp_path / "ten" / "test_batch").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(UserError, match=message) as caught:
        load_cifar("CIFAR10", root=str(tmp_path / "ten"), split="val")
    assert str(tmp_path / "ten" / "test_batch") in str(caught.value)
    assert capsys.readouterr().out == ""


def test_a_file_of_names_without_names_is_refused(tmp_path):
    write_cifar(tmp_path / "ten", "CIFAR10")
    (tmp_path / "ten" / "batches.meta").write_bytes(pickle.dumps({"other": 1}, protocol=2))
    with pytest.raises(UserError, match=r"batches\.meta has no names of classes"):
        load_cifar("CIFAR10", root=str(tmp_path / "ten"), split="val")
