"""300 mutated annotation files: each is used, or refused in a message that names it; nothing else is raised, nothing hangs."""

import contextlib
import io
import os

import pytest

from tests.fuzz.annotation_cases import mutated, uses, write_images
from tests.fuzz.mutations import refusal

COUNT = int(os.environ.get("VERTEBRA_FUZZ_ANNOTATIONS", "300"))  # more: by hand
PARTS = 6


@pytest.mark.parametrize("part", range(PARTS))
def test_a_mutated_annotation_file_is_used_or_refused_by_name(part, tmp_path, monkeypatch):
    monkeypatch.setenv("VERTEBRA_CACHE", str(tmp_path / "cache"))
    images = tmp_path / "images"
    write_images(images)
    refused = ran = 0
    for seed in range(part, COUNT, PARTS):
        path = tmp_path / "fuzz" / f"{seed}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(mutated(seed))
        for use in uses(images, path, seed):
            with contextlib.redirect_stdout(io.StringIO()):
                try:
                    message = refusal(use, names=str(tmp_path))
                except BaseException as error:
                    error.add_note(f"seed {seed}, {use.__name__}") if hasattr(error, "add_note") else None
                    raise
            refused += message is not None
            ran += message is None
    assert ran > 0
    assert refused > 0
