"""tools/check_data.py as a user calls it."""

import json
import os

import pytest


def test_sound_data(tool, toy, tmp_path):
    done = tool("check_data.py", toy.config, "-o", tmp_path / "check")
    assert (done.status, done.err) == (0, "")
    assert "train: 2 images" in done.out
    assert "val is the same data as train" in done.out
    assert "0 errors" in done.out
    kinds = {f["kind"] for f in json.loads((tmp_path / "check/findings.json").read_text())["findings"]}
    assert kinds == {"class_without_objects", "rare_class"}


def test_errors_are_named_and_end_it_with_1(tool, toy, tmp_path):
    toy.image.write_bytes(toy.image.read_bytes()[:500])
    content = json.loads(toy.annotations.read_text())
    content["annotations"][0]["bbox"] = [0, 0, float("nan"), 5]
    toy.annotations.write_text(json.dumps(content))
    done = tool("check_data.py", toy.config, "-o", tmp_path / "check", "--fix", tmp_path / "clean", "--count", 1)
    assert (done.status, done.err) == (1, "")
    assert "2 errors" in done.out
    assert f"annotation {content['annotations'][0]['id']}" in done.out
    assert "1 images dropped: truncated image" in done.out
    findings = json.loads((tmp_path / "check/findings.json").read_text())["findings"]
    assert {f["file"] for f in findings if f["severity"] == "error"} >= {"001.png"}
    keys = {"split", "kind", "severity", "file", "image_id", "annotation_id", "message"}
    assert all(f.keys() == keys for f in findings)
    fixed = tool("check_data.py", toy.config, f"data.train.annotations={tmp_path}/clean/instances.json",
                 f"data.val.annotations={tmp_path}/clean/instances.json", "-o", tmp_path / "again")  # fmt: skip
    assert fixed.status == 0


def test_a_file_that_is_no_json_is_an_error_found(tool, toy, tmp_path):
    toy.annotations.write_text('{"images": [,]}')
    done = tool("check_data.py", toy.config, "-o", tmp_path / "check", "--fix", tmp_path / "clean")
    assert done.status == 1
    assert "line 1, column 13" in (tmp_path / "check/findings.json").read_text()
    assert "cannot be read" in done.out
    assert list((tmp_path / "clean").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.train.images=nowhere"], "no folder nowhere"),
        (["data.val.annotations=nowhere.json"], "no file nowhere.json"),
        (["data.trein.images=x"], "trein"),
        (["--count", "0"], "--count"),
    ],
)
def test_what_the_user_got_wrong_ends_it_with_2(tool, toy, tmp_path, arguments, message):
    done = tool("check_data.py", toy.config, *arguments, "-o", tmp_path / "check")
    assert done.status == 2
    assert message in done.err
    assert not (tmp_path / "check").exists()


def test_nothing_is_written_over(tool, toy, tmp_path):
    before = toy.annotations.read_bytes()
    for folder, status in ((toy.annotations.parent, 2), (tmp_path / "clean", 0), (tmp_path / "clean", 2)):
        done = tool("check_data.py", toy.config, "-o", tmp_path / "check", "--fix", folder)
        assert done.status == status
        assert ("is there already" in done.err) == (status == 2)
    assert toy.annotations.read_bytes() == before


def test_other_jobs_are_told_what_it_checks(tool, tmp_path):
    done = tool("check_data.py", "configs/cls_digits.yaml", "-o", tmp_path / "check")
    assert done.status == 2
    assert "COCO" in done.err


def test_a_folder_that_cannot_be_written_to(tool, toy, tmp_path):
    (tmp_path / "file").touch()
    done = tool("check_data.py", toy.config, "-o", tmp_path / "file" / "check")
    assert done.status == 2
    assert os.fspath(tmp_path / "file") in done.err
