"""What the network sees: a picture of training samples."""

from pathlib import Path
from typing import Any

import numpy as np

from engine.config import RunConfig
from engine.draw import contact_sheet, save_picture
from engine.files import make_folder
from engine.job import Job, job_of


def show_samples(config: RunConfig, output: str, *, count: int, epoch: int = 0) -> None:
    """Draw a contact sheet of `count` augmented training samples, as in `epoch` (from 0), into the file `output`.

    Raises:
        UserError: the data cannot be read.
    """
    make_folder(Path(output).parent)
    job = job_of(config)
    dataset = job.build_training_set()
    save_picture(draw_samples(job, dataset, count=count, epoch=epoch), Path(output))
    print(f"{min(count, len(dataset))} of {len(dataset)} training samples, as in epoch {epoch}: {output}")
    print(*job.describe_classes(dataset), sep="\n")


def draw_samples(job: Job[Any], dataset: Any, *, count: int, epoch: int = 0) -> np.ndarray:
    """A contact sheet (H, W, 3) of samples as the network is given them, what they are labelled with drawn in."""
    pictures, captions = [], []
    for index in np.unique(np.linspace(0, len(dataset) - 1, num=min(count, len(dataset)), dtype=int)).tolist():
        image, target = dataset[epoch, index]
        pictures.append(job.draw_sample(dataset, image, target))
        captions.append(f"{dataset.name_of(index)}  {image.shape[2]} x {image.shape[1]}")
    return contact_sheet(pictures, captions=captions)
