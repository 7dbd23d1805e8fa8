"""A classifier's predictions, collected, scored and drawn."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from engine.classification.dataset import ClassificationDataset
from engine.classification.pictures import draw_predictions
from engine.data.annotations import Category
from engine.files import make_folder
from engine.job import Evaluation
from engine.scores import Score

TOP = 5


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is kept of the prediction for one image."""

    truth: int  # its label
    loss: float  # the cross entropy, nats
    labels: tuple[int, ...]  # the most probable classes, at most five, best first
    probabilities: tuple[float, ...]


def most_probable(log_probabilities: Tensor) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """(classes,) -> the labels of the (at most) five most probable classes, best first, and their probabilities.

    Of equal ones the smaller label goes first.
    """
    values = log_probabilities.double().numpy()
    labels = np.argsort(-values, kind="stable")[:TOP]
    return tuple(labels.tolist()), tuple(np.exp(values[labels]).tolist())


def ranking(labels: Sequence[int], probabilities: Sequence[float], categories: Sequence[Category]) -> list[dict[str, Any]]:
    """The most probable classes as they are written into files."""
    return [
        {"category_id": categories[label].id, "class": categories[label].name, "probability": round(probability, 6)}
        for label, probability in zip(labels, probabilities, strict=True)
    ]


class ClassificationEvaluation(Evaluation):
    """Keeps the loss and the five best classes of each image.

    Args:
        dataset: the validation set.
        pictures: how many images are drawn.
    """

    def __init__(self, dataset: ClassificationDataset, *, pictures: int) -> None:
        self.dataset = dataset
        self.pictures = pictures
        self._predictions: dict[int, Prediction] = {}

    @property
    def predictions(self) -> list[tuple[int, Prediction]]:
        """Each image's number and what is predicted for it, in the data set's order."""
        return sorted(self._predictions.items())

    def add(self, target: dict[str, Any], prediction: Tensor) -> None:
        """Take the log probabilities (classes,) of one image."""
        truth = int(target["label"])
        labels, probabilities = most_probable(prediction)
        self._predictions[int(target["image_id"])] = Prediction(truth, -float(prediction[truth]), labels, probabilities)

    def collected(self) -> dict[int, Prediction]:
        """The predictions by the images' numbers."""
        return self._predictions

    def merge(self, parts: Sequence[dict[int, Prediction]]) -> None:
        """Take the predictions of all processes."""
        self._predictions = {image_id: found for part in parts for image_id, found in part.items()}

    def score(self, output_dir: Path | None = None) -> list[Score]:
        """`top1` and `top5`, the shares of the images whose class is the most probable, or among the five; `loss`, their mean
        cross entropy; and the top1 of each class.

        Written: `scores.json`, and `predictions.json`, a row for each image with its file, its class and the five.
        """
        predictions = self.predictions
        correct = np.array([found.labels[0] == found.truth for _, found in predictions], dtype=np.float64)
        truths = np.array([found.truth for _, found in predictions], dtype=np.int64)
        stats = {
            "top1": float(correct.mean()),
            "top5": float(np.mean([found.truth in found.labels for _, found in predictions])),
            # Exact, so that it does not depend on the order.
            "loss": math.fsum(found.loss for _, found in predictions) / len(predictions),
        }
        categories = self.dataset.categories
        counts = np.bincount(truths, minlength=len(categories))
        hits = np.bincount(truths, weights=correct, minlength=len(categories))
        per_class = {
            category.name: float(hits[label] / counts[label]) if counts[label] else -1.0
            for label, category in enumerate(categories)
        }
        score = Score(kind="classification", measure="top1", stats=stats, per_class=per_class)
        if output_dir is not None:
            make_folder(output_dir)
            content = {score.kind: {"stats": score.stats, "per_class": score.per_class}}
            (output_dir / "scores.json").write_text(json.dumps(content, indent=2))
            rows = [
                {
                    "image_id": image_id,
                    "file_name": self.dataset.images.name_of(image_id),
                    "truth": categories[found.truth].name,
                    "top": ranking(found.labels, found.probabilities, categories),
                }
                for image_id, found in predictions
            ]
            (output_dir / "predictions.json").write_text(json.dumps(rows))
        return [score]

    def draw(self, folder: Path) -> list[Path]:
        """Draw images with their class and the predicted one: first those it got wrong, the surest first, then others."""
        wrong = [(index, found) for index, found in self.predictions if found.labels[0] != found.truth]
        wrong.sort(key=lambda item: -item[1].probabilities[0])
        right = [(index, found) for index, found in self.predictions if found.labels[0] == found.truth]
        chosen = wrong[: self.pictures]
        left = self.pictures - len(chosen)
        if left and right:
            spread = np.unique(np.linspace(0, len(right) - 1, num=min(left, len(right)), dtype=int)).tolist()
            chosen += [right[place] for place in spread]
        return draw_predictions(
            self.dataset,
            [(index, found.truth, found.labels[0], found.probabilities[0]) for index, found in chosen],
            folder,
        )
