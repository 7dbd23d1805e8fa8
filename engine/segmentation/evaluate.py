"""A segmenter's predictions as a confusion matrix of pixels, scored and drawn."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engine.files import make_folder, picture_names
from engine.job import Evaluation
from engine.scores import Score
from engine.segmentation.dataset import SegmentationDataset, spread_indices
from engine.segmentation.metrics import class_accuracy, pixel_confusion, semantic_score
from engine.segmentation.pictures import draw_evaluated


@dataclass
class Collected:
    """What a process has: pixels by true and predicted class, and the predictions that will be drawn, by image id."""

    confusion: np.ndarray
    drawn: dict[int, np.ndarray] = field(default_factory=dict)


class SegmentationEvaluation(Evaluation):
    """Counts pixels, each image at its own size. The matrices of several processes add up to that of one.

    Args:
        dataset: the validation set.
        pictures: how many images are drawn.
    """

    def __init__(self, dataset: SegmentationDataset, *, pictures: int) -> None:
        self.dataset = dataset
        num_classes = len(dataset.categories)
        self._collected = Collected(np.zeros((num_classes, num_classes), np.int64))
        self._to_draw = {dataset.source.image_ids[index]: index for index in spread_indices(len(dataset), pictures)}

    @property
    def confusion(self) -> np.ndarray:
        """(K, K) int64: pixels by true class (row) and predicted class (column)."""
        return self._collected.confusion

    def add(self, target: dict[str, Any], prediction: Any) -> None:
        """Take the labels (H, W) predicted for an image."""
        predicted, truth = prediction.cpu().numpy(), target["labels"].cpu().numpy()
        num_classes = len(self.dataset.categories)
        self._collected.confusion += pixel_confusion(truth, predicted, num_classes=num_classes, ignored=self.dataset.ignored)
        image_id = int(target["image_id"])
        if image_id in self._to_draw:
            self._collected.drawn[image_id] = predicted.astype(np.uint16)

    def collected(self) -> Collected:
        """The matrix, and what will be drawn."""
        return self._collected

    def merge(self, parts: Sequence[Collected]) -> None:
        """Add up the matrices of all processes."""
        self._collected = Collected(
            np.sum([part.confusion for part in parts], axis=0),
            {image_id: labels for part in parts for image_id, labels in part.drawn.items()},
        )

    def score(self, output_dir: Path | None = None) -> list[Score]:
        """mIoU and its relatives.

        Written: `scores.json`, the numbers, and the IoU and accuracy of each class; `confusion.csv`, pixels by true class (row)
        and predicted class (column).
        """
        names = self.dataset.class_names
        score = semantic_score(self.confusion, names)
        if output_dir is not None:
            make_folder(output_dir)
            accuracy = dict(zip(names, class_accuracy(self.confusion).tolist(), strict=True))
            content = {score.kind: {"stats": score.stats, "per_class": score.per_class, "per_class_accuracy": accuracy}}
            (output_dir / "scores.json").write_text(json.dumps(content, indent=2))
            with (output_dir / "confusion.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(["truth \\ prediction", *names])
                writer.writerows([name, *row] for name, row in zip(names, self.confusion.tolist(), strict=True))
        return [score]

    def draw(self, folder: Path) -> list[Path]:
        """Draw images beside the truth and the prediction, with a legend."""
        source = self.dataset.source
        drawn = [(self._to_draw[image_id], labels) for image_id, labels in self._collected.drawn.items()]
        drawn.sort(key=lambda pair: pair[0])
        names = picture_names([source.image_paths[index] for index, _ in drawn])
        paths = []
        for (index, predicted), name in zip(drawn, names, strict=True):
            image, truth = source.read(index)
            paths.append(folder / f"{name}.png")
            draw_evaluated(image, truth, predicted, source.categories, ignored=self.dataset.ignored, path=paths[-1])
        return paths
