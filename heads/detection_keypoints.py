"""The keypoints of each detection, out of the heatmaps that a keypoint predictor has for it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import keypointrcnn_inference

from heads.class_masks import few_at_a_time

AT_ONCE = 256  # detections whose maps and heatmaps are held at once: 1.1 MB each, with torchvision's defaults


def detection_keypoints(
    roi_heads: Any, features: dict[str, Tensor], boxes: Sequence[Tensor], image_shapes: Sequence[tuple[int, int]]
) -> tuple[list[Tensor], list[Tensor]]:
    """Keypoints (R_i, K, 3) and their scores (R_i, K) of each image's detections (R_i, 4); a few of them at a time.

    Args:
        roi_heads: what has `keypoint_roi_pool`, `keypoint_head` and `keypoint_predictor`.
    """
    points: list[list[Tensor]] = [[] for _ in boxes]
    scores: list[list[Tensor]] = [[] for _ in boxes]
    for rows in few_at_a_time(boxes, AT_ONCE):
        some = [image_boxes[rows] for image_boxes in boxes]
        pooled = roi_heads.keypoint_roi_pool(features, some, image_shapes)
        found = keypointrcnn_inference(roi_heads.keypoint_predictor(roi_heads.keypoint_head(pooled)), some)
        for parts, images in zip((points, scores), found, strict=True):
            for part, image in zip(parts, images, strict=True):
                part.append(image)
    return [torch.cat(part) for part in points], [torch.cat(part) for part in scores]
