"""Files of others run nothing and lead nowhere: pickles in every place that reads weights, names in JSON, text in a report."""

import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from backbones import build_backbone
from backbones.errors import UserError
from backbones.pickled_arrays import load_pickled_arrays
from backbones.weights import load_backbone_weights
from engine.checkpoint import load_checkpoint
from engine.cli import import_modules
from engine.config_file import apply_overrides
from engine.data.annotations import load_annotations
from engine.data.coco_json import read_coco_json
from engine.data.outside_values import problem_of_name
from engine.features import load_features
from tests.engine.conftest import write_coco

ROOT = Path(__file__).parents[1]


class Touches:
    """Unpickling one makes a file."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


def evil(path, form, trace):
    content = {"format": 1, "model": {"conv1.weight": torch.ones(1)}, "config": {}, "categories": [], "trap": Touches(trace)}
    if form in ("zip", "legacy"):
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    else:
        path.write_bytes(pickle.dumps({"model": Touches(trace)}, protocol=form))
    return path


READERS = {
    "checkpoint": load_checkpoint,
    "weights": lambda path: build_backbone("resnet18", weights=str(path)),
    "backbone": lambda path: load_backbone_weights(torch.nn.Linear(2, 2), path),
}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".tar", ".bin", ".safetensors"])
@pytest.mark.parametrize("form", ["zip", "legacy", 0, 2, 4])
@pytest.mark.parametrize("reader", READERS)
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, reader, form, suffix):
    trace = tmp_path / "was-run"
    path = evil(tmp_path / f"evil{suffix}", form, trace)
    with pytest.raises(UserError) as caught:
        READERS[reader](path)
    assert not trace.exists()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


OPCODES = {
    "global": b"cos\nsystem\n(Vtouch TRACE\ntR.",
    "inst": b"(Vtouch TRACE\nios\nsystem\n.",
    "obj": b"(cos\nsystem\nVtouch TRACE\no.",
    "stack_global": b"\x80\x04\x8c\x02os\x8c\x06system\x93(\x8c\x0btouch TRACEt\x52.",
    "newobj": b"\x80\x02csubprocess\nPopen\n(Vtouch TRACE\nt\x81.",
    "build on a function": b"cnumpy\ndtype\n}V__class__\nVx\nsb.",
    "extension": b"\x80\x02\x82\x01.",
    "persistent": b"Pa\n.",
    "getattr": b"c__builtin__\ngetattr\n(cnumpy\ndtype\nV__subclasses__\ntR.",
    "numpy takes a function": b"cnumpy\nfromfunction\n(cos\nsystem\n(I1\nttR.",
    "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0bdtype.mro.x\x93.",
    "runs string": b"cnumpy.testing._private.utils\nrunstring\n(Vimport os\n}tR.",
    "array of objects": b"cnumpy.core.numeric\n_frombuffer\n(C\x08AAAAAAAAcnumpy\ndtype\n(VO8\nI0\nI1\ntR(I1\ntVC\ntR.",
    "memory": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I1000000000000\ntVb\ntR(I1\n(I1000000000000\ntcnumpy\ndtype\n"  # noqa: E501
    b"(Vf8\nI0\nI1\ntRI00\nVab\ntb.",
    "huge text": b"X\xff\xff\xff\x7fab.",
    "huge frame": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "deep": b"(" * 100_000 + b"t" * 100_000 + b".",
}


@pytest.mark.parametrize("name", OPCODES)
def test_no_instruction_of_a_pickle_runs_or_fills_the_memory(tmp_path, name):
    trace, path = tmp_path / "t", tmp_path / "evil.pkl"
    path.write_bytes(OPCODES[name].replace(b"TRACE", str(trace).encode()))
    try:
        content = load_pickled_arrays(path)
    except UserError as error:
        message = str(error)
    else:
        assert name in ("deep", "build on a function"), content
        message = str(path)
    assert not trace.exists()
    assert str(path) in message
    assert "\n" not in message


def test_arrays_of_objects_in_a_features_file_are_refused(tmp_path):
    trace = tmp_path / "was-run"
    np.savez(tmp_path / "f.npz", embeddings=np.array([Touches(trace)], dtype=object), file_names=np.array(["a"]))
    with pytest.raises(UserError, match=r"f\.npz"):
        load_features(tmp_path / "f.npz")
    assert not trace.exists()
    with zipfile.ZipFile(tmp_path / "g.npz", "w") as archive:
        archive.writestr("embeddings.npy", pickle.dumps(Touches(trace)))
    with pytest.raises(UserError, match=r"g\.npz"):
        load_features(tmp_path / "g.npz")
    assert not trace.exists()


OUTSIDE = ["../../etc/passwd", "/etc/passwd", "a/../../b.png", "..\\..\\b.png", "C:\\b.png", "\\\\host\\b.png", "a\0b.png"]
OUTSIDE += ["", ".", "..", "below/", "below/..", "./../x.png", "//etc/passwd"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leads_out_of_the_images_folder_is_refused(tmp_path, name):
    data = write_coco(tmp_path / "data", 2)
    path = Path(data["annotations"])
    content = json.loads(path.read_text())
    content["images"][1]["file_name"] = name
    path.write_text(json.dumps(content))
    number = content["images"][1]["id"]
    for read in (load_annotations, lambda path: load_annotations(path, stored_from=0), read_coco_json):
        with pytest.raises(
            UserError, match=rf"instances\.json: image {number} has the file_name .*images folder: put it right"
        ):
            read(path)


@pytest.mark.parametrize("name", ["a.png", "below/a.png", "./a.png", "a..b.png", "..a.png", "a b/é.png", "...", "x:y.png"[1:]])
def test_other_names_are_names(name):
    assert problem_of_name(name) is None


def test_a_link_within_the_images_folder_may_lead_anywhere(tmp_path):
    data = write_coco(tmp_path / "data", 2)
    image = Path(data["images"]) / "001.png"
    elsewhere = image.rename(tmp_path / "elsewhere.png")
    image.symlink_to(elsewhere)
    assert len(load_annotations(data["annotations"])) == 2


def test_a_store_that_names_files_elsewhere_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("VERTEBRA_CACHE", str(tmp_path / "cache"))
    data = write_coco(tmp_path / "data", 2)
    load_annotations(data["annotations"], stored_from=0)
    monkeypatch.setattr("engine.data.annotations.are_names", lambda names: False)
    with pytest.raises(UserError, match=r"\.columns was not made here"):
        load_annotations(data["annotations"], stored_from=0)


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["eval_det.py", "predict.py"])
def test_the_tools_end_with_2_and_one_message(tmp_path, tool):
    trace = tmp_path / "was-run"
    path = evil(tmp_path / "evil.pt", "zip", trace)
    data = write_coco(tmp_path / "data", 1)
    more = [str(Path(data["images"]) / "000.png"), "-o", str(tmp_path / "out")] if tool == "predict.py" else []
    done = subprocess.run([sys.executable, str(ROOT / "tools" / tool), str(path), *more], capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not trace.exists()


# ---- Code that a checkpoint names ----


@pytest.fixture
def foreign_checkpoint(tmp_path, monkeypatch):
    """A checkpoint whose backbone a module is to make that lies in the current folder; importing it leaves a file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "of_a_stranger.py").write_text("import pathlib\npathlib.Path('it_ran').touch()\n")
    config = apply_overrides({"data": {"train": "shapes", "val": "shapes"}}, [], origin="the test")
    content = {"format": 1, "model": {}, "config": config.model_dump(), "categories": [], "training": None}
    content["config"]["model"]["backbone"]["name"] = "of_a_stranger:net"
    torch.save(content, tmp_path / "best.pt")
    yield tmp_path / "best.pt"
    sys.modules.pop("of_a_stranger", None)


def test_a_checkpoint_imports_no_module_unless_the_user_says_so(foreign_checkpoint):
    checkpoint, ran = load_checkpoint(foreign_checkpoint), foreign_checkpoint.with_name("it_ran")
    with pytest.raises(UserError, match=r"module 'of_a_stranger' would be imported.*model\.backbone\.name=of_a_stranger:net"):
        checkpoint.load_config()
    with pytest.raises(UserError, match="would be imported"):
        checkpoint.load_config(["train.epochs=2", "model.head.name=faster_rcnn"])
    assert not ran.exists()
    with pytest.raises(UserError, match="registers no backbone"):
        checkpoint.load_config(["model.backbone.name=of_a_stranger:net"])
    assert ran.exists()
    with pytest.raises(UserError, match="registers no backbone"):  # it is imported now
        checkpoint.load_config()


@pytest.mark.parametrize("key", ["head", "pyramid"])
def test_nor_for_another_part_of_the_model(foreign_checkpoint, key):
    checkpoint = load_checkpoint(foreign_checkpoint)
    checkpoint.config["model"]["backbone"]["name"] = "resnet18"
    checkpoint.config["model"][key]["name"] = "of_a_stranger:net"
    with pytest.raises(UserError, match=f"model.{key}.name=of_a_stranger:net"):
        checkpoint.load_config()
    assert not foreign_checkpoint.with_name("it_ran").exists()


def test_modules_are_imported_on_request(foreign_checkpoint):
    with pytest.raises(UserError, match="--import not_there: ModuleNotFoundError"):
        import_modules(["not_there"])
    import_modules(["of_a_stranger"])
    assert foreign_checkpoint.with_name("it_ran").exists()
