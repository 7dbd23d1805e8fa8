"""The configuration that every job shares: its keys, their types, their defaults and what they mean."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from backbones.errors import UserError
from backbones.fpn import PYRAMID_STANDARD_OPTIONS, PYRAMIDS
from backbones.registry import BACKBONES, STANDARD_OPTIONS, Registry
from engine.data.augmentations import AUGMENTATIONS, MOST_PIXELS

MOST = 10**6  # of whatever is counted: more is a slip of the keyboard, and would fill any memory
MOST_FLOAT = 1e30  # beyond it float32 overflows, soon if not at once
PositiveInt = Annotated[int, Field(ge=1, le=MOST)]
PositiveFloat = Annotated[float, Field(gt=0, le=MOST_FLOAT)]
NotNegativeFloat = Annotated[float, Field(ge=0, le=MOST_FLOAT)]
Minutes = Annotated[float, Field(gt=0, le=MOST)]
PositiveSide = Annotated[int, Field(ge=1, le=MOST_PIXELS)]
Fraction = Annotated[float, Field(ge=0, le=1)]

_CLASSES = (
    "The number of classes comes from the data, a detector's from its annotation file (data.classes chooses some of them)."
)
_DEVICE = (
    "The device is the key `device` by itself: device=cuda, or cpu. Which GPU: CUDA_VISIBLE_DEVICES, or torchrun for several."
)
ELSEWHERE = {
    "num_classes": _CLASSES,
    **dict.fromkeys(("device", "devices", "gpu", "gpus"), _DEVICE),
}
"""Keys that people look for where they are not, by their last part, and where to find what they set."""


class Section(BaseModel):
    """A part of the configuration: no unknown keys, no silent conversions, docstrings as descriptions."""

    model_config = ConfigDict(strict=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Choice(Section):
    """A registered name and the options of what it names, checked against that constructor's signature."""

    model_config = ConfigDict(extra="allow")

    name: str

    def options(self) -> dict[str, Any]:
        """The options given besides the declared keys."""
        return dict(self.model_extra or {})


def check_choice(choice: Choice, registry: Registry[Any], *, besides: tuple[str, ...]) -> None:
    """Check a choice's name and options, and the options' types.

    Raises:
        ValueError: an unknown name or option, with the nearest right one, or a value of another type.
    """
    annotations = registry.options(choice.name, besides=besides) or {}
    problems = []
    for option, value in choice.options().items():
        try:
            registry.check_options(choice.name, [option], besides=besides)
            TypeAdapter(annotations.get(option, Any)).validate_python(value, strict=True)
            if isinstance(value, int) and abs(value) > MOST:
                problems.append(f"Option {option!r} is {value!r:.60}: a number beyond {MOST} would fill any memory.")
            if isinstance(value, float) and abs(value) > MOST_FLOAT:
                problems.append(f"Option {option!r} is {value!r}: a number beyond {MOST_FLOAT:g} overflows.")
        except ValidationError as error:
            problems.append(f"Option {option!r} is {value!r:.200}: {error.errors()[0]['msg']}.")
        except UserError as error:
            problems.append(f"{error} {ELSEWHERE[option]}" if option in ELSEWHERE else str(error))
    if problems:
        raise UserError(" ".join(problems))


def registered(registry: Registry[Any]) -> AfterValidator:
    """A validator of names: the registry must have it."""

    def check(name: str) -> str:
        registry.get(name)
        return name

    return AfterValidator(check)


class BackboneConfig(Choice):
    name: Annotated[str, registered(BACKBONES)] = "resnet50"
    """One of backbones.list_backbones(); timm/NAME, torchvision/NAME or hf/NAME; or module:name for one in your own file."""
    weights: str | None = None
    """Weights torchvision publishes, by name (IMAGENET1K_V1), `pretrained` for timm and hf, or the path of a weight file."""
    norm: Literal["frozen_bn", "bn", "sync_bn", "gn"] | None = None
    """Left out: frozen_bn with weights, bn without."""
    trainable_layers: int | None = None
    """Stages that train, counted from the last, 0..5 for a ResNet. Left out: 3 with weights, all without."""
    out_features: list[str] | None = None
    """Which feature maps go into the pyramid, such as [c3, c4, c5]. Left out: all."""

    @model_validator(mode="after")
    def _check(self) -> "BackboneConfig":
        check_choice(self, BACKBONES, besides=STANDARD_OPTIONS)
        return self


class PyramidConfig(Choice):
    name: Annotated[str, registered(PYRAMIDS)] = "fpn"
    """fpn, pafpn, bifpn, simple (all scales from one map) or single (one level, no pyramid)."""
    out_channels: PositiveInt = 256
    extra_level: Literal["pool", "p6p7", "p6p7_on_c5"] | None = "pool"
    """What comes above the coarsest map."""
    norm: Literal["bn", "sync_bn", "gn"] | None = None
    """Normalisation after each of the pyramid's convolutions."""

    @model_validator(mode="after")
    def _check(self) -> "PyramidConfig":
        check_choice(self, PYRAMIDS, besides=PYRAMID_STANDARD_OPTIONS)
        return self


class ModelConfig(Section):
    """Each job adds its head, and what stands between."""

    backbone: BackboneConfig = BackboneConfig()


class CocoFiles(Section):
    """A data set in COCO's format."""

    images: str
    """The folder the annotations' file names are in."""
    annotations: str
    """The instances JSON."""


class AugmentationConfig(Choice):
    """One step, as {name: horizontal_flip, p: 0.5}; albumentations' own go as {name: albumentations/CLAHE, p: 0.1}."""

    @model_validator(mode="after")
    def _check(self) -> "AugmentationConfig":
        if not self.name.startswith("albumentations/"):
            check_choice(self, AUGMENTATIONS, besides=())
        return self


class DataConfig(Section):
    """Each job adds `train` and `val`, sizes and augmentation."""

    num_workers: Annotated[int, Field(ge=0, le=1024)] = 4
    """Loader processes for each training process. The samples do not depend on it."""
    on_fault: Literal["skip", "stop"] = "skip"
    """What becomes of training data that cannot be used. skip leaves out the images and objects that a detector's start finds
    at fault, replaces an image that turns out to be broken in mid-run by another, and says so; stop ends the run. Faults of
    validation data always do."""


class EmaConfig(Section):
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999
    """Share of the average that each step keeps; less in the first steps."""


class TrainConfig(Section):
    batch_size: PositiveInt = 16
    """Images of one optimizer step, over all processes and accumulation steps."""
    epochs: PositiveInt = 12
    accumulate: PositiveInt = 1
    """Forward and backward passes for each optimizer step; the batch is split among them."""
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    """Type of the forward pass under autocast; the weights stay float32."""
    channels_last: bool = False
    compile: bool = False
    """Train with the backbone and pyramid under torch.compile: minutes to start, faster steps on a GPU."""
    clip_grad_norm: PositiveFloat | None = None
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What becomes of a step whose loss or gradient is not finite; its batch is reported in the run's `nonfinite` folder. stop
    ends the run; skip leaves the step out: weights, averages and statistics stay as they were."""
    max_skipped: PositiveInt = 10
    """With on_nonfinite=skip: so many steps left out one after the other end the run."""
    ema: EmaConfig | None = None
    """An exponential moving average of the weights, which is then what is evaluated and used."""
    log_steps: PositiveInt = 20
    checkpoint_steps: PositiveInt | None = None
    """Save every so many steps, besides at the end of each epoch."""
    keep_every_epochs: PositiveInt | None = None
    """Keep the checkpoint of every so many epochs, as `epoch_0012.pt`, besides last.pt and best.pt. It can be resumed from."""


class DistributedConfig(Section):
    """Of runs with several processes; one process needs none of it."""

    step_minutes: Minutes = 30.0
    """How long a process waits within a step for the slowest one before the job ends, saying who is late."""
    wait_minutes: Minutes = 120.0
    """How long the others wait for what the main process does alone: a first download, the scoring."""
    gradient_compression: Literal["bf16", "fp16"] | None = None
    """Exchange gradients in half precision: half the bytes, and no longer the gradients of one process to the last bits."""
    sync_batch_norm: bool = False
    """Batch norms take the statistics of all processes' images (GPUs only): two small collectives more for each of them.
    Frozen and group norms stay as they are. The weights are those of plain batch norm."""
    bucket_mb: PositiveInt = 25
    """Gradients are exchanged in buckets of this size, while others are still computed."""
    static_graph: bool = False
    """Promise PyTorch that every step uses the same layers. For a model of your own that is refused without it."""


class OptimizerConfig(Section):
    name: Literal["sgd", "adamw"] = "sgd"
    lr: PositiveFloat = 0.02
    base_batch_size: PositiveInt | None = None
    """The batch size `lr` is meant for: lr is multiplied by train.batch_size / base_batch_size. Left out: lr as it is."""
    momentum: Fraction = 0.9
    """Of sgd."""
    weight_decay: NotNegativeFloat = 1e-4
    norm_weight_decay: NotNegativeFloat | None = None
    """Of normalisation layers' scale and shift. Left out: as weight_decay."""


class ScheduleConfig(Section):
    name: Literal["multistep", "cosine", "poly"] = "multistep"
    milestones: list[PositiveFloat] = Field(default_factory=lambda: [2 / 3, 11 / 12])
    """When multistep multiplies the learning rate by gamma: fractions of the whole run up to 1, or epochs above 1."""
    gamma: PositiveFloat = 0.1
    power: PositiveFloat = 0.9
    """Of poly: the learning rate falls as this power of the share of the run that is left."""
    warmup_steps: Annotated[int, Field(ge=0)] = 500
    """Steps over which the learning rate rises linearly from warmup_factor of itself; at most a fifth of the run."""
    warmup_factor: Fraction = 0.001


class EvalConfig(Section):
    every_epochs: PositiveInt = 1
    """The last epoch is always evaluated."""
    batch_size: PositiveInt = 1
    """Images of one forward pass in one process."""
    pictures: Annotated[int, Field(ge=0)] = 16
    """Validation images drawn with their truth and predictions, once training has ended."""


class RunConfig(Section):
    """A whole run; each job has its own `model`, `data` and perhaps `eval`."""

    job: str
    model: ModelConfig = ModelConfig()
    data: DataConfig
    train: TrainConfig = TrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    eval: EvalConfig = EvalConfig()
    distributed: DistributedConfig = DistributedConfig()
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto is a GPU where there is one."""
    output_dir: Annotated[str, Field(min_length=1)] = "runs/default"

    @model_validator(mode="after")
    def _check(self) -> "RunConfig":
        if self.train.batch_size % self.train.accumulate:
            raise ValueError(
                f"train.batch_size {self.train.batch_size} cannot be split into train.accumulate {self.train.accumulate} parts"
            )
        return self
