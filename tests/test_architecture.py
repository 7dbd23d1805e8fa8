"""The shape of the house: which way imports go, what they need, and how large a file may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import engine.job

ROOT = Path(__file__).parents[1]
# A package may import itself and those before it.
PACKAGES = ["backbones", "heads", "engine", "tools"]
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
BACKBONES_NEED = {"backbones", "torch", "torchvision", "safetensors", "numpy", *sys.stdlib_module_names}
OTHERS = ["timm", "transformers", "albumentations", "cv2", "pydantic", "yaml", "hotcoco", "pycocotools", "rich", "tensorboard"]


def relative(path):
    return str(path.relative_to(ROOT))


def imports(tree, *, at_import_time_only=False):
    """(line, top-level package) of each import statement; imports from the file's own package by dots are left out."""
    modules = imported_modules(tree, at_import_time_only=at_import_time_only)
    yield from dict.fromkeys((line, module.split(".")[0]) for line, module in modules)


def imported_modules(tree, *, at_import_time_only=False):
    """(line, module) of each import statement, and of each name imported from one, which may be a module itself."""
    nodes = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if not (inside and at_import_time_only):
            nodes.extend(ast.iter_child_nodes(node))


def test_imports_are_found_wherever_they_stand():
    always = "import a.b\nfrom c.d import e\nif x:\n    import f\n"
    later = "def g():\n    import h\nclass I:\n    def j(self):\n        import k\n"
    tree = ast.parse(always + later)
    assert sorted(name for _, name in imports(tree)) == ["a", "c", "f", "h", "k"]
    assert sorted(name for _, name in imports(tree, at_import_time_only=True)) == ["a", "c", "f"]


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_arrows_go_from_tools_to_engine_to_heads_to_backbones(path):
    package = path.relative_to(ROOT).parts[0]
    above = set(PACKAGES[PACKAGES.index(package) + 1 :]) | {"tests", "benchmarks"}
    against = [f"line {line}: {name}" for line, name in imports(ast.parse(path.read_text())) if name in above]
    assert not against, f"{package} must not import {against}"


JOBS = [place.split(":")[0].rpartition(".")[0] for place in engine.job.JOBS.values()]  # engine.detection, ...


@pytest.mark.parametrize("path", [path for path in SOURCES if path.is_relative_to(ROOT / "engine")], ids=relative)
def test_the_engine_imports_no_job_and_no_job_another(path):
    own = ".".join(path.relative_to(ROOT).parts[:-1])
    others = tuple(f"{job}." for job in JOBS if not f"{own}.".startswith(f"{job}."))
    against = [
        f"line {line}: {name}" for line, name in imported_modules(ast.parse(path.read_text())) if f"{name}.".startswith(others)
    ]
    assert not against, f"{own} must not import {against}"


def test_an_import_of_a_job_is_seen_in_every_form():
    for text in ("import engine.detection.job", "from engine.detection import job", "from engine import detection"):
        ((_, name),) = imported_modules(ast.parse(text))
        assert f"{name}.".startswith("engine.detection.")


# These modules are imported when a name asks for them, or by the user of another framework; each needs just that one.
ADAPTERS = {"zoos/timm.py": ("timm",), "zoos/huggingface.py": ("transformers",)}
ADAPTERS |= {f"plugins/{name}.py": (name,) for name in ("timm", "transformers", "segmentation_models_pytorch", "detectron2")}
ADAPTERS |= {"plugins/mmdet.py": ("mmdet", "mmengine")}


@pytest.mark.parametrize("path", [path for path in SOURCES if path.is_relative_to(ROOT / "backbones")], ids=relative)
def test_backbones_import_other_zoos_only_when_used(path):
    found = imports(ast.parse(path.read_text()), at_import_time_only=True)
    own = ADAPTERS.get(str(path.relative_to(ROOT / "backbones")), ())
    assert not [f"line {line}: {name}" for line, name in found if name not in BACKBONES_NEED and name not in own]


@pytest.mark.slow
def test_backbones_and_heads_import_where_only_torch_and_torchvision_are_installed():
    code = f"import sys; sys.modules.update(dict.fromkeys({OTHERS})); import backbones, heads; print(*heads.__all__)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "faster_rcnn" in result.stdout, result.stderr


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_a_file_is_small_enough_to_hold_in_the_head(path):
    limit = 80 if path.parent == ROOT / "tools" else 400
    assert len(path.read_text().splitlines()) <= limit
