"""engine/data/store.py: whole, of this file and no other, or made anew; and annotations through it."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import engine.data.store as store_module
from backbones.errors import UserError
from engine.data.annotations import load_annotations
from engine.data.store import SUFFIX, Table, load_table, reopen

LONG_AGO = 1_600_000_000


class Builder:
    """Makes columns of a text of numbers, and counts how often it is asked to."""

    def __init__(self):
        self.calls = 0

    def __call__(self, text):
        self.calls += 1
        numbers = np.array(text.split(), np.float32)
        columns = {"numbers": numbers, "pairs": np.arange(6, dtype=np.int64).reshape(3, 2), "none": np.zeros((0, 4), np.uint8)}
        return Table({"text": text.decode(), "names": ["ä", [1, 2]]}, columns)


@pytest.fixture
def build():
    return Builder()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The cache folder."""
    monkeypatch.setenv("VERTEBRA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path):
    """A file that has not changed for long."""
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "a.json"
    write(path, "1 2.5 3")
    return path


def write(path, text, *, at=LONG_AGO):
    path.write_text(text)
    os.utime(path, (at, at))


def check(table, text):
    assert table.facts == {"text": text, "names": ["ä", [1, 2]]}
    assert table.columns["numbers"].tolist() == [float(number) for number in text.split()]
    assert table.columns["pairs"].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert {name: column.dtype for name, column in table.columns.items()} == {
        "numbers": np.float32,
        "pairs": np.int64,
        "none": np.uint8,
    }
    assert table.columns["none"].shape == (0, 4)


def load(path, build, version=1):
    return load_table(path, build, version=version)


def beside(source):
    return source.with_name(source.name + SUFFIX)


# ---- When it is made anew ----


def test_it_is_made_once(source, build):
    for _ in range(3):
        check(load(source, build), "1 2.5 3")
    assert build.calls == 1
    assert sorted(path.name for path in source.parent.iterdir()) == ["a.json", "a.json.columns"]


def test_what_is_mapped_cannot_be_written(source, build):
    numbers = load(source, build).columns["numbers"]
    with pytest.raises(ValueError, match="read-only"):
        numbers[0] = 7


@pytest.mark.parametrize("text", ["1 2.5 4", "1 2.5 3 4", "1"])
def test_another_content_makes_it_anew(source, build, text):
    load(source, build)
    write(source, text, at=LONG_AGO + 1)
    check(load(source, build), text)
    check(load(source, build), text)
    assert build.calls == 2


def test_a_content_of_equal_length_written_at_once_is_noticed(source, build):
    for text in ("1 2", "3 4", "5 6"):  # all within one step of the file system's clock
        source.write_text(text)
        check(load(source, build), text)
    assert build.calls == 3


def test_another_time_alone_makes_nothing_anew_and_is_remembered(source, build):
    load(source, build)
    os.utime(source, (LONG_AGO + 5, LONG_AGO + 5))
    check(load(source, build), "1 2.5 3")
    assert build.calls == 1
    write(source, "7 7.5 7", at=LONG_AGO + 5)  # no longer looked into: length and time are known
    check(load(source, build), "1 2.5 3")
    assert build.calls == 1


def test_another_version_makes_it_anew(source, build, monkeypatch):
    load(source, build)
    load(source, build, version=2)
    assert build.calls == 2
    monkeypatch.setattr(store_module, "FORMAT", 99)
    load(source, build, version=2)
    assert build.calls == 3


def test_a_store_moves_with_its_file(source, build, tmp_path):
    load(source, build)
    shutil.copytree(source.parent, tmp_path / "copy")
    check(load(tmp_path / "copy" / "a.json", build), "1 2.5 3")
    assert build.calls == 1


def test_a_file_that_changes_while_it_is_read_is_not_stored(source, build):
    def slow(text):
        write(source, "9 9 9", at=LONG_AGO + 9)
        return build(text)

    check(load(source, slow), "1 2.5 3")
    assert not beside(source).exists()
    check(load(source, build), "9 9 9")


def test_what_building_raises_arrives_and_nothing_is_left(source):
    def fail(text):
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        load(source, fail)
    assert [path.name for path in source.parent.iterdir()] == ["a.json"]


# ---- Damage ----


def damaged(whole):
    """Versions of a store that were cut, or whose bytes were changed."""
    cuts = sorted({0, 1, 15, 36, 37, 200, len(whole) // 2, len(whole) - 64, len(whole) - 1})
    yield from ((f"cut at {cut}", whole[:cut]) for cut in cuts)
    yield "longer", whole + b"\0"
    yield "zeros", bytes(len(whole))
    yield "text", b"{}"
    for place in [*range(16), *range(24, len(whole), 7)]:  # from 16 to 24 is the time, of which any other is no damage
        yield f"byte {place}", whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :]


def test_a_damaged_store_is_made_anew(source, build):
    load(source, build)
    whole = beside(source).read_bytes()
    # What lies between the description and the arrays is read by nobody.
    gap = slice(whole.index(b"}", whole.rindex(b'"checksum"')) + 1, whole.index(np.float32(1).tobytes()))
    assert not any(whole[gap])
    for name, content in damaged(whole):
        beside(source).write_bytes(content)
        calls = build.calls
        check(load(source, build), "1 2.5 3")
        harmless = name.startswith("byte") and gap.start <= int(name.split()[1]) < gap.stop
        assert build.calls == calls + (not harmless), name
        assert beside(source).read_bytes() == (content if harmless else whole), name


@pytest.mark.parametrize(
    ("old", "new"),
    [('"<i8"', '"|O" '), ('"<i8"', '"no" '), ("[3, 2]", "[9, 9]"), ('"columns"', '"Columns"'), ('"format"', '"Format"')],
)
def test_a_forged_description_is_not_believed(source, build, old, new):
    load(source, build)
    whole = beside(source).read_bytes()
    head = store_module._HEAD
    magic, mtime, length, _ = head.unpack(whole[: head.size])
    description = whole[head.size : head.size + length]
    forged = description.replace(old.encode(), new.encode())
    assert len(forged) == length
    assert forged != description
    begin = head.pack(magic, mtime, length, zlib.crc32(forged)) + forged
    beside(source).write_bytes(begin + whole[len(begin) :])
    check(load(source, build), "1 2.5 3")
    assert build.calls == 2


def test_a_folder_in_its_place_is_no_traceback(source, build, cache):
    beside(source).mkdir()
    check(load(source, build), "1 2.5 3")
    check(load(source, build), "1 2.5 3")
    assert build.calls == 1
    assert len(list(cache.rglob(f"*{SUFFIX}"))) == 1


# ---- Where it lies ----


def test_beside_a_file_for_reading_alone_it_lies_in_the_cache_folder(source, build, cache):
    source.parent.chmod(0o555)
    try:
        for _ in range(2):
            check(load(source, build), "1 2.5 3")
        assert build.calls == 1
        assert [path.name for path in source.parent.iterdir()] == ["a.json"]
        (store,) = (cache / "annotations").iterdir()
        assert store.name.startswith("a-")
        assert store.name.endswith(SUFFIX)
    finally:
        source.parent.chmod(0o755)


def test_one_that_lies_in_a_folder_for_reading_alone_is_used(source, build, cache):
    load(source, build)
    source.parent.chmod(0o555)
    try:
        check(load(source, build), "1 2.5 3")
    finally:
        source.parent.chmod(0o755)
    assert build.calls == 1
    assert not cache.exists()


def test_files_of_one_name_do_not_meet_in_the_cache_folder(tmp_path, build, cache):
    for text in ("1", "2"):
        folder = tmp_path / text
        folder.mkdir()
        write(folder / "a.json", text)
        folder.chmod(0o555)
    for _ in range(2):
        for text in ("1", "2"):
            check(load(tmp_path / text / "a.json", build), text)
    assert build.calls == 2
    assert len(list((cache / "annotations").iterdir())) == 2
    for text in ("1", "2"):
        (tmp_path / text).chmod(0o755)


def test_without_any_place_it_is_made_every_time(source, build, cache):
    cache.write_text("a file, no folder")
    source.parent.chmod(0o555)
    try:
        for _ in range(2):
            table = load(source, build)
            check(table, "1 2.5 3")
            assert table.store is None
    finally:
        source.parent.chmod(0o755)
    assert build.calls == 2


def test_a_full_disk_is_no_error(source, build, cache, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module.os, "fsync", full)
    check(load(source, build), "1 2.5 3")
    assert [path.name for path in source.parent.iterdir()] == ["a.json"]
    assert not [path for path in cache.rglob("*") if path.is_file()]


# ---- Many processes ----

# A process that loads a table, and says how often it was built. Its builder takes time, so that all are at it at once.
PROCESS = """
import sys, time
from pathlib import Path
import numpy as np
import engine.data.store as store

calls = []
def build(text):
    calls.append(1)
    time.sleep(float(sys.argv[2]))
    return store.Table({"text": text.decode()}, {"numbers": np.arange(200_000)})

def die(descriptor):
    print("half-way", flush=True)
    time.sleep(600)

if sys.argv[3] == "dies":
    store.os.fsync = die
for _ in range(5):
    table = store.load_table(Path(sys.argv[1]), build, version=1)
    assert (table.columns["numbers"] == np.arange(200_000)).all() and table.facts == {"text": "1 2.5 3"}
print(len(calls))
"""


def start(source, *, seconds=0.2, how="lives"):
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", PROCESS, str(source), str(seconds), how]
    return subprocess.Popen(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, stdout=subprocess.PIPE, text=True)


def test_processes_that_start_at_once_all_find_a_whole_one(source):
    processes = [start(source) for _ in range(4)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert {int(output) for output in outputs} <= {0, 1}
    assert sorted(path.name for path in source.parent.iterdir()) == ["a.json", "a.json.columns"]


def test_one_that_is_killed_half_way_leaves_nothing_to_stumble_over(source, build):
    process = start(source, how="dies")
    assert process.stdout.readline() == "half-way\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (left,) = (path for path in source.parent.iterdir() if path.name.startswith("."))
    assert left.stat().st_size > 1_600_000
    check(load(source, build), "1 2.5 3")
    assert left.exists()  # it might be another process's that is still at it
    os.utime(left, (time.time() - 7200, time.time() - 7200))
    beside(source).unlink()
    check(load(source, build), "1 2.5 3")
    assert not left.exists()


# ---- To other processes ----


def test_it_is_opened_again_only_if_it_is_the_same(source, build):
    table = load(source, build)
    check(reopen(table.store), "1 2.5 3")
    write(source, "7 8 9")
    check(reopen(table.store), "1 2.5 3")  # what was begun with
    load(source, build)
    os.utime(source, (LONG_AGO + 3, LONG_AGO + 3))
    load(source, build)
    assert reopen(table.store) is None
    beside(source).unlink()
    assert reopen(table.store) is None


# ---- Annotations ----

numbers = st.integers(0, 300) | st.integers(0, 30_000).map(lambda n: n / 100) | st.floats(-10, 300)
forms = (
    st.lists(st.lists(numbers, min_size=6, max_size=10).filter(lambda p: len(p) % 2 == 0), max_size=3)
    | st.lists(st.integers(0, 200), max_size=4).map(lambda runs: {"size": [10, 20], "counts": runs})
    | st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=9).map(lambda t: {"size": [10, 20], "counts": t})
    | st.just({"size": [10, 20], "counts": "l5", "id": 5})
    | st.none()
)
rows = st.lists(st.tuples(st.integers(0, 2), forms, st.floats(0, 99), st.integers(0, 1)), max_size=9)


@given(rows)
def test_annotations_come_back_as_the_file_has_them(tmp_path_factory, given_rows):
    folder = tmp_path_factory.mktemp("round_trip")
    annotations = [
        {
            "id": 10 + i,
            "image_id": image,
            "category_id": 3,
            "bbox": [1, 2, 3, 4],
            "segmentation": form,
            "area": area,
            "iscrowd": crowd,
        }
        for i, (image, form, area, crowd) in enumerate(given_rows)
    ]
    content = {
        "images": [{"id": i, "file_name": f"ü{i}.png", "height": 10, "width": 20} for i in range(3)],
        "annotations": annotations,
        "categories": [{"id": 3, "name": "cell ä", "keypoints": ["left", "right"]}],
    }
    (folder / "a.json").write_text(json.dumps(content))
    tables = [load_annotations(folder / "a.json", stored_from=limit) for limit in (10**9, 0, 0)]
    assert [table.store is None for table in tables] == [True, False, False]
    for table in tables:
        in_order = [a for image in range(3) for a in annotations if a["image_id"] == image]
        assert table.annotation_ids.tolist() == [a["id"] for a in in_order]
        assert [table.segmentation(row) for row in range(len(in_order))] == [a["segmentation"] or [] for a in in_order]
        assert table.areas.tolist() == [float(np.float32(a["area"])) for a in in_order]
        assert table.iscrowd.tolist() == [a["iscrowd"] for a in in_order]
        assert [table.file_name(i) for i in range(3)] == ["ü0.png", "ü1.png", "ü2.png"]
        assert (table.categories, table.has_masks, table.num_keypoints) == (tables[0].categories, tables[0].has_masks, 2)


@pytest.fixture
def stored(minimal, write_json):
    """The minimal file's annotations, mapped, and the file."""
    minimal["annotations"] = [
        minimal["annotations"][0] | {"id": i, "segmentation": [[1, 2, 3.25, 4, 5, 6]]} for i in range(900)
    ]
    path = write_json(minimal)
    return load_annotations(path, stored_from=0), path


def test_a_store_holds_no_pickle(stored, monkeypatch):
    _, path = stored
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, None)
    assert load_annotations(path, stored_from=0).segmentation(899) == [[1, 2, 3.25, 4, 5, 6]]
    with pytest.raises(TypeError):
        store_module._write(path.with_name("objects"), Table({}, {"objects": np.array([{}], object)}), {}, 0)


def test_small_files_have_none(minimal, write_json):
    path = write_json(minimal)
    assert load_annotations(path).store is None
    assert [entry.name for entry in path.parent.iterdir() if entry.name != "cache"] == [path.name]


def test_another_process_is_sent_the_way_to_it(stored):
    table, path = stored
    message = pickle.dumps(table)
    assert len(message) < 1000
    again = pickle.loads(message)
    assert not again.boxes.flags.writeable
    assert again.annotation_ids.tolist() == table.annotation_ids.tolist()
    small = load_annotations(path, stored_from=10**9)
    assert pickle.loads(pickle.dumps(small)).annotation_ids.tolist() == table.annotation_ids.tolist()
    beside(path).unlink()
    with pytest.raises(UserError, match=r"instances\.json has changed, or .*columns is gone"):
        pickle.loads(message)


def test_what_is_malformed_is_refused_and_not_stored(minimal, write_json):
    minimal["annotations"][0]["bbox"] = [1, 2, 3]
    path = write_json(minimal)
    for _ in range(2):
        with pytest.raises(UserError, match="annotation 1 has bbox"):
            load_annotations(path, stored_from=0)
    assert not beside(path).exists()
