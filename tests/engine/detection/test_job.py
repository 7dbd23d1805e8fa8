"""engine/detection/job.py: detection as the engine sees it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine.data.annotations import Category
from engine.detection.job import DetectionJob
from heads.cropped_masks import CroppedMasks
from heads.mask_paste import UnpastedMasks, paste_masks
from tests.engine.conftest import MASKS

CATEGORIES = [Category(3, "bar"), Category(44, "square")]


@pytest.fixture
def job(make_config) -> DetectionJob:
    return DetectionJob(make_config(*MASKS))


@pytest.mark.parametrize("num_keypoints", [0, 5])
def test_the_model_has_the_background_besides_the_classes_and_the_most_keypoints_of_any(make_config, num_keypoints):
    names = tuple(f"point {number}" for number in range(num_keypoints))
    head = "keypoint_rcnn, keypoint_head_dim: 8, keypoint_head_layers: 1" if num_keypoints else "faster_rcnn"
    job = DetectionJob(make_config(f"model.head={{name: {head}}}"))
    model = job.build_model([Category(1, "person", names), Category(2, "cup"), Category(3, "cat")], load_weights=False)
    assert model.roi_heads.box_predictor.cls_score.out_features == 4
    if num_keypoints:
        assert model.roi_heads.keypoint_predictor.kps_score_lowres.out_channels == num_keypoints


def test_the_losses_are_the_detectors_own(job):
    training_set = job.build_training_set()
    model = job.build_model(training_set.categories, load_weights=False).train()
    images, targets = zip(*(training_set[index] for index in range(2)), strict=True)
    losses = [call(list(images), list(targets)) for call in (model, lambda *batch: job.losses(model, *batch))]
    assert losses[0].keys() == losses[1].keys() >= {"loss_classifier", "loss_box_reg", "loss_mask"}
    for name, value in losses[0].items():
        torch.testing.assert_close(losses[1][name], value)


def test_a_run_is_described_by_head_backbone_and_counts(job):
    lines = job.describe(job.build_training_set(), job.build_validation_set())
    assert lines == [
        "mask_rcnn on resnet18",
        "7 training images with 12 objects of 3 classes, 2 validation images",
    ]


def test_objects_that_are_left_out_are_said(make_config, toy_data, tmp_path):
    content = json.loads(Path(toy_data["annotations"]).read_text())
    content["annotations"][0]["bbox"] = [5, 5, 0, 10]
    (tmp_path / "flat.json").write_text(json.dumps(content))
    job = DetectionJob(make_config(f"data.train.annotations={tmp_path / 'flat.json'}"))
    *_, said, left_out = job.describe(job.build_training_set(), job.build_validation_set())
    assert said.startswith("7 training images with 11 objects")
    assert left_out == "left out: 1 training objects whose box has no width or height within its image"


def test_repeated_images_are_said(make_config):
    job = DetectionJob(make_config("data.sampling={name: repeat_factor, threshold: 1.0}"))
    lines = job.describe(job.build_training_set(), job.build_validation_set())
    assert "an epoch has 7 samples: an image comes up to 1.2 times" in lines


def test_classes_are_counted_with_those_that_do_not_occur(job):
    heading, *lines = job.describe_classes(job.build_training_set())
    assert heading == "12 objects, 1 of them crowd regions, in 3 classes:"
    assert [line.split() for line in lines] == [["bar", "6"], ["square", "6"], ["never", "0"]]


def test_a_sample_is_drawn_with_its_objects(job):
    training_set = job.build_training_set()
    image, target = training_set[0]
    picture = job.draw_sample(training_set, image, target)
    empty = job.draw_sample(
        training_set, image, {key: value[:0] for key, value in target.items() if key in ("boxes", "labels")}
    )
    assert picture.shape == empty.shape
    assert np.abs(picture.astype(int) - empty.astype(int)).max() > 50


def test_a_prediction_is_drawn_from_the_threshold_on_and_written_whole(job, tmp_path):
    image = np.full((40, 60, 3), 128, np.uint8)
    prediction = {
        "boxes": torch.tensor([[2.0, 3, 30, 20], [20, 10, 50, 35]]),
        "labels": torch.tensor([2, 1]),
        "scores": torch.tensor([0.75, 0.25]),
    }
    said, rows = job.present(image, prediction, CATEGORIES, picture=tmp_path / "half.png", score_threshold=0.5)
    assert said == f"1 object -> {tmp_path / 'half.png'}"
    assert rows == [
        {"image_id": 0, "category_id": 44, "bbox": [2, 3, 28, 17], "score": 0.75},
        {"image_id": 0, "category_id": 3, "bbox": [20, 10, 30, 25], "score": 0.25},
    ]
    said, again = job.present(image, prediction, CATEGORIES, picture=tmp_path / "all.png", score_threshold=0.0)
    assert said == f"2 objects -> {tmp_path / 'all.png'}"
    assert again == rows
    said, again = job.present(image, prediction, CATEGORIES, picture=tmp_path / "none.png", score_threshold=0.9)
    assert said == f"0 of 2 objects score 0.9 or more (highest 0.75) -> {tmp_path / 'none.png'}"
    assert again == rows
    nothing = {key: value[:0] for key, value in prediction.items()}
    said, _ = job.present(image, nothing, CATEGORIES, picture=tmp_path / "none.png", score_threshold=0.9)
    assert said == f"0 objects -> {tmp_path / 'none.png'}"
    half, whole = (np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int) for name in ("half", "all"))
    assert np.abs(half - whole).max() > 50


@pytest.mark.parametrize("head", ["mask_rcnn", "cascade_mask_rcnn", "fast=false"])
def test_masks_that_come_cropped_give_the_losses_of_whole_ones(make_config, head):
    overrides = ["model.head.fast=false"] if head == "fast=false" else [f"model.head.name={head}"]
    job = DetectionJob(make_config(*MASKS, *overrides))
    dataset = job.build_training_set()
    samples = [dataset[index] for index in range(len(dataset))]
    images, targets = [image for image, _ in samples], [target for _, target in samples]
    assert all(isinstance(target["masks"], CroppedMasks) for target in targets)
    assert any(len(target["masks"]) for target in targets)
    model = job.build_model(dataset.categories, load_weights=False).train()
    losses = job.losses(model, images, targets)
    whole = [target | {"masks": target["masks"].dense()} for target in targets]
    expected = model(images, whole)
    assert "loss_mask" in losses
    assert losses == expected


def test_a_small_training_set_is_decoded_once_and_a_large_one_not(make_config):
    assert DetectionJob(make_config()).build_training_set().image_cache is not None
    assert DetectionJob(make_config("data.cache_images=0")).build_training_set().image_cache is None
    assert DetectionJob(make_config("data.cache_images=1e-6")).build_training_set().image_cache is None


@pytest.mark.parametrize("head", ["mask_rcnn", "cascade_mask_rcnn", "fast=false"])
@torch.no_grad()
def test_predictions_are_written_and_drawn_as_those_with_whole_masks(make_config, tmp_path, head, monkeypatch):
    overrides = ["model.head.fast=false"] if head == "fast=false" else [f"model.head.name={head}"]
    job = DetectionJob(make_config(*MASKS, *overrides, "model.head.box_score_thresh=0.0"))
    model = job.build_model(CATEGORIES, load_weights=False).eval()
    image = np.random.default_rng(0).integers(0, 256, (80, 120, 3), np.uint8)
    (whole,) = model([job.prepare(image)])
    assert isinstance(whole["masks"], torch.Tensor)
    assert whole["masks"].shape == (20, 1, 80, 120)
    said = [job.present(image, whole, CATEGORIES, picture=tmp_path / "whole.png", score_threshold=0.0)]
    pasted = []
    monkeypatch.setattr(
        "heads.mask_paste.paste_masks", lambda masks, boxes, size: pasted.append(len(masks)) or paste_masks(masks, boxes, size)
    )
    (small,) = job.predict(model, [job.prepare(image)])
    said.append(job.present(image, small, CATEGORIES, picture=tmp_path / "small.png", score_threshold=0.0))
    assert said[0][1] == said[1][1]
    assert len({row["segmentation"]["counts"] for row in said[0][1]}) > 5
    assert (tmp_path / "whole.png").read_bytes() == (tmp_path / "small.png").read_bytes()
    assert pasted == [1] * 20


def test_only_masks_that_are_drawn_are_pasted(job, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("pasted")

    monkeypatch.setattr("heads.mask_paste.paste_masks", refuse)
    boxes = torch.tensor([[2.0, 3, 30, 20]])
    masks = UnpastedMasks(torch.ones(1, 1, 28, 28), boxes, (40, 60))
    prediction = {"boxes": boxes, "labels": torch.tensor([2]), "scores": torch.tensor([0.25]), "masks": masks}
    image = np.full((40, 60, 3), 128, np.uint8)
    _, rows = job.present(image, prediction, CATEGORIES, picture=tmp_path / "none.png", score_threshold=0.5)
    assert "segmentation" in rows[0]


def test_the_highest_score_never_reads_as_if_it_were_enough(job, tmp_path):
    prediction = {"boxes": torch.tensor([[2.0, 3, 30, 20]]), "labels": torch.tensor([1]), "scores": torch.tensor([0.4999])}
    image = np.full((40, 60, 3), 128, np.uint8)
    said, _ = job.present(image, prediction, CATEGORIES, picture=tmp_path / "none.png", score_threshold=0.5)
    assert "(highest 0.49)" in said
