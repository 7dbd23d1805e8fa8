"""engine/segmentation/evaluate.py: counted, merged, scored, written, drawn."""

import csv
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hotcoco.semantic import SemanticEval

from engine.segmentation.build import build_validation_set
from engine.segmentation.evaluate import SegmentationEvaluation
from tests.engine.segmentation.conftest import NAMES


@pytest.fixture
def dataset(make_config):
    return build_validation_set(make_config())


@pytest.fixture
def predictions(dataset):
    """For each image a target and labels that are right in most places."""
    rng = np.random.default_rng(0)
    made = []
    for index in range(len(dataset)):
        _, target = dataset[index]
        truth = target["labels"].numpy()
        wrong = (rng.random(truth.shape) < 0.2) | (truth == 255)
        made.append((target, torch.from_numpy(np.where(wrong, rng.integers(0, 3, truth.shape), truth))))
    return made


def collect(dataset, predictions, *, pictures=2):
    evaluation = SegmentationEvaluation(dataset, pictures=pictures)
    for target, labels in predictions:
        evaluation.add(target, labels)
    return evaluation


def test_the_scores_are_hotcocos(dataset, predictions):
    theirs = SemanticEval(NAMES)
    for target, labels in predictions:
        theirs.update(target["labels"].numpy(), labels.numpy())
    (score,) = collect(dataset, predictions).score()
    assert (score.kind, score.measure) == ("semantic", "mIoU")
    assert score.value == pytest.approx(theirs.results()["mIoU"])
    assert score.per_class == pytest.approx({row["name"]: row["IoU"] for row in theirs.results()["per_class"]})
    assert len(score.lines()) == 4


@pytest.mark.parametrize("cuts", [[1], [2, 3], [0, 6], [1, 2, 3, 4, 5]])
def test_shares_of_any_size_merge_into_the_whole(dataset, predictions, cuts):
    whole = collect(dataset, predictions)
    edges = [0, *cuts, 6]
    shares = [collect(dataset, predictions[start:end]).collected() for start, end in pairwise(edges)]
    merged = SegmentationEvaluation(dataset, pictures=2)
    merged.merge(shares)
    assert np.array_equal(merged.confusion, whole.confusion)
    assert merged.score() == whole.score()


def test_what_is_written(dataset, predictions, tmp_path):
    evaluation = collect(dataset, predictions)
    (score,) = evaluation.score(tmp_path / "eval")
    assert sorted(path.name for path in (tmp_path / "eval").iterdir()) == ["confusion.csv", "scores.json"]
    content = json.loads((tmp_path / "eval" / "scores.json").read_text())["semantic"]
    assert content["stats"] == score.stats
    assert content["per_class"] == score.per_class
    assert content["per_class_accuracy"].keys() == score.per_class.keys()
    with (tmp_path / "eval" / "confusion.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header[1:] == [row[0] for row in rows] == NAMES
    assert np.array_equal(np.array([row[1:] for row in rows], int), evaluation.confusion)


def test_pictures_are_spread_over_the_set_and_named_as_the_images(dataset, predictions, tmp_path):
    drawn = collect(dataset, predictions, pictures=3).draw(tmp_path / "pictures")
    assert [path.name for path in drawn] == ["000.png", "002.png", "005.png"]
    assert all(path.is_file() for path in drawn)
    assert collect(dataset, predictions, pictures=0).draw(tmp_path / "none") == []


def test_what_nothing_was_counted_for_is_minus_one(dataset):
    (score,) = SegmentationEvaluation(dataset, pictures=0).score()
    assert score.value == -1


def test_of_the_same_names_each_keeps_its_row(make_config, tmp_path):
    dataset = build_validation_set(make_config("data.classes=[a, b, b]"))
    evaluation = SegmentationEvaluation(dataset, pictures=0)
    _, target = dataset[0]
    evaluation.add(target, target["labels"].long().clamp(max=2))
    (score,) = evaluation.score(tmp_path)
    assert list(score.per_class) == ["a", "b (id 1)", "b (id 2)"]
    assert Path(tmp_path / "scores.json").is_file()
