"""Copies of a data set with faults of every kind, each known by its id."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from tests.conftest import SHARED
from tests.engine.conftest import write_coco


def _load(folder):
    """The content of each split's annotations, the train images whose objects stay as they are last."""
    return {split: json.loads((folder / f"{split}.json").read_text()) for split in ("train", "val")}


def seed_faults(folder: Path) -> dict[tuple[str, str], str]:
    """Put over twenty faults into a data set at `folder`: train/, val/, train.json, val.json. Gives {(split, kind): name}."""
    content = _load(folder)
    train, val = content["train"], content["val"]
    images = train["images"]
    names = [image["file_name"] for image in images]
    expected = {}

    def image_fault(index, kind):
        expected["train", kind] = f"image {images[index]['id']}"
        return folder / "train" / names[index]

    # ---- Files ----
    image_fault(0, "missing_image").unlink()
    image_fault(1, "unreadable_image").write_bytes(b"not an image, whatever its name")
    path = image_fault(2, "truncated_image")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    image_fault(3, "wrong_image_size")
    images[3]["width"] += 10
    pictures = {}
    for index in range(4, 11):
        with Image.open(folder / "train" / names[index]) as image:
            pictures[index] = image.convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    pictures[4].save(image_fault(4, "exif_rotation"), "JPEG", exif=exif)
    pictures[5].convert("CMYK").save(image_fault(5, "cmyk_image"), "JPEG")
    grey = np.asarray(pictures[6].convert("L")).astype(np.uint16)
    Image.fromarray(grey * 257).save(image_fault(6, "16_bit_image"), "PNG")
    pictures[7].quantize(64).save(image_fault(7, "palette_image"), "PNG")
    pictures[8].convert("L").save(image_fault(8, "grey_image"), "PNG")
    for index, kind in ((9, "image_in_train_and_val"), (10, "similar_image_in_train_and_val")):
        twin = folder / "val" / f"twin{index}.jpg"
        if index == 9:
            shutil.copy(image_fault(9, kind), twin)
        else:
            image_fault(10, kind)
            ImageEnhance.Brightness(pictures[10]).enhance(0.9).save(twin, "JPEG", quality=60)
        width, height = pictures[index].size
        val["images"].append({"id": 10**9 + index, "file_name": twin.name, "width": width, "height": height})

    # ---- Entries ----
    images.append({**images[12], "id": images[11]["id"], "file_name": "another.jpg"})
    shutil.copy(folder / "train" / names[12], folder / "train" / "another.jpg")
    expected["train", "duplicate_image_id"] = f"image {images[11]['id']}"
    sound = {image["id"] for image in images[12:-1]}
    sizes = {image["id"]: (image["width"], image["height"]) for image in images}
    objects = [
        entry
        for entry in train["annotations"]
        if entry["image_id"] in sound and not entry["iscrowd"] and isinstance(entry["segmentation"], list)
        and entry["area"] > 100 and max(entry["bbox"][2:]) < 0.6 * min(sizes[entry["image_id"]])
    ]  # fmt: skip

    def object_fault(index, kind):
        expected["train", kind] = f"annotation {objects[index]['id']}"
        return objects[index]

    entry = object_fault(0, "box_outside_image")
    entry["bbox"][0] = sizes[entry["image_id"]][0] + 5
    object_fault(1, "degenerate_box")["bbox"][2] = 0
    object_fault(2, "not_a_finite_number")["bbox"][1] = float("nan")
    object_fault(3, "malformed_box")["bbox"].pop()
    entry = object_fault(4, "empty_mask")
    entry["segmentation"] = [[*entry["segmentation"][0][:2]] * 3]
    object_fault(5, "malformed_mask")["segmentation"][0].pop()
    entry = object_fault(6, "box_and_mask_disagree")
    x, y, w, h = entry["bbox"]
    width, height = sizes[entry["image_id"]]
    entry["bbox"] = [width - w if x < (width - w) / 2 else 0, height - h if y < (height - h) / 2 else 0, w, h]
    object_fault(7, "unknown_category_id")["category_id"] = 4321
    object_fault(8, "unknown_image_id")["image_id"] = 987654321
    objects[9]["id"] = objects[10]["id"]
    expected["train", "duplicate_annotation_id"] = f"annotation {objects[10]['id']}"
    object_fault(11, "malformed_crowd_flag")["iscrowd"] = 2
    object_fault(12, "malformed_area")["area"] = "large"
    entry = object_fault(13, "box_beyond_border")
    entry["bbox"][2] = sizes[entry["image_id"]][0]
    entry["segmentation"] = []
    del object_fault(14, "malformed_entry")["category_id"]
    train["annotations"].append(dict(objects[15]))
    expected["train", "repeated_annotation"] = f"annotation {objects[15]['id']}"
    learned, scored = (
        {entry.get("category_id") for entry in content[split]["annotations"] if not entry["iscrowd"]} for split in content
    )
    number = max(learned & scored - {objects[15]["category_id"]})
    train["annotations"] = [entry for entry in train["annotations"] if entry.get("category_id") != number or entry in objects]
    for entry in objects:
        if entry.get("category_id") == number:
            entry["category_id"] = objects[15]["category_id"]
    expected["val", "class_in_val_only"] = next(c["name"] for c in train["categories"] if c["id"] == number)
    for split, changed in content.items():
        (folder / f"{split}.json").write_text(json.dumps(changed))
    return expected


def _faulty(folder):
    return SimpleNamespace(
        folder=folder,
        expected=seed_faults(folder),
        data={
            split: {"images": str(folder / split), "annotations": str(folder / f"{split}.json")} for split in ("train", "val")
        },
    )


@pytest.fixture(scope="session")
def faulty(tmp_path_factory):
    """A made-up set with faults: `folder`, `expected`, and the config's `data`; not to be written to."""
    folder = tmp_path_factory.mktemp("faulty")
    for split, count in (("train", 40), ("val", 6)):
        written = write_coco(folder / "made" / split, count)
        shutil.move(written["images"], folder / split)
        shutil.move(written["annotations"], folder / f"{split}.json")
    return _faulty(folder)


@pytest.fixture(scope="session")
def faulty_photographs(tmp_path_factory):
    """The same in a copy of coco_cc_by."""
    source, folder = SHARED / "data/coco_cc_by", tmp_path_factory.mktemp("photographs")
    for split in ("train", "val"):
        (folder / split).mkdir()
        for image in (source / split).iterdir():
            (folder / split / image.name).write_bytes(image.read_bytes())  # without the modes of a read-only source
        (folder / f"{split}.json").write_bytes((source / f"annotations/instances_{split}.json").read_bytes())
    return _faulty(folder)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("VERTEBRA_CACHE", str(tmp_path / "cache"))
