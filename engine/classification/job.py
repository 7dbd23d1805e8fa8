"""Classification as a job of the engine."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.errors import UserError
from engine.build import build_body
from engine.classification.augmentations import ImageAugmentation
from engine.classification.classes import Classes, classes_of, read_classes
from engine.classification.config import ClassificationConfig, ImageSetConfig
from engine.classification.dataset import ClassificationDataset, evaluation_view
from engine.classification.evaluate import ClassificationEvaluation, most_probable, ranking
from engine.classification.mixing import mix
from engine.classification.pictures import draw_labelled, to_pixels
from engine.classification.sources import IMAGE_SETS, LabelledImages, Split
from engine.classification.weights import load_weights
from engine.data.annotations import Category
from engine.distributed import World
from engine.draw import save_picture
from engine.job import HasClasses, Job
from heads.classifier import Classifier, classifier
from heads.transform import IMAGENET_MEAN, IMAGENET_STD, channel_constants


class ClassificationJob(Job[ClassificationConfig]):
    """One label for a whole image; scored by the share of images whose class is the most probable, or among the five."""

    config_class = ClassificationConfig

    def __init__(self, config: ClassificationConfig) -> None:
        super().__init__(config)
        head, channels = config.model.head, config.data.channels
        self._mean = channel_constants("model.head.image_mean", head.image_mean, IMAGENET_MEAN, channels)
        self._std = channel_constants("model.head.image_std", head.image_std, IMAGENET_STD, channels)
        self._known: Classes | None = None  # a checkpoint's, or the training set's

    # ---- What there is ----

    def build_training_set(self, world: World | None = None) -> ClassificationDataset:
        """The augmented training set."""
        self._check_pairs(world)
        data = self.config.data
        augmentation = ImageAugmentation(
            [(step.name, step.options()) for step in data.augmentations], sizes=self.config.training_sizes()
        )
        images = self._open(data.train, "train", world)
        classes = self._classes() or Classes(images.path, images.class_names)
        self._known = classes
        return self._dataset(images, classes, augmentation)

    def build_validation_set(self, world: World | None = None) -> ClassificationDataset:
        """The validation set, as the model is given it. Its classes are the training set's, or a checkpoint's, if those are
        known, and its own otherwise."""
        images = self._open(self.config.data.val, "val", world)
        return self._dataset(images, self._classes() or Classes(images.path, images.class_names))

    def take_classes(self, categories: Sequence[Category]) -> None:
        """A checkpoint's classes: an image folder lacks those that it has no image of."""
        self._known = classes_of(categories, path=Path("the checkpoint"))

    def build_classes(self, world: World | None = None) -> HasClasses:
        """Those of `data.classes`; the validation set's where that is left out."""
        return self._classes() or self.build_validation_set(world)

    def build_model(self, categories: Sequence[Category], *, load_weights: bool) -> Classifier:
        """A classifier on the bare backbone."""
        model = self.config.model
        backbone = build_body(model.backbone, load_weights=load_weights, in_channels=self.config.data.channels)
        return classifier(backbone, len(categories), dropout=model.head.dropout)

    def load_weights(self, model: nn.Module, path: str, dataset: HasClasses) -> None:
        """Load a checkpoint of ours, or the weights another library publishes of the same classifier."""
        assert isinstance(model, Classifier)
        load_weights(model, path, dataset)

    # ---- What it does ----

    def losses(self, model: nn.Module, images: list[Tensor], targets: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The cross entropy of the batch, whose images and labels are mixed if the config says so."""
        train = self.config.train
        batch = self._normalise(images)
        labels: Tensor = torch.stack([target["label"] for target in targets])
        if train.mixup_alpha or train.cutmix_alpha:
            own = getattr(model, "module", model)
            assert isinstance(own, Classifier)
            batch, labels = mix(
                batch,
                labels,
                [target["seed"] for target in targets],
                num_classes=own.fc.out_features,
                mixup_alpha=train.mixup_alpha,
                cutmix_alpha=train.cutmix_alpha,
            )
        # In float32, whatever the precision of the forward pass: half precision has too few digits for small probabilities.
        logits = model(batch).float()
        return {"loss_cross_entropy": F.cross_entropy(logits, labels, label_smoothing=train.label_smoothing)}

    def prepare(self, image: np.ndarray) -> Tensor:
        """What the model is given of an image in evaluation: (channels, side, side)."""
        data = self.config.data
        return evaluation_view(image, channels=data.channels, resize=data.evaluation_resize, size=data.evaluation_size)

    def predict(self, model: nn.Module, images: list[Tensor]) -> list[Tensor]:
        """The log probability of each class, (classes,) float32 on the CPU."""
        return list(model(self._normalise(images)).float().log_softmax(1).cpu())

    def start_evaluation(self, dataset: ClassificationDataset) -> ClassificationEvaluation:
        """Scored by accuracy."""
        return ClassificationEvaluation(dataset, pictures=self.config.eval.pictures)

    # ---- What a person sees ----

    def describe(self, training_set: ClassificationDataset, validation_set: ClassificationDataset) -> list[str]:
        """Head and backbone, counts, sides of images, and what was left out."""
        data = self.config.data
        counted = f"{len(training_set)} training images of {len(training_set.categories)} classes"
        sides = ", then ".join(str(size) for size in dict.fromkeys(self.config.training_sizes()))
        middle = f"the middle {data.evaluation_size} of a shorter side of {data.evaluation_resize}"
        lines = [
            f"classifier on {self.config.model.backbone.name}",
            f"{counted}, {len(validation_set)} validation images",
            f"pixels a side: {sides} in training; in evaluation {middle}",
        ]
        for name, dataset in (("training", training_set), ("validation", validation_set)):
            without = [dataset.categories[label].name for label in np.flatnonzero(dataset.counts == 0)]
            if without:
                lines.append(f"without {name} images: {len(without)} classes, such as {', '.join(without[:3])}")
        return lines

    def draw_sample(self, dataset: ClassificationDataset, image: Tensor, target: dict[str, Any]) -> np.ndarray:
        """The image under the name of its class; mixing comes later."""
        return draw_labelled(to_pixels(image), dataset.categories[int(target["label"])].name)

    def describe_classes(self, dataset: ClassificationDataset) -> list[str]:
        """The number of images of each class."""
        return [
            f"{len(dataset)} images in {len(dataset.categories)} classes:",
            *(
                f"  {category.name:<20} {count:>8}"
                for category, count in zip(dataset.categories, dataset.counts.tolist(), strict=True)
            ),
        ]

    def present(
        self,
        image: np.ndarray,
        prediction: Tensor,
        categories: Sequence[Category],
        *,
        picture: Path,
        score_threshold: float,
    ) -> tuple[str, list[dict[str, Any]]]:
        """The five most probable classes, whatever the threshold: one row, `top`, of them."""
        labels, probabilities = most_probable(prediction)
        said = ", ".join(
            f"{categories[label].name} {probability:.2f}" for label, probability in zip(labels, probabilities, strict=True)
        )
        save_picture(draw_labelled(image, f"{categories[labels[0]].name} {probabilities[0]:.2f}"), picture)
        return f"{said} -> {picture}", [{"top": ranking(labels, probabilities, categories)}]

    # ---- Parts ----

    def _classes(self) -> Classes | None:
        """The classes, where the config, a checkpoint or the training set have said them."""
        given = self.config.data.classes
        if given is None or (self._known is not None and isinstance(given, str) and not _is_at_hand(given)):
            return self._known
        return read_classes(given)

    def _open(self, source: ImageSetConfig, split: Split, world: World | None) -> LabelledImages:
        """The images of a source. What is downloaded, the main process downloads; the others wait."""
        find: Callable[..., LabelledImages] = IMAGE_SETS.get(source.name)
        if world is not None and not world.is_main:
            world.barrier()
        images = find(split, **source.options())
        if world is not None and world.is_main:
            world.barrier()
        if not len(images):
            raise UserError(f"data.{split}: {images.path} has no images.")
        return images

    def _dataset(
        self, images: LabelledImages, classes: Classes, augmentation: ImageAugmentation | None = None
    ) -> ClassificationDataset:
        data = self.config.data
        return ClassificationDataset(
            images,
            classes,
            channels=data.channels,
            resize=data.evaluation_resize,
            size=data.evaluation_size,
            augmentation=augmentation,
            seed=self.config.seed,
        )

    def _normalise(self, images: list[Tensor]) -> Tensor:
        """Images (C, H, W) uint8 of one size -> (B, C, H, W) float32, normalised."""
        batch = torch.stack(images).float() / 255
        if self.config.train.channels_last:
            batch = batch.contiguous(memory_format=torch.channels_last)
        mean, std = (batch.new_tensor(values)[:, None, None] for values in (self._mean, self._std))
        return (batch - mean) / std

    def _check_pairs(self, world: World | None) -> None:
        train, processes = self.config.train, world.size if world is not None else 1
        if (train.mixup_alpha or train.cutmix_alpha) and train.batch_size // (processes * train.accumulate) % 2:
            raise UserError(
                f"train.batch_size {train.batch_size} gives {processes} processes with train.accumulate={train.accumulate} "
                f"{train.batch_size // (processes * train.accumulate)} images each at a time, and mixup and cutmix mix pairs: "
                f"give a multiple of {2 * processes * train.accumulate}."
            )


def _is_at_hand(classes: str) -> bool:
    return classes == "imagenet" or Path(classes).is_file()
