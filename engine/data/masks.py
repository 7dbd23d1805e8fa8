"""COCO's three forms of a mask: polygons, compressed and uncompressed RLE.

hotcoco's mask functions are pycocotools' to the bit, and faster.
"""

from typing import Any

import numpy as np
from hotcoco import mask as mask_api


def to_rle(segmentation: Any, height: int, width: int) -> dict[str, Any] | None:
    """A segmentation as compressed RLE, or None where it is empty.

    Takes polygons ([[x, y, x, y, x, y, ...], ...], pixels), compressed RLE ({"size", "counts": str or bytes}) and
    uncompressed RLE ({"size", "counts": list}). Polygons of fewer than three points cover nothing and are left out.

    Raises:
        ValueError: it is none of these, or its size is not the image's.
    """
    if isinstance(segmentation, list):
        if any(not isinstance(polygon, list) or len(polygon) % 2 for polygon in segmentation):
            raise ValueError("a polygon must be a list of x, y, x, y, ...")
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        if not polygons:
            return None
        return mask_api.merge(mask_api.frPyObjects(polygons, height, width))
    if not isinstance(segmentation, dict) or "counts" not in segmentation or "size" not in segmentation:
        raise ValueError("a segmentation must be a list of polygons, or RLE with `size` and `counts`")
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"the RLE's size {segmentation['size']} is not the image's, [{height}, {width}]")
    counts = segmentation["counts"]
    if isinstance(counts, list):
        if sum(counts) != height * width:
            raise ValueError(f"the RLE's counts add up to {sum(counts)} pixels, the image has {height * width}")
        return mask_api.frPyObjects(segmentation, height, width)
    return {"size": [height, width], "counts": counts.encode() if isinstance(counts, str) else counts}


def decode_segmentation(segmentation: Any, height: int, width: int) -> np.ndarray:
    """A segmentation as a mask (H, W) uint8, all zero where it is empty.

    Raises:
        ValueError: as `to_rle`.
    """
    rle = to_rle(segmentation, height, width)
    return np.zeros((height, width), np.uint8) if rle is None else mask_api.decode(rle)


def mask_area(rle: dict[str, Any]) -> int:
    """Pixels inside a mask given as compressed RLE."""
    return int(mask_api.area(rle))


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """A mask (H, W), non-zero inside, as compressed RLE whose counts are a str, ready for JSON."""
    rle = mask_api.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode()}
