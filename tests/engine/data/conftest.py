"""Annotation files to break, and a small data set of noise with objects in it."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

# One image, one category and one box: what a test changes is then all there is to notice.
MINIMAL: dict[str, Any] = {
    "images": [{"id": 7, "file_name": "a.png", "height": 10, "width": 20}],
    "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4]}],
    "categories": [{"id": 3, "name": "cell"}],
}
SIZES = ((40, 60), (60, 40), (48, 48), (33, 71), (64, 30), (50, 50))  # (height, width), pixels


@pytest.fixture
def minimal() -> dict[str, Any]:
    """The content of a small, faultless annotation file; a test may change it."""
    return copy.deepcopy(MINIMAL)


@pytest.fixture
def write_json(tmp_path: Path) -> Callable[[Any], Path]:
    """A function that writes a value, or bytes as they are, as the annotation file `instances.json`."""

    def write(content: Any) -> Path:
        path = tmp_path / "instances.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    return write


@pytest.fixture(scope="session")
def noise_set(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(images folder, annotation file): six images of noise; two boxes with polygons in each but the last, which is empty."""
    folder = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 5, "name": "a"}, {"id": 2, "name": "b"}]}
    for number, (height, width) in enumerate(SIZES):
        name = f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(folder / name)
        content["images"].append({"id": 100 - number, "file_name": name, "height": height, "width": width})
        for x, y, w, h in ((3, 4, 15, 20), (12, 6, 14, 12)) if number < len(SIZES) - 1 else ():
            annotation = {"id": len(content["annotations"]), "image_id": 100 - number, "bbox": [x, y, w, h]}
            annotation["category_id"] = 2 if w == 15 else 5
            annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            content["annotations"].append(annotation)
    (folder / "instances.json").write_text(json.dumps(content))
    return folder, folder / "instances.json"
