"""The configuration of a detector's run: what detection adds to the keys all jobs share."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from engine.config import (
    AugmentationConfig,
    Choice,
    CocoFiles,
    DataConfig,
    EvalConfig,
    Fraction,
    ModelConfig,
    PositiveFloat,
    PositiveInt,
    PyramidConfig,
    RunConfig,
    check_choice,
    registered,
)
from engine.data.sources import DATASETS
from heads.registry import DETECTORS


class HeadConfig(Choice):
    name: Annotated[str, registered(DETECTORS)] = "faster_rcnn"
    """One of heads.list_detectors(). Sizes of images are in `data`, the number of classes comes from the data set."""

    @model_validator(mode="after")
    def _check(self) -> "HeadConfig":
        given_elsewhere = ("backbone", "num_classes", "min_size", "max_size", "resize_in_training", "num_keypoints")
        check_choice(self, DETECTORS, besides=given_elsewhere)
        return self


class DetectionModelConfig(ModelConfig):
    pyramid: PyramidConfig = PyramidConfig()
    head: HeadConfig = HeadConfig()


def _check_source(value: Any) -> Any:
    if isinstance(value, str):
        DATASETS.get(value)
    return value


DataSource = Annotated[str | CocoFiles, BeforeValidator(_check_source)]


class DetectionDataConfig(DataConfig):
    train: DataSource
    """{images: FOLDER, annotations: FILE} in COCO's format, or the name of an embedded set: shapes."""
    val: DataSource
    min_size: PositiveInt | Annotated[list[PositiveInt], Field(min_length=1)] = 800
    """The shorter side of an image, pixels; a list is drawn from in training, its largest is used in evaluation."""
    max_size: PositiveInt = 1333
    """No side gets longer than this, pixels."""
    augmentations: list[AugmentationConfig] = Field(default_factory=lambda: [AugmentationConfig(name="horizontal_flip")])
    """What training samples go through, in this order, before they are resized."""
    aspect_ratio_grouping: bool = True
    """Whether batches hold only wide or only tall images, which saves padding."""


class DetectionEvalConfig(EvalConfig):
    backend: Literal["hotcoco", "pycocotools"] = "hotcoco"
    keypoint_sigmas: list[PositiveFloat] | None = None
    """How exactly each keypoint can be placed, as a share of the object's size. Left out: COCO's for 17, else 0.05 each."""
    picture_score: Fraction = 0.5
    """Predictions below this score are not drawn."""


class DetectionConfig(RunConfig):
    """A detector's run."""

    job: Literal["detection"] = "detection"
    model: DetectionModelConfig = DetectionModelConfig()
    data: DetectionDataConfig
    eval: DetectionEvalConfig = DetectionEvalConfig()
