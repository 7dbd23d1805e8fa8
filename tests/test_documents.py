"""What the documents tell a reader to type is accepted as it stands: by a shell, by the tool, and as a config."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

import engine.train
from engine.config_file import load_config

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
SCALING = ROOT / "docs" / "scaling.md"


def training_commands(document):
    """The arguments of each command of a document's code blocks that calls a tool that trains: (tool, arguments).

    Those after a prompt show what is printed, in the README a mistake's message, and are left out.
    """
    for block in re.findall(r"^```\w*\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            called = re.search(r"tools/train_\w+\.py", line)
            if called and not line.startswith("$"):
                yield called[0], shlex.split(line[called.end() :], comments=True)


COMMANDS = [(path.name, *command) for path in (README, SCALING) for command in training_commands(path)]


def test_the_commands_are_found():
    assert [name for name, tool, _ in COMMANDS if tool == "tools/train_det.py"].count("scaling.md") == 4
    assert {tool for _, tool, _ in COMMANDS} == {f"tools/train_{job}.py" for job in ("cls", "det", "seg")}


@pytest.mark.parametrize(("document", "tool", "arguments"), COMMANDS, ids=lambda value: " ".join(value)[:60])
def test_a_command_that_trains_is_accepted(document, tool, arguments, monkeypatch):
    started = []
    monkeypatch.setattr(engine.train, "train", lambda config, *, resume: started.append((config, resume)))
    monkeypatch.setattr(sys, "argv", [tool, *arguments])
    monkeypatch.chdir(ROOT)
    runpy.run_path(tool, run_name="__main__")
    ((config, resume),) = started
    assert resume == ("" if "--resume" in arguments else None)
    for word in arguments:
        if word.startswith("output_dir="):
            assert config.output_dir == word.removeprefix("output_dir=")


@pytest.mark.parametrize("document", [README, SCALING], ids=lambda path: path.name)
def test_resume_stands_last(document):
    """The word after it is its PATH, so it is shown last."""
    assert not re.findall(r"--resume [a-z_.]+=", document.read_text())


def settings():
    """The examples in the README's table of settings."""
    section = README.read_text().split("\n## Settings\n")[1].split("\n## ")[0]
    for line in section.splitlines():
        if line.startswith("| ") and not line.startswith("| to |"):
            yield from re.findall(r"`([^`]*=[^`]*)`", line.split("|", 2)[2])


@pytest.mark.parametrize("example", list(settings()))
def test_a_setting_can_be_pasted(example):
    words = shlex.split(example)
    assert all(re.match(r"[a-z_.]+=", word) for word in words), "put it in quotes"
    load_config(ROOT / "configs" / "mrcnn_r50.yaml", words)
