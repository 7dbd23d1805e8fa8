"""engine/config_file.py: YAML and overrides in, a checked config or every mistake out, with file, line and key."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones.errors import UserError
from engine.config_file import apply_overrides, check_config, dump_config, load_config
from engine.detection.config import DetectionConfig

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
LEAST = "data: {train: shapes, val: shapes}\n"


@pytest.fixture
def load(tmp_path, monkeypatch):
    """A function that loads a text as `run.yaml`, with overrides."""
    monkeypatch.chdir(tmp_path)

    def load(text, *overrides, **options):
        content = text if isinstance(text, bytes) else text.encode()
        Path("run.yaml").write_bytes(content)
        return load_config("run.yaml", overrides, **options)

    return load


@pytest.fixture
def problems(load):
    """A function that loads a text that is refused, and gives the lines of the message."""

    def lines(text, *overrides, **options):
        with pytest.raises(UserError) as caught:
            load(text, *overrides, **options)
        return str(caught.value).splitlines()

    return lines


# ---- The recipes ----


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_loads_and_survives_a_round_trip(path, load):
    config = load_config(path)
    assert load(dump_config(config)) == config
    assert config.output_dir == f"runs/{path.stem}"


def test_there_are_recipes():
    assert {path.stem for path in CONFIGS} >= {"quickstart", "frcnn_r50", "mrcnn_r50"}


# ---- Numbers and texts ----


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("1E5", 1e5), ("1e5", 1e5), ("1e+2", 100), ("2.5e-2", 0.025), (".5", 0.5), ("1.", 1), ("+1e-3", 1e-3),
        ("1.e-3", 1e-3), (".5e1", 5), ("0.02", 0.02), ("3", 3), ("1_000.5", 1000.5),
    ],
)  # fmt: skip
def test_numbers_are_read_as_numbers(load, text, value):
    assert load(f"{LEAST}optimizer: {{lr: {text}}}").optimizer.lr == value
    assert load(LEAST, f"optimizer.lr={text}").optimizer.lr == value


@pytest.mark.parametrize("text", ["-1e-3", "-0.5", "-.5"])
def test_negative_numbers_are_numbers(problems, text):
    (line,) = problems(f"{LEAST}optimizer: {{lr: {text}}}")
    assert "greater than 0" in line


@pytest.mark.parametrize(
    "text", ["e5", "1e", "1e-", "e", ".e5", "1e5x", "v1e-3", "1-3", "runs/1e-3", "1e-3/a", "'1e-3'", "1.2.3"]
)
def test_texts_stay_texts(load, text):
    expected = text.strip("'")
    assert load(f"{LEAST}output_dir: {text}").output_dir == expected
    assert load(LEAST, f"output_dir={text}").output_dir == expected


def test_nothing_is_read_as_nothing(load):
    config = load(f"{LEAST}train: {{ema: null, clip_grad_norm: ~, checkpoint_steps: }}")
    assert (config.train.ema, config.train.clip_grad_norm, config.train.checkpoint_steps) == (None, None, None)


# ---- Files that are no config ----


def test_a_missing_file_suggests_the_nearest(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=r"no config at configs/frcnn_r5\.yaml\. Did you mean 'configs/frcnn_r50\.yaml'"):
        load_config("configs/frcnn_r5.yaml")
    with pytest.raises(UserError, match=r"Did you mean 'configs/quickstart\.yaml'"):
        load_config("configs/quickstart.yml")
    with pytest.raises(UserError, match=r"no config at no/such/folder\.yaml\. Known: .*configs/quickstart\.yaml"):
        load_config("no/such/folder.yaml")


def test_a_missing_file_outside_of_configs_suggests_one_inside(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=r"Did you mean 'configs/frcnn_r50\.yaml'"):
        load_config("frcnn_r50.yaml")


def test_a_folder_is_no_config(tmp_path):
    with pytest.raises(UserError, match="no config at"):
        load_config(tmp_path)


@pytest.mark.parametrize("text", ["", "\n", "# nothing but a comment\n"])
def test_an_empty_file_lacks_what_is_required(problems, text):
    (line,) = problems(text)
    assert line.startswith("run.yaml")
    assert line.endswith("data: this key is required")


@pytest.mark.parametrize(("text", "kind"), [("- a\n- b\n", "list"), ("hello", "str"), ("5", "int")])
def test_a_file_of_another_kind_is_refused(problems, text, kind):
    assert problems(text) == [f"run.yaml must hold keys and values (`model: ...`), not a {kind}."]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [1,\nb: 2", 2),
        (f"{LEAST}train:\n\tepochs: 3", 3),
        (f"{LEAST}seed: 'x", 2),
        (f"{LEAST}  seed: 3", 2),
        ("a: b: c", 1),
    ],
)
def test_what_is_no_yaml_is_named_with_its_line(problems, text, line):
    assert problems(text)[0].startswith(f"run.yaml, line {line}: this is no YAML")


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe\x00\x01", b"\x89PNG\r\n\x1a\n", f"{LEAST}output_dir: caf\xe9".encode("latin-1"), f"{LEAST}seed: \x00".encode()],
    ids=["binary", "png", "latin-1", "nul"],
)
def test_a_file_that_is_no_text_is_the_users_to_put_right(problems, content):
    assert problems(content)[0].startswith("run.yaml")


def test_an_alias_that_holds_itself_is_the_users_to_put_right(problems):
    assert problems(f"{LEAST}model: &a {{backbone: *a}}")[0].startswith("run.yaml, line 2")


def test_an_alias_repeats_a_section(load):
    config = load("data: {train: &own {images: a, annotations: b}, val: *own}")
    assert config.data.val == config.data.train


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch ran']",
        "!!python/object/new:os.system ['touch ran']",
        "!!python/name:os.system x",
        "!!python/object:engine.config.ModelConfig {}",
        "!own x",
        "!own {}",
        "!own []",
    ],
)
@pytest.mark.parametrize("as_override", [False, True])
def test_tags_that_make_objects_are_refused(problems, value, as_override):
    lines = problems(LEAST, f"model={value}") if as_override else problems(f"{LEAST}model: {value}")
    assert "YAML" in lines[0]
    assert not Path("ran").exists()


# ---- Keys ----


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        (f"{LEAST}seed: 1\nseed: 2\n", "seed", 3),
        (f"{LEAST}train:\n  epochs: 1\n  log_steps: 3\n  epochs: 2\n", "train.epochs", 5),
        (f"{LEAST}model: {{head: {{name: mask_rcnn, name: faster_rcnn}}}}\n", "model.head.name", 2),
        ("data:\n  augmentations:\n    - name: rotate90\n      name: rotate90\n", "data.augmentations.0.name", 4),
        (f"{LEAST}1: 2\n'1': 3\n", "1", 3),
    ],
)  # fmt: skip
def test_a_doubled_key_is_refused_with_its_line(problems, text, key, line):
    (message,) = problems(text)
    assert message.startswith(f"run.yaml, line {line}: ")
    assert f"{key} stands twice" in message


def test_one_problem_is_one_line(problems):
    assert problems(f"{LEAST}train:\n  batch_size: 8\n  epochs: many\n") == [
        "run.yaml, line 4: train.epochs: Input should be a valid integer, not 'many'"
    ]


def test_every_problem_is_reported_at_once_with_line_and_key(problems):
    text = """modle: {}
data:
  train: shapse
  vall: shapes
  augmentations:
    - {name: horizontal_flip}
    - {name: color_jiter}
train:
  epochs: three
  batch_size: 0
  batchsize: 3
model:
  head: {name: mask_rcnn, mask_layers: 3}
optimizer: {name: adam}
"""
    heading, *lines = problems(text)
    assert heading == "run.yaml has 10 problems:"
    assert {tuple(line.strip().split(": ")[:2]) for line in lines} == {
        ("run.yaml, line 1", "modle"),
        ("run.yaml, line 2", "data.val"),
        ("run.yaml, line 3", "data.train"),
        ("run.yaml, line 4", "data.vall"),
        ("run.yaml, line 7", "data.augmentations.1"),
        ("run.yaml, line 9", "train.epochs"),
        ("run.yaml, line 10", "train.batch_size"),
        ("run.yaml, line 11", "train.batchsize"),
        ("run.yaml, line 13", "model.head"),
        ("run.yaml, line 14", "optimizer.name"),
    }
    assert len(lines) == 10


@pytest.mark.parametrize(
    ("text", "key", "suggestion"),
    [
        ("modle: {}", "modle", "model"),
        ("train: {epoch: 3}", "train.epoch", "epochs"),
        ("train: {ema: {decy: 0.9}}", "train.ema.decy", "decay"),
        ("optimizer: {learning_rate: 3}", "optimizer.learning_rate", None),
        ("schedule: {warmup: 3}", "schedule.warmup", "warmup_steps"),
    ],
)
def test_an_unknown_key_suggests_the_nearest(problems, text, key, suggestion):
    (line,) = problems(f"{LEAST}{text}")
    assert line.startswith(f"run.yaml, line 2: {key}: unknown key.")
    assert (f"Did you mean {suggestion!r}?" if suggestion else "Known: base_batch_size, lr,") in line


def test_an_unknown_key_of_a_data_source_suggests_the_nearest(problems):
    lines = problems("data:\n  train: shapes\n  val: {images: a, annotation: b}\n")
    assert any("data.val.annotation: unknown key. Did you mean 'annotations'?" in line for line in lines)
    assert any("data.val.annotations: this key is required" in line for line in lines)
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("model: {backbone: {name: resnet5}}", "model.backbone.name", "no backbone 'resnet5'. Did you mean 'resnet50'?"),
        ("model: {head: {name: mask_rcn}}", "model.head.name", "no head 'mask_rcn'. Did you mean 'mask_rcnn'?"),
        ("model: {head: {box_nms_tresh: 1}}", "model.head", "no option 'box_nms_tresh'. Did you mean 'box_nms_thresh'?"),
        ("model: {head: {box_nms_thresh: x}}", "model.head", "'box_nms_thresh' is 'x'"),
        ("model: {pyramid: {name: fpm}}", "model.pyramid.name", "no pyramid 'fpm'. Did you mean 'fpn'?"),
    ],
)
def test_what_is_registered_is_checked_by_name_option_and_type(problems, text, key, message):
    (line,) = problems(f"{LEAST}{text}")
    assert line.startswith(f"run.yaml, line 2: {key}: ")
    assert message in line


def test_a_wrong_name_is_reported_beside_a_wrong_value(problems):
    text = "\n".join(problems(f"{LEAST}model: {{backbone: {{name: resnet5, norm: batch}}}}"))
    assert "'batch'" in text
    assert "'resnet5'" in text


def test_each_unknown_option_is_reported(problems):
    text = "\n".join(problems(f"{LEAST}model: {{head: {{box_nms_tresh: 1, box_score_tresh: 1}}}}"))
    assert "'box_nms_tresh'" in text
    assert "'box_score_tresh'" in text


def test_a_check_over_several_keys_is_named(problems):
    (line,) = problems(f"{LEAST}train: {{batch_size: 3, accumulate: 2}}")
    assert line.startswith("run.yaml")
    assert "train.batch_size 3 cannot be split into train.accumulate 2 parts" in line


# ---- Jobs ----


def test_a_config_that_names_no_job_is_of_detection(load):
    config = load(LEAST)
    assert (config.job, type(config)) == ("detection", DetectionConfig)
    assert load(f"job: detection\n{LEAST}", job="detection") == load(LEAST, job="detection") == config


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("detectoin", "There is no job 'detectoin'. Did you mean 'detection'?"),
        ("semantic_segmentation", "There is no job 'semantic_segmentation'. Did you mean 'segmentation'?"),
        ("depth", "There is no job 'depth'. Known: classification, detection, segmentation."),
        ("[detection]", "There is no job ['detection']. "),
        ("", "There is no job None. "),
        ("3", "There is no job 3. "),
    ],
)
@pytest.mark.parametrize("wanted", ["detection", None])
def test_a_job_that_there_is_not_is_named_in_one_line_with_its_place(problems, value, message, wanted):
    (line,) = problems(f"{LEAST}job: {value}\nseed: x\n", job=wanted)
    assert line.startswith(f"run.yaml, line 2: job: {message}")
    (line,) = problems(LEAST, f"job={value}", job=wanted)
    assert line.startswith(f"the override 'job={value}': job: {message}")


def test_a_mistyped_key_for_the_job_is_a_mistake(problems):
    (line,) = problems(f"jbo: segmentation\n{LEAST}")
    assert line == "run.yaml, line 1: jbo: unknown key. Did you mean 'job'?"


@pytest.mark.parametrize(("named", "short"), [("segmentation", "seg"), ("classification", "cls")])
def test_a_config_of_another_job_is_refused_and_its_tools_named(problems, named, short):
    (line,) = problems(f"job: {named}\n{LEAST}", job="detection")
    assert line.startswith(f"run.yaml is of the job {named}, and this tool is for detection: use tools/train_{short}.py or ")
    assert f"tools/eval_{short}.py" in line
    (line,) = problems(LEAST, f"job={named}", job="detection")
    assert line.startswith(
        f"the override 'job={named}' is of the job {named}, and this tool is for detection: use tools/train_"
    )


def test_a_config_that_names_no_job_is_refused_by_another_jobs_tool(problems):
    (line,) = problems(LEAST, job="classification")
    assert line.startswith("run.yaml is of the job detection, and this tool is for classification: use tools/train_det.py or ")
    assert "one that does not is of detection" in line


# ---- Overrides ----


def test_overrides_win_over_the_file_and_the_last_over_the_first(load):
    config = load(f"{LEAST}seed: 1\ntrain: {{epochs: 2, log_steps: 7}}", "train.epochs=3", "seed=4", "seed=5")
    assert (config.train.epochs, config.train.log_steps, config.seed) == (3, 7, 5)


def test_overrides_reach_sections_the_file_leaves_out(load):
    config = load(LEAST, "model.head.name=mask_rcnn", "train.ema.decay=0.9", "model.head.box_nms_thresh=0.3")
    assert config.model.head.name == "mask_rcnn"
    assert config.model.head.options() == {"box_nms_thresh": 0.3}
    assert config.train.ema is not None
    assert config.train.ema.decay == 0.9


@pytest.mark.parametrize("text", ["null", "~", ""])
def test_an_override_may_be_nothing(load, text):
    assert load(f"{LEAST}train: {{clip_grad_norm: 10}}", f"train.clip_grad_norm={text}").train.clip_grad_norm is None


def test_overrides_may_be_lists_and_sections(load):
    config = load(LEAST, "data.min_size=[640, 800]", "train.ema={decay: 0.5}", "data.augmentations=[]")
    assert config.data.min_size == [640, 800]
    assert config.train.ema is not None
    assert config.train.ema.decay == 0.5
    assert config.data.augmentations == []


def test_only_the_first_equals_sign_parts(load):
    assert load(LEAST, "output_dir=runs/lr=0.1").output_dir == "runs/lr=0.1"


def test_an_override_changes_a_place_in_a_list(load):
    text = "data: {train: shapes, val: shapes, augmentations: [{name: horizontal_flip}, {name: color_jitter, p: 0.1}]}"
    config = load(text, "data.augmentations.0.p=0.3", "data.augmentations.1={name: rotate90}")
    assert [(step.name, step.options()) for step in config.data.augmentations] == [
        ("horizontal_flip", {"p": 0.3}),
        ("rotate90", {}),
    ]


def test_paths_replace_the_name_of_an_embedded_set(load):
    config = load(LEAST, "data.train.images=a", "data.train.annotations=b")
    assert (config.data.train.images, config.data.train.annotations) == ("a", "b")
    assert config.data.val == "shapes"


@pytest.mark.parametrize("override", ["train.epochs", "=3", "", "--resume"])
def test_what_is_no_override_is_refused_with_an_example(problems, override):
    assert problems(LEAST, override) == [
        f"{override!r} is no override. Write key=value, such as train.epochs=3 or data.min_size=240."
    ]


@pytest.mark.parametrize("value", ["[1", "{a", "'x", "a: b: c", "\x00"])
def test_a_value_that_is_no_yaml_is_refused(problems, value):
    (line,) = problems(LEAST, f"output_dir={value}")
    assert "output_dir=" in line
    assert "no YAML" in line


@pytest.mark.parametrize("place", ["1", "7", "-1", "x", "name"])
def test_a_place_that_a_list_does_not_have_is_refused(problems, place):
    text = "data: {train: shapes, val: shapes, augmentations: [{name: horizontal_flip}]}"
    for override in (f"data.augmentations.{place}.p=0.3", f"data.augmentations.{place}=0.3"):
        (line,) = problems(text, override)
        assert override in line
        assert f"{place!r} is no place in a list of 1 entries" in line


@pytest.mark.parametrize("override", ["schedule.milestones.0.x=1", "schedule.milestones.0.x.y=1"])
def test_what_has_no_keys_gets_none(problems, override):
    (line,) = problems(f"{LEAST}schedule: {{milestones: [8, 11]}}", override)
    assert override in line


def test_a_place_in_a_list_that_only_the_defaults_have_is_refused_with_advice(problems):
    (line,) = problems(LEAST, "data.augmentations.0.p=0.3")
    assert "data.augmentations.0.p=0.3" in line
    assert "data.augmentations=[" in line


@pytest.mark.parametrize(
    ("override", "key", "message"),
    [
        ("train.epochs=x", "train.epochs", "valid integer, not 'x'"),
        ("train.epoch=3", "train.epoch", "unknown key. Did you mean 'epochs'?"),
        ("trian.epochs=3", "trian", "unknown key. Did you mean 'train'?"),
        ("train=5", "train", "not"),
        ("train.epochs.x=5", "train.epochs", "not"),
        ("model.head.name=mask_rcn", "model.head.name", "Did you mean 'mask_rcnn'?"),
        ("model.head.box_nms_tresh=1", "model.head", "Did you mean 'box_nms_thresh'?"),
        ("data.train=shapse", "data.train", "Did you mean 'shapes'?"),
        (
            "model.num_classes=3",
            "model.num_classes",
            "unknown key. The number of classes comes from the data, a detector's",
        ),
        ("model.head.num_classes=3", "model.head", "The number of classes comes from the data"),
        ("train.device=cuda", "train.device", "unknown key. The device is the key `device` by itself: device=cuda, or cpu."),
        ("gpu=0", "gpu", "unknown key. The device is the key `device`"),
        ("optimizer.lr=1e300", "optimizer.lr", "at most 1e+30"),
        ("optimizer.weight_decay=1e300", "optimizer.weight_decay", "at most 1e+30"),
        ("distributed.step_minutes=1e30", "distributed.step_minutes", "less than or equal to 1000000"),
        ("model.head.box_nms_thresh=1e300", "model.head", "a number beyond 1e+30 overflows"),
        ("output_dir=''", "output_dir", "at least 1 character"),
    ],
)
def test_a_mistake_in_an_override_is_named_as_its(problems, override, key, message):
    (line,) = problems(f"{LEAST}train: {{epochs: 2}}\nmodel: {{head: {{name: faster_rcnn}}}}", override)
    assert line.startswith(f"the override {override!r}: {key}: ")
    assert message in line


def test_a_mistake_in_a_list_put_in_place_of_the_files_is_the_overrides(problems):
    override = "data.augmentations=[{name: horizontal_flipp}]"
    augmentations = "[{name: horizontal_flip}]"
    text = LEAST.replace("val: shapes", f"val: shapes, augmentations: {augmentations}")
    assert augmentations in text
    (line,) = problems(text, override)
    assert line.startswith(f"the override {override!r}: data.augmentations.0: ")


def test_mistakes_in_file_and_overrides_are_told_together_and_apart(problems):
    heading, *lines = problems(f"{LEAST}seed: x", "train.epochs=x")
    assert heading == "run.yaml has 2 problems:"
    assert sorted(line.strip().split(": ")[0] for line in lines) == ["run.yaml, line 2", "the override 'train.epochs=x'"]


# ---- Round trips ----

positive = st.floats(1e-12, 1e12)
AMBIGUOUS = [
    "1e-3",
    "1E5",
    ".5",
    "-.5",
    "null",
    "~",
    "yes",
    "on",
    "2024-01-01",
    "010",
    "1:30",
    "a: b",
    "- a",
    "#x",
    "!x",
    "&a",
    " x ",
]


@pytest.mark.parametrize("text", AMBIGUOUS)
def test_a_text_that_looks_like_something_else_is_dumped_as_text(load, text):
    config = check_config({"data": {"train": "shapes", "val": "shapes"}, "output_dir": text})
    assert load(dump_config(config)).output_dir == text


@settings(max_examples=60)
@given(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30).map(lambda text: f"runs/{text}"),
    positive,
    st.lists(positive, max_size=4),
    st.none() | positive,
    st.integers(1, 2000) | st.lists(st.integers(1, 2000), min_size=1, max_size=5),
    st.lists(st.fixed_dictionaries({"name": st.just("horizontal_flip")}, optional={"p": st.floats(0, 1)}), max_size=3),
    st.integers(0, 2**63 - 1),
)
def test_a_dumped_config_is_the_same_when_loaded(tmp_path_factory, text, lr, milestones, clip, min_size, steps, seed):
    config = check_config(
        {
            "model": {"head": {"name": "mask_rcnn", "box_nms_thresh": 0.3}},
            "data": {
                "train": {"images": text, "annotations": text},
                "val": "shapes",
                "min_size": min_size,
                "augmentations": steps,
            },
            "train": {"clip_grad_norm": clip},
            "optimizer": {"lr": lr},
            "schedule": {"milestones": milestones},
            "seed": seed,
            "output_dir": text,
        }
    )
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_is_no_state_of_a_generator_is_refused(load, seed):
    with pytest.raises(UserError, match="seed: Input should be"):
        load(LEAST, f"seed={seed}")


def test_a_dump_states_the_defaults_in_the_schemas_order(load):
    text = dump_config(load(LEAST))
    keys = [line.split(":")[0] for line in text.splitlines() if line and not line.startswith(" ")]
    assert keys == [
        "job",
        "model",
        "data",
        "train",
        "optimizer",
        "schedule",
        "eval",
        "distributed",
        "seed",
        "device",
        "output_dir",
    ]
    assert "batch_size: 16" in text


# ---- Configs from elsewhere ----


def test_plain_values_are_checked_alike():
    assert check_config({"data": {"train": "shapes", "val": "shapes"}}).seed == 0
    with pytest.raises(UserError, match=r"the config: data\.val: this key is required"):
        check_config({"data": {"train": "shapes"}})


def test_overrides_on_plain_values_say_whose_they_are():
    content = {"data": {"train": "shapes", "val": "shapes"}, "train": {"epochs": 3}}
    assert apply_overrides(content, ["train.epochs=5"], origin="best.pt").train.epochs == 5
    with pytest.raises(UserError, match=r"best\.pt.*data\.train"):
        apply_overrides({"data": {"train": 5, "val": "shapes"}}, [], origin="best.pt")


def test_overrides_leave_the_values_given_as_they_were():
    content = {"data": {"train": "shapes", "val": "shapes"}, "train": {"epochs": 3}}
    apply_overrides(content, ["train.epochs=5", "data.train.images=a", "data.train.annotations=b"], origin="best.pt")
    assert content == {"data": {"train": "shapes", "val": "shapes"}, "train": {"epochs": 3}}
