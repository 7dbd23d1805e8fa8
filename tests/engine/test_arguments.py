"""How the tools read their command lines."""

import sys

import pytest

from engine.arguments import parse_with_set_option, parse_with_settings, training_parser


@pytest.fixture
def parse(monkeypatch):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["train.py", *words])
        return parse_with_settings(training_parser("", example="a.yaml"))

    return run


@pytest.mark.parametrize(
    ("words", "resume", "overrides"),
    [
        (["a.yaml"], None, []),
        (["a.yaml", "--resume"], "", []),
        (["a.yaml", "seed=1", "--resume", "last.pt", "seed=2"], "last.pt", ["seed=1", "seed=2"]),
        (["a.yaml", "seed=1", "--resume", "seed=2", "seed=3"], "", ["seed=1", "seed=2", "seed=3"]),
        (["a.yaml", "--resume=train.epochs=3"], "train.epochs=3", []),  # said with all clarity
        (["a.yaml", "--resume", "runs/lr=1/last.pt"], "runs/lr=1/last.pt", []),
    ],
)
def test_a_setting_after_resume_is_a_setting(parse, words, resume, overrides):
    args = parse(*words)
    assert (args.config, args.resume, args.overrides) == ("a.yaml", resume, overrides)


def test_a_checkpoint_whose_name_reads_as_a_setting_is_a_checkpoint(parse, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1.pt").touch()
    assert parse("a.yaml", "--resume", "lr=1.pt").resume == "lr=1.pt"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--train.epochs=3", "Settings are written without dashes: train.epochs=3"),
        ("--train.epochs", "Settings are written without dashes: train.epochs=VALUE"),
        ("--seed=3", "Settings are written without dashes: seed=3"),
        ("--quick", "unrecognized arguments: --quick"),
    ],
)
def test_a_setting_with_dashes_is_told_how_it_is_written(parse, capsys, word, said):
    with pytest.raises(SystemExit) as ended:
        parse("a.yaml", word)
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"train.py: error: {said}"


@pytest.mark.parametrize("word", ["data.max_size=9", "--data.max_size=9"])
def test_where_settings_have_an_option_it_is_named(monkeypatch, capsys, tmp_path, word):
    parser = training_parser("", example="a.yaml")
    monkeypatch.setattr(sys, "argv", ["predict.py", "a.yaml", "photo.jpg", word])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        parse_with_set_option(parser, paths="overrides")
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("For a setting use --set data.max_size=9")
    (tmp_path / "data.max_size=9").touch()
    if not word.startswith("-"):
        assert parse_with_set_option(parser, paths="overrides").overrides == ["photo.jpg", word]
