"""engine/segmentation/pictures.py: classes as colours, and label maps that read back as they were."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from engine.data.annotations import Category
from engine.draw import class_colour
from engine.segmentation.label_maps import read_label_map
from engine.segmentation.pictures import class_colours, draw_evaluated, enlarged, overlay, save_label_map, with_legend

IGNORED = 255
CATEGORIES = [Category(0, "background"), Category(4, "square"), Category(9, "bar")]


def test_only_a_background_is_grey():
    assert class_colours(CATEGORIES) == [class_colour(label) for label in range(3)]
    assert class_colours([Category(0, "__background__"), Category(1, "a")])[0] == (128, 128, 128)
    assert class_colours([Category(1, "wall"), Category(2, "sky")]) == [class_colour(1), class_colour(2)]


def test_a_class_has_one_colour_whatever_it_lies_on():
    labels = np.array([[0, 1, 2, IGNORED]] * 8, np.uint8)
    red, blue = (np.full((8, 4, 3), colour, np.uint8) for colour in ((200, 0, 0), (0, 0, 200)))
    for image in (red, blue):
        drawn = overlay(image, labels, CATEGORIES, ignored=IGNORED)
        assert (drawn[:, 0] == image[:, 0]).all(), "the background is left clear"
        for label in (1, 2):
            colour, tint = np.array(class_colours(CATEGORIES)[label]), drawn[0, label].astype(int)
            grey = image[0, label] @ [0.299, 0.587, 0.114]
            assert np.abs(tint - (0.6 * colour + 0.4 * grey)).max() <= 1
        hatched = (drawn[:, 3] != image[:, 3]).any(axis=1)
        assert 0 < hatched.sum() < 8


def test_without_a_background_every_class_is_tinted():
    image = np.full((4, 4, 3), 100, np.uint8)
    drawn = overlay(image, np.zeros((4, 4), np.uint8), [Category(1, "wall"), Category(2, "sky")], ignored=IGNORED)
    assert (drawn != image).any(axis=2).all()


def test_a_legend_has_the_colour_of_each_class_that_is_there_and_of_no_other():
    picture = np.zeros((50, 300, 3), np.uint8)
    drawn = with_legend(picture, [np.array([[0, 2, IGNORED]])], CATEGORIES)
    assert (drawn[:50, :300] == picture).all()
    legend = drawn[50:].reshape(-1, 3)
    shown = [(legend == colour).all(axis=1).sum() > 300 for colour in class_colours(CATEGORIES)]
    assert shown == [True, False, True]
    assert with_legend(picture, [np.array([[IGNORED]])], CATEGORIES) is picture


def test_a_legend_names_the_most_frequent_and_counts_the_rest():
    categories = [Category(i, f"c{i}") for i in range(12)]
    labels = np.repeat(np.arange(12), np.arange(12, 0, -1) * 10)[None]
    legend = with_legend(np.zeros((4, 300, 3), np.uint8), [labels], categories, most=5)[4:].reshape(-1, 3)
    shown = [bool((legend == colour).all(axis=1).any()) for colour in class_colours(categories)]
    assert shown == [True] * 5 + [False] * 7


def test_small_pictures_are_enlarged_and_large_ones_left():
    assert enlarged(np.zeros((30, 60, 3), np.uint8), 100).shape == (50, 100, 3)
    picture = np.zeros((300, 60, 3), np.uint8)
    assert enlarged(picture, 100) is picture


@given(st.sets(st.integers(0, 255), min_size=2, max_size=30), st.integers(0, 2**16))
def test_a_label_map_reads_back_as_the_categories_ids(tmp_path_factory, values, seed):
    categories = [Category(value, str(value)) for value in sorted(values)]
    labels = np.random.default_rng(seed).integers(0, len(categories), (9, 7))
    path = tmp_path_factory.mktemp("maps") / "sub" / "map.png"
    save_label_map(labels, categories, path)
    found = read_label_map(path, image=path)
    assert found.dtype == np.uint8
    assert np.array_equal(found, np.array(sorted(values))[labels])
    shown = np.asarray(Image.open(path).convert("RGB"))
    assert np.array_equal(shown, np.array(class_colours(categories), np.uint8)[labels])
    assert [entry.name for entry in path.parent.iterdir()] == ["map.png"]


def test_ids_beyond_255_take_16_bits(tmp_path):
    save_label_map(np.array([[0, 1]]), [Category(3, "a"), Category(40_000, "b")], tmp_path / "map.png")
    assert read_label_map(tmp_path / "map.png", image=tmp_path).tolist() == [[3, 40_000]]
    for beyond in (70_000, -1):
        save_label_map(np.array([[0, 1]]), [Category(3, "a"), Category(beyond, "b")], tmp_path / "map.png")
        assert read_label_map(tmp_path / "map.png", image=tmp_path).tolist() == [[0, 1]]


@pytest.mark.parametrize("size", [(40, 60), (600, 90), (1, 1)])
def test_truth_and_prediction_are_drawn_beside_the_image(tmp_path, size):
    truth = np.zeros(size, np.uint8)
    truth[: size[0] // 2] = 1
    draw_evaluated(
        np.full((*size, 3), 90, np.uint8), truth, np.full(size, 2), CATEGORIES, ignored=IGNORED, path=tmp_path / "a.png"
    )
    drawn = np.asarray(Image.open(tmp_path / "a.png"))
    assert drawn.shape[2] == 3
    assert drawn.std() > 0
