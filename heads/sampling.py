"""Which anchors and proposals a loss is computed on: a balanced random choice, the same for a sample wherever it is trained."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler


class BalancedSampler(BalancedPositiveNegativeSampler):
    """torchvision's sampler, drawing each image's choice from that image's own seed.

    A target may carry `seed` (an int); the choice for that image then depends on it and on `salt` alone, not on the other
    images of the batch, the process that trains it, or what was drawn before. Without, the global generator is used.
    """

    def __init__(self, batch_size_per_image: int, positive_fraction: float, *, salt: int) -> None:
        super().__init__(batch_size_per_image, positive_fraction)
        self.salt = salt
        self._seeds: list[int | None] | None = None

    def follow(self, targets: Sequence[dict[str, Any]]) -> None:
        """Take the seeds of the images that the next call is for."""
        self._seeds = [target.get("seed") for target in targets]

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Labels (N_i,) an image, >= 1 object, 0 background, -1 ignored -> uint8 masks (N_i,) of the chosen of both kinds."""
        seeds, self._seeds = self._seeds or [None] * len(matched_idxs), None
        chosen_positive, chosen_negative = [], []
        for labels, seed in zip(matched_idxs, seeds, strict=True):
            generator = generator_of({"seed": seed}, salt=self.salt, device=labels.device)
            positive = torch.where(labels >= 1)[0]
            negative = torch.where(labels == 0)[0]
            num_positive = min(len(positive), int(self.batch_size_per_image * self.positive_fraction))
            num_negative = min(len(negative), self.batch_size_per_image - num_positive)
            chosen_positive.append(_choose(positive, num_positive, labels, generator))
            chosen_negative.append(_choose(negative, num_negative, labels, generator))
        return chosen_positive, chosen_negative


def generator_of(target: dict[str, Any], *, salt: int, device: torch.device) -> torch.Generator | None:
    """What the choices for an image are drawn from: its target's `seed`, if it carries one, and `salt`."""
    seed = target.get("seed")
    return None if seed is None else torch.Generator(device).manual_seed((seed * 2 + salt) % 2**63)


def _choose(candidates: Tensor, count: int, labels: Tensor, generator: torch.Generator | None) -> Tensor:
    order = torch.randperm(len(candidates), device=candidates.device, generator=generator)[:count]
    mask = torch.zeros_like(labels, dtype=torch.uint8)
    mask[candidates[order]] = 1
    return mask
