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
    PositiveSide,
    PyramidConfig,
    RunConfig,
    Section,
    check_choice,
    registered,
)
from engine.data.augmentations import CHANGES_SIZE, RESIZING
from engine.data.sources import DATASETS
from engine.detection.coco_eval import ScoreOptions
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


class SamplingConfig(Section):
    name: Literal["repeat_factor"] = "repeat_factor"
    """repeat_factor: an image comes max(1, sqrt(threshold / f)) times an epoch, f the share of images with its rarest class."""
    threshold: Annotated[Fraction, Field(gt=0)] = 0.001
    """Classes in a smaller share of the images are rare."""


class DetectionDataConfig(DataConfig):
    train: DataSource
    """{images: FOLDER, annotations: FILE} in COCO's format, or the name of an embedded set: shapes."""
    val: DataSource
    classes: Annotated[list[str], Field(min_length=1)] | None = None
    """Names of the categories to train on and to be scored on, such as [person, car]; what the others cover is background.
    Left out: all."""
    drop_empty_images: bool = False
    """Whether to leave out training images without an object of these classes. They teach what is background."""
    min_size: PositiveSide | Annotated[list[PositiveSide], Field(min_length=1)] = 800
    """The shorter side of an image, pixels; a list is drawn from in training, its largest is used in evaluation."""
    max_size: PositiveInt = 1333
    """No side gets longer than this, pixels."""
    augmentations: list[AugmentationConfig] = Field(default_factory=lambda: [AugmentationConfig(name="horizontal_flip")])
    """What training samples go through, in this order, before they are resized. large_scale_jitter resizes them itself; what
    changes their size, mosaic and random_crop, comes before it, copy_paste after it."""
    sampling: SamplingConfig | None = None
    """How often images come in an epoch. Left out: each once."""
    cache_images: Annotated[float, Field(ge=0)] = 2.0
    """A training set whose decoded images take no more than this, GB, is decoded once, and kept in a temporary file that all
    processes of a machine share. 0: decode every image every time."""
    aspect_ratio_grouping: bool = True
    """Whether batches hold only wide or only tall images, which saves padding."""

    @model_validator(mode="after")
    def _check(self) -> "DetectionDataConfig":
        names = [step.name for step in self.augmentations]
        for place, name in enumerate(names):
            before = [earlier for earlier in names[:place] if earlier in RESIZING]
            if name in CHANGES_SIZE and before:
                raise ValueError(f"{before[0]} brings images to their size, which {name} changes again: put {name} before it")
        return self


AreaRange = Annotated[list[float], Field(min_length=2, max_length=2)]


class DetectionEvalConfig(EvalConfig):
    backend: Literal["hotcoco", "pycocotools"] = "hotcoco"
    losses: bool = False
    """Also compute the losses on the validation images, from the same pass of the backbone."""
    keypoint_sigmas: list[PositiveFloat] | None = None
    """How exactly each keypoint can be placed, as a share of the object's size. Left out: COCO's for 17, else 0.05 each."""
    style: Literal["coco", "lvis"] = "coco"
    """lvis: 300 detections an image, and AP of rare, common and frequent classes; its annotation files say which those are."""
    max_dets: Annotated[list[PositiveInt], Field(min_length=1)] | None = None
    """How many of an image's detections count, such as [1, 10, 300]; also raise model.head.box_detections_per_img. Left out:
    COCO's."""
    iou_thresholds: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)] | None = None
    """Of a match, such as [0.5]. Left out: COCO's 0.5 to 0.95."""
    area_ranges: Annotated[dict[str, AreaRange], Field(min_length=1)] | None = None
    """From and to in pixels, by a name, such as {tiny: [0, 256], rest: [256, 1e10]}. Left out: COCO's three."""
    picture_score: Fraction = 0.5
    """Predictions below this score are not drawn."""

    def score_options(self) -> ScoreOptions:
        """What the scorer is told."""
        return ScoreOptions(
            style=self.style,
            max_dets=tuple(self.max_dets) if self.max_dets else None,
            iou_thresholds=tuple(self.iou_thresholds) if self.iou_thresholds else None,
            area_ranges={name: (low, high) for name, (low, high) in self.area_ranges.items()} if self.area_ranges else None,
            keypoint_sigmas=tuple(self.keypoint_sigmas) if self.keypoint_sigmas else None,
        )

    @model_validator(mode="after")
    def _check(self) -> "DetectionEvalConfig":
        if self.style == "lvis" and self.backend == "pycocotools":
            raise ValueError("pycocotools does not score LVIS: leave backend out")
        for name, (low, high) in (self.area_ranges or {}).items():
            if low >= high or name == "all":
                raise ValueError(f"area_ranges {name!r} is {[low, high]}: from must be below to, and `all` is always there")
        return self


class DetectionConfig(RunConfig):
    """A detector's run."""

    job: Literal["detection"] = "detection"
    model: DetectionModelConfig = DetectionModelConfig()
    data: DetectionDataConfig
    eval: DetectionEvalConfig = DetectionEvalConfig()
