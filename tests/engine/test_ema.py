"""The moving average of weights, against the formula written out."""

import copy

import pytest
import torch
from torch import nn

from engine.ema import average_model


def changed(model: nn.Module, step: int) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float(step * step))


@pytest.mark.parametrize("decay", [0.2, 0.999])
def test_the_average_keeps_its_share_less_of_it_at_first(decay):
    model = nn.Linear(2, 1)
    average = average_model(model, decay=decay)
    expected = None
    for step in range(1, 30):
        changed(model, step)
        average.update_parameters(model)
        share = min(decay, step / (9 + step))  # of the updates before this one, n: (1 + n) / (10 + n)
        expected = step * step if expected is None else share * expected + (1 - share) * step * step
        assert average.module.weight.flatten().tolist() == pytest.approx([expected] * 2, rel=1e-5), step


def test_the_first_average_is_the_first_update_itself():
    model = nn.Linear(2, 1)
    average = average_model(model, decay=0.999)
    changed(model, 5)
    average.update_parameters(model)
    assert torch.equal(average.module.weight, model.weight)


def test_batch_statistics_are_those_of_the_model():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    average = average_model(model, decay=0.9)
    for _ in range(3):
        model(torch.randn(4, 1, 5, 5))
        average.update_parameters(model)
    own = dict(model.named_buffers())
    assert int(own["1.num_batches_tracked"]) == 3
    assert all(torch.equal(buffer, own[name]) for name, buffer in average.module.named_buffers())


def test_the_average_neither_trains_nor_touches_the_model():
    model = nn.Linear(2, 1)
    before = copy.deepcopy(model.state_dict())
    average = average_model(model, decay=0.9)
    average.update_parameters(model)
    assert not {id(p) for p in average.parameters()} & {id(p) for p in model.parameters()}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
