"""engine/classification/config.py: what a config may say, and what is wrong with one that it may not."""

from pathlib import Path

import pytest
import torch
import torchvision
from torchvision.models import ResNet50_Weights
from torchvision.ops._utils import split_normalization_params

from backbones.errors import UserError
from engine.build import build_optimizer, build_schedule
from engine.classification.config import ClassificationConfig
from engine.classification.job import ClassificationJob
from engine.config_file import apply_overrides, check_config, dump_config, load_config
from engine.data.annotations import Category

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("cls_*.yaml"))


def config(*overrides: str) -> ClassificationConfig:
    content = {"job": "classification", "data": {"train": "digits", "val": "digits"}}
    return apply_overrides(content, overrides, origin="the config")


def test_a_set_is_named_alone_or_with_its_options_or_is_a_folder():
    assert config().data.train.name == "digits"
    assert config("data.train={name: mnist, root: here}").data.train.options() == {"root": "here"}
    folder = config("data.train={images: here}").data.train
    assert (folder.name, folder.options()) == ("image_folder", {"images": "here"})


def test_what_is_left_out_follows_the_training_size():
    data = config("data.size=40").data
    assert (data.evaluation_size, data.evaluation_resize) == (40, 40)
    data = config("data.size=40", "data.eval_size=48").data
    assert (data.evaluation_size, data.evaluation_resize) == (48, 48)
    data = config("data.size=40", "data.eval_resize=56").data
    assert (data.evaluation_size, data.evaluation_resize) == (40, 56)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_come_back_from_what_is_written_of_them(path, tmp_path):
    loaded = load_config(path, job="classification")
    (tmp_path / "config.yaml").write_text(dump_config(loaded))
    assert load_config(tmp_path / "config.yaml") == loaded
    assert check_config(loaded.model_dump()) == loaded


@pytest.mark.parametrize(
    ("schedule", "epochs", "sizes"),
    [
        ("[]", 3, [32] * 3),
        ("[[0, 8], [0.4, 16], [0.8, 24]]", 5, [8, 8, 16, 16, 24]),
        ("[[0.5, 64]]", 4, [32, 32, 64, 64]),
        ("[[0, 8], [2, 16]]", 5, [8, 8, 16, 16, 16]),
        ("[[0.1, 8]]", 3, [32, 8, 8]),  # from the first whole epoch after that
        ("[[0.2, 8], [3, 16]]", 5, [32, 8, 8, 16, 16]),
        ("[[9, 8]]", 3, [32] * 3),  # a shorter run ends before
        ("[[0.3333333333, 8]]", 3, [32, 8, 8]),
    ],
)
def test_the_side_of_a_training_image_follows_the_schedule(schedule, epochs, sizes):
    found = config("data.size=32", f"data.long_side_schedule={schedule}", f"train.epochs={epochs}")
    assert found.training_sizes() == sizes


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.train=digit"], r"no image set 'digit'\. Did you mean 'digits'"),
        (["data.train={name: image_folder}"], "data.train: the image set image_folder needs the key 'images'"),
        (["data.train={imags: here}"], "no option 'imags'.* Did you mean 'images'"),
        (["data.train={name: mnist, root: 3}"], "Option 'root' is 3: Input should be a valid string"),
        (["data.train=no_such_module:set"], "no module 'no_such_module'"),
        (["data.train=5"], "data.train: this key has keys of its own, and cannot be 5"),
        (["data.size=0"], "data.size: Input should be greater than or equal to 2, not 0"),
        (["data.eval_size=0"], "data.eval_size: Input should be greater"),
        (["data.size=64.5"], "data.size: .*integer"),
        (["data.eval_size=64", "data.eval_resize=60"], "eval_resize 60 is less than eval_size 64"),
        (["data.channels=2"], "data.channels: Input should be 1 or 3, not 2"),
        (["train.label_smoothing=1.5"], "train.label_smoothing: Input should be less than 1, not 1.5"),
        (["train.label_smoothing=-0.1"], "train.label_smoothing: Input should be greater than or equal to 0"),
        (["train.mixup_alpha=-1"], "train.mixup_alpha: Input should be greater"),
        (["model.head.dropout=1"], "model.head.dropout: Input should be less than 1"),
        (["model.head.name=fc"], "model.head.name: unknown key"),
        (["data.augmentations=[{name: horizontal_flop}]"], "no augmentation 'horizontal_flop'.*'horizontal_flip'"),
        (["data.augmentations=[{name: rand_augment, magnitud: 3}]"], "no option 'magnitud'.*'magnitude'"),
        (["data.augmentations=[{name: rand_augment, magnitude: 0.5}]"], "'magnitude' is 0.5: .*integer"),
        (["data.augmentations=[{name: random_crop, mode: wrap}]"], "'mode' is 'wrap'"),
        (["data.augmentations=[{name: horizontal_flip, size: 3}]"], "no option 'size'"),
        (["data.long_side_schedule=[[0, 0]]"], r"long_side_schedule has \[0, 0\]"),
        (["data.long_side_schedule=[[-1, 8]]"], r"long_side_schedule has \[-1, 8\]"),
        (["data.long_side_schedule=[[0, 8.5]]"], r"long_side_schedule has \[0, 8.5\]"),
        (["data.long_side_schedule=[[0, 8, 1]]"], "data.long_side_schedule.0: .*at most 2"),
        (["data.long_side_schedule=[[0.5, 8], [0.2, 16]]"], "begin after 6, 2.4 epochs of 12. Put them in order"),
        (["data.long_side_schedule=[[3, 8], [0.25, 16]]"], "begin after 3, 3 epochs of 12"),
        (["model.head.image_mean=[0.5]"], "image_mean has 1 numbers, but images have data.channels=3"),
        (["model.head.image_std=[0.5, 0.0, 0.5]"], "model.head.image_std.1: Input should be greater than 0"),
        (["model.pyramid={name: fpn}"], "model.pyramid: unknown key"),
        (["data.classes=3"], "data.classes: "),
    ],
)
def test_mistakes_are_named(overrides, message):
    with pytest.raises(UserError, match=message):
        config(*overrides)


def test_the_recipe_for_imagenet_is_torchvisions():
    (path,) = (path for path in CONFIGS if path.stem == "cls_r50_imagenet")
    config, published = load_config(path), ResNet50_Weights.IMAGENET1K_V2
    for figure in published.meta["_metrics"]["ImageNet-1K"].values():
        assert str(figure) in path.read_text()
    look = published.transforms()
    assert ([config.data.evaluation_size], [config.data.evaluation_resize]) == (look.crop_size, look.resize_size)
    job = ClassificationJob(config)
    assert (tuple(job._mean), tuple(job._std)) == (tuple(look.mean), tuple(look.std))
    # references/classification/train.py: an update every 32 steps, by (1 - 0.99998) * (images of these) / epochs.
    kept = 1 - 1024 * 32 / 600 * (1 - 0.99998)
    assert config.train.ema.decay**32 == pytest.approx(kept, abs=2e-6)
    steps_per_epoch = 1_281_167 // 1024
    assert config.schedule.warmup_steps == 5 * steps_per_epoch
    factor = build_schedule(config, steps_per_epoch=steps_per_epoch)
    assert [factor(0), factor(6255), factor(600 * steps_per_epoch)] == pytest.approx([0.01, 1, 0])
    with torch.device("meta"):
        model = torchvision.models.resnet50()
        norms, others = split_normalization_params(model)
    with torch.device("meta"):
        groups = build_optimizer(
            config, job.build_model([Category(i, str(i)) for i in range(1000)], load_weights=False)
        ).param_groups
    decays = {group["weight_decay"]: sum(p.numel() for p in group["params"]) for group in groups}
    assert decays == {0.0: sum(p.numel() for p in norms), 2e-5: sum(p.numel() for p in others)}
    assert [group["lr"] for group in groups] == [0.5, 0.5]


def test_a_config_of_another_job_is_refused():
    with pytest.raises(UserError, match=r"of the job classification, and this tool is for detection: use tools/train_cls\.py"):
        load_config(CONFIGS[0], job="detection")
