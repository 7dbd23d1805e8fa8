"""engine/classification/evaluate.py: against scikit-learn's scores, whatever order the predictions come in."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import accuracy_score, log_loss, recall_score, top_k_accuracy_score

from engine.classification.classes import Classes
from engine.classification.dataset import ClassificationDataset
from engine.classification.evaluate import ClassificationEvaluation, most_probable
from engine.classification.pictures import RIGHT, WRONG
from engine.classification.sources import ImageArray


def make_set(truth, num_classes, tmp_path=None):
    names = [f"class {i}" for i in range(num_classes)]
    pixels = np.full((len(truth), 8, 8), 200, np.uint8)
    images = ImageArray(tmp_path, names, np.asarray(truth), pixels)
    return ClassificationDataset(images, Classes(None, names), channels=1, resize=8, size=8)


def evaluation_of(truth, log_probabilities, *, pictures=0, order=None):
    dataset = make_set(truth, log_probabilities.shape[1])
    evaluation = ClassificationEvaluation(dataset, pictures=pictures)
    for index in range(len(truth)) if order is None else order:
        target = {"label": torch.tensor(truth[index]), "image_id": torch.tensor(index)}
        evaluation.add(target, torch.as_tensor(log_probabilities[index]))
    return evaluation


def random_predictions(seed, num_images, num_classes):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (num_images, num_classes)).astype(np.float32)
    return rng.integers(0, num_classes, num_images), torch.from_numpy(logits).log_softmax(1).numpy()


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(2, 12))
def test_scores_are_scikit_learns(seed, num_images, num_classes):
    truth, log_probabilities = random_predictions(seed, num_images, num_classes)
    (score,) = evaluation_of(truth, log_probabilities).score()
    assert (score.kind, score.measure, score.value) == ("classification", "top1", score.stats["top1"])
    labels = range(num_classes)
    assert score.stats["top1"] == pytest.approx(accuracy_score(truth, log_probabilities.argmax(1)))
    if num_classes > 5:
        top5 = top_k_accuracy_score(truth, log_probabilities, k=5, labels=labels)
        assert score.stats["top5"] == pytest.approx(top5)
    else:
        assert score.stats["top5"] == 1
    probabilities = np.exp(log_probabilities.astype(float))
    loss = log_loss(truth, probabilities / probabilities.sum(1, keepdims=True), labels=labels)
    assert score.stats["loss"] == pytest.approx(loss, rel=1e-4)
    recalls = recall_score(truth, log_probabilities.argmax(1), labels=labels, average=None, zero_division=0)
    present = np.isin(labels, truth)
    expected = np.where(present, recalls, -1)
    assert list(score.per_class) == [f"class {i}" for i in labels]
    np.testing.assert_allclose(list(score.per_class.values()), expected)


@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(1, 4), st.randoms(use_true_random=False))
def test_neither_order_nor_processes_change_a_bit(seed, num_images, num_processes, random):
    truth, log_probabilities = random_predictions(seed, num_images, 7)
    whole = evaluation_of(truth, log_probabilities)
    order = list(range(num_images))
    random.shuffle(order)
    parts = [evaluation_of(truth, log_probabilities, order=order[i::num_processes]) for i in range(num_processes)]
    merged = parts[0]
    merged.merge([part.collected() for part in parts])
    assert merged.score() == whole.score()


def test_of_equal_probabilities_the_first_class_is_the_most_probable():
    labels, probabilities = most_probable(torch.full((8,), 1 / 8).log())
    assert labels == (0, 1, 2, 3, 4)
    assert probabilities == pytest.approx([1 / 8] * 5)
    labels, _ = most_probable(torch.tensor([0.2, 0.4, 0.4]).log())
    assert labels == (1, 2, 0)


def test_files_say_what_is_seen_in_each_image(tmp_path):
    log_probabilities = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.1, 0.8]]).log()
    evaluation = evaluation_of([0, 1], log_probabilities)
    (score,) = evaluation.score(tmp_path / "eval")
    written = json.loads((tmp_path / "eval" / "scores.json").read_text())
    assert written == {"classification": {"stats": score.stats, "per_class": score.per_class}}
    assert score.per_class == {"class 0": 1, "class 1": 0, "class 2": -1}
    rows = json.loads((tmp_path / "eval" / "predictions.json").read_text())
    assert rows[0] == {
        "image_id": 0,
        "file_name": "00000",
        "truth": "class 0",
        "top": [
            {"category_id": 0, "class": "class 0", "probability": 0.5},
            {"category_id": 2, "class": "class 2", "probability": 0.3},
            {"category_id": 1, "class": "class 1", "probability": 0.2},
        ],
    }
    assert [row["truth"] for row in rows] == ["class 0", "class 1"]


def test_what_it_got_wrong_is_drawn_first_the_surest_first(tmp_path):
    surest = [0.9, 0.6, 0.7, 0.8, 0.99]
    log_probabilities = torch.tensor([[p, 1 - p] for p in surest]).log()
    evaluation = evaluation_of([0, 1, 1, 0, 0], log_probabilities, pictures=3)
    paths = evaluation.draw(tmp_path)
    assert [path.name for path in paths] == ["00002.png", "00001.png", "00000.png"]
    for path, colour in zip(paths, (WRONG, WRONG, RIGHT), strict=True):
        pixels = np.asarray(Image.open(path)).reshape(-1, 3)
        frames = {name: int((pixels == np.array(value)).all(1).sum()) for name, value in (("right", RIGHT), ("wrong", WRONG))}
        assert (frames["wrong"] > 1000) == (colour is WRONG)
        assert (frames["right"] > 1000) == (colour is RIGHT)


@pytest.mark.parametrize(("pictures", "drawn"), [(0, 0), (2, 2), (50, 6)])
def test_as_many_pictures_as_asked_for_or_as_there_are_images(tmp_path, pictures, drawn):
    truth, log_probabilities = random_predictions(0, 6, 4)
    paths = evaluation_of(truth, log_probabilities, pictures=pictures).draw(tmp_path / "out")
    assert len(set(paths)) == len(paths) == drawn
    assert all(path.is_file() for path in paths)
