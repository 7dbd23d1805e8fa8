"""The configuration of a classifier's run: what classification adds to the keys all jobs share."""

import inspect
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from engine.classification.augmentations import IMAGE_AUGMENTATIONS, STANDARD_OPTIONS
from engine.classification.sources import IMAGE_SETS
from engine.config import (
    Choice,
    DataConfig,
    EvalConfig,
    ModelConfig,
    NotNegativeFloat,
    PositiveFloat,
    PositiveInt,
    RunConfig,
    Section,
    TrainConfig,
    check_choice,
    registered,
)
from engine.data.augmentations import MOST_PIXELS

Side = Annotated[int, Field(ge=2, le=MOST_PIXELS)]  # pixels; PyTorch fails at bringing images to 1 x 1
PartOfTheRun = Annotated[list[int | float], Field(min_length=2, max_length=2)]


class ClassifierHeadConfig(Section):
    """The mean of the backbone's last map, dropout, one linear layer. The number of classes comes from the data set."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability to drop a mean in training."""
    image_mean: list[float] | None = None
    """Subtracted from images in [0, 1], a number for each channel. Left out: ImageNet's."""
    image_std: list[PositiveFloat] | None = None
    """Divided by after that. Left out: ImageNet's."""


class ClassificationModelConfig(ModelConfig):
    head: ClassifierHeadConfig = ClassifierHeadConfig()


class ImageSetConfig(Choice):
    """{images: FOLDER} with a folder for each class; another set by its name and options, {name: fashion_mnist, root: data}."""

    name: Annotated[str, registered(IMAGE_SETS)] = "image_folder"

    @model_validator(mode="after")
    def _check(self) -> "ImageSetConfig":
        check_choice(self, IMAGE_SETS, besides=("split",))
        parameters = inspect.signature(IMAGE_SETS.get(self.name)).parameters.values()
        for parameter in parameters:
            required = parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty
            if required and parameter.name not in self.options():
                raise ValueError(f"the image set {self.name} needs the key {parameter.name!r}")
        return self


def _by_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


ImageSource = Annotated[ImageSetConfig, BeforeValidator(_by_name)]


class ImageAugmentationConfig(Choice):
    """One step, as {name: random_erasing, p: 0.1}; torchvision's own go as {name: torchvision/GaussianBlur, kernel_size: 3}."""

    @model_validator(mode="after")
    def _check(self) -> "ImageAugmentationConfig":
        if not self.name.startswith("torchvision/"):
            check_choice(self, IMAGE_AUGMENTATIONS, besides=STANDARD_OPTIONS)
        return self


class ClassificationDataConfig(DataConfig):
    train: ImageSource
    """{images: FOLDER} with a folder for each class; a set by its name, with its options if it has any (digits, or
    {name: fashion_mnist, root: data}); MODULE:NAME for one that a module of yours registers."""
    val: ImageSource
    classes: str | list[str] | None = None
    """The classes in order: a list; a text file with one a line; or `imagenet`, whose folders may be named by WordNet id or by
    name. Left out: the training set's own, of folders their sorted names. Not every class needs images."""
    channels: Literal[1, 3] = 3
    """Of the images the model is given: 3 for colour, 1 for grey. Image files are converted."""
    size: Side = 224
    """The side of a training image, pixels."""
    long_side_schedule: list[PartOfTheRun] = Field(default_factory=list)
    """Other sides of a training image in the course of the run, for progressive resizing: [[0, 128], [0.4, 192]] trains with
    128 pixels from the beginning and 192 after 40 %. The first of a pair is a fraction of the run up to 1, or epochs done."""
    eval_size: Side | None = None
    """The side of a validation image, which is cut out of the middle, pixels. Left out: `size`."""
    eval_resize: Side | None = None
    """The shorter side that a validation image is brought to before that, pixels. Left out: `eval_size`."""
    augmentations: list[ImageAugmentationConfig] = Field(
        default_factory=lambda: [
            ImageAugmentationConfig(name="random_resized_crop"),
            ImageAugmentationConfig(name="horizontal_flip"),
        ]
    )
    """What training images go through, in this order. Without random_resized_crop they are brought to size first."""

    @property
    def evaluation_size(self) -> int:
        """The side of a validation image, pixels."""
        return self.size if self.eval_size is None else self.eval_size

    @property
    def evaluation_resize(self) -> int:
        """The shorter side before its middle is cut out, pixels."""
        return self.evaluation_size if self.eval_resize is None else self.eval_resize

    @model_validator(mode="after")
    def _check(self) -> "ClassificationDataConfig":
        if self.evaluation_resize < self.evaluation_size:
            raise ValueError(
                f"eval_resize {self.eval_resize} is less than eval_size {self.evaluation_size}, which is cut out of it: give "
                "as much, or more"
            )
        for start, side in self.long_side_schedule:
            if start < 0 or not isinstance(side, int) or not 2 <= side <= MOST_PIXELS:
                raise ValueError(
                    f"long_side_schedule has [{start}, {side}]: give [from, pixels], a fraction of the run or epochs, and a "
                    f"whole number from 2 to {MOST_PIXELS}"
                )
        return self


class ClassificationTrainConfig(TrainConfig):
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each label that is spread evenly over all classes."""
    mixup_alpha: NotNegativeFloat = 0.0
    """Above 0, images are blended in pairs, with their labels, by a share drawn from Beta(alpha, alpha)."""
    cutmix_alpha: NotNegativeFloat = 0.0
    """Above 0, images of a pair swap a rectangle, of a share drawn likewise. With both, a pair has one of the two at random."""


class ClassificationEvalConfig(EvalConfig):
    batch_size: PositiveInt = 64
    """Images of one forward pass in one process."""


class ClassificationConfig(RunConfig):
    """A classifier's run."""

    job: Literal["classification"] = "classification"
    model: ClassificationModelConfig = ClassificationModelConfig()
    data: ClassificationDataConfig
    train: ClassificationTrainConfig = ClassificationTrainConfig()
    eval: ClassificationEvalConfig = ClassificationEvalConfig()

    def training_sizes(self) -> list[int]:
        """The side of a training image in each epoch, pixels."""
        epochs = self.train.epochs
        sizes = [self.data.size] * epochs
        for start, side in self.data.long_side_schedule:
            first = round(start * epochs, 6) if start <= 1 else start
            sizes = [int(side) if epoch >= first else size for epoch, size in enumerate(sizes)]
        return sizes

    @model_validator(mode="after")
    def _check_classification(self) -> "ClassificationConfig":
        starts = [start * self.train.epochs if start <= 1 else start for start, _ in self.data.long_side_schedule]
        if starts != sorted(set(starts)):
            raise ValueError(
                f"data.long_side_schedule: its parts begin after {', '.join(f'{start:g}' for start in starts)} epochs of "
                f"{self.train.epochs}. Put them in order"
            )
        for name in ("image_mean", "image_std"):
            given = getattr(self.model.head, name)
            if given is not None and len(given) != self.data.channels:
                raise ValueError(
                    f"model.head.{name} has {len(given)} numbers, but images have data.channels={self.data.channels}: give one "
                    "for each channel"
                )
        return self
