import math
from dataclasses import replace

import pytest
import torch
from small_training import SMALL_MODEL, SMALL_TRAINING, small_config
from torch import nn

from blossomrec.models import build_model
from blossomrec.training.setup import LearningRate, build_optimizer, split_parameters


def names(model, parameters):
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    return {known[id(parameter)] for parameter in parameters}


@pytest.mark.parametrize("backbone", ["sasrec", "bert4rec", "gru4rec", "mamba4rec", "hstu"])
@pytest.mark.parametrize("attention", ["blossom", "full"])
def test_every_parameter_is_in_exactly_one_group(backbone, attention):
    model = build_model(small_config(backbone=backbone, attention=attention).model, 30)
    decayed, undecayed = map(lambda group: names(model, group), split_parameters(model))
    assert decayed | undecayed == {name for name, _ in model.named_parameters()}
    assert not decayed & undecayed


def test_matrices_decay_and_the_rest_does_not():
    model = build_model(SMALL_MODEL, 30)
    decayed, undecayed = map(lambda group: names(model, group), split_parameters(model))
    assert "item_embeddings.weight" in undecayed
    assert "layers.0.inner.weight" in decayed
    assert all("norm" not in name and not name.endswith("bias") for name in decayed)
    assert not any("position" in name for name in decayed)
    assert {name for name, p in model.named_parameters() if p.ndim < 2} <= undecayed


def test_rates_of_decay_do_not_decay():
    model = build_model(replace(SMALL_MODEL, backbone="mamba4rec"), 30)
    _, undecayed = map(lambda group: names(model, group), split_parameters(model))
    assert "layers.0.attention.log_rates" in undecayed


def test_frozen_parameters_are_left_out_and_shared_ones_come_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[2].requires_grad_(False)
    assert [len(group) for group in split_parameters(model)] == [1, 2]


def test_weight_decay_goes_to_the_decayed_group():
    model = build_model(SMALL_MODEL, 30)
    optimizer = build_optimizer(model, replace(SMALL_TRAINING, weight_decay=0.3))
    decays = [
        (group["weight_decay"], names(model, group["params"])) for group in optimizer.param_groups
    ]
    assert [decay for decay, _ in decays] == [0.3, 0.0]
    assert "item_embeddings.weight" in decays[1][1]


def test_a_model_without_matrices_can_be_optimised():
    optimizer = build_optimizer(nn.Embedding(4, 2), SMALL_TRAINING)
    assert len(optimizer.param_groups) == 1


def rates(**options):
    config = replace(SMALL_TRAINING, learning_rate=0.4, **options)
    rate = LearningRate(config, total_steps=40)
    return [rate(step) for step in range(42)]


def test_warm_up_rises_to_a_constant():
    assert rates(warmup_steps=4)[:6] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    assert rates(warmup_steps=0) == [0.4] * 42


def test_cosine_falls_to_zero_and_stays():
    found = rates(warmup_steps=4, schedule="cosine")
    assert found[4] == pytest.approx(0.4)
    assert found[22] == pytest.approx(0.2)
    assert found[13] == pytest.approx(0.2 * (1 + math.cos(math.pi / 4)))
    assert found[40:] == pytest.approx([0.0, 0.0])
    assert found[4:] == sorted(found[4:], reverse=True)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_warm_up_takes_at_most_a_tenth_of_all_steps(schedule):
    assert rates(warmup_steps=100, schedule=schedule) == rates(warmup_steps=4, schedule=schedule)
    assert LearningRate(SMALL_TRAINING, total_steps=9)(0) == SMALL_TRAINING.learning_rate


def test_state_of_the_optimizer_follows_the_parameters():
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(model, SMALL_TRAINING)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert set(optimizer.state[model.weight]) == {"step", "exp_avg", "exp_avg_sq"}
