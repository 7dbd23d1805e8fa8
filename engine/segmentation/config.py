"""The configuration of a segmenter's run: what segmentation adds to the keys all jobs share."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from engine.config import (
    AugmentationConfig,
    Choice,
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
from engine.data.augmentations import RESIZING
from engine.data.sources import DATASETS
from heads.segmentation import SEGMENTERS

# What ours are built on. One of a user's own module may take either.
ON_BARE_MAPS, ON_A_PYRAMID = {"fcn", "deeplabv3", "deeplabv3plus"}, {"semantic_fpn"}
PixelValue = Annotated[int, Field(ge=0, le=65535)]


class SegmenterConfig(Choice):
    name: Annotated[str, registered(SEGMENTERS)] = "fcn"
    """fcn, deeplabv3, deeplabv3plus or semantic_fpn, or module:name for one in your own file. The number of classes comes from
    the data set."""

    @model_validator(mode="after")
    def _check(self) -> "SegmenterConfig":
        check_choice(self, SEGMENTERS, besides=("backbone", "num_classes"))
        return self


class SegmentationPyramidConfig(PyramidConfig):
    extra_level: Literal["pool", "p6p7", "p6p7_on_c5"] | None = None
    """What comes above the coarsest map; our segmenters take no such level."""


class SegmentationModelConfig(ModelConfig):
    pyramid: SegmentationPyramidConfig | None = None
    """Of semantic_fpn, which needs one; the other heads take the backbone's maps as they are."""
    head: SegmenterConfig = SegmenterConfig()

    @model_validator(mode="after")
    def _check(self) -> "SegmentationModelConfig":
        head, pyramid = self.head.name, self.pyramid
        if head in ON_A_PYRAMID and pyramid is None:
            raise ValueError(f"the head {head} is built on a pyramid: set model.pyramid, such as {{name: fpn}}")
        if head in ON_BARE_MAPS and pyramid is not None:
            raise ValueError(
                f"the head {head} takes the backbone's maps as they are: leave model.pyramid out, or use "
                f"model.head.name={' or '.join(sorted(ON_A_PYRAMID))}"
            )
        if head in ON_A_PYRAMID and pyramid is not None and pyramid.extra_level is not None:
            raise ValueError(
                f"the head {head} uses no level beyond the backbone's coarsest map: set model.pyramid.extra_level=null"
            )
        return self


class ImageFiles(Section):
    """Images with a label map each, or with COCO's instances, which are painted into maps."""

    images: str
    """The folder of images."""
    labels: str | None = None
    """The folder of label maps: grey or palette PNGs whose pixel values are the classes, each named as its image."""
    list: str | None = None
    """With `labels`: a file of the names to use, one a line, without endings. Left out: every image of the folder."""
    image_suffix: str = ""
    """With `labels`: what follows the common name in an image's name, as _leftImg8bit.png. Left out: any image's ending."""
    label_suffix: str = ".png"
    """With `labels`: what follows the common name in a label map's name, as _gtFine_labelTrainIds.png."""
    annotations: str | None = None
    """In place of `labels`: an instances JSON in COCO's format."""

    @model_validator(mode="after")
    def _check(self) -> "ImageFiles":
        if (self.labels is None) == (self.annotations is None):
            raise ValueError("give `labels`, a folder of label maps, or `annotations`, a file in COCO's format: one of the two")
        if self.annotations is not None and (self.list, self.image_suffix, self.label_suffix) != (None, "", ".png"):
            raise ValueError(
                "`list`, `image_suffix` and `label_suffix` go with `labels`; `annotations` names its images itself"
            )
        return self


def _check_source(value: Any) -> Any:
    if isinstance(value, str):
        DATASETS.get(value)
    return value


def _keys_as_text(value: Any) -> Any:
    # A file's keys are texts, an override's may be numbers.
    return {str(key): name for key, name in value.items()} if isinstance(value, dict) else value


ClassNames = Annotated[
    Annotated[list[str], Field(min_length=1)] | dict[str, str] | str | None,
    BeforeValidator(_keys_as_text),
]
DataSource = Annotated[str | ImageFiles, BeforeValidator(_check_source)]


class SegmentationDataConfig(DataConfig):
    train: DataSource
    """{images: FOLDER, labels: FOLDER} of label maps, {images: FOLDER, annotations: FILE} in COCO's format, or the name of an
    embedded set: shapes."""
    val: DataSource
    classes: ClassNames = None
    """Of label maps: names for the pixel values from 0 up, `ignore_index` left out; or {value: name}; or a file of names, one a
    line. Of COCO's format: the categories to keep, in this order; all others are background. Left out there: all."""
    ignore_index: PixelValue | list[PixelValue] | None = 255
    """The pixel value, or values, that are no class: not trained on, not scored. 0 for ADE20K; null for none."""
    min_size: PositiveSide | Annotated[list[PositiveSide], Field(min_length=1)] | None = 520
    """The shorter side of an image, pixels; null: its own. A list is drawn from in training, its largest used in evaluation."""
    max_size: PositiveInt = 2048
    """No side gets longer than this, pixels."""
    scale: Annotated[list[PositiveFloat], Field(min_length=2, max_length=2)] | None = None
    """[least, most]: in training both sizes are multiplied by a factor drawn evenly from these."""
    crop_size: PositiveSide | None = None
    """Side of the square that is cut out of a training image at random, pixels; what it lacks is padded. null: none is cut."""
    crop_max_share: Annotated[Fraction, Field(gt=0)] = 1.0
    """A crop in which one class has more than this share of the pixels is drawn again, up to ten times."""
    augmentations: list[AugmentationConfig] = Field(default_factory=lambda: [AugmentationConfig(name="horizontal_flip")])
    """What training samples go through, in this order, before they are resized and cropped."""

    @model_validator(mode="after")
    def _check(self) -> "SegmentationDataConfig":
        if self.scale is not None and self.scale[0] > self.scale[1]:
            raise ValueError(f"scale {self.scale} must be [least, most]")
        if self.crop_max_share < 1 and self.crop_size is None:
            raise ValueError("crop_max_share goes with crop_size")
        resizing = [step.name for step in self.augmentations if step.name in RESIZING]
        if resizing and self.scale is not None:
            raise ValueError(f"{resizing[0]} brings images to size itself: leave `scale` out")
        if isinstance(self.classes, dict):
            for value in self.classes:
                if not value.isdecimal() or int(value) > 65535:
                    raise ValueError(f"classes names the pixel value {value!r}: give whole numbers from 0 to 65535")
        return self

    @property
    def ignored_values(self) -> set[int]:
        """The pixel values that are no class."""
        given = self.ignore_index
        return set() if given is None else {given} if isinstance(given, int) else set(given)


class SegmentationEvalConfig(EvalConfig):
    batch_size: PositiveInt = 1
    """Images that are loaded together. Each is predicted by itself, so that the result depends on no other."""


class SegmentationConfig(RunConfig):
    """A segmenter's run."""

    job: Literal["segmentation"]
    model: SegmentationModelConfig = SegmentationModelConfig()
    data: SegmentationDataConfig
    eval: SegmentationEvalConfig = SegmentationEvalConfig()
