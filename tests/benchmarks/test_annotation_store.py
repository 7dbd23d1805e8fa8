"""benchmarks/annotation_store.py: it runs, and its figures are of the magnitudes they must be."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.coco_size import write_coco

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")]


def test_each_figure_is_there_and_positive(tmp_path):
    path = tmp_path / "instances.json"
    write_coco(path, images=1500, annotations=10_000)  # above 4 MB, from where on there is a store
    output = tmp_path / "result.json"
    command = [sys.executable, "benchmarks/annotation_store.py", path, "--rounds", "1", "--workers", "2", "-o", output]
    printed = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, capture_output=True, text=True
    ).stdout
    result = json.loads(output.read_text())
    assert 0 < result["machine"]["store_mb"] < result["machine"]["file_mb"]
    for name in ("ours", "pycocotools"):
        of_it = result["measurements"][name]
        assert set(of_it) >= {"first load", "later load", "2 workers, idle", "2 workers, pass"}
        assert f"{name} " in printed
        (first,), (later,) = of_it["first load"], of_it["later load"]
        assert min(first["seconds"], first["cpu_seconds"], first["peak_mb"], first["imports_mb"]) > 0
        assert 0 <= later["kept_mb"] <= later["peak_mb"] + 1
        (busy,) = of_it["2 workers, pass"]
        assert busy["added_pss_mb_each"] > 0
        assert busy["private_mb_most"] > 0
    ours, theirs = (result["measurements"][name]["later load"][0] for name in ("ours", "pycocotools"))
    assert ours["kept_mb"] < theirs["kept_mb"]
