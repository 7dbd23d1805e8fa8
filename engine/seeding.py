"""The global generators of random numbers, which layers draw from: ours take explicit seeds, other people's may not."""

import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed PyTorch's generators (of the CPU and of every GPU), NumPy's and Python's."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  # a model from another library may draw from it
    random.seed(seed)
