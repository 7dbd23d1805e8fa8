"""What a job of a backbone is: a data set, a model and a metric. The trainer and the tools know nothing else of it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from backbones.errors import UserError, did_you_mean
from engine.compilation import compile_dense_part
from engine.config import RunConfig
from engine.data.annotations import Category
from engine.distributed import World
from engine.scores import Score

# Each job by its name. Imported when it is used: one does not wait for the libraries of another.
JOBS = {
    "detection": "engine.detection.job:DetectionJob",
    "segmentation": "engine.segmentation.job:SegmentationJob",
    "classification": "engine.classification.job:ClassificationJob",
}
TOOLS = {"detection": "det", "segmentation": "seg", "classification": "cls"}  # tools/train_det.py, tools/eval_det.py, ...


class HasClasses(Protocol):
    """What says which classes there are."""

    @property
    def categories(self) -> list[Category]:
        """The classes in the order of their labels."""
        ...

    @property
    def path(self) -> Path:
        """The file or folder it was read from, for messages."""
        ...


class SampleSet(HasClasses, Protocol):
    """What a job trains on, or is validated on.

    `samples[index]` is the sample of epoch 0, `samples[epoch, index]` that of another epoch: an image uint8 (C, H, W) and a
    target, a dict with `image_id`, a whole number no other image has, and `seed`, from which whatever is drawn at random for
    this sample comes.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, dict[str, Any]]: ...

    def name_of(self, index: int) -> str:
        """A short name of a sample, such as its file's, for pictures and messages."""
        ...

    def shape_groups(self) -> np.ndarray | None:
        """(N,) a number for each image; images of one number make up batches that waste little. None: all are alike."""
        ...


class Evaluation(ABC):
    """Predictions on a validation set: collected in each process, merged, scored and drawn in the main one."""

    losses: Mapping[str, float] = MappingProxyType({})  # means over the images, where the config asks for them

    @abstractmethod
    def add(self, target: dict[str, Any], prediction: Any) -> None:
        """Take the prediction for one image."""

    @abstractmethod
    def collected(self) -> Any:
        """What this process has, small enough to be sent."""

    @abstractmethod
    def merge(self, parts: Sequence[Any]) -> None:
        """Take what all processes collected, this one's included, in place of its own."""

    @abstractmethod
    def score(self, output_dir: Path | None = None) -> list[Score]:
        """The scores, what the model is for last. Predictions and scores are written into `output_dir`, if one is given."""

    @abstractmethod
    def draw(self, folder: Path) -> list[Path]:
        """Draw some images with truth and prediction, spread over the set; the files written."""


ConfigT = TypeVar("ConfigT", bound=RunConfig)


class Job(ABC, Generic[ConfigT]):
    """Builds what a run is made of from its config, and says how the model is called."""

    config_class: ClassVar[type[RunConfig]]

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    # ---- What there is ----

    @abstractmethod
    def build_training_set(self, world: World | None = None) -> Any:
        """The augmented training set, a `SampleSet`; with `world`, one process renders or downloads and the others wait.

        Raises:
            UserError: data that is missing or malformed, or lacks what the model is trained on.
        """

    @abstractmethod
    def build_validation_set(self, world: World | None = None) -> Any:
        """The validation set, a `SampleSet`.

        Raises:
            UserError: data that is missing or malformed.
        """

    def take_classes(self, categories: Sequence[Category]) -> None:
        """Take the classes of a checkpoint, called before a data set is built that may not know all of them; COCO's does."""

    def build_classes(self, world: World | None = None) -> HasClasses:
        """What says the classes where there is neither a checkpoint nor a data set yet: the validation set.

        Raises:
            UserError: as `build_validation_set`.
        """
        return self.build_validation_set(world)

    @abstractmethod
    def build_model(self, categories: Sequence[Category], *, load_weights: bool) -> nn.Module:
        """The model; its attribute `backbone` is the backbone.

        Args:
            categories: the classes.
            load_weights: whether to load the backbone's weights; a checkpoint brings its own.

        Raises:
            UserError: weights that cannot be had or do not fit.
        """

    @abstractmethod
    def load_weights(self, model: nn.Module, path: str, dataset: Any) -> None:
        """Load a file of weights of the whole model: a checkpoint of ours, or another library's of the same architecture.

        Args:
            dataset: what says the classes, a `HasClasses`.

        Raises:
            UserError: the file is missing or does not fit, or is of other classes than `dataset`.
        """

    def compile_model(self, model: nn.Module) -> None:
        """Have the backbone of a model that is to be trained run through `torch.compile`."""
        compile_dense_part(model)

    # ---- What it does ----

    @abstractmethod
    def losses(self, model: nn.Module, images: list[Tensor], targets: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The losses of a batch on the device; the run minimises their sum. `model` may be wrapped for several processes."""

    def prepare(self, image: np.ndarray) -> Tensor:
        """An image file's pixels (H, W, 3) uint8 RGB as `predict` takes them: as they are, (3, H, W)."""
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))

    @abstractmethod
    def predict(self, model: nn.Module, images: list[Tensor]) -> list[Any]:
        """What the model, in evaluation mode, says of each image (uint8, on the device)."""

    def evaluate_batch(
        self, model: nn.Module, images: list[Tensor], targets: list[dict[str, Any]]
    ) -> tuple[list[Any], dict[str, Tensor]]:
        """As `predict`, in whatever form the job's evaluation takes, and the losses, where the config asks for them."""
        return self.predict(model, images), {}

    @abstractmethod
    def start_evaluation(self, dataset: Any) -> Evaluation:
        """An empty evaluation on a validation set."""

    # ---- What a person sees ----

    @abstractmethod
    def describe(self, training_set: Any, validation_set: Any) -> list[str]:
        """Lines on the data and the model, for the start of a run. The first names head and backbone."""

    @abstractmethod
    def draw_sample(self, dataset: Any, image: Tensor, target: dict[str, Any]) -> np.ndarray:
        """A picture (H, W, 3) of a sample as the network is given it."""

    @abstractmethod
    def describe_classes(self, dataset: Any) -> list[str]:
        """Lines that say how often each class occurs in a training set."""

    @abstractmethod
    def present(
        self, image: np.ndarray, prediction: Any, categories: Sequence[Category], *, picture: Path, score_threshold: float
    ) -> tuple[str, list[dict[str, Any]]]:
        """Draw a prediction for an image (H, W, 3) uint8 into the file `picture`.

        Returns:
            What to print of it, and its rows for `results.json`.
        """


def job_name(name: object) -> str:
    """A job's name, if it is one.

    Raises:
        UserError: there is no such job; the message names the nearest.
    """
    if not isinstance(name, str) or name not in JOBS:
        raise UserError(f"There is no job {name!r}.{did_you_mean(str(name), JOBS)}")
    return name


def job_class(name: str) -> type[Job[Any]]:
    """The class of a job by its name.

    Raises:
        UserError: there is no such job; the message names the nearest.
    """
    module, _, attribute = JOBS[job_name(name)].partition(":")
    return getattr(import_module(module), attribute)


def job_of(config: RunConfig) -> Job[Any]:
    """The job of a config."""
    return job_class(config.job)(config)
