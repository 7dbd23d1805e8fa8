"""engine/show.py: what the network sees, on a sheet."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backbones.errors import UserError
from engine.detection.job import DetectionJob
from engine.show import draw_samples, show_samples
from tests.engine.conftest import MASKS


def test_the_sheet_shows_as_many_samples_as_asked_for(make_config):
    job = DetectionJob(make_config())
    dataset = job.build_training_set()
    one, four, all_of_them = (draw_samples(job, dataset, count=count) for count in (1, 4, 100))
    assert one.dtype == np.uint8
    assert one.shape[1] < four.shape[1]
    assert four.shape[0] < all_of_them.shape[0]


@pytest.mark.parametrize(("count", "shown"), [(1, [0]), (3, [0, 2, 5]), (100, [0, 1, 2, 3, 4, 5])])
def test_samples_are_spread_over_the_set_and_of_the_epoch(toy_job, monkeypatch, count, shown):
    job = toy_job()
    drawn = []
    draw = type(job).draw_sample
    monkeypatch.setattr(type(job), "draw_sample", lambda *a: (drawn.append((int(a[2].max()), a[3]["image_id"])), draw(*a))[1])
    dataset = job.build_training_set()
    draw_samples(job, dataset, count=count, epoch=3)
    expected = [(dataset[3, index], dataset[index]) for index in shown]
    assert drawn == [(int(later[0].max()), first[1]["image_id"]) for later, first in expected]
    assert all(later[0].max() != first[0].max() for later, first in expected)


def test_any_jobs_classes_are_told(toy_job, tmp_path, capsys):
    show_samples(toy_job().config, str(tmp_path / "samples.png"), count=4)
    assert capsys.readouterr().out.splitlines() == [
        f"4 of 6 training samples, as in epoch 0: {tmp_path / 'samples.png'}", "dark: 3", "bright: 3",
    ]  # fmt: skip
    assert np.asarray(Image.open(tmp_path / "samples.png")).std() > 0


def test_show_writes_the_sheet_and_counts_the_objects_of_each_class(make_config, tmp_path, capsys):
    show_samples(make_config(*MASKS), str(tmp_path / "new" / "samples.png"), count=3)
    assert np.asarray(Image.open(tmp_path / "new" / "samples.png")).std() > 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0].startswith("3 of 7 training samples, as in epoch 0:")
    assert "12 objects, 1 of them crowd regions, in 3 classes:" in lines
    assert {"bar 6", "square 6", "never 0"} <= set(lines)


def test_each_epoch_shows_its_own_augmentation(make_config, tmp_path):
    config = make_config("data.augmentations=[{name: color_jitter, p: 1.0, brightness: 0.8}]")
    for name, epoch in (("first", 0), ("again", 0), ("later", 1)):
        show_samples(config, str(tmp_path / f"{name}.png"), count=2, epoch=epoch)
    first, again, later = ((tmp_path / f"{name}.png").read_bytes() for name in ("first", "again", "later"))
    assert first == again != later


def test_a_folder_that_cannot_be_written_to_is_refused(make_config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        show_samples(make_config(), str(tmp_path / "file" / "samples.png"), count=1)
    assert Path(tmp_path / "file").read_text() == ""
