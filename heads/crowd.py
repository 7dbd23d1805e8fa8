"""Crowd regions: neither object nor background, so nothing inside one is an example of either.

torchvision never reads `iscrowd`. MMDetection ignores anchors of which half or more lies in a crowd (`ignore_iof_thr`),
Detectron proposals of which 70 % does (`CROWD_FILTER_THRESH`); half is used here, for both.
"""

import torch
from torch import Tensor
from torchvision.ops.boxes import _box_inter_union, box_area

CROWD_COVER = 0.5
AT_ONCE = 16  # regions that boxes are compared with at once: with 267,000 boxes, 17 MB for every number of a pair


def set_crowd_apart(target: dict[str, Tensor]) -> dict[str, Tensor]:
    """Move the crowd rows of a target out of `boxes`, `labels`, `masks`, ... into `crowd_boxes` (N, 4), xyxy pixels."""
    if "iscrowd" not in target:
        return target
    is_crowd = target["iscrowd"].bool()
    apart = dict(target, crowd_boxes=target["boxes"][is_crowd])
    for key in ("boxes", "labels", "masks", "area", "iscrowd", "keypoints"):
        if key in target:
            apart[key] = target[key][~is_crowd]
    return apart


def in_crowd(boxes: Tensor, target: dict[str, Tensor]) -> Tensor:
    """(N, 4) xyxy pixels -> (N,) bool: half of the box or more lies in one crowd region of the target."""
    crowd = target.get("crowd_boxes")
    if crowd is None or len(crowd) == 0:
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    cover = torch.zeros(len(boxes), dtype=boxes.dtype, device=boxes.device)
    for regions in crowd.to(boxes.dtype).split(AT_ONCE):
        intersection, _ = _box_inter_union(boxes, regions)
        cover = torch.maximum(cover, intersection.amax(dim=1))
    return cover / box_area(boxes).clamp(min=1e-6) >= CROWD_COVER
