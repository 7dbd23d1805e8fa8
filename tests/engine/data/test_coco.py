"""engine/data/coco.py, against a small copy of COCO's server."""

import hashlib
import io
import json
import shutil
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from backbones.errors import UserError
from engine.config_file import load_config
from engine.data import coco
from engine.data.annotations import load_annotations
from engine.data.coco import ARCHIVES, get_coco, get_mini_coco
from engine.data.dataset import CocoDataset
from engine.data.sources import find_paths
from engine.distributed import World
from engine.progress import Reporter
from tests.engine.data.web_server import serve

COUNTS = {"train2017": 9, "val2017": 6, "test2017": 2}
INSTANCES = {split: f"annotations/instances_{split}.json" for split in ("train2017", "val2017")}


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


def photo(number, size):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, body in files.items():
            archive.writestr(name, body)
    return buffer.getvalue()


def annotation_file(split, kind):
    """Images whose ids do not come in order, two objects in each but the first; persons alone for keypoints."""
    first = 100 * list(COUNTS).index(split)
    ids = [first + 7 * i % 50 for i in range(COUNTS[split])]
    images = [{"id": i, "file_name": f"{i:012}.jpg", "width": 40 + i % 3, "height": 30, "license": 4} for i in ids]
    categories = [{"id": 1, "name": "person"}] + ([{"id": 90, "name": "toothbrush"}] if kind == "instances" else [])
    if kind != "instances":
        categories[0] |= {"keypoints": ["nose"], "skeleton": []}
    annotations = [
        {"id": 10 * i + k, "image_id": i, "category_id": 1, "bbox": [2, 3, 10, 12], "area": 120, "iscrowd": 0}
        | {"segmentation": [[2, 3, 12, 3, 12, 15, 2, 15]]}
        | ({} if kind == "instances" else {"keypoints": [4, 5, 2], "num_keypoints": 1})
        for i in ids[1:]
        for k in range(2)
    ]
    content = {"info": {"year": 2017}, "licenses": [{"id": 4}], "images": images}
    return json.dumps({**content, "annotations": annotations, "categories": categories}).encode()


@pytest.fixture(scope="module")
def published():
    """What the server holds, by path."""
    annotations = {
        f"annotations/{kind}_{split}.json": annotation_file(split, kind)
        for kind in ("instances", "person_keypoints")
        for split in ("train2017", "val2017")
    }
    files = {"/annotations/annotations_trainval2017.zip": zipped(annotations)}
    files["/annotations/image_info_test2017.zip"] = zipped({"annotations/image_info_test2017.json": b"{}"})
    for split in COUNTS:
        photos = {
            f"{split}/{image['file_name']}": photo(image["id"], (image["width"], image["height"]))
            for image in json.loads(annotation_file(split, "instances"))["images"]
        }
        files[f"/zips/{split}.zip"] = zipped(photos)
        files |= {f"/{name}": body for name, body in photos.items()}
    return files


@pytest.fixture
def server(published):
    with serve(dict(published)) as state:
        yield state


@pytest.fixture
def get(server, tmp_path):
    """Functions that fetch COCO, or a cut of it, into a folder."""
    reporter = Reporter(World(0, 1, torch.device("cpu")))
    common = {"url": server.url, "reporter": reporter, "waits": ()}
    return SimpleNamespace(
        folder=tmp_path / "coco",
        all=lambda **options: get_coco(tmp_path / "coco", **common | options),
        mini=lambda count, **options: get_mini_coco(tmp_path / "coco", count=count, **common | options),
    )


def tree(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def asked(server):
    """Paths of the files that were fetched, from whatever byte."""
    return [path for method, path, _ in server.requests if method == "GET"]


def test_all_of_it_is_laid_out_as_the_configs_say(get, server, capsys):
    get.all()
    for split, part in (("train2017", "train"), ("val2017", "val")):
        config = load_config("configs/frcnn_r50.yaml", [f"data.{part}.images={get.folder / split}"])
        stated = getattr(config.data, part)
        assert stated.annotations == f"data/coco/{INSTANCES[split]}"
        paths = find_paths(str(get.folder / split), str(get.folder / INSTANCES[split]), split=part)
        dataset = CocoDataset(paths.images, load_annotations(paths.annotations), with_masks=True)
        assert len(dataset) == COUNTS[split]
        assert [dataset[i][0].shape[2] for i in range(len(dataset))] == dataset.annotations.widths.tolist()
    assert not list(get.folder.glob("[!.]*.zip*"))
    assert "/zips/test2017.zip" not in asked(server)
    printed = capsys.readouterr().out
    assert "val2017.zip: 0.0 MB from http://127" in printed
    assert "has not the size of the published file: each file's CRC is checked, but not its SHA-256" in printed


def test_a_second_command_fetches_nothing(get, server, capsys):
    get.all()
    server.requests.clear()
    capsys.readouterr()
    get.all()
    assert server.requests == []
    assert capsys.readouterr().out.count("there already") == 3


def test_a_file_that_was_deleted_or_cut_short_comes_again(get, server):
    get.all(splits=["val2017"])
    before = tree(get.folder)
    photos = sorted((get.folder / "val2017").iterdir())
    photos[0].unlink()
    photos[1].write_bytes(b"")
    server.requests.clear()
    get.all(splits=["val2017"])
    assert tree(get.folder) == before
    assert photos[1].stat().st_size > 0
    assert asked(server) == ["/zips/val2017.zip"]


def test_the_test_images_come_with_their_list(get):
    get.all(splits=["test2017"], keep_archives=True)
    assert len(list((get.folder / "test2017").glob("*.jpg"))) == 2
    assert (get.folder / "annotations/image_info_test2017.json").is_file()
    assert not (get.folder / INSTANCES["val2017"]).exists()
    assert sorted(path.name for path in get.folder.glob("*.zip")) == ["image_info_test2017.zip", "test2017.zip"]


def test_a_broken_connection_and_the_same_command_again(get, server):
    size = len(server.files["/zips/val2017.zip"])
    server.breaks_after = [10**9, size // 2]
    with pytest.raises(UserError, match=r"broke after .* same command again goes on"):
        get.all(splits=["val2017"])
    assert (get.folder / INSTANCES["val2017"]).is_file()
    server.requests.clear()
    get.all(splits=["val2017"])
    assert [wanted for method, _, wanted in server.requests if method == "GET"] == [f"bytes={size // 2}-"]
    assert len(list((get.folder / "val2017").glob("*.jpg"))) == COUNTS["val2017"]


def test_an_archive_that_is_there_is_not_fetched_again(get, server):
    get.folder.mkdir()
    (get.folder / "val2017.zip").write_bytes(server.files["/zips/val2017.zip"])
    get.all(splits=["val2017"])
    assert "/zips/val2017.zip" not in asked(server)
    assert len(list((get.folder / "val2017").glob("*.jpg"))) == COUNTS["val2017"]


def test_an_archive_of_another_size_is_not_taken_nor_deleted(get, server):
    get.folder.mkdir()
    (get.folder / "val2017.zip").write_bytes(server.files["/zips/val2017.zip"][:1000])
    with pytest.raises(UserError, match=r"has 1000 bytes, the server's \d+: .* naming it val2017\.zip\.part"):
        get.all(splits=["val2017"])
    (get.folder / "val2017.zip").rename(get.folder / "val2017.zip.part")
    get.all(splits=["val2017"])
    assert len(list((get.folder / "val2017").glob("*.jpg"))) == COUNTS["val2017"]


def test_a_broken_archive_is_named_and_another_comes(get, server):
    good = server.files["/zips/val2017.zip"]
    server.files["/zips/val2017.zip"] = good[:300] + bytes(200) + good[500:]
    with pytest.raises(UserError, match=r"val2017\.zip is broken\. Delete it; the same command"):
        get.all(splits=["val2017"])
    (get.folder / "val2017.zip").unlink()
    server.files["/zips/val2017.zip"] = good
    get.all(splits=["val2017"])


def test_an_archive_of_the_published_size_must_be_the_published_one(get, server, monkeypatch):
    body = server.files["/zips/val2017.zip"]
    archive = replace(ARCHIVES["val2017"], size=len(body))
    monkeypatch.setitem(ARCHIVES, "val2017", archive)
    with pytest.raises(UserError, match=r"val2017\.zip is not the published file"):
        get.all(splits=["val2017"])
    monkeypatch.setitem(ARCHIVES, "val2017", replace(archive, sha256=hashlib.sha256(body).hexdigest()))
    get.all(splits=["val2017"])


def test_what_another_program_unpacked_is_known_by_the_published_number_of_images(get, server, monkeypatch):
    get.all(splits=["val2017"])
    for receipt in get.folder.glob(".*.json"):
        receipt.unlink()
    monkeypatch.setitem(ARCHIVES, "val2017", replace(ARCHIVES["val2017"], images=COUNTS["val2017"]))
    server.requests.clear()
    get.all(splits=["val2017"])
    assert asked(server) == ["/annotations/annotations_trainval2017.zip"]  # without its captions it is not known to be whole


def test_a_small_disk_is_refused_before_the_download(get, server, monkeypatch):
    size = len(server.files["/zips/val2017.zip"])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=size))
    with pytest.raises(UserError, match=r"download and unpack annotations_trainval2017\.zip, val2017\.zip takes .* are free"):
        get.all(splits=["val2017"])
    assert asked(server) == []


@pytest.mark.parametrize("keep_archives", [False, True])
def test_room_is_for_the_fullest_moment(get, server, monkeypatch, keep_archives):
    """The last archive beside its files, and the files of those before; their archives are gone, unless they are kept."""
    paths = ["/annotations/annotations_trainval2017.zip", "/zips/val2017.zip", "/zips/train2017.zip"]
    sizes = [len(server.files[path]) for path in paths]
    unpacked = [
        int(size * ARCHIVES[name].unpacked) for size, name in zip(sizes, ("annotations", "val2017", "train2017"), strict=True)
    ]
    needed = sum(unpacked) + sizes[2] + (sizes[0] + sizes[1] if keep_archives else 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    with pytest.raises(UserError, match="Make room"):
        get.all(keep_archives=keep_archives)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed))
    get.all(keep_archives=keep_archives)


def test_a_mirror_without_the_file_and_a_split_that_there_is_not(get, server):
    del server.files["/zips/val2017.zip"]
    with pytest.raises(UserError, match=r"There is no file at http.*/zips/val2017\.zip \(404\)"):
        get.all(splits=["val2017"])
    assert asked(server) == []
    with pytest.raises(UserError, match=r"no split 'val'\. Did you mean 'val2017'"):
        get.all(splits=["val"])
    with pytest.raises(UserError, match="annotations are not published"):
        get.mini(2, splits=["test2017"])


# ---- A few images ----


def test_a_cut_is_a_data_set(get, server, capsys):
    get.mini(4)
    assert not [path for path in asked(server) if path.startswith("/zips")]
    assert len(asked(server)) == 1 + 2 * 4
    for split in INSTANCES:
        table = load_annotations(get.folder / INSTANCES[split])
        whole = json.loads(annotation_file(split, "instances"))
        assert len(table) == 4
        assert table.image_ids.tolist() == sorted(table.image_ids)
        assert [category.id for category in table.categories] == [1, 90]
        cut, of_all = COCO(get.folder / INSTANCES[split]), [a for a in whole["annotations"] if a["image_id"] in table.image_ids]
        assert cut.loadAnns(cut.getAnnIds()) == of_all
        dataset = CocoDataset(get.folder / split, table, with_masks=True)
        assert all(dataset[i][0].shape[1:] == (30, table.widths[i]) for i in range(4))
        persons = COCO(get.folder / f"annotations/person_keypoints_{split}.json")
        assert persons.getImgIds() == cut.getImgIds()
        assert len(list((get.folder / split).iterdir())) == 4
    (last,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("data.train.images="))
    assert last.startswith(
        f"data.train.images={get.folder}/train2017 data.train.annotations={get.folder}/annotations/instances_"
    )
    load_config("configs/frcnn_r50.yaml", last.split())
    assert not list(get.folder.glob("[!.]*.zip*"))
    assert not (get.folder / "whole").exists()


def test_the_seed_alone_chooses(get, tmp_path, server):
    get.mini(3)
    reporter = Reporter(World(0, 1, torch.device("cpu")))
    for name, seed in (("same", 0), ("other", 1)):
        get_mini_coco(tmp_path / name, count=3, seed=seed, url=server.url, reporter=reporter)
    chosen = [tree(tmp_path / name / "val2017") for name in ("coco", "same", "other")]
    assert chosen[0] == chosen[1] != chosen[2]


def test_the_order_of_the_file_does_not_choose(get, tmp_path, server):
    get.mini(3, splits=["val2017"])
    content = json.loads(annotation_file("val2017", "instances"))
    content["images"].sort(key=lambda image: -image["id"])
    server.files["/annotations/annotations_trainval2017.zip"] = zipped({INSTANCES["val2017"]: json.dumps(content).encode()})
    reporter = Reporter(World(0, 1, torch.device("cpu")))
    get_mini_coco(tmp_path / "other", count=3, splits=["val2017"], url=server.url, reporter=reporter)
    assert tree(tmp_path / "other" / "val2017") == tree(get.folder / "val2017")
    assert not (tmp_path / "other/annotations/person_keypoints_val2017.json").exists()


def test_a_cut_that_was_stopped_goes_on(get, server):
    gone = server.files.copy()
    for path in [path for path in server.files if path.startswith("/val2017/")]:
        del server.files[path]
    with pytest.raises(UserError, match=r"There is no file at .*/val2017/0000"):
        get.mini(4)
    server.files |= gone
    server.requests.clear()
    get.mini(4)
    assert sorted(path.rpartition("/")[0] for path in asked(server)) == ["/val2017"] * 4
    server.requests.clear()
    get.mini(4)
    assert server.requests == []


def test_a_cut_does_not_replace_what_is_there_nor_the_reverse(get):
    get.mini(2)
    with pytest.raises(UserError, match=r"holds another cut of COCO .*'count': 2.*Name another folder"):
        get.mini(3)
    with pytest.raises(UserError, match="holds another cut"):
        get.mini(2, seed=1)
    with pytest.raises(UserError, match=r"holds a cut of COCO .* Name another folder"):
        get.all()


def test_a_cut_does_not_replace_full_annotations(get):
    get.all(splits=["val2017"])
    before = (get.folder / INSTANCES["val2017"]).read_bytes()
    with pytest.raises(UserError, match=r"holds other annotations .*would replace"):
        get.mini(2)
    assert (get.folder / INSTANCES["val2017"]).read_bytes() == before


def test_more_images_than_there_are_and_then_fewer(get):
    with pytest.raises(UserError, match="train2017 has 9 images, not 10"):
        get.mini(10)
    get.mini(6, keep_archives=True)
    assert (get.folder / "annotations_trainval2017.zip").is_file()


def test_an_image_that_is_none_or_another_is_named(get, server):
    path = next(path for path in server.files if path.startswith("/val2017/"))
    good = server.files[path]
    for body, message in (
        (good[:200], "is no whole image"),
        (b"<html>", "is no whole image"),
        (photo(0, (7, 7)), "another image"),
    ):
        server.files[path] = body
        with pytest.raises(UserError, match=message):
            get.mini(COUNTS["val2017"])
        (get.folder / path[1:]).unlink()
    server.files[path] = good
    get.mini(COUNTS["val2017"])


def test_file_names_that_lead_elsewhere_are_refused(get, server):
    content = json.loads(annotation_file("val2017", "instances"))
    for image in content["images"]:
        image["file_name"] = "../" + image["file_name"]
    server.files["/annotations/annotations_trainval2017.zip"] = zipped({INSTANCES["val2017"]: json.dumps(content).encode()})
    with pytest.raises(UserError, match="which is no plain name"):
        get.mini(2, splits=["val2017"])


def test_a_mirror_without_the_instances_is_said(get, server):
    server.files["/annotations/annotations_trainval2017.zip"] = zipped({"annotations/captions_val2017.json": b"{}"})
    with pytest.raises(UserError, match=r"has no annotations/instances_val2017\.json"):
        get.mini(2, splits=["val2017"])


def test_the_published_archives_are_those_of_the_layout():
    assert {name: archive.name for name, archive in ARCHIVES.items()} == {
        "annotations": "annotations_trainval2017.zip",
        "val2017": "val2017.zip",
        "train2017": "train2017.zip",
        "test_info": "image_info_test2017.zip",
        "test2017": "test2017.zip",
    }
    assert all(len(archive.sha256) == 64 for archive in ARCHIVES.values())
    assert coco.URL == "http://images.cocodataset.org"
