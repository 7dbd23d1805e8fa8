"""The tools as a user calls them, in this process, and a run for them to work on."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.config_file import dump_config
from tests.engine.conftest import toy_config, train_once, write_coco

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., SimpleNamespace]:
    """A function that runs a tool with arguments, and gives its exit `status`, `out` and `err`."""

    def run(name: str, *arguments: object) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", [name, *(str(argument) for argument in arguments)])
        capsys.readouterr()
        status = 0
        try:
            runpy.run_path(str(TOOLS / name), run_name="__main__")
        except SystemExit as ended:
            status = ended.code
        captured = capsys.readouterr()
        return SimpleNamespace(status=status, out=captured.out, err=captured.err)

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A finished run (`folder`, `config`, `data`, `scores`, `printed`); not to be written to."""
    return train_once(tmp_path_factory)


@pytest.fixture
def toy(tmp_path: Path) -> SimpleNamespace:
    """Two images, their annotations, a config file of the toy detector, and the folder of its run: all to be broken."""
    data = write_coco(tmp_path / "data", 2)
    config = tmp_path / "toy.yaml"
    config.write_text(dump_config(toy_config(data=data, output_dir=tmp_path / "run")))
    return SimpleNamespace(
        config=config,
        image=Path(data["images"]) / "001.png",
        images=Path(data["images"]),
        annotations=Path(data["annotations"]),
        run=tmp_path / "run",
    )
