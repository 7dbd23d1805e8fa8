"""1,000 mutated configs, 150 of unlikely settings: each is refused in a message, or what it says is built, and some train."""

import contextlib
import io
import os
from pathlib import Path

import pytest
import yaml

from engine.config import RunConfig
from tests.fuzz.config_cases import mutated, read, recipes
from tests.fuzz.mutations import refusal
from tests.fuzz.run_cases import MOST_PARAMETERS, TinyData, build, edged, run, shrunk

COUNT = int(os.environ.get("VERTEBRA_FUZZ_CONFIGS", "1000"))  # more: by hand
EDGED = int(os.environ.get("VERTEBRA_FUZZ_SETTINGS", "150"))
PARTS = 10
TRAINED_OF_MUTATED, TRAINED_OF_EDGED = 12, 4  # every so manieth of those that are built


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyData:
    return TinyData(tmp_path_factory.mktemp("tiny"))


def built_or_refused(config: RunConfig, tiny: TinyData, folder: Path, *, trains: bool) -> bool:
    """Whether a config is built, and trained where `trains` says so; if not, it is refused as a user's mistake is."""
    parameters: list[int] = []

    def build_it() -> None:
        parameters.append(build(shrunk(config, tiny, output_dir=folder)))

    with contextlib.redirect_stdout(io.StringIO()):
        if refusal(build_it, names="", seconds=30) is not None:
            return False
        if trains and parameters[0] <= MOST_PARAMETERS:
            refusal(lambda: run(shrunk(config, tiny, output_dir=folder)), names="", seconds=60)
            assert (folder / "metrics.jsonl").is_file() or not folder.exists()
    return True


@pytest.mark.parametrize("part", range(PARTS))
def test_a_mutated_config_is_refused_by_name_or_built(part, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VERTEBRA_CACHE", str(tmp_path / "cache"))
    path, contents = tmp_path / "fuzz.yaml", recipes({})
    refused = built = 0
    for seed in range(part, COUNT, PARTS):
        text, overrides = mutated(seed, contents)
        path.write_bytes(text)
        found: list[RunConfig] = []
        try:
            message = refusal(lambda: found.append(read(path, overrides)), names="")  # noqa: B023
            if found:
                trains = built % TRAINED_OF_MUTATED == TRAINED_OF_MUTATED - 1
                built += built_or_refused(found[0], tiny, tmp_path / f"run {seed}", trains=trains)
        except BaseException as error:
            error.add_note(f"seed {seed}") if hasattr(error, "add_note") else None
            raise
        assert message is None or "fuzz.yaml" in message or "override" in message, (seed, message)
        refused += message is not None
    assert built > 0
    assert refused > 0


@pytest.mark.parametrize("part", range(PARTS))
def test_unlikely_settings_are_refused_or_built(part, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VERTEBRA_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "fuzz.yaml"
    refused = built = 0
    for seed in range(part, EDGED, PARTS):
        path.write_text(yaml.safe_dump(edged(seed), allow_unicode=True))
        found: list[RunConfig] = []
        try:
            refused += refusal(lambda: found.append(read(path, [])), names="") is not None  # noqa: B023
            if found:
                trains = built % TRAINED_OF_EDGED == TRAINED_OF_EDGED - 1
                built += built_or_refused(found[0], tiny, tmp_path / f"run {seed}", trains=trains)
        except BaseException as error:
            error.add_note(f"settings of seed {seed}") if hasattr(error, "add_note") else None
            raise
    assert built > 0
    assert refused > 0
