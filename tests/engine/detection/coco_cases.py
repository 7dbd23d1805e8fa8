"""Small COCO files with everything that makes scoring hard, and results for them."""

from typing import Any

import numpy as np
from pycocotools import mask as mask_api

OCCURRING = [50, 7, 31]  # category ids, neither in order nor without gaps
NEVER = 19


def encode(box: list[float], height: int, width: int) -> dict[str, Any]:
    mask = np.zeros((height, width), np.uint8, order="F")
    x, y, w, h = (round(v) for v in box)
    mask[y : y + h, x : x + w] = 1
    rle = mask_api.encode(mask)
    return {"size": [height, width], "counts": rle["counts"].decode()}


def random_box(rng: np.random.Generator, height: int, width: int) -> list[float]:
    w, h = rng.integers(4, [width // 2, height // 2])
    return [int(rng.integers(0, width - w)), int(rng.integers(0, height - h)), int(w), int(h)]


def random_case(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ground truth with crowd regions, images without objects and a class that never occurs; results with ties in score, false
    and doubled detections, and an image of more than the hundred that count."""
    rng = np.random.default_rng(seed)
    images, annotations, rows = [], [], []
    for image_id in (100 - 7 * np.arange(12)).tolist():
        height, width = rng.integers(160, 400, 2).tolist()
        images.append({"id": image_id, "file_name": f"{image_id}.jpg", "height": height, "width": width})
        found = []
        for _ in range(0 if image_id % 5 == 0 else rng.integers(1, 7)):
            box = random_box(rng, height, width)
            category = int(rng.choice(OCCURRING))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(rng.random() < 0.2),
                    "segmentation": encode(box, height, width),
                }
            )
            jittered = [max(0, v + int(rng.integers(-4, 5))) for v in box]
            jittered[2:] = [max(2, v) for v in jittered[2:]]
            found += [(category, jittered)] * int(rng.integers(0, 3))
        extra = 130 if image_id == 100 - 7 * 3 else rng.integers(0, 4)
        found += [(int(rng.choice([*OCCURRING, NEVER])), random_box(rng, height, width)) for _ in range(extra)]
        rows += [
            {
                "image_id": image_id,
                "category_id": category,
                "bbox": box,
                "segmentation": encode(box, height, width),
                "score": float(rng.integers(1, 20)) / 20,
            }
            for category, box in found
        ]
    categories = [{"id": i, "name": f"class {i}"} for i in (*OCCURRING, NEVER)]
    return {"images": images, "annotations": annotations, "categories": categories}, rows


def keypoint_case(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    rng = np.random.default_rng(seed)
    images, annotations, rows = [], [], []
    for image_id in range(1, 9):
        images.append({"id": image_id, "file_name": "x.jpg", "height": 300, "width": 300})
        for _ in range(rng.integers(1, 4)):
            x, y, w, h = random_box(rng, 300, 300)
            points = np.stack([rng.uniform(x, x + w, 17), rng.uniform(y, y + h, 17), rng.integers(0, 3, 17)], axis=1)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "num_keypoints": int((points[:, 2] > 0).sum()),
                    "keypoints": points.ravel().tolist(),
                }
            )
            points[:, :2] += rng.normal(0, 0.06 * (w * h) ** 0.5, (17, 2))
            score = float(rng.random())
            rows.append({"image_id": image_id, "category_id": 1, "score": score, "keypoints": points.ravel().tolist()})
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}, rows


def only(rows: list[dict[str, Any]], field: str) -> list[dict[str, Any]]:
    return [{key: row[key] for key in ("image_id", "category_id", "score", field)} for row in rows]
