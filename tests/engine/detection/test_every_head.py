"""Every head is trained, evaluated, saved and used by the same engine; so is a user's own."""

import json
import re
from pathlib import Path

import pytest
import torch

from engine.checkpoint import load_checkpoint
from engine.evaluate import evaluate
from engine.predict import predict_images
from engine.train import train
from heads import list_detectors

THIN_RCNN = {
    "anchor_scale": 4, "box_head_dim": 32, "rpn_pre_nms_top_n_train": 60, "rpn_post_nms_top_n_train": 60,
    "rpn_pre_nms_top_n_test": 60, "rpn_post_nms_top_n_test": 30, "box_batch_size_per_image": 16, "box_detections_per_img": 20,
    "box_score_thresh": 0.0,
}  # fmt: skip
OPTIONS = {
    "faster_rcnn": THIN_RCNN,
    "mask_rcnn": THIN_RCNN | {"mask_head_dim": 8, "mask_head_layers": 1},
    "cascade_rcnn": THIN_RCNN,
    "cascade_mask_rcnn": THIN_RCNN | {"mask_head_dim": 8, "mask_head_layers": 1},
    "keypoint_rcnn": THIN_RCNN | {"keypoint_head_dim": 8, "keypoint_head_layers": 1},
    "retinanet": {"score_thresh": 0.0, "detections_per_img": 20},
    "fcos": {"score_thresh": 0.0, "detections_per_img": 20},
}
SCORED = {"mask": "segm", "keypoint": "keypoints"}


@pytest.fixture
def data_with_keypoints(toy_data, tmp_path):
    """The toy data, each object with its corners as keypoints."""
    content = json.loads(Path(toy_data["annotations"]).read_text())
    for category in content["categories"]:
        category["keypoints"] = ["left_top", "right_top", "bottom"]
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["keypoints"] = [x, y, 2, x + w - 1, y, 2, x + w // 2, y + h - 1, 1]
    path = tmp_path / "keypoints.json"
    path.write_text(json.dumps(content))
    return {"images": toy_data["images"], "annotations": str(path)}


def test_no_head_is_forgotten():
    assert set(OPTIONS) == set(list_detectors())


@pytest.mark.parametrize("head", OPTIONS)
def test_a_head_is_trained_evaluated_saved_and_used(head, make_config, data_with_keypoints, tmp_path, capsys):
    options = json.dumps({"name": head} | OPTIONS[head])
    # A group norm of 32 groups, which FCOS has on every level, wants more than one number in each.
    channels = 64 if head == "fcos" else 16
    config = make_config(
        f"model.head={options}", f"model.pyramid.out_channels={channels}", "eval.pictures=1", data=data_with_keypoints
    )
    scores = train(config)
    expected = ["bbox", *(kind for name, kind in SCORED.items() if name in head)]
    assert [score.kind for score in scores] == expected
    for score in scores:
        assert -1 <= score.stats["AP"] <= 1
    folder = Path(config.output_dir)
    assert {path.name for path in (folder / "eval").glob("*_results.json")} == {f"{kind}_results.json" for kind in expected}
    assert len(list((folder / "predictions").glob("*.png"))) == 1

    checkpoint = load_checkpoint(folder / "best.pt")
    model = checkpoint.build_model(checkpoint.load_config())
    assert not model.training
    again = evaluate(str(folder / "best.pt"), [], job="detection")
    assert [score.stats for score in again] == [score.stats for score in scores]
    rows = predict_images(
        str(folder / "best.pt"), [data_with_keypoints["images"]], output_dir=str(tmp_path / "out"), device="cpu"
    )
    assert rows
    assert all(("keypoints" in row) == (head == "keypoint_rcnn") for row in rows)
    assert not re.search(r"\bnan\b", capsys.readouterr().out)


def test_keypoints_of_other_numbers_are_refused_by_a_checkpoint(make_config, data_with_keypoints, toy_data, tmp_path):
    options = json.dumps({"name": "keypoint_rcnn"} | OPTIONS["keypoint_rcnn"])
    config = make_config(f"model.head={options}", data=data_with_keypoints)
    train(config)
    with pytest.raises(ValueError, match="other classes than"):
        evaluate(str(Path(config.output_dir) / "best.pt"), [f"data.val.annotations={toy_data['annotations']}"], job="detection")


def test_keypoints_survive_the_checkpoint(make_config, data_with_keypoints):
    options = json.dumps({"name": "keypoint_rcnn"} | OPTIONS["keypoint_rcnn"])
    config = make_config(f"model.head={options}", data=data_with_keypoints)
    train(config)
    content = torch.load(Path(config.output_dir) / "last.pt", weights_only=True)
    assert content["categories"][0]["keypoints"] == ["left_top", "right_top", "bottom"]
