"""Semantic segmentation as a job of the engine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from backbones.errors import UserError
from engine.data.annotations import Category
from engine.distributed import World
from engine.draw import save_picture
from engine.job import HasClasses, Job
from engine.segmentation.batch import predict_labels, training_batch
from engine.segmentation.build import build_model, build_training_set, build_validation_set, evaluation_size
from engine.segmentation.classes import named_values, unique_names
from engine.segmentation.config import ImageFiles, SegmentationConfig
from engine.segmentation.dataset import SegmentationDataset, class_counts, spread_indices
from engine.segmentation.evaluate import SegmentationEvaluation
from engine.segmentation.pictures import enlarged, overlay, save_label_map, with_legend
from engine.segmentation.weights import load_segmenter_weights
from heads.segmentation import ignored_label

_COUNTED = 500  # label maps whose pixels are counted for a person
_SAMPLE_SIDE, _PICTURE_SIDE = 300, 640  # least longer side of an image in pictures, pixels


class SegmentationJob(Job[SegmentationConfig]):
    """A class for each pixel, trained on label maps or painted instances; scored with mIoU."""

    config_class = SegmentationConfig

    def build_training_set(self, world: World | None = None) -> SegmentationDataset:
        """The augmented training set."""
        return build_training_set(self.config, world=world)

    def build_validation_set(self, world: World | None = None) -> SegmentationDataset:
        """The validation set, images as they are: `predict` resizes them."""
        return build_validation_set(self.config, world=world)

    def build_classes(self, world: World | None = None) -> HasClasses:
        """Those of `data.classes` for label maps; the validation set's where that is left out, or the set has its own."""
        named = self.config.data.val
        of_maps = isinstance(named, ImageFiles) and named.labels is not None
        return (named_values(self.config.data) if of_maps else None) or self.build_validation_set(world)

    def build_model(self, categories: Sequence[Category], *, load_weights: bool) -> nn.Module:
        """A segmenter, with torchvision's parameter names."""
        return build_model(self.config, num_classes=len(categories), load_weights=load_weights)

    def load_weights(self, model: nn.Module, path: str, dataset: HasClasses) -> None:
        """Load a checkpoint of ours, or torchvision's state dict of the same segmenter."""
        load_segmenter_weights(model, path, dataset)

    def losses(self, model: nn.Module, images: list[Tensor], targets: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The cross entropy of the pixels, and the auxiliary classifier's; zero where all are ignored.

        Raises:
            UserError: a batch norm is given one value a channel.
        """
        batch, maps = training_batch(images, [target["labels"] for target in targets])
        try:
            return model(batch, maps)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                f"A batch norm of the model is given one value a channel, by {len(images)} image of {batch.shape[-1]} x "
                f"{batch.shape[-2]} pixels: raise train.batch_size or data.crop_size, or set model.head.norm=gn."
            ) from None

    def predict(self, model: nn.Module, images: list[Tensor]) -> list[Tensor]:
        """The labels (H, W) of each image at its own size. Each is seen by itself, so that no other one changes it."""
        size, max_size = evaluation_size(self.config), self.config.data.max_size
        return [predict_labels(model, image, min_size=size, max_size=max_size) for image in images]

    def start_evaluation(self, dataset: SegmentationDataset) -> SegmentationEvaluation:
        """Pixels are counted by true and predicted class."""
        return SegmentationEvaluation(dataset, pictures=self.config.eval.pictures)

    def describe(self, training_set: SegmentationDataset, validation_set: SegmentationDataset) -> list[str]:
        """Head and backbone, counts, which value is which class, and what was left out."""
        categories = training_set.categories
        shown = ", ".join(f"{category.id} {category.name}" for category in categories[:8])
        more = f", ... {categories[-1].id} {categories[-1].name}" if len(categories) > 8 else ""
        return [
            f"{self.config.model.head.name} on {self.config.model.backbone.name}",
            f"{len(training_set)} training images with {len(categories)} classes, {len(validation_set)} validation images",
            f"classes: {shown}{more}",
            *training_set.source.notes,
        ]

    def draw_sample(self, dataset: SegmentationDataset, image: Tensor, target: dict[str, Any]) -> np.ndarray:
        """The image with its labels as colours, and a legend."""
        labels = target["labels"].numpy()
        drawn = overlay(image.permute(1, 2, 0).numpy(), labels, dataset.categories, ignored=dataset.ignored)
        return with_legend(enlarged(drawn, _SAMPLE_SIDE), [labels], dataset.categories, most=6)

    def describe_classes(self, dataset: SegmentationDataset) -> list[str]:
        """The share of the pixels that each class has."""
        indices = spread_indices(len(dataset), _COUNTED)
        counts = class_counts(dataset, indices)
        shares = counts / max(1, counts.sum())
        return [
            f"share of the pixels in {len(indices)} of {len(dataset)} label maps, in {len(dataset.categories)} classes:",
            *(f"  {name:<20} {share:>8.3%}" for name, share in zip([*dataset.class_names, "(no class)"], shares, strict=True)),
        ]

    def present(
        self, image: np.ndarray, prediction: Tensor, categories: Sequence[Category], *, picture: Path, score_threshold: float
    ) -> tuple[str, list[dict[str, Any]]]:
        """The classes as colours over the image; beside the picture, in `predicted_labels/`, a PNG of the classes' ids.

        Every pixel has a class: `score_threshold` is of no use here. The rows have each class's share of the pixels.
        """
        labels = prediction.cpu().numpy()
        drawn = enlarged(overlay(image, labels, categories, ignored=ignored_label(len(categories))), _PICTURE_SIDE)
        save_picture(with_legend(drawn, [labels], categories), picture)
        save_label_map(labels, categories, picture.parent / "predicted_labels" / picture.name)
        counts = np.bincount(labels.ravel(), minlength=len(categories))
        names = unique_names(categories)
        found = [int(label) for label in np.argsort(-counts, kind="stable") if counts[label]]
        rows = [
            {
                "category_id": categories[label].id,
                "name": names[label],
                "pixels": int(counts[label]),
                "share": float(counts[label] / labels.size),
            }
            for label in found
        ]
        said = ", ".join(f"{row['name']} {row['share']:.1%}" for row in rows[:5])
        return f"{said}{', ...' if len(rows) > 5 else ''} -> {picture}", rows
