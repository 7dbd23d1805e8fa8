"""Images found by their features: those most like a query, and pairs of one thing."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from backbones.errors import UserError
from engine.data.dataset import read_image
from engine.distributed import start_world
from engine.draw import contact_sheet, save_picture
from engine.embedder import build_embedder
from engine.features import Features, load_features
from engine.files import make_folder
from engine.neighbours import matching_pairs, nearest_neighbours
from engine.predict import find_images

COLUMNS = 6  # of a picture of neighbours
CELL = 240  # pixels
# Of the probe's length. Between devices it differs by a thousandth at most; by more, the weights are others.
TOLERANCE = 0.01

Found = list[tuple[str, float]]  # (file name, similarity), the most alike first


def find_similar(
    path: str, queries: Sequence[str], *, count: int = 5, picture: str | None = None, device: str = "auto"
) -> dict[str, Found]:
    """Print which images of a file of features are most like each query, by cosine similarity; perhaps draw them.

    A query is embedded as the images were. One that is among them is not its own neighbour.

    Args:
        path: a file that `extract_features` wrote.
        queries: image files, and folders of them.
        count: how many neighbours of each; where there are fewer images, all.
        picture: a PNG file to draw queries and neighbours into.

    Returns:
        The neighbours of each query on the main process, an empty dict on the others.

    Raises:
        UserError: features, queries or their backbone that are missing or not as they were; a count below 1.
    """
    if count < 1:
        raise UserError(f"{count} neighbours are asked for: ask for at least 1.")
    features = load_features(path)
    paths = find_images(queries)
    if picture is not None:
        if Path(picture).is_dir():
            raise UserError(f"{picture} is a folder. Name a file.")
        make_folder(Path(picture).parent)
    images = {query: read_image(query, listed_in="the queries") for query in paths}
    with start_world(device) as world:
        if not world.is_main:
            return {}
        try:
            embedder = build_embedder(features.recipe).to(world.device)
        except UserError as error:
            raise UserError(f"{path} was made with {features.recipe}. {error}") from None
        _check_probe(features, embedder.probe(), path)
        embedded = np.concatenate([embedder.embed([embedder.prepare(image)]) for image in images.values()])
    # One more, in the place of the query itself.
    indices, similarities = nearest_neighbours(embedded, features.embeddings, count=count + 1)
    found: dict[str, Found] = {}
    for query, row, values in zip(paths, indices.tolist(), similarities.tolist(), strict=True):
        named = [(features.file_names[index], value) for index, value in zip(row, values, strict=True)]
        found[str(query)] = [pair for pair in named if Path(pair[0]).resolve() != query.resolve()][:count]
        print(query)
        for name, similarity in found[str(query)]:
            print(f"  {similarity:6.3f}  {name}")
    if picture is not None:
        save_picture(_draw(images, found), Path(picture))
        print(f"Drawn in {picture}")
    return found


def find_pairs(path: str, *, threshold: float) -> list[tuple[str, str, float]]:
    """Print the pairs of images whose cosine similarity is at least `threshold`, the most alike first.

    Returns:
        (file name, file name, similarity) of each pair.

    Raises:
        UserError: the file is missing or malformed, a threshold out of range, more pairs than anyone can look at.
    """
    features = load_features(path)
    indices, similarities = matching_pairs(features.embeddings, threshold=threshold)
    names = features.file_names
    found = [(names[i], names[j], value) for (i, j), value in zip(indices.tolist(), similarities.tolist(), strict=True)]
    for left, right, similarity in found:
        print(f"{similarity:6.3f}  {left}  {right}")
    pairs, have = ("pair", "has") if len(found) == 1 else ("pairs", "have")
    print(f"{len(found)} {pairs} among {len(names)} images {have} a similarity of at least {threshold:g}")
    return found


def _check_probe(features: Features, probe: np.ndarray, path: str) -> None:
    """Check that the backbone is the one that made the features: a checkpoint may have been written over since."""
    same = probe.shape == features.probe.shape
    if not same or np.linalg.norm(probe - features.probe) > TOLERANCE * np.linalg.norm(features.probe):
        raise UserError(
            f"{features.recipe} is no longer what {path} was made with: it sees an image otherwise. Extract the features again."
        )


def _draw(images: dict[Path, np.ndarray], found: dict[str, Found]) -> np.ndarray:
    """A sheet: each query, and after it its neighbours, from a new line on."""
    columns = min(COLUMNS, 1 + max(len(neighbours) for neighbours in found.values()))
    pictures, captions = [], []
    for query, image in images.items():
        pictures.append(image)
        captions.append(f"query {query.name}")
        for name, similarity in found[str(query)]:
            pictures.append(_neighbour(name))
            captions.append(f"{similarity:.3f} {Path(name).name}")
        while len(pictures) % columns:
            pictures.append(np.full((1, CELL, 3), 246, np.uint8))  # the paper's grey, of no height
            captions.append("")
    return contact_sheet(pictures, columns=columns, cell=CELL, captions=captions)


def _neighbour(name: str) -> np.ndarray:
    try:
        return read_image(Path(name), listed_in="the images")
    except UserError as error:
        raise UserError(f"{error} To draw it, call from the folder in which the features were extracted.") from None
