"""engine/detection/build.py: from a detector's config to the model and the data."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import backbones.registry
from backbones.errors import UserError
from engine.detection.build import build_model, build_training_set, build_validation_set, evaluation_size, iou_types
from tests.engine.conftest import MASKS

# ---- Model ----


def test_backbones_and_pyramids_take_their_own_options(make_config):
    config = make_config(
        "model.backbone.shortcut=D", "model.backbone.stem=deep", "model.pyramid={name: bifpn, out_channels: 16, repeats: 2}"
    )
    model = build_model(config, num_classes=3, load_weights=True)
    assert len(model.backbone.fpn.layers) == 2
    assert isinstance(model.backbone.body.conv1, nn.Sequential)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.pyramid={name: bifpn, repeat: 2}", "no option 'repeat'.*Did you mean 'repeats'"),
        ("model.backbone.output_stride=12", "'output_stride' is 12"),
        ("model.backbone.shortcut=E", "'shortcut' is 'E'"),
    ],
)
def test_their_options_are_checked_before_anything_is_built(override, message, make_config):
    with pytest.raises(UserError, match=message):
        make_config(override)


def test_the_model_is_what_the_config_says(make_config):
    config = make_config(
        "model.pyramid.out_channels=24", "data.min_size=[64, 96, 80]", "data.max_size=200",
        "model.head.box_detections_per_img=7", "model.head.box_head_dim=40",
    )  # fmt: skip
    model = build_model(config, num_classes=5, load_weights=True)
    assert model.backbone.out_channels == 24
    assert model.roi_heads.box_predictor.cls_score.weight.shape == (5, 40)
    assert model.roi_heads.detections_per_img == 7
    assert model.transform.min_size == (96,)
    assert model.transform.max_size == 200
    assert iou_types(config) == ["bbox"]


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("mask_rcnn", ["bbox", "segm"]),
        ("cascade_mask_rcnn", ["bbox", "segm"]),
        ("keypoint_rcnn", ["bbox", "keypoints"]),
        ("retinanet", ["bbox"]),
    ],
)
def test_what_a_head_predicts_is_what_is_scored(head, expected, make_config):
    assert iou_types(make_config("model.head={name: " + head + "}")) == expected


def test_training_images_are_not_resized_again_and_others_are(make_config):
    model = build_model(make_config(), num_classes=4, load_weights=True)  # min_size 64
    image = torch.zeros(3, 40, 80)
    assert model.train().transform([image], [{"boxes": torch.zeros(0, 4)}])[0].image_sizes == [(40, 80)]
    assert model.eval().transform([image])[0].image_sizes == [(64, 128)]


@pytest.mark.parametrize("load_weights", [False, True])
def test_a_checkpoints_model_asks_for_no_published_weights_but_keeps_their_norm(make_config, monkeypatch, load_weights):
    asked = []
    monkeypatch.setattr(backbones.registry, "load_published_weights", lambda *args, **kwargs: asked.append(args[1]))
    config = make_config("model.backbone={name: resnet18, weights: IMAGENET1K_V1, out_features: [c2, c3]}")
    model = build_model(config, num_classes=4, load_weights=load_weights)
    assert asked == (["IMAGENET1K_V1"] if load_weights else [])
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.backbone.modules())


@pytest.mark.parametrize(("min_size", "expected"), [("300", 300), ("[640, 800, 672]", 800)])
def test_evaluation_takes_the_largest_size(make_config, min_size, expected):
    size = evaluation_size(make_config(f"data.min_size={min_size}"))
    assert size == expected
    assert type(size) is int


# ---- Data ----


def test_training_samples_are_augmented_and_validation_samples_are_the_files(make_config, toy_data):
    config = make_config(*MASKS, "data.min_size=32", "data.max_size=40", "seed=9")
    training_set = build_training_set(config)
    assert training_set.seed == 9
    for index in range(len(training_set)):
        image, target = training_set[index]
        assert min(image.shape[1:]) == 32 or max(image.shape[1:]) == 40
        assert target["masks"].shape[1:] == image.shape[1:]
    validation_set = build_validation_set(config)
    assert validation_set[0][0].shape == (3, 64, 64)
    assert "masks" not in validation_set[0][1]


def test_a_step_that_brings_images_to_size_is_not_followed_by_another(make_config):
    config = make_config("data.augmentations=[{name: large_scale_jitter, size: 50}, {name: horizontal_flip}]")
    training_set = build_training_set(config)
    assert {tuple(training_set[i][0].shape) for i in range(len(training_set))} == {(3, 50, 50)}


@pytest.fixture
def change_data(toy_data, tmp_path):
    """A function that changes every annotation of a copy of the toy data, and gives the copy's paths."""

    def change(**fields):
        content = json.loads(Path(toy_data["annotations"]).read_text())
        for annotation in content["annotations"]:
            annotation.update(fields)
        (tmp_path / "changed.json").write_text(json.dumps(content))
        return {"images": toy_data["images"], "annotations": str(tmp_path / "changed.json")}

    return change


def test_a_mask_head_on_boxes_alone_is_refused_with_advice(make_config, change_data):
    config = make_config(*MASKS, data=change_data(segmentation=[]))
    with pytest.raises(UserError, match=r"changed\.json has no masks .*mask_rcnn.*model\.head\.name=faster_rcnn"):
        build_training_set(config)
    assert len(build_training_set(make_config(data=config.data.train.model_dump()))) == 7


def test_a_keypoint_head_on_data_without_keypoints_is_refused_with_advice(make_config):
    with pytest.raises(UserError, match="has no keypoints, which keypoint_rcnn is trained on: `keypoints`, their names"):
        build_training_set(make_config("model.head={name: keypoint_rcnn}"))


def test_data_without_a_usable_object_are_refused(make_config, change_data):
    config = make_config(data=change_data(bbox=[500, 500, 3, 3]))
    with pytest.raises(UserError, match=r"changed\.json has no usable object"):
        build_training_set(config)
    assert len(build_validation_set(config)) == 7


@pytest.mark.parametrize(("split", "build"), [("train", build_training_set), ("val", build_validation_set)])
def test_missing_files_are_named_with_their_key(make_config, split, build):
    with pytest.raises(UserError, match=rf"data\.{split}\.images: there is no folder no/such"):
        build(make_config(f"data.{split}.images=no/such"))


def test_albumentations_mistakes_are_found_before_the_first_sample(make_config):
    with pytest.raises(UserError, match=r"no transform 'CLAHEE'\. Did you mean 'CLAHE'"):
        build_training_set(make_config("data.augmentations=[{name: albumentations/CLAHEE}]"))


# ---- Classes and sampling ----


def test_classes_are_kept_by_name_for_training_and_validation(make_config):
    config = make_config("data.classes=[square]")
    for build in (build_training_set, build_validation_set):
        dataset = build(config)
        assert [(category.id, category.name) for category in dataset.categories] == [(44, "square")]
        assert {label for i in range(len(dataset)) for label in dataset[i][1]["labels"].tolist()} == {1}
    assert len(build_training_set(config)) == 7  # images without a square are still examples of what is none


def test_images_without_objects_can_be_left_out_of_training(make_config):
    config = make_config("data.drop_empty_images=true")
    assert len(build_training_set(config)) == 6
    assert len(build_validation_set(config)) == 2
    dataset = build_training_set(make_config("data.drop_empty_images=true", "data.classes=[bar]"))
    assert all(
        ((target["labels"] == 1) & (target["iscrowd"] == 0)).any()
        for _, target in map(dataset.__getitem__, range(len(dataset)))
    )


@pytest.mark.parametrize("build", [build_training_set, build_validation_set])
def test_an_unknown_class_is_named(build, make_config):
    with pytest.raises(UserError, match=r"data\.classes: .* has no class 'sqare'\. Did you mean 'square'"):
        build(make_config("data.classes=[sqare]"))


def test_classes_that_never_occur_are_refused_for_training(make_config):
    with pytest.raises(UserError, match=r"no usable object of data\.classes \(never\)"):
        build_training_set(make_config("data.classes=[never]"))


def test_a_sampling_reaches_the_data_set(make_config, toy_data):
    assert build_training_set(make_config()).repeat_factors() is None
    factors = build_training_set(make_config("data.sampling={name: repeat_factor, threshold: 1.0}")).repeat_factors()
    content = json.loads(Path(toy_data["annotations"]).read_text())
    classes = [
        {a["category_id"] for a in content["annotations"] if a["image_id"] == image["id"] and not a["iscrowd"]}
        for image in content["images"]
    ]
    share = {id_: sum(id_ in of_image for of_image in classes) / 7 for id_ in (44, 3)}
    expected = [max([1.0, *((1 / share[id_]) ** 0.5 for id_ in of_image)]) for of_image in classes]
    assert factors.tolist() == pytest.approx(expected)
    assert max(expected) > 1


def test_an_image_that_comes_again_is_augmented_in_another_way(make_config):
    dataset = build_training_set(make_config("data.augmentations=[{name: color_jitter, p: 1.0}]"))
    first, again, third = (dataset[key][0] for key in ((2, 1), (2, 1, 1), (2, 1, 2)))
    assert not torch.equal(first, again)
    assert not torch.equal(again, third)
    assert torch.equal(again, dataset[2, 1, 1][0])
    assert dataset[2, 1, 1][1]["seed"] != dataset[2, 1][1]["seed"]


# ---- Augmentations that mix samples ----

MIXED = "data.augmentations=[{name: mosaic, size: 80}, {name: large_scale_jitter, size: 64}, {name: copy_paste, p: 1.0}]"


def test_mixed_samples_depend_on_seed_epoch_and_index_alone(make_config):
    dataset, same, other = (build_training_set(make_config(MIXED, *MASKS, f"seed={seed}")) for seed in (0, 0, 1))
    changed = 0
    for key in [(0, 3), (1, 3), (0, 5), (1, 5, 1)]:
        image, target = dataset[key]
        assert image.shape == (3, 64, 64)
        assert target["masks"].shape[1:] == (64, 64)
        repeated, repeated_target = same[key]
        assert torch.equal(image, repeated)
        assert torch.equal(target["masks"].dense(), repeated_target["masks"].dense())
        for name in ("boxes", "labels", "area", "iscrowd"):
            assert torch.equal(target[name], repeated_target[name])
        changed += not torch.equal(image, other[key][0])
    assert changed == 4
    assert not torch.equal(dataset[0, 3][0], dataset[1, 3][0])


def test_a_box_head_gets_pasted_objects_without_their_masks(make_config):
    paste = "data.augmentations=[{name: copy_paste, p: 1.0}]"
    boxes, masks = build_training_set(make_config(paste)), build_training_set(make_config(paste, *MASKS))
    plain = build_training_set(make_config())
    more = 0
    for index in range(len(boxes)):
        image, target = boxes[index]
        assert "masks" not in target
        assert torch.equal(image, masks[index][0])
        assert torch.equal(target["boxes"], masks[index][1]["boxes"])
        more += len(target["boxes"]) > len(plain[index][1]["boxes"])
    assert more > 3


def test_a_box_head_keeps_objects_that_have_no_mask(make_config, toy_data, tmp_path):
    content = json.loads(Path(toy_data["annotations"]).read_text())
    for annotation in content["annotations"][1:]:
        annotation["segmentation"] = []
    (tmp_path / "few_masks.json").write_text(json.dumps(content))
    data = {"images": toy_data["images"], "annotations": str(tmp_path / "few_masks.json")}
    dataset = build_training_set(make_config("data.augmentations=[{name: copy_paste, p: 0.0}]", data=data))
    plain = build_training_set(make_config(data=data))
    for index in range(len(dataset)):
        assert torch.equal(dataset[index][1]["labels"], plain[index][1]["labels"])
        torch.testing.assert_close(dataset[index][1]["boxes"], plain[index][1]["boxes"], atol=0.01, rtol=0)


def test_pasting_without_any_masks_is_refused_with_advice(make_config, change_data):
    config = make_config("data.augmentations=[{name: copy_paste}]", data=change_data(segmentation=[]))
    with pytest.raises(UserError, match=r"changed\.json has no masks .*copy_paste cuts objects out.*data\.augmentations"):
        build_training_set(config)
