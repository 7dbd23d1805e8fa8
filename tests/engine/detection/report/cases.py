"""Made-up ground truth and results with every kind of error, and what of them is computed by hand."""

from typing import Any

import numpy as np

CLASS_IDS = (31, 7, 50)
NEVER = 90


def random_boxes(seed: int, *, images: int = 10, crowds: bool = True) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Three classes that occur and one that does not, with right, shifted, doubled, misnamed and invented detections."""
    rng = np.random.default_rng(seed)
    entries, annotations, rows = [], [], []
    for image_id in rng.permutation(np.arange(3, 3 + 2 * images, 2)).tolist():
        entries.append({"id": image_id, "file_name": f"{image_id}.png", "height": 240, "width": 320})
        for _ in range(int(rng.integers(0, 7))):
            size = np.exp(rng.uniform(np.log(12), np.log(130), 2))
            box = [*rng.uniform(0, [320, 240] - size), *size]
            category, crowd = int(rng.choice(CLASS_IDS)), int(crowds and rng.random() < 0.15)
            annotations.append(
                {
                    "id": 1000 - len(annotations),
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": [float(v) for v in box],
                    "area": float(size[0] * size[1]),
                    "iscrowd": crowd,
                }
            )
            for spread in rng.choice([0.02, 0.06, 0.15, 0.3], int(rng.integers(0, 4))):
                shifted = [v + float(rng.normal(0, spread)) * s for v, s in zip(box, [*size, *size], strict=True)]
                shifted[2:] = [max(v, 2.0) for v in shifted[2:]]
                named = category if rng.random() < 0.75 else int(rng.choice([*CLASS_IDS, NEVER]))
                rows.append({"image_id": image_id, "category_id": named, "bbox": [float(v) for v in shifted]})
        for _ in range(int(rng.integers(0, 4))):
            box = [*rng.uniform(0, 200, 2), *rng.uniform(10, 60, 2)]
            named = int(rng.choice([*CLASS_IDS, NEVER]))
            rows.append({"image_id": image_id, "category_id": named, "bbox": [float(v) for v in box]})
    order = rng.permutation(len(rows))
    for row, place in zip(rows, order.tolist(), strict=True):
        row["score"] = (place + 1) / (len(rows) + 1)  # no two alike
    categories = [{"id": i, "name": f"class {i}"} for i in (*CLASS_IDS, NEVER)]
    return {"images": entries, "annotations": annotations, "categories": categories}, rows


def iou(first: list[float], second: list[float], *, crowd: bool = False) -> float:
    """Of two boxes x, y, width, height; with a crowd region, the share of the first that lies within it."""
    width = min(first[0] + first[2], second[0] + second[2]) - max(first[0], second[0])
    height = min(first[1] + first[3], second[1] + second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    own = first[2] * first[3]
    return width * height / (own if crowd else own + second[2] * second[3] - width * height)


def matches(truth: dict[str, Any], rows: list[dict[str, Any]]) -> tuple[dict[int, int], set[int]]:
    """COCO's matching at IoU 0.5: {row: place of its annotation}, and the rows that crowd regions swallow."""
    found: dict[int, int] = {}
    ignored = set()
    for i in sorted(range(len(rows)), key=lambda i: -rows[i]["score"]):
        best, place = 0.5, None
        for j, a in enumerate(truth["annotations"]):
            mine = a["image_id"] == rows[i]["image_id"] and a["category_id"] == rows[i]["category_id"]
            if mine and not a["iscrowd"] and j not in found.values():
                overlap = iou(rows[i]["bbox"], a["bbox"])
                if overlap >= best:
                    best, place = overlap, j
        if place is not None:
            found[i] = place
        elif any(
            a["iscrowd"]
            and (a["image_id"], a["category_id"]) == (rows[i]["image_id"], rows[i]["category_id"])
            and iou(rows[i]["bbox"], a["bbox"], crowd=True) >= 0.5
            for a in truth["annotations"]
        ):
            ignored.add(i)
    return found, ignored


def average_precision(scores: list[float], right: list[bool], objects: int) -> float:
    """COCO's: precision made monotonous, at 101 recalls."""
    order = np.argsort(-np.array(scores), kind="stable")
    hits = np.cumsum(np.array(right, float)[order])
    recall, precision = hits / objects, hits / np.arange(1, len(hits) + 1)
    monotonous = [precision[i:].max() for i in range(len(precision))]
    places = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
    return float(np.mean([monotonous[p] if p < len(monotonous) else 0.0 for p in places]))
