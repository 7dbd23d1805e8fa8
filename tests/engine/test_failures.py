"""One of several processes fails: one message, lines in place of tracebacks, and an end within seconds."""

import os
import re
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch.distributed import HashStore

from backbones.errors import UserError
from engine.distributed import World, start_world
from engine.failures import AnotherEnded, Failures, Finishing, note_failure, raise_if_another_ended
from engine.train import train
from tests.engine.conftest import write_coco

MESSAGE = "There is no image file"


def _fail(rank: int, kind: str) -> None:
    with start_world("cpu") as world:
        world.gather(world.rank)
        if world.rank == rank:
            if kind == "user":
                raise UserError(MESSAGE)
            if kind == "ours":
                raise KeyError("a fault of ours")
            os._exit(9)
        world.broadcast(world.gather("never"))


@pytest.mark.parametrize("rank", [0, 1])
def test_the_message_of_the_one_that_failed_is_seen_once(on_processes, rank):
    began = time.monotonic()
    ended = on_processes(2, _fail, rank, "user")
    assert time.monotonic() - began < 60
    assert [one.status for one in ended] == [2, 2]
    prefix = "[process 1] "
    assert ended[rank].output == f"{prefix * rank}{MESSAGE}\n"
    assert ended[1 - rank].output == f"{prefix * (1 - rank)}process {rank} failed first, and says why.\n"


def test_a_fault_of_ours_is_left_to_python_and_the_others_have_a_line(on_processes):
    first, second, third = on_processes(3, _fail, 1, "ours")
    assert (second.status, second.output) == (1, ""), "Python prints it, where its own exceptions go"
    assert first.output == "process 1 failed first, and says why.\n"
    assert third.output == "[process 2] process 1 failed first, and says why.\n"
    assert 0 not in (first.status, second.status, third.status)


def test_one_that_is_killed_is_said_to_be_gone(on_processes):
    first, second = on_processes(2, _fail, 1, "killed")
    assert second.status == 9
    assert first.status == 1, "there is nothing here that the user could put right"
    assert first.output.startswith("Another process has gone without a word")
    assert not re.search(r"\.cc|worker|\. \w", first.output.partition("lost. ")[2]), "PyTorch's own advice is not for the user"
    assert first.output.count("\n") == 1


def test_the_first_word_stands_but_one_of_no_failure_gives_way():
    store = HashStore()
    first, second, third = (World(rank, 3, torch.device("cpu"), store) for rank in range(3))
    raise_if_another_ended(first)
    assert note_failure(second, KeyboardInterrupt())
    with pytest.raises(AnotherEnded, match=r"^process 0 ends because another did: process 1: KeyboardInterrupt: $") as ended:
        raise_if_another_ended(first)
    assert not note_failure(first, ended.value), "it came after"
    assert note_failure(third, UserError(MESSAGE))
    assert not note_failure(first, KeyError("a fault of ours"))
    with pytest.raises(AnotherEnded, match=rf"^process 0 ends because another did: process 2: UserError: {MESSAGE}$"):
        raise_if_another_ended(first)


def _fail_while_a_checkpoint_is_written(folder: str) -> None:
    Failures.__init__.__kwdefaults__["patience"] = 1

    def write() -> None:
        time.sleep(4)
        Path(folder, f"written by {world.rank}").touch()

    with start_world("cpu") as world:
        world.gather(world.rank)
        if world.rank == 1:
            raise KeyError("a fault of ours")
        Finishing(target=write).start()
        threading.Event().wait()  # as in a collective that nothing ends


def test_a_checkpoint_that_is_being_written_is_let_finish(on_processes, tmp_path):
    first, _ = on_processes(2, _fail_while_a_checkpoint_is_written, str(tmp_path))
    assert (tmp_path / "written by 0").exists()
    assert (first.status, first.output) == (1, "[process 0] process 1 failed first, and says why.\n")


def _end_while_the_other_works(folder: str) -> None:
    Failures.__init__.__kwdefaults__["patience"] = 1
    with start_world("cpu") as world:
        world.gather(world.rank)
        if world.rank == 1:
            raise KeyboardInterrupt
        time.sleep(4)
        Path(folder, "saved").touch()


def test_one_that_was_told_to_end_does_not_end_what_the_others_are_at(on_processes, tmp_path):
    first, second = on_processes(2, _end_while_the_other_works, str(tmp_path))
    assert (tmp_path / "saved").exists(), first.output
    assert (second.status, second.output) == (130, "Stopped.\n")
    assert "failed first" not in first.output


def _fail_alike() -> None:
    with start_world("cpu") as world:
        world.gather(world.rank)
        raise UserError(MESSAGE)


def test_what_all_processes_say_is_said_once(on_processes):
    ended = on_processes(3, _fail_alike)
    assert [one.status for one in ended] == [2, 2, 2]
    assert "".join(one.output for one in ended).count(MESSAGE) == 1
    assert sum(one.output.count("\n") for one in ended) == 1


def _fail_while_the_other_sleeps() -> None:
    Failures.__init__.__kwdefaults__["patience"] = 1
    with start_world("cpu") as world:
        world.gather(world.rank)
        if world.rank == 1:
            raise UserError(MESSAGE)
        time.sleep(100)


def test_one_that_would_hang_is_ended(on_processes):
    began = time.monotonic()
    first, second = on_processes(2, _fail_while_the_other_sleeps)
    assert time.monotonic() - began < 60
    assert (first.status, second.status) == (1, 2)
    assert first.output == "[process 0] process 1 failed first, and says why.\n"


def _succeed(folder: str) -> None:
    with start_world("cpu") as world:
        world.barrier()
    Path(folder, str(os.environ["RANK"])).touch()
    time.sleep(1)
    sys.exit(0)


def test_nothing_is_said_where_nothing_fails(on_processes, tmp_path):
    assert [(one.status, one.output) for one in on_processes(2, _succeed, str(tmp_path))] == [(0, "")] * 2


def test_a_file_that_one_process_misses_ends_the_training_with_one_message(on_processes, make_config, tmp_path):
    data = write_coco(tmp_path / "data", 2, sizes=((64, 64),))
    began = time.monotonic()
    ended = on_processes(2, _train_without_a_file, make_config("data.on_fault=stop", data=data))
    assert time.monotonic() - began < 60
    assert [one.status for one in ended] == [2, 2]
    together = ended[0].output + ended[1].output
    assert together.count(MESSAGE) == 1
    assert "[process 0]" not in together
    assert "[process 1] There is no image file" in ended[1].output
    assert ended[0].output.splitlines()[-1] == "process 1 failed first, and says why."
    assert "Traceback" not in together


def _train_without_a_file(config) -> None:
    if os.environ["RANK"] == "1":
        from engine.data import dataset

        def missing(path, **_):
            raise UserError(f"{MESSAGE} {path}.")

        dataset.read_image = missing
    train(config)
