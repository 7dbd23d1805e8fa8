"""How a tool ends: what its user did wrong is one message and status 2, what it did wrong itself is a traceback."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from backbones.errors import UserError
from engine.cli import run_tool


def failing(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


def test_a_tool_that_succeeds_just_returns(capsys):
    run_tool(lambda: print("done"))
    assert capsys.readouterr() == ("done\n", "")


def test_a_users_error_is_one_message_and_status_2(capsys):
    with pytest.raises(SystemExit) as caught:
        run_tool(failing(UserError("There is no config.")))
    assert caught.value.code == 2
    assert capsys.readouterr() == ("", "There is no config.\n")


def test_other_processes_than_the_first_say_which_they_are(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(SystemExit):
        run_tool(failing(UserError("There is no config.")))
    assert capsys.readouterr().err == "[process 3] There is no config.\n"


def test_ctrl_c_ends_with_status_130_and_no_traceback(capsys):
    with pytest.raises(SystemExit) as caught:
        run_tool(failing(KeyboardInterrupt()))
    assert caught.value.code == 130
    assert capsys.readouterr().err == "Stopped.\n"


@pytest.mark.parametrize("error", [ValueError("a bug"), RuntimeError("a bug"), FileNotFoundError("a bug")])
def test_an_error_of_the_program_keeps_its_traceback(error):
    with pytest.raises(type(error), match="a bug"):
        run_tool(failing(error))


def test_a_reader_that_has_seen_enough_is_no_error():
    """As in `tool | head -1`."""
    code = "from engine.cli import run_tool\nrun_tool(lambda: [print('x' * 1000, flush=True) for _ in range(1000)])"
    command = [sys.executable, "-c", code]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0
