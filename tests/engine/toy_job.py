"""A job as one of one's own would be written: is an image dark or bright? On it, what the engine does for any job is tested."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from engine.build import build_body
from engine.config import DataConfig, PositiveInt, RunConfig
from engine.data.annotations import Category
from engine.data.dataset import sample_seed
from engine.distributed import World
from engine.draw import save_picture
from engine.job import Evaluation, Job
from engine.scores import Score


class ToyDataConfig(DataConfig):
    count: PositiveInt = 6
    bright: str = "bright"


class ToyConfig(RunConfig):
    job: Literal["toy"] = "toy"
    data: ToyDataConfig = ToyDataConfig()


class ToySet:
    """Grey images, every second bright; their ids descend. A later epoch's are a little brighter."""

    def __init__(self, config: ToyDataConfig, *, name: str, seed: int) -> None:
        self.categories = [Category(10, "dark"), Category(20, config.bright)]
        self.path = Path(f"{name}.toy")
        self.count = config.count
        self.seed = seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, dict[str, Any]]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        bright = index % 2
        image = torch.full((3, 16 + index, 32), 40 + 120 * bright + index + 2 * epoch, dtype=torch.uint8)
        target = {"image_id": 100 - index, "label": torch.tensor(bright), "seed": sample_seed(self.seed, epoch, index)}
        return image, target

    def name_of(self, index: int) -> str:
        """Its number."""
        return f"{index}.toy"

    def shape_groups(self) -> np.ndarray | None:
        """All may be mixed."""
        return None


class ToyModel(nn.Module):
    """Two numbers for each image, from the mean of its last map."""

    def __init__(self, config: RunConfig, *, load_weights: bool) -> None:
        super().__init__()
        self.backbone = build_body(config.model.backbone, load_weights=load_weights)
        (*_, last) = self.backbone.feature_specs.values()
        self.classes = nn.Linear(last.channels, 2)

    def forward(self, images: list[Tensor]) -> Tensor:
        """(3, H, W) uint8 each -> (B, 2)."""
        maps = [list(self.backbone(image[None] / 127.5 - 1).values())[-1].mean(dim=(2, 3)) for image in images]
        return self.classes(torch.cat(maps))


class ToyEvaluation(Evaluation):
    """The share of images that are told right."""

    def __init__(self, dataset: ToySet) -> None:
        self.dataset = dataset
        self.told: dict[int, tuple[int, int]] = {}

    def add(self, target: dict[str, Any], prediction: int) -> None:
        """Take a label."""
        assert target["image_id"] not in self.told
        self.told[target["image_id"]] = (int(target["label"]), prediction)

    def collected(self) -> dict[int, tuple[int, int]]:
        """Truth and prediction by image id."""
        return self.told

    def merge(self, parts: Sequence[dict[int, tuple[int, int]]]) -> None:
        """Put them together."""
        self.told = {image_id: pair for part in parts for image_id, pair in part.items()}

    def score(self, output_dir: Path | None = None) -> list[Score]:
        """Of all, and of each class."""
        right = [truth == prediction for truth, prediction in self.told.values()]
        per_class = {
            category.name: float(np.mean([prediction == label for truth, prediction in self.told.values() if truth == label]))
            for label, category in enumerate(self.dataset.categories)
        }
        if output_dir is not None:
            output_dir.mkdir(exist_ok=True)
            (output_dir / "told.txt").write_text(str(sorted(self.told.items())))
        return [Score("labels", "accuracy", {"accuracy": float(np.mean(right)), "images": float(len(right))}, per_class)]

    def draw(self, folder: Path) -> list[Path]:
        """The first image."""
        save_picture(_picture(self.dataset[0][0]), folder / "first.png")
        return [folder / "first.png"]


class ToyJob(Job[ToyConfig]):
    """Dark or bright."""

    config_class = ToyConfig

    def build_training_set(self, world: World | None = None) -> ToySet:
        """Grey images."""
        return ToySet(self.config.data, name="train", seed=self.config.seed)

    def build_validation_set(self, world: World | None = None) -> ToySet:
        """The same."""
        return ToySet(self.config.data, name="val", seed=self.config.seed)

    def build_model(self, categories: Sequence[Category], *, load_weights: bool) -> ToyModel:
        """A backbone and a linear layer."""
        return ToyModel(self.config, load_weights=load_weights)

    def load_weights(self, model: nn.Module, path: str, dataset: ToySet) -> None:
        """A state dict."""
        model.load_state_dict(torch.load(path, weights_only=True))

    def losses(self, model: nn.Module, images: list[Tensor], targets: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Cross-entropy."""
        labels = torch.stack([target["label"] for target in targets])
        return {"loss_label": nn.functional.cross_entropy(model(images), labels)}

    def predict(self, model: nn.Module, images: list[Tensor]) -> list[int]:
        """A label for each."""
        return model(images).argmax(dim=1).tolist()

    def start_evaluation(self, dataset: ToySet) -> ToyEvaluation:
        """An empty one."""
        return ToyEvaluation(dataset)

    def describe(self, training_set: ToySet, validation_set: ToySet) -> list[str]:
        """Two lines."""
        return [f"dark or bright with {self.config.model.backbone.name}", f"{len(training_set)} grey images"]

    def draw_sample(self, dataset: ToySet, image: Tensor, target: dict[str, Any]) -> np.ndarray:
        """As it is."""
        return _picture(image)

    def describe_classes(self, dataset: ToySet) -> list[str]:
        """Half of them each."""
        return [f"{category.name}: {len(dataset) // 2}" for category in dataset.categories]

    def present(
        self, image: np.ndarray, prediction: int, categories: Sequence[Category], *, picture: Path, score_threshold: float
    ) -> tuple[str, list[dict[str, Any]]]:
        """Its class."""
        save_picture(image, picture)
        return categories[prediction].name, [{"image_id": 0, "category_id": categories[prediction].id}]


def _picture(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()
