import pytest
import torch
from small_training import small_config, small_train
from torch import nn

from blossomrec.run.weights import read_weights
from blossomrec.training.average import WeightAverage


def line(value):
    model = nn.Linear(2, 2, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def test_each_step_counts_less_than_the_one_after_it():
    model = line(0.0)
    average = WeightAverage(model, 0.75)
    for step in range(100, 104):
        nn.init.constant_(model.weight, float(step))
        average.update(step)
    expected = 0.0
    for step in range(100, 104):
        expected = 0.75 * expected + 0.25 * step
    torch.testing.assert_close(average.means[0], torch.full((2, 2), expected))


def test_the_weights_of_the_start_are_soon_forgotten():
    model = line(1e6)
    average = WeightAverage(model, 0.999)
    nn.init.constant_(model.weight, 1.0)
    for step in range(1, 101):
        average.update(step)
    # By the decay itself nine tenths of the start would be left.
    assert average.means[0].max() < 1 + 1e-3 * 1e6


def test_within_the_model_is_the_average_and_afterwards_as_it_was():
    model = line(0.0)
    average = WeightAverage(model, 0.5)
    place = model.weight.data_ptr()
    nn.init.constant_(model.weight, 2.0)
    average.update(100)
    with pytest.raises(KeyError), average.in_place():
        assert model.weight.unique().tolist() == [1.0]
        raise KeyError
    assert model.weight.unique().tolist() == [2.0]
    assert average.means[0].unique().tolist() == [1.0]
    assert model.weight.data_ptr() == place


def test_without_decay_nothing_is_kept():
    model = line(3.0)
    average = WeightAverage(model, 0.0)
    average.update(1)
    with average.in_place():
        assert model.weight.unique().tolist() == [3.0]
    assert average.state_dict() == {}


def test_frozen_weights_are_left_alone():
    model = nn.Sequential(line(1.0), line(2.0))
    model[0].requires_grad_(False)
    assert list(WeightAverage(model, 0.5).state_dict()) == ["1.weight"]


def test_training_keeps_and_validates_the_average(tiny_log, tmp_path):
    config = small_config(epochs=1, ema_decay=0.9)
    small_train(tiny_log, config, tmp_path / "run")
    small_train(tiny_log, small_config(epochs=1), tmp_path / "plain")
    kept = read_weights(tmp_path / "run" / "model.safetensors")
    plain = read_weights(tmp_path / "plain" / "model.safetensors")
    last = max((tmp_path / "run" / "checkpoints").glob("step-*"))
    stored = read_weights(last / "tensors.safetensors")
    for name, value in plain.items():
        # Training itself goes on from the weights, not from their average.
        assert torch.equal(stored[f"model.{name}"], value)
    averaged = {name for name in plain if f"average.{name}" in stored}
    assert averaged
    for name in averaged:
        assert torch.equal(kept[name], stored[f"average.{name}"])
        assert not torch.equal(kept[name], plain[name])
