"""What turns an image into an embedding: a backbone without pyramid or head, and how images are prepared for it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from backbones import Backbone, FpnBackbone, build_backbone
from backbones.errors import UserError
from backbones.registry import BACKBONES, check_whole_number
from engine.checkpoint import load_checkpoint
from heads.transform import IMAGENET_MEAN, IMAGENET_STD, channel_constants

CHECKPOINT_SUFFIXES = {".pt", ".pth"}  # what is no backbone's name, though there is no such file


@dataclass(frozen=True)
class Recipe:
    """How an image becomes an embedding.

    Raises:
        UserError: a size that is no whole number above 0.
    """

    source: str  # a checkpoint of any job, or the name of a backbone
    weights: str | None = None  # of a backbone by name: a file, or the name of published ones
    size: int = 224  # the shorter side that images are brought to, pixels
    whole: bool = False  # take the whole image, not the square in its middle
    image_mean: tuple[float, ...] | None = None  # of each channel in [0, 1]; None: the source's own
    image_std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_whole_number("size", self.size)

    def __str__(self) -> str:
        return self.source if self.weights is None else f"{self.source} with weights {self.weights}"


class Embedder(nn.Module):
    """Embeddings from a bare backbone: the mean over all pixels of its coarsest map, which is what the classifier takes.

    `recipe` is the one that `build_embedder` was given, with the source's own mean and deviation where it named none.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, body: Backbone, recipe: Recipe) -> None:
        super().__init__()
        self.body = body.eval()
        self.recipe = recipe
        self.map_name, self.spec = list(body.feature_specs.items())[-1]
        self.register_buffer("mean", torch.tensor(recipe.image_mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(recipe.image_std)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C_in, H, W) uint8 -> (B, C) float32."""
        normalised = (images.float() / 255 - self.mean) / self.std
        return self.body(normalised)[self.map_name].mean((2, 3))

    def prepare(self, image: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 RGB -> (C_in, H', W') uint8: of the recipe's size, grey for a backbone of grey images."""
        picture = Image.fromarray(image)
        if self.body.in_channels == 1:
            picture = picture.convert("L")
        size, shorter = self.recipe.size, min(picture.size)
        width, height = (int(size * side / shorter) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        if not self.recipe.whole:
            left, top = round((width - size) / 2), round((height - size) / 2)
            picture = picture.crop((left, top, left + size, top + size))
        return torch.from_numpy(np.atleast_3d(np.array(picture)).transpose(2, 0, 1).copy())

    @torch.inference_mode()
    def embed(self, images: Sequence[Tensor]) -> np.ndarray:
        """Images as `prepare` gives them, those of one size in one pass -> (N, C) float32, in order."""
        embeddings = np.zeros((len(images), self.spec.channels), np.float32)
        for shape in dict.fromkeys(image.shape for image in images):
            alike = [number for number, image in enumerate(images) if image.shape == shape]
            batch = torch.stack([images[number] for number in alike]).to(self.mean.device)
            embeddings[alike] = self(batch).float().cpu().numpy()
        return embeddings

    def probe(self) -> np.ndarray:
        """(C,) float32, of a picture that is always the same.

        Raises:
            UserError: it is not finite.
        """
        ramp = np.arange(self.recipe.size)
        x, y = np.meshgrid(ramp, ramp)
        picture = np.stack([x % 256, y % 256, x * y % 256], axis=2).astype(np.uint8)
        probe = self.embed([self.prepare(picture)])[0]
        if not np.isfinite(probe).all():
            raise UserError(f"{self.recipe} gives features that are not finite: its weights are broken, or training diverged.")
        return probe


def build_embedder(recipe: Recipe) -> Embedder:
    """The embedder of a recipe, in evaluation mode.

    A checkpoint's model gives its backbone, without its pyramid, and normalises as it was trained to. A backbone by name
    normalises as timm says of its weights, others as ImageNet's classifiers do.

    Raises:
        UserError: no such checkpoint or backbone, weights that are missing, not needed or do not fit.
    """
    source, weights = recipe.source, recipe.weights
    if Path(source).is_dir():
        raise UserError(f"{source} is a folder. Name a checkpoint in it, such as {Path(source) / 'best.pt'}, or a backbone.")
    if Path(source).suffix == ".npz":
        raise UserError(f"{source} is a file of features: search it with --query or --pairs, or name what makes features.")
    if Path(source).is_file() or Path(source).suffix in CHECKPOINT_SUFFIXES:
        if weights is not None:
            raise UserError(f"{source} is a file, and --weights goes with the name of a backbone: leave one of them out.")
        try:
            loaded = load_checkpoint(source)
        except UserError as error:
            bare = f"Bare weights go with a backbone's name here: resnet50 --weights {source}."
            if Path(source).suffix not in CHECKPOINT_SUFFIXES:
                raise UserError(f"{source} is no checkpoint of a training run, nor a backbone's name. {bare}") from None
            raise UserError(f"{error} {bare}" if Path(source).is_file() else str(error)) from None
        config = loaded.load_config()
        body: nn.Module = loaded.build_model(config).backbone  # type: ignore[assignment]
        head = getattr(config.model, "head", None)
        own_mean, own_std = getattr(head, "image_mean", None), getattr(head, "image_std", None)
    else:
        BACKBONES.get(source)
        if weights is None:
            raise UserError(
                f"{source} needs --weights, a file or a name such as IMAGENET1K_V1 (pretrained for timm and hf): "
                "features of random weights are of no use."
            )
        body = build_backbone(source, weights=weights)
        own_mean, own_std = _timm_constants(body)
    if isinstance(body, FpnBackbone):
        body = body.body
    assert isinstance(body, Backbone)
    channels = body.in_channels
    if channels not in (1, 3):
        raise UserError(f"{source} takes images of {channels} channels; image files here are read as colour or grey.")
    mean = channel_constants("image_mean", list(recipe.image_mean or ()) or own_mean, IMAGENET_MEAN, channels)
    std = channel_constants("image_std", list(recipe.image_std or ()) or own_std, IMAGENET_STD, channels)
    return Embedder(body, replace(recipe, image_mean=tuple(mean), image_std=tuple(std)))


def _timm_constants(body: nn.Module) -> tuple[list[float] | None, list[float] | None]:
    """The mean and deviation that timm states for a model's weights; None for other libraries' models."""
    for module in body.modules():
        stated = getattr(module, "pretrained_cfg", None)
        if stated and stated.get("mean") and stated.get("std"):
            return list(stated["mean"]), list(stated["std"])
    return None, None
