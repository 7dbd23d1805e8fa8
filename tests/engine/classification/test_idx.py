"""engine/classification/idx.py: files against torchvision's reading of them, downloads from a server of our own."""

import gzip
import http.server
import shutil
import socket
import threading
import time
import urllib.request

import numpy as np
import pytest
import torchvision
from torchvision.datasets.utils import calculate_md5

import engine.classification.downloads
from backbones.errors import UserError
from engine.classification.idx import load_published, read_idx
from engine.classification.sources import fashion_mnist, kmnist, mnist
from tests.engine.classification.conftest import write_idx, write_mnist

HOME = "https://github.com/zalandoresearch/fashion-mnist"


@pytest.fixture
def unreachable(monkeypatch):
    """Nobody answers at the address of Fashion-MNIST."""
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])


def load(root, split="train"):
    return load_published("FashionMNIST", root=str(root), split=split, home=HOME)


# ---- Files ----


@pytest.mark.parametrize("split", ["train", "val"])
def test_raw_files_are_read_as_torchvision_reads_them(tmp_path, split):
    write_mnist(tmp_path / "FashionMNIST" / "raw")
    theirs = torchvision.datasets.FashionMNIST(str(tmp_path), train=split == "train", download=False)
    folder, class_names, labels, images = load(tmp_path, split)
    assert folder == tmp_path / "FashionMNIST" / "raw"
    assert class_names == theirs.classes
    assert (labels == theirs.targets.numpy()).all()
    assert (images == theirs.data.numpy()).all()
    assert images.shape == ((20 if split == "train" else 10), 28, 28)


@pytest.mark.parametrize("place", [".", "FashionMNIST", "FashionMNIST/raw"])
def test_gzipped_files_are_read_as_they_lie_wherever_they_are(tmp_path, place):
    write_mnist(tmp_path / "raw" / "FashionMNIST" / "raw")
    write_mnist(tmp_path / "gz" / place, suffix=".gz")
    before = sorted(path.name for path in (tmp_path / "gz").rglob("*"))
    if place == "FashionMNIST":  # neither torchvision's folder nor the one that is named
        folder, _, labels, images = load(tmp_path / "gz" / place)
    else:
        folder, _, labels, images = load(tmp_path / "gz")
    _, _, expected_labels, expected = load(tmp_path / "raw")
    assert (labels == expected_labels).all()
    assert (images == expected).all()
    assert folder == tmp_path / "gz" / place
    assert sorted(path.name for path in (tmp_path / "gz").rglob("*")) == before


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
def test_each_set_has_its_own_folder_and_classes(tmp_path, name):
    write_mnist(tmp_path / name / "raw")
    images = {"MNIST": mnist, "FashionMNIST": fashion_mnist, "KMNIST": kmnist}[name]("val", root=str(tmp_path))
    assert images.class_names == getattr(torchvision.datasets, name).classes
    assert len(images) == 10
    assert images.read(3).shape == (28, 28, 3)


def test_arrays_of_any_shape_come_back(tmp_path):
    for shape in [(0,), (7,), (2, 3), (2, 3, 4, 5)]:
        array = np.arange(np.prod(shape)).reshape(shape).astype(np.uint8)
        for suffix in ("", ".gz"):
            found = read_idx(write_idx(tmp_path / f"array{suffix}", array))
            assert found.shape == shape
            assert (found == array).all()


# ---- Files that are wrong ----


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no IDX file"),
        (b"<html>not found</html>", "is no IDX file"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x01\x00\x00\x00\x00", "is no IDX file of bytes"),  # of floats
        (b"\x00\x00\x08\x03\x00\x00", "is no IDX file"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x05\x01\x02", "says it holds 5 bytes, and has 2"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x01\x01\x02", "says it holds 1 bytes, and has 2"),
    ],
)
def test_files_of_other_content_are_refused_and_named(tmp_path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


def test_a_gzipped_file_that_is_cut_short_or_is_none_is_refused(tmp_path):
    path = write_idx(tmp_path / "file.gz", np.arange(250).reshape(50, 5))
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"<html>", b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"file\.gz (cannot be read|is no IDX file)"):
            read_idx(path)


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    write_mnist(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(19))
    with pytest.raises(UserError, match=r"20 images, but .*train-labels-idx1-ubyte 19 labels"):
        load(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.full(20, 11))
    with pytest.raises(UserError, match="has the label 11, but FashionMNIST has 10 classes"):
        load(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros((20, 1)))
    with pytest.raises(UserError, match="has 2 axes, not 1"):
        load(tmp_path)


# ---- Files that are not there ----


@pytest.mark.usefixtures("unreachable")
def test_without_files_and_network_it_ends_with_what_is_wanted_and_leaves_nothing(tmp_path, capsys):
    write_idx(tmp_path / "root" / "train-images-idx3-ubyte", np.zeros((1, 28, 28)))  # its labels are missing
    with pytest.raises(UserError, match="are not there, and cannot be downloaded") as caught:
        load(tmp_path / "root")
    raw = tmp_path / "root" / "FashionMNIST" / "raw"
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        assert f"  {raw}/{name}-ubyte.gz (or without .gz)\n" in str(caught.value)
    for part in ("data.train: ", HOME, "data.train.root=FOLDER data.val.root=FOLDER", "configs/cls_digits.yaml"):
        assert part in str(caught.value)
    assert "downloading it from http://127.0.0.1:9/" in capsys.readouterr().out
    assert not raw.exists()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_server_that_says_nothing_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(engine.classification.downloads, "SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", [address])
        began = time.monotonic()
        with pytest.raises(UserError, match="cannot be downloaded"):
            load(tmp_path / "root")
    assert time.monotonic() - began < 60  # without a limit it waits for ever
    assert socket.getdefaulttimeout() is None
    assert not (tmp_path / "root").exists()


@pytest.mark.usefixtures("unreachable")
def test_only_the_main_process_downloads(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError, match="only the main process downloads"):
        load(tmp_path / "root")
    assert capsys.readouterr().out == ""


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The address of Fashion-MNIST is this machine, which has small files of it; gives their folder."""
    folder = write_mnist(tmp_path / "server", suffix=".gz")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *_):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    published = torchvision.datasets.FashionMNIST
    monkeypatch.setattr(published, "mirrors", [f"http://127.0.0.1:{httpd.server_port}/"])
    monkeypatch.setattr(urllib.request, "_opener", None)  # it keeps the proxies of a test before this one
    resources = [(name, calculate_md5(folder / name)) for name, _ in published.resources]
    monkeypatch.setattr(published, "resources", resources)
    yield folder
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def test_files_that_are_not_there_are_downloaded_once(tmp_path, server):
    first = load(tmp_path / "root")
    raw = tmp_path / "root" / "FashionMNIST" / "raw"
    assert sorted(path.name for path in raw.iterdir()) == sorted(path.stem for path in server.iterdir())
    shutil.rmtree(server)
    second = load(tmp_path / "root")
    assert (first[3] == second[3]).all()
    assert len(load(tmp_path / "root", "val")[2]) == 10


def test_a_download_of_other_content_leaves_nothing(tmp_path, server):
    (server / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(UserError, match="cannot be downloaded"):
        load(tmp_path / "root")
    assert not (tmp_path / "root").exists()
