"""engine/config.py: the defaults of what all jobs share, and what is refused."""

import math
from typing import get_args

import pytest
from pydantic import BaseModel, ValidationError

from backbones.errors import UserError
from backbones.fpn import PYRAMIDS
from backbones.registry import BACKBONES, Registry
from engine.config import AugmentationConfig, BackboneConfig, Choice, PyramidConfig, RunConfig, check_choice
from engine.data.augmentations import AUGMENTATIONS
from engine.job import JOBS, job_class


def validate(**values):
    """A config of what all jobs share, from dotted keys, `__` for the dot."""
    content = {"job": "one's own", "data": {}}
    for key, value in values.items():
        here = content
        *parents, last = key.split("__")
        for name in parents:
            here = here.setdefault(name, {})
        here[last] = value
    return RunConfig.model_validate(content)


def sections(model):
    """The schema's models, each once."""
    found = {model}
    for field in model.model_fields.values():
        for annotation in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                found |= sections(annotation)
    return found


def test_a_run_has_its_defaults():
    config = validate()
    assert config.model.backbone.name == "resnet50"
    assert (config.train.batch_size, config.train.epochs, config.optimizer.lr) == (16, 12, 0.02)
    assert (config.eval.every_epochs, config.eval.batch_size, config.seed) == (1, 1, 0)


@pytest.mark.parametrize("job", JOBS)
def test_every_section_of_every_job_forbids_unknown_keys_and_conversions(job):
    found = sections(job_class(job).config_class)
    assert len(found) >= (12 if job == "detection" else 10)
    for section in found:
        assert section.model_config["strict"], section
        assert section.model_config["extra"] == ("allow" if issubclass(section, Choice) else "forbid"), section


@pytest.mark.parametrize("job", JOBS)
def test_every_job_has_the_shared_sections_and_says_its_name_first(job):
    config_class = job_class(job).config_class
    assert list(config_class.model_fields)[: len(RunConfig.model_fields)] == list(RunConfig.model_fields)
    assert get_args(config_class.model_fields["job"].annotation) == (job,)
    for name in ("model", "data", "train", "optimizer", "schedule", "eval"):
        assert issubclass(config_class.model_fields[name].annotation, RunConfig.model_fields[name].annotation), name


def test_two_configs_share_no_defaults():
    validate().schedule.milestones.append(3.0)
    assert len(validate().schedule.milestones) == 2


def test_whole_numbers_are_numbers():
    config = validate(optimizer__lr=1, schedule__milestones=[8, 11])
    assert config.optimizer.lr == 1
    assert config.schedule.milestones == [8, 11]


BAD_VALUES = {
    "train__batch_size": [0, -1, 2.0, "16", True, None],
    "train__epochs": [0, "three", 1.5],
    "train__precision": ["fp32", 16],
    "train__channels_last": ["yes", 1],
    "train__clip_grad_norm": [0, -1.0, "10"],
    "train__ema": [True, {"decay": 1.0}, {"decay": 0.0}],
    "train__accumulate": [0, 1.5],
    "optimizer__name": ["adam", "SGD"],
    "optimizer__lr": [0, -0.1, "1e-3", math.nan, math.inf, 1e300],
    "optimizer__momentum": [-0.1, 1.1],
    "optimizer__weight_decay": [-1e-4],
    "schedule__name": ["step"],
    "schedule__milestones": [0.5, [0], [-1.0], ["8"]],
    "schedule__warmup_steps": [-1, 0.5],
    "schedule__warmup_factor": [-0.1, 1.5],
    "data__num_workers": [-1, 1.0],
    "model__backbone__weights": [1, True],
    "model__backbone__norm": ["batch", "BN"],
    "model__backbone__trainable_layers": ["3", 3.0],
    "model__backbone__out_features": ["c3", [3]],
    "eval__pictures": [-1],
    "eval__every_epochs": [0, 1.5],
    "eval__batch_size": [0, "1"],
    "seed": [-1, 0.5, "0"],
    "device": ["gpu", "cuda:0"],
    "output_dir": [5, None],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in BAD_VALUES.items() for value in values])
def test_a_bad_value_is_refused(key, value):
    with pytest.raises(ValidationError) as caught:
        validate(**{key: value})
    place = tuple(key.split("__"))
    assert {error["loc"][: len(place)] for error in caught.value.errors()} == {place}
    assert "extra_forbidden" not in {error["type"] for error in caught.value.errors()}


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"out_channels": 0}, "out_channels"),
        ({"out_channels": "256"}, "out_channels"),
        ({"extra_level": "p6"}, "extra_level"),
        ({"norm": "frozen_bn"}, "norm"),
    ],
)
def test_a_bad_value_of_a_pyramid_is_refused(values, place):
    with pytest.raises(ValidationError) as caught:
        PyramidConfig.model_validate(values)
    assert {error["loc"] for error in caught.value.errors()} == {(place,)}


@pytest.mark.parametrize("key", ["trian", "train__epoch", "model__neck", "data__folder", "optimizer__nesterov", "eval__iou"])
def test_an_unknown_key_is_refused(key):
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        validate(**{key: 1})


@pytest.mark.parametrize("key", ["job", "data"])
def test_a_job_and_its_data_are_required(key):
    content = {"job": "one's own", "data": {}}
    del content[key]
    with pytest.raises(ValidationError, match=rf"{key}\n  Field required"):
        RunConfig.model_validate(content)


def test_a_batch_is_split_evenly_among_its_parts():
    assert validate(train__batch_size=12, train__accumulate=3).train.accumulate == 3
    with pytest.raises(ValidationError, match=r"batch_size 16 cannot be split into train\.accumulate 3 parts"):
        validate(train__accumulate=3)


# ---- Registered things ----


def test_everything_registered_can_be_named():
    for name in BACKBONES.names():
        assert BackboneConfig(name=name).name == name
    for name in PYRAMIDS.names():
        assert PyramidConfig(name=name).name == name
    for name in AUGMENTATIONS.names():
        assert AugmentationConfig(name=name).name == name


def test_options_are_kept_for_what_they_are_meant_for():
    config = BackboneConfig(name="resnet18", norm="gn", stem="deep", shortcut="D")
    assert config.options() == {"stem": "deep", "shortcut": "D"}
    assert AugmentationConfig(name="albumentations/CLAHE", clip_limit=[1, 4]).options() == {"clip_limit": [1, 4]}


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (BackboneConfig, {"name": "resnet5"}, "There is no backbone 'resnet5'. Did you mean 'resnet50'?"),
        (BackboneConfig, {"stride_in_1x": True}, "has no option 'stride_in_1x'. Did you mean 'stride_in_1x1'?"),
        (BackboneConfig, {"stride_in_1x1": "yes"}, "'stride_in_1x1' is 'yes'"),
        (PyramidConfig, {"name": "fpm"}, "There is no pyramid 'fpm'. Did you mean 'fpn'?"),
        (PyramidConfig, {"name": "bifpn", "repeat": 2}, "has no option 'repeat'. Did you mean 'repeats'?"),
        (AugmentationConfig, {"name": "flip_horizontal"}, "There is no augmentation 'flip_horizontal'."),
        (AugmentationConfig, {"name": "color_jitter", "hue": "little"}, "'hue' is 'little'"),
        (AugmentationConfig, {"name": "horizontal_flip", "prob": 0.5}, "has no option 'prob'."),
    ],
)
def test_a_wrong_name_option_or_type_is_named(section, values, message):
    with pytest.raises(ValidationError) as caught:
        section.model_validate(values)
    assert message in str(caught.value)


def test_an_entry_that_takes_any_option_gets_any():
    registry = Registry("thing")
    registry.register("loose")(lambda **options: None)
    registry.register("strict")(lambda *, size: None)
    check_choice(Choice(name="loose", anything=[1, "a"]), registry, besides=())
    check_choice(Choice(name="strict", size=[1, "a"]), registry, besides=())  # of no stated type
    with pytest.raises(UserError, match="has no option 'sise'"):
        check_choice(Choice(name="strict", sise=3), registry, besides=())
