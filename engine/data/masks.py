"""COCO's three forms of a mask: polygons, compressed and uncompressed RLE.

hotcoco's mask functions are pycocotools' to the bit, and faster.
"""

from typing import Any

import numpy as np
from hotcoco import mask as mask_api

from engine.data.outside_values import is_finite


def to_rle(segmentation: Any, height: int, width: int) -> dict[str, Any] | None:
    """A segmentation as compressed RLE, or None where it is empty.

    Takes polygons ([[x, y, x, y, x, y, ...], ...], pixels), compressed RLE ({"size", "counts": str or bytes}) and
    uncompressed RLE ({"size", "counts": list}). Polygons of fewer than three points cover nothing and are left out.

    Raises:
        ValueError: it is none of these, or its size is not the image's.
    """
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if not isinstance(polygon, list) or len(polygon) % 2 or not all(map(is_finite, polygon)):
                raise ValueError("a polygon must be a list of numbers x, y, x, y, ...")
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        if not polygons:
            return None
        return mask_api.merge(mask_api.frPyObjects(polygons, height, width))
    if not isinstance(segmentation, dict) or "counts" not in segmentation or "size" not in segmentation:
        raise ValueError("a segmentation must be a list of polygons, or RLE with `size` and `counts`")
    if segmentation["size"] not in ([height, width], (height, width)):
        raise ValueError(f"the RLE's size {segmentation['size']} is not the image's, [{height}, {width}]")
    counts = segmentation["counts"]
    if isinstance(counts, list):
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            raise ValueError("the RLE's counts must be whole numbers, not below zero")
        if sum(counts) != height * width:
            raise ValueError(f"the RLE's counts add up to {sum(counts)} pixels, the image has {height * width}")
        return mask_api.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    if not isinstance(counts, str | bytes):
        raise ValueError(f"the RLE's counts are a {type(counts).__name__}, neither a text nor a list")
    return {"size": [height, width], "counts": counts.encode() if isinstance(counts, str) else counts}


def decode_segmentation(segmentation: Any, height: int, width: int) -> np.ndarray:
    """A segmentation as a mask (H, W) uint8, all zero where it is empty.

    Raises:
        ValueError: as `to_rle`; also compressed RLE that is garbled or does not fill the image.
    """
    rle = to_rle(segmentation, height, width)
    if rle is None:
        return np.zeros((height, width), np.uint8)
    _check_runs(rle, segmentation)
    return mask_api.decode(rle)


def check_segmentation(segmentation: Any, height: int, width: int) -> None:
    """Check a segmentation as `decode_segmentation` does, in little memory whatever the size that is stated.

    Raises:
        ValueError: as `decode_segmentation`.
    """
    rle = to_rle(segmentation, height, width)
    if rle is not None:
        mask_area(rle)  # reads the runs, if they can be read
        _check_runs(rle, segmentation)


def _check_runs(rle: dict[str, Any], segmentation: Any) -> None:
    # A text cut short decodes to a mask that ends early. Encoding gives the runs back whole: theirs must be as many pixels.
    height, width = rle["size"]
    if isinstance(rle["counts"], bytes) and isinstance(segmentation, dict) and _pixels(rle["counts"]) != height * width:
        raise ValueError(f"the RLE's counts add up to {_pixels(rle['counts'])} pixels, the image has {height * width}")


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """A mask (H, W), non-zero inside, as compressed RLE whose counts are a str, ready for JSON."""
    rle = mask_api.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode()}


def encode_part(part: np.ndarray, top: int, left: int, size: tuple[int, int]) -> dict[str, Any]:
    """A mask that is zero outside a part (h, w) of its image (H, W) at `top`, `left`, as compressed RLE whose counts are a str.

    What `encode_mask` gives of the whole mask, without making it.
    """
    height, width = size
    columns = np.zeros((part.shape[1], part.shape[0] + 2), np.int8)
    columns[:, 1:-1] = part.T != 0
    column, row = np.nonzero(np.diff(columns, axis=1))  # in turns, a run's begin and its end
    edges = (column + left) * height + row + top
    begins, ends = edges[0::2], edges[1::2]
    apart = begins[1:] != ends[:-1]  # a run that ends at the bottom edge goes on at the top of the next column
    runs = np.stack([begins[np.r_[True, apart][: len(begins)]], ends[np.r_[apart, True][: len(ends)]]], axis=1)
    counts = np.diff(np.r_[0, runs.ravel(), height * width]).tolist()
    if counts[-1] == 0 and len(counts) > 1:
        counts.pop()
    rle = mask_api.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode()}


def mask_area(rle: dict[str, Any]) -> int:
    """Pixels inside a mask given as compressed RLE."""
    return int(mask_api.area(rle))


def has_mask(segmentation: Any) -> bool:
    """Whether a segmentation covers anything at all: RLE, or a polygon of three points or more."""
    if isinstance(segmentation, list):
        return any(isinstance(polygon, list) and len(polygon) >= 6 for polygon in segmentation)
    return bool(segmentation)


def _pixels(counts: bytes) -> int:
    """The pixels that compressed counts run over. Each count is a difference to the one before the last, in 5-bit groups."""
    runs: list[int] = []
    value, shift = 0, 0
    for byte in counts:
        group = byte - 48
        value |= (group & 0x1F) << shift
        shift += 5
        if group & 0x20:
            continue
        if group & 0x10:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    return sum(runs)
