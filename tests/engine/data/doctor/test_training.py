"""Training on data with faults runs and says what it left out; validation stops; a wrong path stops."""

import contextlib
import io
import json
import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backbones.errors import UserError
from engine.data.annotations import load_annotations
from engine.data.doctor import training
from engine.data.doctor.training import check_for_validation, load_for_training, without
from engine.data.sources import CocoPaths
from engine.train import train
from tests.engine.conftest import MASKS, toy_config, write_coco


@pytest.fixture
def toy(tmp_path):
    """Twelve sound images: their paths."""
    data = write_coco(tmp_path / "toy", 12)
    return CocoPaths(Path(data["images"]), Path(data["annotations"]))


def edit(paths, change):
    content = json.loads(paths.annotations.read_text())
    change(content)
    paths.annotations.write_text(json.dumps(content))
    return content


def as_data(paths):
    return {"images": str(paths.images), "annotations": str(paths.annotations)}


def same(one, other):
    for name in ("image_ids", "heights", "widths", "offsets", "boxes", "labels", "areas", "iscrowd", "annotation_ids"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert [one.file_name(i) for i in range(len(one))] == [other.file_name(i) for i in range(len(other))]
    assert [one.segmentation(row) for row in range(len(one.boxes))] == [
        other.segmentation(row) for row in range(len(other.boxes))
    ]


def test_sound_data_is_as_it_was(toy):
    annotations, lines = load_for_training(toy, load_annotations)
    assert lines == []
    same(annotations, load_annotations(toy.annotations))


def check_run(faulty, tmp_path, *overrides):
    # Nothing else decodes the image whose end is missing.
    (broken,) = (name for (_, kind), name in faulty.expected.items() if kind == "truncated_image")
    content = json.loads(Path(faulty.data["train"]["annotations"]).read_text())
    (name,) = (image["file_name"] for image in content["images"] if f"image {image['id']}" == broken)
    folder = tmp_path / "train"
    shutil.copytree(faulty.data["train"]["images"], folder)
    with Image.open(folder / name) as image:
        size = image.size
    Image.new("RGB", size).save(folder / name)
    val = write_coco(tmp_path / "val", 2)
    content = json.loads(Path(val["annotations"]).read_text())
    train_categories = json.loads(Path(faulty.data["train"]["annotations"]).read_text())["categories"]
    for entry in content["annotations"]:
        entry["category_id"] = train_categories[0]["id"]
    Path(val["annotations"]).write_text(json.dumps(content | {"categories": train_categories}))
    data = {**faulty.data["train"], "images": str(folder)}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        train(toy_config("train.batch_size=8", *overrides, data=data, val=val, output_dir=tmp_path / "run"))
    lines = [line for line in printed.getvalue().splitlines() if line.startswith(("left out", "replaced"))]
    text = "\n".join(lines)
    for (split, kind), which in faulty.expected.items():
        unusable = training.KINDS[kind].severity == "error" and not training.KINDS[kind].usable
        if split == "train" and unusable and kind != "truncated_image":
            (line,) = (line for line in lines if f", {kind.replace('_', ' ')}: " in line)
            assert re.search(rf"\b{which.split()[1]}\b", line), (which, text)
    assert (tmp_path / "run" / "last.pt").is_file()
    return lines


def test_training_on_faulty_data_runs_and_says_what_it_left_out(faulty, tmp_path):
    lines = check_run(faulty, tmp_path, *MASKS)
    assert "left out: 1 training images, missing image: image" in "\n".join(lines)


@pytest.mark.shared_data
@pytest.mark.slow
def test_training_on_faulty_photographs_runs_and_says_what_it_left_out(faulty_photographs, tmp_path):
    check_run(faulty_photographs, tmp_path)


@pytest.mark.parametrize("stored", [False, True])
def test_a_broken_annotation_is_left_out_alone(toy, monkeypatch, stored):
    before = load_annotations(toy.annotations)
    number = int(before.annotation_ids[3])
    edit(toy, lambda content: next(e for e in content["annotations"] if e["id"] == number).update(category_id=5))
    annotations, lines = load_for_training(toy, load_annotations)
    assert lines == [f"left out: 1 training objects, unknown category id: annotation {number}"]
    assert annotations.path == toy.annotations
    np.testing.assert_array_equal(annotations.annotation_ids, np.delete(before.annotation_ids, 3))
    if stored:  # the next run makes nothing anew, and says the same
        monkeypatch.setattr(training, "usable", None)
        again, said = load_for_training(toy, lambda path: pytest.fail(f"{path} is read again, to be refused again"))
        assert said == lines
        same(annotations, again)


def test_the_cleaned_copy_follows_its_file(toy):
    edit(toy, lambda content: content["annotations"][0].update(category_id=5))
    load_for_training(toy, load_annotations)
    edit(toy, lambda content: content["annotations"][1].update(bbox=[1, 2, 3]))
    _, lines = load_for_training(toy, load_annotations)
    assert len(lines) == 2
    edit(toy, lambda content: content.update(annotations=content["annotations"][2:]))
    assert load_for_training(toy, load_annotations)[1] == []


def test_images_are_left_out_with_their_objects(toy):
    before = load_annotations(toy.annotations)
    (toy.images / "001.png").unlink()
    (toy.images / "003.png").write_bytes(b"no image")
    Image.new("RGB", (5, 5)).save(toy.images / "007.png")
    annotations, lines = load_for_training(toy, load_annotations)
    kept = [0, 2, 4, 5, 6, 8, 9, 10, 11]
    assert annotations.image_ids.tolist() == before.image_ids[kept].tolist()
    for place, index in enumerate(kept):
        rows, were = (slice(*table.offsets[i : i + 2]) for table, i in ((annotations, place), (before, index)))
        np.testing.assert_array_equal(annotations.boxes[rows], before.boxes[were])
        assert annotations.file_name(place) == before.file_name(index)
    assert lines[-1] == "left out: 6 training objects in these images"
    assert len(lines) == 4
    same(pickle.loads(pickle.dumps(annotations)), annotations)


def test_a_mask_that_is_none_goes_and_its_box_stays(toy):
    def spoil(content):
        polygon = next(e for e in content["annotations"] if isinstance(e["segmentation"], list))
        polygon["segmentation"][0].append(1.0)
        rle = next(e for e in content["annotations"] if isinstance(e["segmentation"], dict))
        rle["segmentation"]["size"] = [1, 1]

    edit(toy, spoil)
    annotations, lines = load_for_training(toy, load_annotations)
    assert re.fullmatch(r"left out: 2 training masks, malformed mask: annotation \d+, \d+", lines[0])
    assert len(annotations.boxes) == len(load_annotations(toy.annotations).boxes)
    assert load_for_training(toy, load_annotations, with_masks=False)[1] == []
    same(pickle.loads(pickle.dumps(annotations)), annotations)


def test_without_nothing_is_the_same(toy):
    annotations = load_annotations(toy.annotations)
    same(without(annotations), annotations)


def test_entries_of_images_and_of_objects_are_counted_apart(toy):
    def spoil(content):
        content["images"][1]["width"] = "wide"
        for entry in content["annotations"][-7:]:
            del entry["bbox"]

    ids = [entry["id"] for entry in edit(toy, spoil)["annotations"][-7:]]
    _, lines = load_for_training(toy, load_annotations)
    assert re.fullmatch(r"left out: 1 training images, malformed entry: image \d+ \(001\.png\)", lines[0])
    assert lines[1] == f"left out: 7 training objects, malformed entry: annotation {', '.join(map(str, ids[:5]))} and 2 more"
    assert lines[2:] == ["left out: 2 training objects in these images"]


# ---- What stops ----


def test_faults_stop_a_run_that_is_told_so(toy):
    (toy.images / "001.png").unlink()
    with pytest.raises(UserError, match=r"there is no file .*001\.png\. tools/check_data\.py"):
        load_for_training(toy, load_annotations, on_fault="stop")
    edit(toy, lambda content: content["annotations"][0].update(category_id=5))
    with pytest.raises(UserError, match=r"category 5, .* tools/check_data\.py"):
        load_for_training(toy, load_annotations, on_fault="stop")


def test_a_folder_of_other_images_stops(toy, tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="12 of 12 training images cannot be used"):
        load_for_training(CocoPaths(tmp_path / "other", toy.annotations), load_annotations)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("images"), "images"),
        (lambda content: content["categories"].append(content["categories"][0]), "categories"),
        (lambda content: [e.pop("category_id") for e in content["annotations"]], "category_id"),
    ],
)
def test_a_file_of_another_form_stops(toy, change, message):
    edit(toy, change)
    with pytest.raises(UserError, match=message):
        load_for_training(toy, load_annotations)


@pytest.mark.parametrize("fault", ["annotation", "image"])
def test_nothing_is_left_out_of_validation(toy, fault):
    if fault == "image":
        (toy.images / "001.png").unlink()
    else:
        edit(toy, lambda content: content["annotations"][0].update(category_id=5))
    with pytest.raises(UserError, match=r"tools/check_data\.py"):
        check_for_validation(toy, load_annotations)


def _left_out(paths):
    from engine.distributed import start_world

    with start_world("cpu") as world:
        annotations, lines = load_for_training(paths, load_annotations, world=world)
        print(len(annotations), *lines, sep="\n")


def test_all_processes_leave_out_the_same(toy, on_processes):
    edit(toy, lambda content: content["annotations"][0].update(category_id=5))
    (toy.images / "001.png").unlink()
    one, other = on_processes(2, _left_out, toy)
    assert (one.status, other.status) == (0, 0), one.output + other.output
    assert one.output == other.output
    assert one.output.startswith("11\nleft out: 1 training objects, unknown category id")


# ---- Large sets ----


def test_images_that_were_sound_are_not_looked_at_again_until_one_comes_or_goes(toy, monkeypatch):
    monkeypatch.setattr(training, "MARKED_FROM", 1)
    looked = []
    look = training.glance_at_images
    monkeypatch.setattr(training, "glance_at_images", lambda *args, **options: looked.append(1) or look(*args, **options))

    def starts():
        looked.clear()
        lines = load_for_training(toy, load_annotations)[1]
        return len(looked), lines

    for path in (toy.images, toy.annotations):
        os.utime(path, (1e9, 1e9))
    assert starts() == (1, [])
    assert starts() == (0, [])
    (toy.images / "001.png").unlink()
    for _ in range(2):  # faults are not kept: the image may come back
        number, lines = starts()
        assert (number, lines[0].split(":")[1]) == (1, " 1 training images, missing image")


def test_what_changed_just_now_is_looked_at_again(toy, monkeypatch):
    monkeypatch.setattr(training, "MARKED_FROM", 1)
    assert load_for_training(toy, load_annotations)[1] == []
    (toy.images / "001.png").unlink()
    assert load_for_training(toy, load_annotations)[1]
