"""engine/evaluate.py: a model over a data set, each image once whatever the processes; and what a user asks of it."""

import pytest
import torch

from backbones.errors import UserError
from engine.checkpoint import load_checkpoint
from engine.distributed import World
from engine.evaluate import evaluate, run_evaluation
from tests.engine.toy_job import ToyEvaluation

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def run(toy_job):
    """A function that evaluates the toy job's model."""

    def evaluate(*overrides: str, world: World = ALONE, **options):
        job = toy_job(*overrides)
        dataset = job.build_validation_set()
        torch.manual_seed(0)
        model = job.build_model(dataset.categories, load_weights=True)
        return run_evaluation(job, model, dataset, world=world, **options)

    return evaluate


# ---- Over the images ----


@pytest.mark.parametrize("overrides", [(), ("eval.batch_size=4",), ("eval.batch_size=99", "data.num_workers=1")])
def test_each_image_is_predicted_once_whatever_the_batches(run, overrides):
    evaluation = run(*overrides)
    assert isinstance(evaluation, ToyEvaluation)
    assert sorted(evaluation.told) == list(range(95, 101))
    assert evaluation.told == run().told
    (score,) = evaluation.score()
    assert score.stats["images"] == 6


@pytest.mark.parametrize("size", [2, 3, 10])
def test_the_shards_of_several_processes_make_up_what_one_has(run, size, monkeypatch):
    whole = run("eval.batch_size=2").told
    shards = []
    monkeypatch.setattr(World, "gather", lambda self, value, **_: (shards.append(value), [])[1])
    for rank in range(1, size):
        assert run("eval.batch_size=2", world=World(rank, size, ALONE.device)) is None
    monkeypatch.setattr(World, "gather", lambda self, value, **_: [value, *shards])
    merged = run("eval.batch_size=2", world=World(0, size, ALONE.device)).told
    assert merged == whole


@pytest.mark.parametrize("change", ["twice", "not at all", "one in place of another"])
def test_an_image_that_is_not_counted_once_is_our_mistake(run, monkeypatch, change):
    def gather(self, value, **_):
        seen, *rest = value
        (last, *_) = seen
        parts = {"twice": [*seen, last], "not at all": seen[1:], "one in place of another": [*seen[1:], seen[1]]}
        return [(parts[change], *rest)]

    monkeypatch.setattr(World, "gather", gather)
    with pytest.raises(AssertionError, match="predicted twice, or not at all"):
        run()


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_evaluated_in_evaluation_mode_and_left_in_the_mode_it_was_in(toy_job, training):
    job = toy_job()
    dataset = job.build_validation_set()
    model = job.build_model(dataset.categories, load_weights=True).train(training)
    modes = []
    model.register_forward_hook(lambda module, *_: modes.append((module.training, torch.is_grad_enabled())))
    run_evaluation(job, model, dataset, world=ALONE)
    assert set(modes) == {(False, False)}
    assert model.training is training


def test_progress_is_told_for_every_batch(run):
    told = []
    run("eval.batch_size=4", on_image=lambda *progress: told.append(progress))
    assert told == [(4, 6), (6, 6)]


def test_progress_is_of_this_process(run, monkeypatch):
    monkeypatch.setattr(World, "gather", lambda self, value, **_: [])
    told = []
    run("eval.batch_size=2", world=World(1, 2, ALONE.device), on_image=lambda *progress: told.append(progress))
    assert told == [(2, 2)]


# ---- From the command line's arguments ----


def test_a_checkpoint_of_any_job_scores_what_its_training_said(toy_run, tmp_path, capsys):
    folder, score = toy_run.folder, toy_run.scores[0]
    assert evaluate(str(folder / "last.pt"), [], job="toy", output_dir=str(tmp_path / "out")) == [score]
    out = capsys.readouterr().out
    assert out.splitlines()[0] == f"{folder / 'last.pt'} on 6 images of val.toy"
    assert "labels:" in out
    assert all(line in out.splitlines() for line in score.lines())
    assert "accuracy by class" in out
    assert f"results and scores in {tmp_path / 'out'}" in out
    assert (tmp_path / "out" / "told.txt").read_text() == (folder / "eval" / "told.txt").read_text()


def test_a_config_of_any_job_with_weights_scores_as_the_checkpoint(toy_run, tmp_path):
    folder, score = toy_run.folder, toy_run.scores[0]
    torch.save(load_checkpoint(folder / "last.pt").model, tmp_path / "weights.pth")
    assert evaluate(str(folder / "config.yaml"), [], job="toy", weights=str(tmp_path / "weights.pth")) == [score]


def test_other_classes_than_the_checkpoints_are_refused(toy_run):
    folder = toy_run.folder
    with pytest.raises(UserError, match=r"trained on other classes than val\.toy has: 'bright' \(id 20\) against 'light'"):
        evaluate(str(folder / "last.pt"), ["data.bright=light"], job="toy")


def test_nothing_is_written_unless_a_folder_is_named(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluate(str(trained.folder / "best.pt"), ["eval.batch_size=4"], job="detection")
    assert list(tmp_path.iterdir()) == []


def test_a_config_without_weights_is_refused(trained):
    with pytest.raises(UserError, match="has no trained weights: add --weights PATH"):
        evaluate(str(trained.folder / "config.yaml"), [], job="detection")


def test_a_folder_that_cannot_be_written_to_is_refused(trained, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        evaluate(str(trained.folder / "best.pt"), [], job="detection", output_dir=str(tmp_path / "file" / "out"))


@pytest.mark.parametrize("name", ["best.pt", "config.yaml"])
def test_what_is_of_another_job_is_refused_before_anything_is_written(trained, tmp_path, name):
    with pytest.raises(UserError, match=rf"{name} is of the job detection, .* for segmentation: use .*tools/eval_det\.py"):
        evaluate(str(trained.folder / name), [], job="segmentation", weights="w.pth", output_dir=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
