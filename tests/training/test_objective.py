from dataclasses import replace

import numpy as np
import pytest
import torch
from small_training import SMALL_MODEL, SMALL_TRAINING, small_config

from blossomrec.data.batches import ClozeBatches, TrainingBatches
from blossomrec.errors import ConfigError
from blossomrec.losses import build_loss, cross_entropy
from blossomrec.models import build_model
from blossomrec.training.objective import Objective, device_steps
from blossomrec.training.setup import build_parts, open_fabric, training_counts

CPU = torch.device("cpu")
SIZES = {"max_len": 20, "tokens_per_batch": 200, "seed": 0}


def objective(num_items, weight, **model):
    torch.manual_seed(0)
    loss = build_loss(SMALL_TRAINING, np.ones(num_items), num_items)
    config = replace(SMALL_MODEL, dropout=0.0, **model)
    return Objective(build_model(config, num_items), loss, selector_weight=weight)


@pytest.fixture
def steps(tiny_log, split):
    batches = TrainingBatches(tiny_log, split.train_end, **SIZES)
    return list(device_steps(batches.epoch(0), CPU))


def test_every_target_of_an_epoch_is_counted(steps, split):
    assert all(step.rows is None for step in steps)
    assert sum(step.num_targets for step in steps) == np.maximum(split.train_end - 1, 0).sum()


def test_only_masked_events_are_predicted(tiny_log, split):
    batches = ClozeBatches(tiny_log, split.train_end, mask_probability=0.3, **SIZES)
    step = next(device_steps(batches.epoch(0), CPU))
    batch = step.batch
    assert step.rows.tolist() == (batch.targets >= 0).nonzero()[:, 0].tolist()
    assert step.num_targets == len(step.rows) < len(batch.items)
    bert = objective(tiny_log.num_items, 0.0, backbone="bert4rec")
    hidden = bert.model.encode(batch).hidden
    expected = cross_entropy(
        hidden[batch.targets >= 0], bert.model.output_weight(), batch.targets[batch.targets >= 0]
    )
    assert torch.allclose(bert(step).loss, expected)


def test_selector_loss_is_added_with_its_weight(tiny_log, steps):
    for weight in (1.0, 0.5):
        losses = objective(tiny_log.num_items, weight)(steps[0])
        assert losses.selector.item() > 0
        assert losses.total.item() == pytest.approx((losses.loss + weight * losses.selector).item())


def test_no_selector_loss_where_it_weighs_nothing_or_there_is_no_selector(tiny_log, steps):
    for without in (
        objective(tiny_log.num_items, 0.0),
        objective(tiny_log.num_items, 1.0, attention="full"),
        objective(tiny_log.num_items, 1.0, backbone="gru4rec"),
    ):
        losses = without(steps[0])
        assert losses.selector is None
        assert losses.total is losses.loss


def test_training_counts_leave_held_out_events_aside(tiny_log, split):
    expected = np.zeros(tiny_log.num_items, dtype=np.int64)
    for user in range(tiny_log.num_users):
        np.add.at(expected, tiny_log.history(user).items[: split.train_end[user]], 1)
    assert training_counts(tiny_log, split.train_end).tolist() == expected.tolist()


@pytest.mark.parametrize("backbone", ["sasrec", "bert4rec", "gru4rec", "mamba4rec", "hstu"])
def test_batches_suit_the_backbone(tiny_log, split, backbone):
    config = small_config(backbone=backbone)
    model = build_model(config.model, tiny_log.num_items)
    parts = build_parts(model, tiny_log, split.train_end, config, open_fabric(config.training))
    assert isinstance(parts.batches, ClozeBatches) == (backbone == "bert4rec")
    assert parts.learning_rate.total_steps == 3 * parts.batches.steps(0)


def test_a_model_of_another_catalogue_is_refused(tiny_log, split):
    config = small_config()
    model = build_model(config.model, 7)
    with pytest.raises(ConfigError, match=f"model has 7 items.*{tiny_log.num_items}"):
        build_parts(model, tiny_log, split.train_end, config, open_fabric(config.training))
