"""Training with a compiled backbone: for few shapes, with the same result."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.testing import assert_close

import engine.compilation
from backbones import UserError, build_fpn_backbone
from engine.checkpoint import load_checkpoint
from engine.compilation import batch_shapes, compile_dense_part
from engine.train import train
from heads import build_detector


@given(st.integers(1, 1500), st.integers(1, 2000), st.data())
def test_every_batch_of_resized_images_fits_a_shape(min_size, max_size, data):
    shapes = batch_shapes(min_size, max_size)
    assert len(set(shapes)) == len(shapes) <= 6
    assert all(height % 32 == width % 32 == 0 for height, width in shapes)
    short = data.draw(st.integers(1, min_size))
    long = data.draw(st.integers(1, max(min_size, max_size)))
    for height, width in ((short, long), (long, short), (max(short, long), max(short, long))):
        assert any(height <= shape[0] and width <= shape[1] for shape in shapes)


def test_cocos_shapes():
    assert batch_shapes(800, 1333) == [(800, 800), (800, 1088), (800, 1344), (1088, 800), (1344, 800), (1344, 1344)]


@pytest.fixture
def counter(monkeypatch):
    """Counts compilations, and runs what it is given as it is."""
    counts = CompileCounter()
    compile_module = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compile_module(self, backend=counts, **options))
    torch._dynamo.reset()
    return counts


def test_a_detector_is_compiled_once_for_each_of_few_shapes(counter):
    torch.manual_seed(0)
    body = build_fpn_backbone("resnet18", norm="frozen_bn", out_channels=16)
    model = build_detector(
        "faster_rcnn", body, 3, min_size=64, max_size=96, box_head_dim=16, rpn_post_nms_top_n_train=20, resize_in_training=False
    )
    images = [torch.rand(3, height, width) for height in range(50, 64, 5) for width in range(50, 96, 7) if width >= height]
    targets = {"boxes": torch.tensor([[5.0, 5, 40, 45]]), "labels": torch.tensor([1])}
    losses = {}
    for is_compiled in (False, True):
        if is_compiled:
            compile_dense_part(model, min_size=64, max_size=96)
        torch.manual_seed(1)
        losses[is_compiled] = [model.train()([image], [dict(targets, seed=3)]) for image in images]
    assert len({tuple(image.shape) for image in images}) > 12
    assert 2 <= counter.frame_count <= 3  # 64 x 64, 64 x 96 and perhaps 64 x 80, padded to 96
    assert model.state_dict().keys() == dict(model.named_parameters()).keys() | dict(model.named_buffers()).keys()
    assert not any("_orig_mod" in key for key in model.state_dict())


def test_padding_to_a_shape_is_what_a_larger_image_beside_it_would_do(make_target):
    body = build_fpn_backbone("resnet18", norm="frozen_bn", out_channels=16)
    model = build_detector("faster_rcnn", body, 3, min_size=64, max_size=96, resize_in_training=False).train()
    model.transform.limit_training_shapes(batch_shapes(64, 96))
    image = torch.rand(3, 40, 70)
    batch, _ = model.transform([image], None)
    assert batch.tensors.shape == (1, 3, 64, 96)
    assert batch.image_sizes == [(40, 70)]
    assert not batch.tensors[:, :, 40:].any()
    assert not batch.tensors[:, :, :, 70:].any()
    assert model.transform([torch.rand(3, 100, 100)], None)[0].tensors.shape == (1, 3, 128, 128)  # larger than any: as ever
    assert model.eval().transform([torch.rand(3, 64, 70)], None)[0].tensors.shape == (1, 3, 64, 96)


def test_a_compiled_run_learns_the_same_and_evaluates_as_written(counter, make_config, monkeypatch):
    options = ("train.compile=true", "train.batch_size=7", "train.epochs=2", "optimizer.lr=0.01")
    weights = []
    for name in ("compiled", "as_written"):
        config = make_config(*options, name=name)
        train(config)
        weights.append(load_checkpoint(Path(config.output_dir) / "last.pt").model)
        assert counter.frame_count == 1  # seven validation images of other shapes have added none
        monkeypatch.setattr(nn.Module, "compile", lambda self, **options: None)
    compiled, as_written = weights
    assert compiled.keys() == as_written.keys()
    for key, value in as_written.items():
        assert_close(compiled[key], value, msg=lambda text, key=key: f"{key}: {text}")


def test_no_compiler_is_one_message(monkeypatch):
    monkeypatch.setattr(engine.compilation.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler"):
        compile_dense_part(nn.Linear(1, 1))


def test_a_strangers_detector_is_refused():
    with pytest.raises(UserError, match="Linear, whose batches take any shape"):
        compile_dense_part(nn.Linear(1, 1), min_size=64, max_size=96)
