"""A detector's evaluation: every image once, in its own pixels, to numbers that pycocotools confirms."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from engine.data.annotations import load_annotations
from engine.data.dataset import CocoDataset
from engine.detection.build import build_model, build_validation_set
from engine.detection.evaluate import DetectionEvaluation
from engine.detection.job import DetectionJob
from engine.distributed import World
from engine.evaluate import evaluate, run_evaluation
from engine.scores import Score
from engine.train import train
from tests.engine.conftest import MASKS

ALONE = World(0, 1, torch.device("cpu"))


class Oracle(nn.Module):
    """Knows each image by its pixels, and answers with the truth; `seen` is what it was asked."""

    def __init__(self, dataset: CocoDataset) -> None:
        super().__init__()
        self.truth = {}
        self.seen: list[bytes] = []
        for index in range(len(dataset)):
            image, target = dataset[index]
            self.truth[image.numpy().tobytes()] = target

    def forward(self, images):
        assert not self.training
        self.seen += [image.numpy().tobytes() for image in images]
        return [self.answer(self.truth[image.numpy().tobytes()]) for image in images]

    def answer(self, target):
        answer = {"boxes": target["boxes"], "labels": target["labels"], "scores": torch.full((len(target["boxes"]),), 0.9)}
        return answer | ({"masks": target["masks"][:, None].float()} if "masks" in target else {})


@pytest.fixture(params=[False, True], ids=["boxes", "boxes and masks"])
def dataset(toy_data, request) -> CocoDataset:
    return CocoDataset(Path(toy_data["images"]), load_annotations(toy_data["annotations"]), with_masks=request.param)


@pytest.fixture
def predict(make_config, dataset):
    """A function that runs a model over the data set, as a detector of what that has."""

    def run(model: nn.Module, *overrides: str, world: World = ALONE, **options) -> DetectionEvaluation | None:
        config = make_config(*(MASKS if dataset.with_masks else ()), *overrides)
        return run_evaluation(DetectionJob(config), model, dataset, world=world, **options)

    return run


def pycocotools_stats(results: Path, annotations: str, iou_type: str) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(annotations)
        evaluator = COCOeval(truth, truth.loadRes(str(results)), iou_type)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats.tolist()


def own_stats(scores: list[Score]) -> list[list[float]]:
    return [list(score.stats.values()) for score in scores]


# ---- Prediction ----


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
@pytest.mark.parametrize(("batch_size", "num_workers"), [(1, 0), (3, 0), (100, 0), (2, 1)])
def test_a_model_that_knows_the_truth_scores_one_whatever_the_batches(dataset, predict, batch_size, num_workers, backend):
    model = Oracle(dataset)
    loading = (f"eval.batch_size={batch_size}", f"data.num_workers={num_workers}")
    scores = predict(model, *loading, f"eval.backend={backend}").score()
    assert [score.kind for score in scores] == ["bbox", "segm"][: 1 + dataset.with_masks]
    for score in scores:
        assert score.stats["AP"] == score.value == pytest.approx(1)
        assert score.stats["AR100"] == pytest.approx(1)
        assert score.per_class == pytest.approx({"bar": 1, "square": 1, "never": -1})
    assert sorted(model.seen) == sorted(model.truth), "each image once"


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_some_classes_score_as_a_file_of_them_alone(make_config, toy_data, tmp_path, backend):
    content = json.loads(Path(toy_data["annotations"]).read_text())
    content["categories"] = [category for category in content["categories"] if category["name"] == "square"]
    content["annotations"] = [annotation for annotation in content["annotations"] if annotation["category_id"] == 44]
    (tmp_path / "squares.json").write_text(json.dumps(content))
    alone = {"images": toy_data["images"], "annotations": str(tmp_path / "squares.json")}
    scores = []
    for overrides, data in ((["data.classes=[square]"], toy_data), ([], alone)):
        config = make_config(*overrides, f"eval.backend={backend}", data=data)
        dataset = build_validation_set(config)
        model = Oracle(dataset)
        model.answer = lambda target: {"boxes": target["boxes"] + 1, "labels": target["labels"], "scores": target["area"] / 1e4}
        evaluation = run_evaluation(DetectionJob(config), model, dataset, world=ALONE)
        scores.append(evaluation.score())
    assert own_stats(scores[0]) == own_stats(scores[1])
    assert scores[0][0].per_class == scores[1][0].per_class
    assert list(scores[0][0].per_class) == ["square"]
    assert 0 < scores[0][0].value < 1


def test_rows_come_in_the_order_of_the_data_set(dataset, predict):
    rows = predict(Oracle(dataset), "eval.batch_size=3").rows
    order = list(dict.fromkeys(row["image_id"] for row in rows))
    assert order == [i for i in dataset.annotations.image_ids.tolist() if i in order]
    assert order != sorted(order)


@pytest.mark.parametrize("size", [2, 3, 10])
def test_the_shards_of_several_processes_make_up_the_rows_of_one(dataset, predict, size, monkeypatch):
    whole = predict(Oracle(dataset), "eval.batch_size=2").rows
    shards = []
    monkeypatch.setattr(World, "gather", lambda self, value, **_: (shards.append(value), [])[1])
    for rank in reversed(range(1, size)):
        assert predict(Oracle(dataset), "eval.batch_size=2", world=World(rank, size, ALONE.device)) is None
    monkeypatch.setattr(World, "gather", lambda self, value, **_: [value, *shards])
    merged = predict(Oracle(dataset), "eval.batch_size=2", world=World(0, size, ALONE.device))
    assert merged.rows == whole
    assert len(whole) == 12


def test_progress_is_told_for_every_batch(dataset, predict):
    told = []
    predict(Oracle(dataset), "eval.batch_size=3", on_image=lambda *progress: told.append(progress))
    assert told == [(3, 7), (6, 7), (7, 7)]


@pytest.mark.parametrize("min_size", [32, 128])
def test_predictions_are_in_the_images_own_pixels(make_config, toy_data, min_size):
    """Random weights find boxes all over the image, cut at its border."""
    overrides = (f"data.min_size={min_size}", "model.head.box_score_thresh=0.0", "model.head.anchor_scale=16")
    config = make_config(*overrides, data=toy_data)
    dataset = build_validation_set(config)
    model = build_model(config, num_classes=4, load_weights=False)
    rows = run_evaluation(DetectionJob(config), model, dataset, world=ALONE).rows
    table = dataset.annotations
    for image_id, height, width in zip(table.image_ids.tolist(), table.heights, table.widths, strict=True):
        x, y, w, h = np.array([row["bbox"] for row in rows if row["image_id"] == image_id]).T
        assert 0.9 * width < (x + w).max() <= width + 1e-3
        assert 0.9 * height < (y + h).max() <= height + 1e-3
        assert min(x.min(), y.min()) >= 0


def test_a_real_model_finds_the_same_in_batches_of_images_of_one_size(make_config, square_data):
    jobs = [DetectionJob(make_config(f"eval.batch_size={size}", data=square_data)) for size in (1, 3)]
    model = build_model(jobs[0].config, num_classes=4, load_weights=False)
    dataset = build_validation_set(jobs[0].config)
    one, three = (run_evaluation(job, model, dataset, world=ALONE).rows for job in jobs)
    assert len(one) == len(three) > 0
    for first, second in zip(one, three, strict=True):
        assert {**first, "bbox": 0, "score": 0} == {**second, "bbox": 0, "score": 0}
        assert [*first["bbox"], first["score"]] == pytest.approx([*second["bbox"], second["score"]], abs=1e-3)


# ---- Scores and files ----


def test_the_results_written_score_with_pycocotools_to_the_very_numbers_printed(trained):
    printed = json.loads((trained.folder / "eval" / "scores.json").read_text())
    for iou_type in ("bbox", "segm"):
        results = trained.folder / "eval" / f"{iou_type}_results.json"
        expected = pycocotools_stats(results, trained.data["annotations"], iou_type)
        assert 0.1 < expected[0] < 1, "too good or too bad to show anything"
        assert list(printed[iou_type]["stats"].values()) == expected
    assert own_stats(trained.scores) == [list(printed[iou_type]["stats"].values()) for iou_type in ("bbox", "segm")]


def test_results_files_hold_boxes_or_masks_with_the_data_sets_own_ids(trained):
    content = json.loads(Path(trained.data["annotations"]).read_text())
    image_ids = {image["id"] for image in content["images"]}
    for iou_type, field in (("bbox", "bbox"), ("segm", "segmentation")):
        rows = json.loads((trained.folder / "eval" / f"{iou_type}_results.json").read_text())
        assert all(set(row) == {"image_id", "category_id", "score", field} for row in rows)
        assert {row["image_id"] for row in rows} <= image_ids
        assert {row["category_id"] for row in rows} == {3, 44}


def test_scores_file_says_the_backend_and_every_class(trained):
    content = json.loads((trained.folder / "eval" / "scores.json").read_text())
    assert content["backend"] == "hotcoco"
    assert content["segm"]["per_class"] == trained.scores[1].per_class
    assert list(content["bbox"]["per_class"]) == ["bar", "square", "never"]


# ---- From the command line's arguments ----


def printed_numbers(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(" Average")]


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_a_checkpoint_scores_what_its_training_said(trained, capsys, tmp_path, backend):
    overrides = [f"eval.backend={backend}"]
    scores = evaluate(str(trained.folder / "best.pt"), overrides, job="detection", output_dir=str(tmp_path / "out"))
    assert own_stats(scores) == own_stats(trained.scores)
    assert printed_numbers(capsys.readouterr().out) == [line for score in trained.scores for line in score.lines()]
    for name in ("bbox_results.json", "segm_results.json"):
        assert (tmp_path / "out" / name).read_text() == (trained.folder / "eval" / name).read_text()


def test_a_config_with_weights_scores_as_the_checkpoint(trained):
    scores = evaluate(str(trained.folder / "config.yaml"), [], job="detection", weights=str(trained.folder / "best.pt"))
    assert own_stats(scores) == own_stats(trained.scores)


def test_another_validation_set_can_be_named(trained, square_data):
    overrides = [f"data.val.{key}={value}" for key, value in square_data.items()]
    scores = evaluate(str(trained.folder / "best.pt"), overrides, job="detection")
    assert own_stats(scores) != own_stats(trained.scores)


def test_a_validation_set_without_objects_scores_minus_one_and_still_gives_weights(make_config, toy_data, tmp_path):
    content = json.loads(Path(toy_data["annotations"]).read_text()) | {"annotations": []}
    (tmp_path / "empty.json").write_text(json.dumps(content))
    config = make_config(f"data.val.annotations={tmp_path / 'empty.json'}", data=toy_data)
    scores = train(config)
    assert scores[0].stats["AP"] == -1
    assert (tmp_path / "run" / "best.pt").exists()


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_a_test_set_without_annotations_gives_results_and_no_score(make_config, toy_data, tmp_path, backend):
    unlabelled = json.loads(Path(toy_data["annotations"]).read_text())
    del unlabelled["annotations"]
    (tmp_path / "test.json").write_text(json.dumps(unlabelled))
    data = {"images": toy_data["images"], "annotations": str(tmp_path / "test.json")}
    config = make_config("model.head.box_score_thresh=0.0", f"eval.backend={backend}", data=data)
    dataset = build_validation_set(config)
    model = build_model(config, num_classes=4, load_weights=False)
    evaluation = run_evaluation(DetectionJob(config), model, dataset, world=ALONE)
    (score,) = evaluation.score(tmp_path / "eval")
    assert set(score.stats.values()) == {-1}
    assert len(json.loads((tmp_path / "eval" / "bbox_results.json").read_text())) > 10
