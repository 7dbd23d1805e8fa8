"""Detection as a job of the engine."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from engine.compilation import compile_dense_part
from engine.data.annotations import Category
from engine.data.dataset import CocoDataset
from engine.data.prefetch import to_device
from engine.data.sampling import epoch_length
from engine.detection.build import build_model, build_training_set, build_validation_set, evaluation_size, iou_types
from engine.detection.config import DetectionConfig
from engine.detection.evaluate import DetectionEvaluation
from engine.detection.losses import detect_with_losses
from engine.detection.results import to_detections, to_rows
from engine.detection.streaming import GroundTruth
from engine.detection.weights import load_detector_weights
from engine.distributed import World
from engine.draw import draw_instances, save_picture
from engine.job import Job
from heads.cropped_masks import CroppedMasks
from heads.mask_paste import UnpastedMasks
from heads.transform import DetectionTransform


class DetectionJob(Job[DetectionConfig]):
    """Boxes, and what besides them the head predicts, on data in COCO's format; scored with COCO's numbers."""

    config_class = DetectionConfig
    _truth: GroundTruth | None = None  # read once, for all evaluations of a run

    def build_training_set(self, world: World | None = None) -> CocoDataset:
        """The augmented training set, with the masks or keypoints that the head is trained on."""
        return build_training_set(self.config, world=world)

    def build_validation_set(self, world: World | None = None) -> CocoDataset:
        """The validation set, images as they are: the model resizes them."""
        return build_validation_set(self.config, world=world)

    def build_model(self, categories: Sequence[Category], *, load_weights: bool) -> nn.Module:
        """A detector of torchvision's kind."""
        num_keypoints = max(len(category.keypoints) for category in categories)
        return build_model(self.config, num_classes=len(categories) + 1, num_keypoints=num_keypoints, load_weights=load_weights)

    def load_weights(self, model: nn.Module, path: str, dataset: CocoDataset) -> None:
        """Load a checkpoint of ours, or torchvision's state dict of the same detector."""
        load_detector_weights(model, path, dataset)

    def compile_model(self, model: nn.Module) -> None:
        """The backbone with its pyramid, for a few shapes that batches are padded to."""
        compile_dense_part(model, min_size=evaluation_size(self.config), max_size=self.config.data.max_size)

    def losses(self, model: nn.Module, images: list[Tensor], targets: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The detector's own."""
        detector = getattr(model, "module", model)
        if not getattr(getattr(detector, "roi_heads", None), "takes_cropped_masks", False):
            targets = [_with_whole_masks(target) for target in targets]
        return model(images, targets)

    def predict(self, model: nn.Module, images: list[Tensor]) -> list[dict[str, Any]]:
        """torchvision's dicts, in each image's own pixels; masks are `UnpastedMasks` where the detector is ours."""
        with _masks_as_predicted(model):
            return _with_sizes(model, model(images), images)

    def evaluate_batch(
        self, model: nn.Module, images: list[Tensor], targets: list[dict[str, Any]]
    ) -> tuple[list[Any], dict[str, Tensor]]:
        """As `predict`, masks as run lengths: they are never pasted into whole images. Losses where `eval.losses` says so."""
        losses: dict[str, Tensor] = {}
        with _masks_as_predicted(model):
            if self.config.eval.losses:
                images, targets = to_device((images, targets), images[0].device)
                predictions, losses = detect_with_losses(model, images, targets)
            else:
                predictions = model(images)
        return [to_detections(prediction) for prediction in _with_sizes(model, predictions, images)], losses

    def start_evaluation(self, dataset: CocoDataset) -> DetectionEvaluation:
        """Scored as the head's kinds of result."""
        truth = GroundTruth(dataset.annotations.path, frozenset(category.id for category in dataset.categories))
        if self._truth != truth:
            self._truth = truth
        return DetectionEvaluation(dataset, truth=self._truth, iou_types=iou_types(self.config), config=self.config.eval)

    def describe(self, training_set: CocoDataset, validation_set: CocoDataset) -> list[str]:
        """Head and backbone, counts, and what was left out."""
        table = training_set.annotations
        training = f"{len(table)} training images with {len(table.boxes)} objects of {len(table.categories)} classes"
        lines = [
            f"{self.config.model.head.name} on {self.config.model.backbone.name}",
            f"{training}, {len(validation_set)} validation images",
        ]
        factors = training_set.repeat_factors()
        if factors is not None:
            lines.append(f"an epoch has {epoch_length(factors)} samples: an image comes up to {factors.max():.1f} times")
        if table.num_dropped:
            lines.append(f"left out: {table.num_dropped} training objects whose box has no width or height within its image")
        return lines + training_set.left_out

    def draw_sample(self, dataset: CocoDataset, image: Tensor, target: dict[str, Any]) -> np.ndarray:
        """The image with its boxes, masks, keypoints and names."""
        return draw_instances(image, target, class_names=dataset.annotations.class_names)

    def describe_classes(self, dataset: CocoDataset) -> list[str]:
        """What was left out, and the number of objects of each class."""
        table = dataset.annotations
        crowds = int(table.iscrowd.sum())
        return [
            *dataset.left_out,
            f"{len(table.boxes)} objects, {crowds} of them crowd regions, in {len(table.categories)} classes:",
            *(
                f"  {category.name:<20} {int((table.labels == label).sum()):>8}"
                for label, category in enumerate(table.categories, start=1)
            ),
        ]

    def present(
        self,
        image: np.ndarray,
        prediction: dict[str, Any],
        categories: Sequence[Category],
        *,
        picture: Path,
        score_threshold: float,
    ) -> tuple[str, list[dict[str, Any]]]:
        """The objects that score enough are drawn; COCO results rows of all, with an `image_id` of 0."""
        prediction = {key: value.cpu() for key, value in prediction.items()}
        names = ["background", *(category.name for category in categories)]
        save_picture(draw_instances(image, prediction, class_names=names, score_threshold=score_threshold), picture)
        said = _how_many_drawn(prediction["scores"], score_threshold)
        return f"{said} -> {picture}", to_rows(0, prediction, categories)


def _how_many_drawn(scores: Tensor, threshold: float) -> str:
    drawn = int((scores >= threshold).sum())
    if drawn == 0 and len(scores):  # a model trained too little, or a threshold too high: say which
        highest = math.floor(100 * float(scores.max())) / 100  # 0.499 is not 0.5
        return f"0 of {len(scores)} objects score {threshold:g} or more (highest {highest:.2f})"
    return "1 object" if drawn == 1 else f"{drawn} objects"


def _with_whole_masks(target: dict[str, Any]) -> dict[str, Any]:
    return {key: value.dense() if isinstance(value, CroppedMasks) else value for key, value in target.items()}


def _masks_as_predicted(model: nn.Module) -> AbstractContextManager[None]:
    """In which a model that can give its masks as the head predicts them does so."""
    transform = getattr(model, "transform", None)
    return transform.masks_as_predicted() if isinstance(transform, DetectionTransform) else nullcontext()


def _with_sizes(model: nn.Module, predictions: list[dict[str, Any]], images: list[Tensor]) -> list[dict[str, Any]]:
    """Predictions made within `_masks_as_predicted`, whose masks know what images they belong to."""
    if not isinstance(getattr(model, "transform", None), DetectionTransform):
        return predictions
    return [
        prediction | {"masks": UnpastedMasks(prediction["masks"], prediction["boxes"], (image.shape[-2], image.shape[-1]))}
        if "masks" in prediction
        else prediction
        for prediction, image in zip(predictions, images, strict=True)
    ]
