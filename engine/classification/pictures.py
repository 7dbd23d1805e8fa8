"""Pictures of images with their classes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from engine.classification.dataset import ClassificationDataset
from engine.draw import contact_sheet, save_picture
from engine.files import picture_names

SIDE = 320  # of a picture's image, pixels
# Okabe and Ito's blue and vermilion, told apart with any colour vision.
RIGHT, WRONG = (0, 114, 178), (213, 94, 0)


def to_pixels(image: Tensor) -> np.ndarray:
    """A uint8 image (1 or 3, H, W) -> (H, W, 3)."""
    return np.ascontiguousarray(image.expand(3, -1, -1).permute(1, 2, 0).numpy())


def draw_labelled(pixels: np.ndarray, caption: str, *, title: str | None = None) -> np.ndarray:
    """An image (H, W, 3) uint8, its longer side brought to 320 pixels, under a caption."""
    return contact_sheet([pixels], columns=1, cell=SIDE, captions=[caption], title=title)


def draw_predictions(
    dataset: ClassificationDataset, predictions: Sequence[tuple[int, int, int, float]], folder: Path
) -> list[Path]:
    """Draw images as the model is given them, with truth and prediction, in a frame: blue if that is right, else vermilion.

    Args:
        predictions: for each image its number, its label, the predicted one and the probability of that.

    Returns:
        The files, in the same order.
    """
    paths = []
    names = picture_names([dataset.images.name_of(index) for index, *_ in predictions])
    for name, (index, truth, predicted, probability) in zip(names, predictions, strict=True):
        pixels = to_pixels(dataset[index][0])
        zoom = max(1, SIDE // max(pixels.shape[:2]))
        pixels = pixels.repeat(zoom, axis=0).repeat(zoom, axis=1)  # each pixel is seen, and the frame is thin
        line = max(2, len(pixels) // 64)
        framed = np.empty((pixels.shape[0] + 2 * line, pixels.shape[1] + 2 * line, 3), np.uint8)
        framed[:] = RIGHT if predicted == truth else WRONG
        framed[line:-line, line:-line] = pixels
        categories = dataset.categories
        picture = draw_labelled(
            framed, f"predicted: {categories[predicted].name} {probability:.2f}", title=f"truth: {categories[truth].name}"
        )
        paths.append(folder / f"{name}.png")
        save_picture(picture, paths[-1])
    return paths
