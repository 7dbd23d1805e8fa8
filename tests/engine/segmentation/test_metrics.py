"""engine/segmentation/metrics.py against hotcoco's semantic scores and sets of pixels."""

import numpy as np
import pytest
from hotcoco.semantic import SemanticEval
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from engine.segmentation.metrics import class_accuracy, pixel_confusion, semantic_score

IGNORED = 255


def random_maps(seed, num_classes, *, absent=(), size=(23, 31)):
    rng = np.random.default_rng(seed)
    known = [k for k in range(num_classes) if k not in absent]
    truth = rng.choice([*known, IGNORED], size).astype(np.uint8)
    predicted = np.where(rng.random(size) < 0.6, truth, rng.choice(known, size))
    return truth, np.where(predicted == IGNORED, known[0], predicted)


def confusion_of(maps, num_classes):
    return sum(pixel_confusion(t, p, num_classes=num_classes, ignored=IGNORED) for t, p in maps)


@pytest.mark.parametrize("num_classes", [2, 5, 21])
@pytest.mark.parametrize("absent", [(), (1,)])
def test_scores_are_hotcocos(num_classes, absent):
    maps = [random_maps(seed, num_classes, absent=absent) for seed in range(3)]
    names = [f"class {k}" for k in range(num_classes)]
    theirs = SemanticEval(names)
    for truth, predicted in maps:
        theirs.update(truth, predicted.astype(np.int64))
    confusion = confusion_of(maps, num_classes)
    assert np.array_equal(confusion, theirs.confusion())
    expected = theirs.results()
    score = semantic_score(confusion, names)
    for ours, name in (("mIoU", "mIoU"), ("fwIoU", "fwIoU"), ("mean_accuracy", "mAcc"), ("pixel_accuracy", "aAcc")):
        assert score.stats[ours] == pytest.approx(expected[name], abs=1e-12), ours
    for row, accuracy in zip(expected["per_class"], class_accuracy(confusion), strict=True):
        assert score.per_class[row["name"]] == pytest.approx(row["IoU"], abs=1e-12)
        assert accuracy == pytest.approx(row["Acc"], abs=1e-12)


def test_a_class_that_is_predicted_and_never_true_counts_in_the_mean_of_ious_alone():
    confusion = np.array([[6, 2, 0], [0, 0, 0], [0, 0, 0]])
    score = semantic_score(confusion, ["a", "b", "c"])
    assert score.per_class == {"a": 0.75, "b": 0.0, "c": -1.0}
    assert score.stats == {"mIoU": 0.375, "pixel_accuracy": 0.75, "mean_accuracy": 0.75, "fwIoU": 0.75}
    theirs = SemanticEval(3)
    theirs.update(np.zeros((2, 4), np.uint8), np.array([[0, 0, 0, 1], [0, 0, 0, 1]]))
    assert theirs.results()["mIoU"] == pytest.approx(0.375)


def test_nothing_to_measure_is_minus_one():
    score = semantic_score(np.zeros((2, 2), np.int64), ["a", "b"])
    assert set(score.stats.values()) | set(score.per_class.values()) == {-1.0}
    assert score.value == -1


labels = arrays(np.uint8, (5, 4), elements=st.sampled_from([0, 1, 2, IGNORED]))
predictions = arrays(np.int64, (5, 4), elements=st.integers(0, 2))


@given(labels, predictions)
def test_ious_are_those_of_sets_of_pixels(truth, predicted):
    counted = truth != IGNORED
    score = semantic_score(pixel_confusion(truth, predicted, num_classes=3, ignored=IGNORED), ["0", "1", "2"])
    for k in range(3):
        true, said = set(zip(*np.nonzero((truth == k) & counted), strict=True)), (predicted == k) & counted
        said = set(zip(*np.nonzero(said), strict=True))
        expected = len(true & said) / len(true | said) if true | said else -1
        assert score.per_class[str(k)] == pytest.approx(expected)


@given(st.lists(st.tuples(labels, predictions), min_size=1, max_size=4))
def test_counts_do_not_depend_on_how_images_are_shared_out(maps):
    whole = pixel_confusion(
        np.concatenate([t for t, _ in maps]), np.concatenate([p for _, p in maps]), num_classes=3, ignored=IGNORED
    )
    assert np.array_equal(whole, confusion_of(maps, 3))
    assert whole.sum() == sum((truth != IGNORED).sum() for truth, _ in maps)
    assert whole.dtype == np.int64


def test_labels_beyond_255_are_counted():
    truth = np.array([[300, 65535], [2, 299]], np.int32)
    confusion = pixel_confusion(truth, np.array([[300, 1], [2, 2]]), num_classes=301, ignored=65535)
    assert confusion.sum() == 3
    assert confusion[300, 300] == confusion[2, 2] == confusion[299, 2] == 1
