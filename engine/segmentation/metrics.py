"""mIoU and its relatives from a confusion matrix of pixels.

As Long et al. define them, https://arxiv.org/abs/1411.4038, section 5, and mmsegmentation and torchmetrics compute them.
"""

from collections.abc import Sequence

import numpy as np

from engine.scores import Score


def pixel_confusion(truth: np.ndarray, predicted: np.ndarray, *, num_classes: int, ignored: int) -> np.ndarray:
    """(K, K) int64: pixels by their true class (row) and the predicted one (column); those of truth `ignored` are left out.

    Args:
        truth: (H, W) labels.
        predicted: (H, W) labels, each of a class.
    """
    counted = truth != ignored
    pairs = truth[counted].astype(np.int64) * num_classes + predicted[counted]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def semantic_score(confusion: np.ndarray, class_names: Sequence[str]) -> Score:
    """The scores of a confusion matrix (K, K); -1 where there is nothing to measure.

    mIoU: the mean over the classes that occur, in truth or prediction, of intersection over union. pixel_accuracy: the share
    of pixels that are right. mean_accuracy: the mean of that over the classes that occur in truth. fwIoU: the IoU of each
    class weighted with its share of the truth. By class: its IoU.
    """
    hits = np.diag(confusion).astype(np.float64)
    true, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    union, total = true + predicted - np.diag(confusion), confusion.sum()
    iou = np.divide(hits, union, out=np.full(len(hits), -1.0), where=union > 0)
    accuracy = class_accuracy(confusion)
    stats = {
        "mIoU": _mean(iou),
        "pixel_accuracy": float(hits.sum() / total) if total else -1.0,
        "mean_accuracy": _mean(accuracy),
        "fwIoU": float((iou * true)[union > 0].sum() / total) if total else -1.0,
    }
    per_class = dict(zip(class_names, iou.tolist(), strict=True))
    return Score(kind="semantic", measure="mIoU", stats=stats, per_class=per_class)


def class_accuracy(confusion: np.ndarray) -> np.ndarray:
    """(K,) the share of each true class's pixels that are right; -1 for a class that does not occur in truth."""
    true = confusion.sum(axis=1)
    return np.divide(np.diag(confusion), true, out=np.full(len(confusion), -1.0), where=true > 0)


def _mean(values: np.ndarray) -> float:
    known = values[values >= 0]
    return float(known.mean()) if known.size else -1.0
