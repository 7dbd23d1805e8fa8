"""Several processes do what one does. The first test starts them with torchrun, the others with `on_processes`."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from backbones.errors import UserError
from engine.build import check_processes
from engine.checkpoint import load_checkpoint
from engine.config_file import dump_config
from engine.detection.build import build_model
from engine.detection.config import DetectionConfig
from engine.distributed import World, start_world
from engine.evaluate import evaluate
from engine.predict import predict_images
from engine.train import train
from tests.engine.conftest import MASKS, write_coco

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def assert_succeeded(ended: list[SimpleNamespace]) -> None:
    assert [one.status for one in ended] == [0] * len(ended), [one.output for one in ended]


def steps(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"]


def weights(folder: Path) -> dict[str, Tensor]:
    return load_checkpoint(folder / "last.pt").model


def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    return float(torch.cat([(first[key] - second[key]).flatten() for key in first]).norm())


def initial_weights(config: DetectionConfig) -> dict[str, Tensor]:
    torch.manual_seed(config.seed)
    return build_model(config, num_classes=4, load_weights=True).state_dict()


# ---- Training ----


@pytest.mark.slow
def test_torchrun_trains_on_the_batches_of_one_process(make_config, square_data, tmp_path):
    overrides = ("train.batch_size=4", "train.epochs=2")
    train(make_config(*overrides, data=square_data, name="alone"))
    (tmp_path / "toy.yaml").write_text(dump_config(make_config(*overrides, data=square_data, name="two")))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, ROOT / "tools" / "train_det.py", tmp_path / "toy.yaml"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "faster_rcnn on resnet18, 2 processes, cpu" in done.stdout
    assert done.stdout.count("step 1/4") == 1, "one process prints"
    alone, two = steps(tmp_path / "alone"), steps(tmp_path / "two")
    assert [line["image_ids"] for line in two] == [line["image_ids"] for line in alone]
    # Equal images give every loss as many samples, so that the mean over the processes is the mean over the batch.
    for name in ("loss", "loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"):
        assert two[0][name] == pytest.approx(alone[0][name], rel=1e-5), name
    assert [line["lr"] for line in two] == [line["lr"] for line in alone]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_move_the_weights_as_one_does(on_processes, make_config, square_data, tmp_path, accumulate):
    overrides = ("train.batch_size=8", "optimizer.lr=0.125")
    train(make_config(*overrides, data=square_data, name="alone"))
    assert_succeeded(on_processes(2, train, make_config(*overrides, f"train.accumulate={accumulate}", data=square_data)))
    alone = weights(tmp_path / "alone")
    before = initial_weights(make_config(*overrides, data=square_data))
    assert distance(alone, weights(tmp_path / "run")) < 1e-4 * distance(before, alone)


@pytest.mark.parametrize("head", [(), MASKS], ids=["faster_rcnn", "mask_rcnn"])
def test_processes_without_any_object_neither_hang_nor_fail(on_processes, make_config, tmp_path, head):
    data = write_coco(tmp_path / "data", 8)
    content = json.loads(Path(data["annotations"]).read_text())
    content["annotations"] = content["annotations"][:2]  # both on the first image: in each step one process or both have none
    Path(data["annotations"]).write_text(json.dumps(content))
    assert_succeeded(on_processes(2, train, make_config("train.batch_size=4", "train.epochs=2", *head, data=data)))
    assert len(steps(tmp_path / "run")) == 4
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())


@pytest.mark.parametrize("overrides", [(), ("train.ema={decay: 0.5}",)], ids=["weights", "average"])
def test_batch_statistics_of_the_evaluation_are_those_of_the_checkpoint(
    on_processes, make_config, toy_data, tmp_path, overrides
):
    """Each process has seen other images, so that their running means differ."""
    overrides = ("model.backbone.norm=bn", "model.head.box_score_thresh=0.0", "train.batch_size=4", *overrides)
    assert_succeeded(on_processes(2, train, make_config(*overrides, data=toy_data)))
    evaluate(str(tmp_path / "run" / "best.pt"), [], job="detection", output_dir=str(tmp_path / "again"))
    results = (tmp_path / "again" / "bbox_results.json").read_text()
    assert results == (tmp_path / "run" / "eval" / "bbox_results.json").read_text()
    assert len(json.loads(results)) > 10


def test_a_resumed_run_of_two_processes_ends_as_one_that_was_not_stopped(on_processes, make_config, tmp_path):
    def config(epochs: int, name: str) -> DetectionConfig:
        schedule = ("schedule.milestones=[9.0]", "train.ema={decay: 0.9}", "data.augmentations=[{name: horizontal_flip}]")
        return make_config("train.batch_size=4", f"train.epochs={epochs}", *schedule, *MASKS, name=name)

    assert_succeeded(on_processes(2, train, config(2, "whole")))
    assert_succeeded(on_processes(2, train, config(1, "stopped")))
    assert_succeeded(on_processes(2, train, config(2, "stopped"), resume=""))
    whole, stopped = (load_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "stopped"))
    assert distance(whole.model, stopped.model) == 0
    assert distance(whole.training["model"], stopped.training["model"]) == 0
    assert [(line["step"], line["loss"]) for line in steps(tmp_path / "whole")] == [
        (line["step"], line["loss"]) for line in steps(tmp_path / "stopped")
    ]


def test_a_run_may_go_on_with_other_processes(on_processes, make_config, tmp_path):
    train(make_config("train.batch_size=6"))
    assert_succeeded(on_processes(3, train, make_config("train.batch_size=6", "train.epochs=2"), resume=""))
    assert [line["step"] for line in steps(tmp_path / "run")] == [1, 2]


# ---- Evaluation ----


@pytest.mark.parametrize(("size", "batch_size"), [(2, 1), (3, 1), (3, 2)])
def test_any_number_of_processes_scores_the_same(on_processes, trained, tmp_path, size, batch_size):
    """Seven images: no shard is as large as another."""
    source, overrides = str(trained.folder / "best.pt"), [f"eval.batch_size={batch_size}"]
    evaluate(source, overrides, job="detection", output_dir=str(tmp_path / "alone"))
    ended = on_processes(size, evaluate, source, overrides, job="detection", output_dir=str(tmp_path / "shared"))
    assert_succeeded(ended)
    for name in ("scores.json", "bbox_results.json", "segm_results.json"):
        assert (tmp_path / "shared" / name).read_text() == (tmp_path / "alone" / name).read_text(), name
    assert ended[0].output.count("Average Precision") == 12
    assert [one.output for one in ended[1:]] == [""] * (size - 1)


def test_more_processes_than_images_score_the_same(on_processes, trained, few_data, tmp_path):
    overrides = [f"data.val.{key}={value}" for key, value in few_data.items()]
    alone = evaluate(str(trained.folder / "best.pt"), overrides, job="detection", output_dir=str(tmp_path / "alone"))
    assert alone[0].stats["AP50"] > 0
    assert_succeeded(
        on_processes(
            3, evaluate, str(trained.folder / "best.pt"), overrides, job="detection", output_dir=str(tmp_path / "shared")
        )
    )
    assert (tmp_path / "shared" / "scores.json").read_text() == (tmp_path / "alone" / "scores.json").read_text()


def test_prediction_is_shared_out(on_processes, trained, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name in ("000.png", "001.png", "002.png"):
        shutil.copy(Path(trained.data["images"]) / name, images)
    checkpoint = str(trained.folder / "best.pt")
    alone = predict_images(checkpoint, [str(images)], output_dir=str(tmp_path / "alone"), device="cpu")
    assert_succeeded(
        on_processes(2, predict_images, checkpoint, [str(images)], output_dir=str(tmp_path / "shared"), device="cpu")
    )
    assert json.loads((tmp_path / "shared" / "results.json").read_text()) == alone
    assert {path.name for path in (tmp_path / "shared").iterdir()} == {path.name for path in (tmp_path / "alone").iterdir()}


# ---- What goes wrong ----


def test_an_error_in_one_process_ends_them_all(on_processes, make_config, tmp_path):
    """The second process alone meets the broken image."""
    data = write_coco(tmp_path / "data", 2, sizes=((64, 64),))
    train(make_config(data=data, name="first"))
    second = steps(tmp_path / "first")[0]["image_ids"][1]
    content = json.loads(Path(data["annotations"]).read_text())
    (name,) = (image["file_name"] for image in content["images"] if image["id"] == second)
    path = Path(data["images"], name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])  # its header is sound, or the run would not start
    ended = on_processes(2, train, make_config("data.on_fault=stop", data=data))
    assert ended[1].status == 2
    assert re.fullmatch(rf"\[process 1\] The image .*{name} cannot be read: .*\n", ended[1].output)
    assert ended[0].status not in (0, None)
    assert not (tmp_path / "run" / "last.pt").exists()


@pytest.mark.parametrize(("size", "accumulate", "multiple"), [(3, 1, 3), (2, 2, 4)])
def test_a_batch_that_cannot_be_shared_evenly_is_refused(make_config, size, accumulate, multiple):
    config = make_config("train.batch_size=10", f"train.accumulate={accumulate}")
    with pytest.raises(UserError, match=rf"train\.batch_size is 10 .* Give a multiple of {multiple}"):
        check_processes(config, World(0, size, CPU))
    check_processes(config, World(0, 1, CPU))


def test_synchronised_batch_norm_is_refused_on_several_cpus(make_config):
    for override in ("model.backbone.norm=sync_bn", "model.pyramid.norm=sync_bn"):
        with pytest.raises(UserError, match="sync_bn needs GPUs"):
            check_processes(make_config(override), World(0, 2, CPU))
        check_processes(make_config(override), World(0, 1, CPU))


# ---- The world ----


def test_one_process_needs_no_others():
    with start_world("cpu") as world:
        assert world == World(0, 1, CPU)
        assert world.is_main
        assert world.store is None
        assert world.gather("value") == ["value"]
        assert world.broadcast("value") == "value"
        world.barrier()


def _talk(folder: str) -> None:
    with start_world("cpu") as world:
        gathered = world.gather({"rank": world.rank})
        received = world.broadcast(f"from {world.rank}")
        norm = torch.nn.BatchNorm1d(2)
        norm.running_mean.fill_(float(world.rank + 5))
        world.share_buffers(norm)
        world.barrier()
        said = {"gathered": gathered, "received": received, "mean": norm.running_mean.tolist(), "main": world.is_main}
        Path(folder, f"{world.rank}.json").write_text(json.dumps(said))


def test_processes_gather_to_the_first_and_hear_from_it(on_processes, tmp_path):
    assert_succeeded(on_processes(3, _talk, str(tmp_path)))
    first, *others = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3))
    assert first == {"gathered": [{"rank": 0}, {"rank": 1}, {"rank": 2}], "received": "from 0", "mean": [5, 5], "main": True}
    assert others == [{"gathered": [], "received": "from 0", "mean": [5, 5], "main": False}] * 2


RESTARTED = """
import os
from engine.distributed import start_world

with start_world("cpu") as world:
    stale = world.store.check(["greeting"])
    world.barrier()
    if world.is_main:
        world.store.set("greeting", "hello")
    world.barrier()
    line = f"rank {world.rank} start {os.environ['TORCHELASTIC_RESTART_COUNT']} {world.store.get('greeting').decode()} {stale}"
    os.write(1, f"{line}\\n".encode())  # at once, for both write to the same place
    world.barrier()
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and world.rank == 1:
        os._exit(3)
    world.barrier()
"""


@pytest.mark.slow
def test_a_restart_does_not_take_what_the_last_start_left_for_its_own(tmp_path):
    """torchrun's store lives as long as it does."""
    (tmp_path / "restarted.py").write_text(RESTARTED)
    command = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    done = subprocess.run(
        [*command, "--nproc-per-node=2", "--max-restarts=1", "--monitor-interval=0.1", tmp_path / "restarted.py"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [f"rank {r} start {s} hello False" for r in (0, 1) for s in (0, 1)]


def _meet(folder: str, late: str) -> None:
    with start_world("cpu", wait_minutes=1 / 60) as world:
        if world.rank == 1 and late == "fails":
            raise UserError("there is no room")
        if world.rank == 1:
            time.sleep(4)
        try:
            world.barrier()
        except RuntimeError as error:
            raise UserError(str(error)) from error  # which is printed into the output


@pytest.mark.parametrize(
    ("late", "said"),
    [
        ("fails", "process 0 ends because another did: process 1: UserError: there is no room"),
        ("sleeps", "process 0 has waited 1 s for others: 1 of 2 came"),
    ],
)
def test_who_waits_for_a_process_that_does_not_come_is_told(on_processes, tmp_path, late, said):
    first, second = on_processes(2, _meet, str(tmp_path), late)
    assert first.status == 2
    assert said in first.output
    assert second.status not in (0, None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="PyTorch sees no GPU here"), start_world("cuda"):
        pass


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE is 'abc', not a number"),
        ({"RANK": "-1"}, "RANK is '-1', not a number"),
        ({"WORLD_SIZE": "0"}, "RANK=0 with WORLD_SIZE=0"),
        ({"RANK": "5", "WORLD_SIZE": "2"}, "RANK=5 with WORLD_SIZE=2"),
        ({"WORLD_SIZE": "2"}, r"did not meet the others at MASTER_ADDR:MASTER_PORT = \(unset\):\(unset\)"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "x"}, "did not meet the others at .* = 127.0.0.1:x"),
    ],
)
def test_variables_that_torchrun_would_not_set_are_named(monkeypatch, variables, message):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message), start_world("cpu"):
        pass


def test_a_process_whose_partner_does_not_come_says_so(monkeypatch):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"Process 0 of 2|Process 0 has waited"), start_world("cpu", step_minutes=0.02):
        pass
