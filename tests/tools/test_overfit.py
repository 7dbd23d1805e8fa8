"""Eight real COCO images, learned by heart, through the real command line's engine."""

import json
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from engine.config_file import load_config
from engine.train import train


def eight_images_with_large_objects(annotations: Path, out: Path) -> None:
    content = json.loads(annotations.read_text())
    smallest = defaultdict(lambda: float("inf"))
    for annotation in content["annotations"]:
        image = annotation["image_id"]
        smallest[image] = min(smallest[image], *annotation["bbox"][2:])
    chosen = sorted((image for image in smallest), key=lambda image: -smallest[image])[:8]
    content["images"] = [image for image in content["images"] if image["id"] in chosen]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in chosen]
    out.write_text(json.dumps(content))


@pytest.mark.shared_data
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools under NumPy 2.4
def test_eight_coco_images_are_overfitted_and_pycocotools_agrees(shared: Path, tmp_path: Path) -> None:
    data = shared / "data" / "coco_cc_by"
    annotations = tmp_path / "eight.json"
    eight_images_with_large_objects(data / "annotations" / "instances_train.json", annotations)
    source = f"{{images: {data / 'train'}, annotations: {annotations}}}"
    config = load_config(
        "configs/frcnn_r18.yaml",
        [
            f"model.backbone.weights={shared / 'weights' / 'resnet18_imagenet_trunk.safetensors'}",
            "model.pyramid.out_channels=128",
            "model.head.box_head_dim=256",
            "model.head.box_batch_size_per_image=128",
            "model.head.rpn_post_nms_top_n_train=300",
            f"data.train={source}",
            f"data.val={source}",
            "data.min_size=192",
            "data.max_size=288",
            "data.augmentations=[]",
            "data.num_workers=0",
            "train={batch_size: 4, epochs: 90, log_steps: 1000, clip_grad_norm: 10}",
            "optimizer={name: adamw, lr: 1e-3, weight_decay: 0.0}",
            "schedule={name: cosine, warmup_steps: 10}",
            "eval={every_epochs: 1000, pictures: 0}",
            "device=cpu",
            f"output_dir={tmp_path / 'run'}",
        ],
    )
    torch.set_num_threads(2)  # the suite runs on one thread each; this test is the longest
    try:
        (score,) = train(config)
    finally:
        torch.set_num_threads(1)
    assert score.stats["AP50"] >= 0.9

    results = tmp_path / "run" / "eval" / "bbox_results.json"
    truth = COCO(str(annotations))
    of_category = {row["category_id"] for row in json.loads(results.read_text())}
    assert of_category <= set(truth.getCatIds())
    assert max(truth.getCatIds()) == 90
    reference = COCOeval(truth, truth.loadRes(str(results)), "bbox")
    reference.evaluate()
    reference.accumulate()
    reference.summarize()
    assert list(score.stats.values()) == reference.stats.tolist()
