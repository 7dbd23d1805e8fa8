"""engine/segmentation/label_maps.py on PNGs of every depth, written here byte by byte, and on what is no label map."""

import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backbones.errors import UserError
from engine.segmentation.label_maps import read_label_map

GREY, PALETTE = 0, 3  # the colour types of PNG's specification


def png(values: np.ndarray, *, bits: int, colour_type: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = b""
    for row in values:
        text = "".join(f"{int(value):0{bits}b}" for value in row)
        text += "0" * (-len(text) % 8)
        rows += b"\0" + bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour_type, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(range(255, -1, -1)) * 3) if colour_type == PALETTE else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("colour_type", "bits"),
    [(GREY, 1), (GREY, 2), (GREY, 4), (GREY, 8), (GREY, 16), (PALETTE, 1), (PALETTE, 2), (PALETTE, 4), (PALETTE, 8)],
)
def test_pixel_values_of_every_png_come_out_as_they_are_stored(tmp_path, colour_type, bits):
    values = np.random.default_rng(0).integers(0, 2**bits, (5, 7))
    path = tmp_path / "map.png"
    path.write_bytes(png(values, bits=bits, colour_type=colour_type))
    found = read_label_map(path, image=Path("image.jpg"))
    assert np.array_equal(found, values)
    assert found.dtype == (np.uint16 if bits == 16 else np.uint8)


def refused(path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_label_map(path, image=Path("image.jpg"))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_a_colour_image_is_no_label_map(tmp_path, mode):
    Image.new(mode, (4, 3)).save(tmp_path / "map.png")
    refused(tmp_path / "map.png", rf"is in colour \({mode}\).*grey or palette PNG.*numbers of the classes")


def test_a_jpeg_is_no_label_map(tmp_path):
    Image.new("L", (4, 3)).save(tmp_path / "map.jpg")
    refused(tmp_path / "map.jpg", "is a JPEG, whose pixel values are not exact")


def test_a_missing_map_is_named_with_its_image(tmp_path):
    refused(tmp_path / "none.png", rf"There is no label map {re.escape(str(tmp_path))}/none\.png for the image image\.jpg")


@pytest.mark.parametrize("share", [0, 0.3, 0.8])
def test_a_truncated_map_is_named(tmp_path, share):
    content = png(np.random.default_rng(0).integers(0, 256, (90, 70)), bits=8, colour_type=GREY)
    (tmp_path / "map.png").write_bytes(content[: int(len(content) * share)])
    refused(tmp_path / "map.png", "cannot be read")


@pytest.mark.parametrize("value", [-1, 65536])
def test_values_of_more_than_16_bits_are_refused(tmp_path, value):
    Image.fromarray(np.full((2, 2), value, np.int32)).save(tmp_path / "map.tif")
    refused(tmp_path / "map.tif", f"values from {value} to {value}")
