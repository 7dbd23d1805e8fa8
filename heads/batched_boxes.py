"""Matching, sampling and suppression of the boxes of a whole batch, in a fixed number of kernels, without waiting for them."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import nms

# IoUs that are computed at once while boxes are matched, of which about five copies are held: on a CPU few enough for its
# cache, on a GPU enough for one pass over the boxes of an ordinary batch.
MATCH_BUDGET = {"cpu": 2**22, "cuda": 2**24}


def pad_rows(rows: Sequence[Tensor], *, least: int = 0) -> tuple[Tensor, Tensor]:
    """Tensors (N_i, ...) -> (B, N, ...), zero where an image has fewer, and (B, N) bool: where it has them.

    N is the largest N_i, or `least` if that is more.
    """
    most = max([least, *(len(tensor) for tensor in rows)])
    padded = rows[0].new_zeros((len(rows), most, *rows[0].shape[1:]))
    for image, tensor in zip(padded, rows, strict=True):
        image[: len(tensor)] = tensor
    counts = torch.tensor([len(tensor) for tensor in rows])
    present = torch.arange(most)[None] < counts[:, None]
    return padded, present.to(padded.device, non_blocking=True)


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """Boxes (..., N, 4) and (..., M, 4), xyxy -> (..., N, M); of constants, for what is computed on the way is written over."""
    left, top, right, bottom = first[..., :, None, :].unbind(-1)
    other_left, other_top, other_right, other_bottom = second[..., None, :, :].unbind(-1)
    intersection = torch.minimum(right, other_right).sub_(torch.maximum(left, other_left)).clamp_(min=0)
    intersection *= torch.minimum(bottom, other_bottom).sub_(torch.maximum(top, other_top)).clamp_(min=0)
    union = (box_areas(first)[..., :, None] + box_areas(second)[..., None, :]).sub_(intersection)
    return intersection.div_(union)


def at_once(places: int, device: torch.device) -> int:
    """How many objects to compare with so many places at once: 2,000 with 267,000 take 2 GB for every number of a pair."""
    return max(1, MATCH_BUDGET.get(device.type, 2**24) // max(1, places))


def box_areas(boxes: Tensor) -> Tensor:
    """Boxes (..., 4), xyxy -> (...)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def match(boxes: Tensor, objects: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The object each box is nearest to, and the boxes nearest to each object.

    Args:
        boxes: (N, 4), of all images, or (B, N, 4).
        objects: (B, G, 4); where not `present` (B, G), there is none.

    Returns:
        The IoU (B, N) of each box with its object, 0 where there is none; that object's row (B, N), the first of equals; and
        (B, N) bool: no box overlaps some object more than this one, which is what torchvision's low-quality matches are.
    """
    batch, total = objects.shape[:2]
    boxes = boxes.expand(batch, *boxes.shape[-2:])
    best = boxes.new_full(boxes.shape[:2], -1.0)
    rows = torch.zeros(boxes.shape[:2], dtype=torch.int64, device=boxes.device)
    is_nearest = torch.zeros(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
    step = at_once(batch * boxes.shape[1], boxes.device)
    for start in range(0, total, step):
        there = present[:, start : start + step, None]
        overlap = pairwise_iou(objects[:, start : start + step], boxes).nan_to_num_(0.0).masked_fill_(~there, -1.0)
        highest, which = overlap.max(dim=1)
        better = highest > best
        best = torch.where(better, highest, best)
        rows = torch.where(better, which + start, rows)
        is_nearest |= ((overlap == overlap.amax(dim=2, keepdim=True)) & there).any(dim=1)
    return best.clamp(min=0), rows, is_nearest


def sample(
    labels: Tensor, *, size: int, positive_fraction: float, generators: Sequence[torch.Generator | None]
) -> tuple[Tensor, Tensor]:
    """A balanced random choice of examples, as many for each image.

    Args:
        labels: (B, N), >= 1 object, 0 background, -1 no example.
        size: examples an image; at most `positive_fraction` of them are objects, the rest background.
        generators: what to draw from, one for each image; None for the global one.

    Returns:
        Rows (B, S), objects first, S = min(size, N), and (B, S) bool: whether a place holds an example.
    """
    total = labels.shape[1]
    num_positive = min(int(size * positive_fraction), total)
    size = min(size, total)
    draws = [torch.rand(labels.shape[1], device=labels.device, generator=generator) for generator in generators]
    draw = torch.stack(draws)
    positive, positive_rows = torch.where(labels >= 1, draw, -1.0).topk(num_positive, dim=1)
    negative, negative_rows = torch.where(labels == 0, draw, -1.0).topk(size, dim=1)
    is_positive = positive >= 0
    place = torch.arange(size, device=labels.device)
    is_negative = (negative >= 0) & (place < size - is_positive.sum(1, keepdim=True))
    taken = torch.cat([is_positive, is_negative], dim=1)
    rows = torch.cat([positive_rows, negative_rows], dim=1)
    # The taken to the front, in their order.
    order = taken.int().argsort(dim=1, descending=True, stable=True)[:, :size]
    return rows.gather(1, order), taken.gather(1, order)


def suppress(boxes: Tensor, scores: Tensor, valid: Tensor, groups: Sequence[int], threshold: float) -> Tensor:
    """Non-maximum suppression within each image and each group of its boxes.

    Args:
        boxes: (B, N, 4), xyxy pixels, not below 0.
        scores: (B, N).
        valid: (B, N) bool; the others neither stay nor suppress.
        groups: sizes of the groups, which follow each other along N.
        threshold: IoU above which the lower of two boxes goes.

    Returns:
        (B, N) bool: which stay.
    """
    kept = torch.zeros_like(valid)
    if boxes.device.type == "cpu":  # many small problems are less work than one large one
        for image in range(len(boxes)):
            start = 0
            for size in groups:
                rows = valid[image, start : start + size].nonzero()[:, 0] + start
                kept[image, rows[nms(boxes[image, rows], scores[image, rows], threshold)]] = True
                start += size
        return kept
    batch = len(scores)
    number = torch.repeat_interleave(torch.arange(len(groups)), torch.tensor(groups)).to(boxes.device, non_blocking=True)
    number = torch.arange(batch, device=boxes.device)[:, None] * len(groups) + number
    shifted = spread(boxes.flatten(0, 1), number.flatten(), count=batch * len(groups))
    # Boxes that are not valid are moved onto a place of their own, without area: they meet nothing.
    shifted = torch.where(valid.reshape(-1, 1), shifted, -1.0)
    rows = nms(shifted, torch.where(valid, scores, -1.0).flatten(), threshold)
    kept.view(-1)[rows] = True
    return kept & valid


def spread(boxes: Tensor, groups: Tensor, *, count: int) -> Tensor:
    """Boxes (N, 4) moved so that those of different groups (N,), numbered below `count`, cannot meet.

    The groups are laid out in a square, not in a row: of 80 groups of 1,333 pixels the farthest is then at 12,000 pixels, not
    at 107,000, where float32 knows a position to a hundredth of a pixel only.
    """
    side = max(1, round(count**0.5 + 0.5))
    # A power of two: a shift by multiples of it rounds the least.
    extent = 2.0 ** torch.ceil(torch.log2(boxes.amax().clamp(min=1) + 1)) if len(boxes) else torch.ones((), device=boxes.device)
    x, y = (groups % side).to(boxes.dtype) * extent, (groups // side).to(boxes.dtype) * extent
    return boxes + torch.stack([x, y, x, y], dim=1)
