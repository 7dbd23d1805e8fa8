"""Seeded faults: each is found, by its id; a cleaned copy has none of them."""

import json
from collections import Counter

import pytest

from engine.data.annotations import load_annotations
from engine.data.doctor.doctor import check_data
from engine.data.doctor.findings import KINDS
from tests.engine.conftest import toy_config


def run(data, tmp_path, *overrides, **options):
    config = toy_config(*overrides, data=data["train"], val=data["val"], output_dir=tmp_path / "run")
    status = check_data(config, output=tmp_path / "check", **options)
    return status, json.loads((tmp_path / "check" / "findings.json").read_text())


def named(finding):
    if finding["annotation_id"] is not None:
        return f"annotation {finding['annotation_id']}"
    return f"image {finding['image_id']}" if finding["image_id"] is not None else finding["file"]


def check_all_found(faulty, tmp_path, capsys):
    status, report = run(faulty.data, tmp_path)
    found = {(f["split"], f["kind"], named(f)) for f in report["findings"]}
    missed = {(*key, name) for key, name in faulty.expected.items()} - found
    assert not missed
    assert len(faulty.expected) >= 20
    assert status == 1
    printed = capsys.readouterr().out
    for kind in {kind for _, kind in faulty.expected}:
        assert kind.replace("_", " ") in printed
    # Nothing else is called an error.
    errors = {(f["split"], f["kind"]) for f in report["findings"] if f["severity"] == "error"}
    assert errors == {key for key in faulty.expected if KINDS[key[1]].severity == "error"}
    assert (tmp_path / "check" / "worst.png").stat().st_size > 10_000
    return report


def test_every_seeded_fault_is_found_by_its_id(faulty, tmp_path, capsys):
    check_all_found(faulty, tmp_path, capsys)


@pytest.mark.shared_data
def test_every_seeded_fault_in_photographs_is_found_by_its_id(faulty_photographs, tmp_path, capsys):
    report = check_all_found(faulty_photographs, tmp_path, capsys)
    # What was sound before is not accused: there is one fault of each kind, but for classes.
    counts = Counter(f["kind"] for f in report["findings"] if "class" not in f["kind"] and f["kind"] != "grey_image")
    assert counts.pop("duplicate_image_id") == 2
    assert set(counts.values()) == {1}, counts


@pytest.mark.parametrize("which", ["faulty", pytest.param("faulty_photographs", marks=pytest.mark.shared_data)])
def test_a_cleaned_copy_has_no_error_and_loads(which, request, tmp_path, capsys):
    faulty = request.getfixturevalue(which)
    before = (faulty.folder / "train.json").read_bytes()
    run(faulty.data, tmp_path, fix=tmp_path / "clean")
    printed = capsys.readouterr().out
    assert (faulty.folder / "train.json").read_bytes() == before
    assert "1 images dropped: missing image" in printed
    assert "annotations lost their mask: malformed mask" in printed
    data = {split: {**where, "annotations": str(tmp_path / "clean" / f"{split}.json")} for split, where in faulty.data.items()}
    status, report = run(data, tmp_path)
    assert (status, report["counts"]["error"]) == (0, 0)
    assert len(load_annotations(data["train"]["annotations"])) == len(json.loads(before)["images"]) - 7
