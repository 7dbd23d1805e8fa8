"""engine/detection/config.py: what a detector's config adds to the schema, and what it refuses."""

import pytest
from pydantic import ValidationError

from engine.config import AugmentationConfig
from engine.data.augmentations import AUGMENTATIONS
from engine.data.sources import DATASETS
from engine.detection.config import DetectionConfig
from heads.registry import DETECTORS

COCO = {"images": "data/coco/val2017", "annotations": "data/coco/annotations/instances_val2017.json"}


def validate(**values):
    """A config from dotted keys, `__` for the dot, over the least there can be."""
    content = {"data": {"train": "shapes", "val": dict(COCO)}}
    for key, value in values.items():
        here = content
        *parents, last = key.split("__")
        for name in parents:
            here = here.setdefault(name, {})
        here[last] = value
    return DetectionConfig.model_validate(content)


def test_two_data_sources_are_enough():
    config = validate()
    assert config.job == "detection"
    assert config.data.train == "shapes"
    assert config.data.val.images == COCO["images"]
    assert (config.model.backbone.name, config.model.pyramid.name, config.model.head.name) == ("resnet50", "fpn", "faster_rcnn")
    assert (config.train.batch_size, config.train.epochs, config.optimizer.lr) == (16, 12, 0.02)
    assert (config.data.min_size, config.data.max_size) == (800, 1333)
    assert [step.name for step in config.data.augmentations] == ["horizontal_flip"]


def test_the_keys_of_the_design_are_kept():
    content = {
        "model": {
            "backbone": {"name": "resnet50", "weights": "IMAGENET1K_V1", "norm": "frozen_bn", "trainable_layers": 3},
            "pyramid": {"name": "fpn", "out_channels": 256},
            "head": {"name": "faster_rcnn"},
        },
        "data": {"train": COCO, "val": COCO, "min_size": 800, "max_size": 1333},
        "train": {"batch_size": 16, "epochs": 12},
        "optimizer": {"name": "sgd", "lr": 0.02},
        "seed": 0,
        "output_dir": "runs/frcnn_r50",
    }
    dumped = DetectionConfig.model_validate(content).model_dump()
    for section in ("train", "optimizer"):
        assert dumped[section] | content[section] == dumped[section]
    for part, options in content["model"].items():
        assert dumped["model"][part] | options == dumped["model"][part]
    assert dumped["data"] | content["data"] == dumped["data"]


def test_two_configs_share_no_defaults():
    validate().data.augmentations.append(AugmentationConfig(name="vertical_flip"))
    assert len(validate().data.augmentations) == 1


@pytest.mark.parametrize("min_size", [800, [640, 800]])
def test_sizes_are_one_or_several(min_size):
    assert validate(data__min_size=min_size).data.min_size == min_size


BAD_VALUES = {
    "job": ["segmentation", None, 3],
    "data__min_size": [0, [], [800, 0], "800", 800.0],
    "data__max_size": [0, [1333]],
    "data__train": [3, None, {}, {"images": "a"}, {"images": 1, "annotations": "b"}, "shapse"],
    "data__augmentations": ["horizontal_flip", ["horizontal_flip"], [{"p": 0.5}], None],
    "data__aspect_ratio_grouping": [1, "yes"],
    "data__classes": [[], "person", [3], {"person": 1}],
    "data__drop_empty_images": ["no", 0],
    "data__sampling": ["repeat_factor", True, {"name": "uniform"}],
    "data__sampling__threshold": [0.0, -0.1, 1.5, "0.001"],
    "model__pyramid__out_channels": [0, "256"],
    "model__pyramid__extra_level": ["p6"],
    "model__pyramid__norm": ["frozen_bn"],
    "eval__backend": ["coco"],
    "eval__picture_score": [2],
    "eval__keypoint_sigmas": [[0.0], 0.1, ["a"]],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in BAD_VALUES.items() for value in values])
def test_a_bad_value_is_refused(key, value):
    with pytest.raises(ValidationError) as caught:
        validate(**{key: value})
    place = tuple(key.split("__"))
    assert {error["loc"][: len(place)] for error in caught.value.errors()} == {place}
    assert "extra_forbidden" not in {error["type"] for error in caught.value.errors()}


@pytest.mark.parametrize("key", ["model__neck", "data__val__folder", "data__size", "eval__iou"])
def test_an_unknown_key_is_refused(key):
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        validate(**{key: 1})


def test_every_image_comes_once_unless_a_sampling_is_given():
    assert validate().data.sampling is None
    assert validate(data__sampling={"name": "repeat_factor"}).data.sampling.threshold == 0.001
    assert validate(data__sampling__threshold=0.01).data.sampling.name == "repeat_factor"


@pytest.mark.parametrize("name", ["mosaic", "random_crop"])
def test_what_changes_the_size_comes_before_what_sets_it(name):
    jitter = {"name": "large_scale_jitter"}
    assert validate(data__augmentations=[{"name": name}, jitter, {"name": "copy_paste"}])
    with pytest.raises(ValidationError, match=f"large_scale_jitter brings images to their size.* put {name} before it"):
        validate(data__augmentations=[jitter, {"name": "horizontal_flip"}, {"name": name}])


@pytest.mark.parametrize("key", ["train", "val"])
def test_a_data_source_is_required(key):
    content = {"train": "shapes", "val": "shapes"}
    del content[key]
    with pytest.raises(ValidationError, match=rf"data\.{key}\n  Field required"):
        DetectionConfig.model_validate({"data": content})


# ---- Registered things ----


def test_everything_registered_can_be_named():
    for name in DETECTORS.names():
        assert validate(model__head__name=name).model.head.name == name
    for name in AUGMENTATIONS.names():
        assert validate(data__augmentations=[{"name": name}]).data.augmentations[0].name == name
    for name in DATASETS.names():
        assert validate(data__val=name).data.val == name


def test_options_are_kept_for_what_they_are_meant_for():
    config = validate(model__head__name="mask_rcnn", model__head__box_nms_thresh=0.25, model__head__mask_head_layers=2)
    assert config.model.head.options() == {"box_nms_thresh": 0.25, "mask_head_layers": 2}
    (step,) = validate(data__augmentations=[{"name": "albumentations/CLAHE", "clip_limit": [1, 4]}]).data.augmentations
    assert step.options() == {"clip_limit": [1, 4]}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model__backbone__name", "resnet5", "There is no backbone 'resnet5'. Did you mean 'resnet50'?"),
        ("model__pyramid__name", "fpm", "There is no pyramid 'fpm'. Did you mean 'fpn'?"),
        ("model__head__name", "faster_rcn", "There is no head 'faster_rcn'. Did you mean 'faster_rcnn'?"),
        ("data__train", "shape", "There is no embedded data set 'shape'. Did you mean 'shapes'?"),
        ("data__augmentations", [{"name": "flip_horizontal"}], "There is no augmentation 'flip_horizontal'."),
        ("model__backbone__stride_in_1x", True, "has no option 'stride_in_1x'. Did you mean 'stride_in_1x1'?"),
        ("model__head__box_nms_tresh", 0.5, "has no option 'box_nms_tresh'. Did you mean 'box_nms_thresh'?"),
        ("model__head__min_size", 800, "has no option 'min_size'."),
        ("model__head__num_classes", 91, "has no option 'num_classes'."),
        ("model__head__box_nms_thresh", "high", "'box_nms_thresh' is 'high'"),
        ("model__head__box_detections_per_img", 0.5, "'box_detections_per_img' is 0.5"),
        ("model__head__anchor_sizes", [32, 64], "'anchor_sizes' is [32, 64]"),
        ("model__backbone__stride_in_1x1", "yes", "'stride_in_1x1' is 'yes'"),
        ("data__augmentations", [{"name": "color_jitter", "hue": "little"}], "'hue' is 'little'"),
        ("data__augmentations", [{"name": "horizontal_flip", "prob": 0.5}], "has no option 'prob'."),
        ("data__augmentations", [{"name": "copypaste"}], "There is no augmentation 'copypaste'. Did you mean 'copy_paste'?"),
        ("data__augmentations", [{"name": "copy_paste", "max_object": 3}], "Did you mean 'max_objects'?"),
        ("data__augmentations", [{"name": "copy_paste", "max_objects": 2.5}], "'max_objects' is 2.5"),
        ("data__augmentations", [{"name": "mosaic", "size": "640"}], "'size' is '640'"),
        ("data__augmentations", [{"name": "random_crop", "keep_object": 1}], "'keep_object' is 1"),
    ],
)
def test_a_wrong_name_option_or_type_is_named(key, value, message):
    with pytest.raises(ValidationError) as caught:
        validate(**{key: value})
    assert message in str(caught.value)


def test_options_an_entry_inherits_are_checked_too():
    with pytest.raises(ValidationError, match="'box_nms_thresh' is 'high'"):
        validate(model__head__name="mask_rcnn", model__head__box_nms_thresh="high")
