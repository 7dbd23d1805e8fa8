"""1,000 mutated configs and overrides: each is read, or refused in a message that names file or override; nothing hangs."""

import os

import pytest

from tests.fuzz.config_cases import mutated, read, recipes
from tests.fuzz.mutations import refusal

COUNT = int(os.environ.get("VERTEBRA_FUZZ_CONFIGS", "1000"))  # more: by hand
PARTS = 10


@pytest.mark.parametrize("part", range(PARTS))
def test_a_mutated_config_is_read_or_refused_by_name(part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, contents = tmp_path / "fuzz.yaml", recipes({})
    refused = ran = 0
    for seed in range(part, COUNT, PARTS):
        text, overrides = mutated(seed, contents)
        path.write_bytes(text)
        try:
            message = refusal(lambda: read(path, overrides), names="")  # noqa: B023
        except BaseException as error:
            error.add_note(f"seed {seed}") if hasattr(error, "add_note") else None
            raise
        assert message is None or "fuzz.yaml" in message or "override" in message, (seed, message)
        refused += message is not None
        ran += message is None
    assert ran > 0
    assert refused > 0
