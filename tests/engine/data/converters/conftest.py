"""Images to label, and COCO files read by pycocotools."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO


@pytest.fixture
def add_image(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes an image of noise, of (width, height), below the test's folder; by default 60 x 40 pixels."""

    def add(name: str, size: tuple[int, int] = (60, 40), **options: object) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(len(name)).integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(path, **options)
        return path

    return add


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., COCO]:
    """A function that writes what a converter collected, and reads it with pycocotools."""

    def through(writer: object) -> COCO:
        path = tmp_path / "written" / "coco.json"
        writer.write(path)
        with contextlib.redirect_stdout(io.StringIO()):
            return COCO(str(path))

    return through
