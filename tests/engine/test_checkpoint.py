"""Checkpoints: whole or not there, no code run from them, and nothing loaded that does not fit."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from backbones.errors import UserError
from engine.checkpoint import first_difference, load_checkpoint, save_checkpoint
from engine.data.annotations import Category, load_annotations
from engine.data.dataset import CocoDataset
from engine.detection.build import build_model
from tests.engine.conftest import with_other_category

CATEGORIES = [Category(3, "bar"), Category(44, "square"), Category(90, "never")]


@pytest.fixture
def config(make_config):
    return make_config()


@pytest.fixture
def model(config):
    return build_model(config, num_classes=4, load_weights=True)


@pytest.fixture
def saved(config, model, tmp_path) -> Path:
    path = tmp_path / "some" / "best.pt"
    training = {"step": 12, "optimizer": {"state": {0: torch.ones(2)}}}
    save_checkpoint(path, model=model.state_dict(), config=config, categories=CATEGORIES, training=training)
    return path


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def dataset_of(annotations: str | Path) -> CocoDataset:
    return CocoDataset(Path(annotations).parent, load_annotations(annotations))


# ---- What is written is what is read ----


def test_a_checkpoint_gives_back_model_config_categories_and_training_state(saved, config, model):
    loaded = load_checkpoint(saved)
    assert_equal(loaded.model, model.state_dict())
    assert loaded.load_config() == config
    assert loaded.categories == CATEGORIES
    assert loaded.training["step"] == 12
    assert torch.equal(loaded.training["optimizer"]["state"][0], torch.ones(2))


def test_the_model_is_rebuilt_with_its_weights_in_evaluation_mode(saved, model):
    loaded = load_checkpoint(saved)
    rebuilt = loaded.build_model(loaded.load_config())
    assert_equal(rebuilt.state_dict(), model.state_dict())
    assert not rebuilt.training


def test_a_checkpoint_is_plain_torch_that_needs_no_code_of_ours(saved, model):
    content = torch.load(saved, weights_only=True)
    assert_equal(content["model"], model.state_dict())
    assert content["categories"][1] == {"id": 44, "name": "square", "keypoints": []}
    assert content["config"]["model"]["head"]["box_head_dim"] == 32


def test_a_checkpoint_without_training_state_says_so(config, model, tmp_path):
    save_checkpoint(tmp_path / "best.pt", model=model.state_dict(), config=config, categories=CATEGORIES)
    assert load_checkpoint(tmp_path / "best.pt").training is None


def test_overrides_change_the_config_they_give_and_not_the_checkpoint(saved):
    loaded = load_checkpoint(saved)
    assert loaded.load_config(["eval.batch_size=3"]).eval.batch_size == 3
    assert loaded.load_config().eval.batch_size == 1


def test_a_wrong_override_is_refused(saved):
    with pytest.raises(UserError, match=r"eval\.batch: unknown key"):
        load_checkpoint(saved).load_config(["eval.batch=3"])


# ---- Written whole or not at all ----


def test_a_failure_while_writing_leaves_the_old_file(saved, config, model, monkeypatch):
    before = saved.read_bytes()

    def fail_halfway(content, file):
        file.write(b"half of")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", fail_halfway)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(saved, model=model.state_dict(), config=config, categories=CATEGORIES)
    assert saved.read_bytes() == before


def test_what_an_earlier_failure_left_does_not_get_in_the_way(saved, config, model):
    saved.with_name("best.pt.part").write_bytes(b"half of")
    save_checkpoint(saved, model=model.state_dict(), config=config, categories=[])
    assert load_checkpoint(saved).categories == []
    assert [path.name for path in saved.parent.iterdir()] == ["best.pt"]


# ---- What is no checkpoint ----


class Intruder:
    """Unpickling one makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def refuse(path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)


def test_a_missing_checkpoint_is_named(tmp_path):
    refuse(tmp_path / "none.pt", "There is no checkpoint at")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02}q\x00.", b"PK\x03\x04" + b"\0" * 100])
def test_garbage_is_refused(tmp_path, content):
    path = tmp_path / "garbage.pt"
    path.write_bytes(content)
    refuse(path, "garbage")


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_truncated_checkpoint_is_refused(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * share)])
    refuse(saved, "truncated|not a PyTorch file")


@pytest.mark.parametrize(
    "content",
    [{"model": {"w": torch.ones(1)}, "epoch": 3}, {"w": torch.ones(1)}, torch.ones(3), [1, 2], {}],
    ids=["container", "state dict", "tensor", "list", "empty"],
)
def test_the_checkpoint_of_another_program_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    refuse(tmp_path / "other.pt", "is no checkpoint of a training run here")


def test_a_checkpoint_of_another_version_is_refused(saved):
    content = torch.load(saved, weights_only=True) | {"format": 99}
    torch.save(content, saved)
    refuse(saved, "format 99; this version reads 1")


def test_a_flipped_bit_anywhere_is_found_or_is_of_no_account(config, tmp_path):
    """PyTorch itself loads weights with flipped bits without a word."""
    path = tmp_path / "small.pt"
    tensors = {"w": torch.arange(300.0), "b": torch.ones(7, dtype=torch.int64)}
    save_checkpoint(path, model=tensors, config=config, categories=CATEGORIES, training={"step": 3})
    whole = path.read_bytes()
    found = 0
    offsets = range(0, len(whole), 7)
    for offset in offsets:
        flipped = bytearray(whole)
        flipped[offset] ^= 1 << offset % 8
        path.write_bytes(flipped)
        try:
            loaded = load_checkpoint(path)
        except UserError:
            found += 1
            continue
        assert_equal(loaded.model, tensors)  # it was in what is between the records, or says when they were made
        assert loaded.training == {"step": 3}
        assert loaded.load_config() == config
    assert found > 0.4 * len(offsets)
    path.write_bytes(whole)
    assert_equal(load_checkpoint(path).model, tensors)


def test_a_flipped_bit_of_a_weight_is_found(saved, model):
    content = bytearray(saved.read_bytes())
    place = content.find(model.state_dict()["backbone.body.conv1.weight"].numpy().tobytes())
    assert place > 0
    content[place + 1000] ^= 4
    saved.write_bytes(content)
    torch.load(saved, weights_only=True)
    refuse(saved, r"is damaged: what is in it is not what was written \(.*/data/\d+\)")


def test_code_in_a_file_is_refused_and_not_run(tmp_path):
    trace, path = tmp_path / "was run", tmp_path / "evil.pt"
    torch.save({"format": 1, "model": {}, "config": {}, "categories": Intruder(trace)}, path)
    refuse(path, "could run code")
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists(), "the file is not evil: this test shows nothing"


def test_code_in_a_bare_pickle_is_refused_and_not_run(tmp_path):
    trace, path = tmp_path / "was run", tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps({"w": Intruder(trace)}, protocol=2))
    refuse(path, "not loaded|cannot be read")
    assert not trace.exists()
    pickle.loads(path.read_bytes())
    assert trace.exists(), "the file is not evil: this test shows nothing"


# ---- What does not fit ----


def test_weights_of_another_model_are_refused_and_the_keys_named(saved):
    loaded = load_checkpoint(saved)
    with pytest.raises(UserError, match=r"does not fit.*roi_heads\.box_head\.fc6\.weight is 32x784 in the file and 48x784"):
        loaded.build_model(loaded.load_config(["model.head.box_head_dim=48"]))


@pytest.mark.parametrize(
    ("category", "message"),
    [
        ({"name": "stick"}, r"'bar' \(id 3\) against 'stick' \(id 3\)"),
        ({"id": 4}, r"'bar' \(id 3\) against 'bar' \(id 4\)"),
        ({"id": 60}, r"'bar' \(id 3\) against 'square' \(id 44\)"),
    ],
)
def test_data_of_other_classes_are_refused_and_the_first_that_differs_named(saved, toy_data, tmp_path, category, message):
    other = with_other_category(toy_data["annotations"], tmp_path / "other.json", category)
    with pytest.raises(UserError, match=message) as caught:
        load_checkpoint(saved).check_categories(dataset_of(other))
    assert other in str(caught.value)
    load_checkpoint(saved).check_categories(dataset_of(toy_data["annotations"]))


def test_data_with_fewer_classes_are_refused(saved, toy_data, tmp_path):
    content = json.loads(Path(toy_data["annotations"]).read_text())
    content["categories"] = [category for category in content["categories"] if category["name"] != "never"]
    (tmp_path / "fewer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="3 classes against 2"):
        load_checkpoint(saved).check_categories(dataset_of(tmp_path / "fewer.json"))


def test_a_checkpoint_of_another_job_is_refused_and_its_tools_named(saved):
    loaded = load_checkpoint(saved)
    assert loaded.job == "detection"
    assert loaded.load_config(job="detection") == loaded.load_config()
    with pytest.raises(
        UserError, match=r"best\.pt is of the job detection, and this tool is for segmentation: use tools/train_det"
    ):
        loaded.load_config(job="segmentation")
    with pytest.raises(UserError, match="the override 'job=segmentation' is of the job segmentation"):
        loaded.load_config(["job=segmentation"])


def test_a_checkpoint_from_before_there_were_jobs_is_of_detection(saved, config, model):
    content = torch.load(saved, weights_only=True)
    del content["config"]["job"]
    torch.save(content, saved)
    loaded = load_checkpoint(saved)
    assert loaded.job == "detection"
    assert loaded.load_config(job="detection") == config
    assert_equal(loaded.build_model(loaded.load_config()).state_dict(), model.state_dict())


@pytest.mark.parametrize("job", ["detection", None])
def test_a_checkpoint_of_a_job_that_is_not_known_here_is_refused(saved, job):
    content = torch.load(saved, weights_only=True)
    content["config"]["job"] = "depth"
    torch.save(content, saved)
    with pytest.raises(UserError, match=r"best\.pt.*'depth'") as caught:
        load_checkpoint(saved).load_config(job=job)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ([Category(1, "cat"), Category(3, "dog")], "'dog' (id 2) against 'dog' (id 3)"),
        ([Category(1, "cat")], "2 classes against 1"),
        ([Category(1, "cat", ("nose", "tail")), Category(2, "dog")], "the keypoints of 'cat': none against nose, tail"),
    ],
)
def test_the_first_difference_of_two_lists_of_classes(theirs, said):
    assert first_difference([Category(1, "cat"), Category(2, "dog")], theirs) == said
