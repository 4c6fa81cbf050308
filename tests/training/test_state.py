import random

import numpy as np
import pytest
import torch
from small_training import SMALL_MODEL, SMALL_TRAINING

from blossomrec.data.batch import Batch
from blossomrec.losses import build_loss
from blossomrec.models import build_model
from blossomrec.training import state as stored
from blossomrec.training.average import WeightAverage
from blossomrec.training.checkpoint import Checkpoints
from blossomrec.training.setup import build_optimizer
from blossomrec.training.state import Stored, TrainingState

CPU = torch.device("cpu")


def draws():
    return random.random(), np.random.rand(3).tolist(), torch.rand(3).tolist()


def test_generators_go_on_where_they_were_captured(tmp_path):
    stored.seed_everything(5)
    random.gauss(0, 1), np.random.randn()  # each leaves half a pair behind
    tensors, numbers = stored.capture_generators(CPU)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, tensors, numbers)
    checkpoints.finish()
    expected = [draws(), random.gauss(0, 1), np.random.randn()]
    stored.seed_everything(6)
    found = checkpoints.newest()
    stored.restore_generators(found.tensors, found.state, CPU)
    assert [draws(), random.gauss(0, 1), np.random.randn()] == expected


def test_seeds_repeat_and_differ():
    found = []
    for seed in (3, 3, 4, 2**40):
        stored.seed_everything(seed)
        found.append(draws())
    assert found[0] == found[1] != found[2]


def parts(seed, loss="bpr"):
    torch.manual_seed(seed)
    model = build_model(SMALL_MODEL, 30)
    config = type(SMALL_TRAINING)(loss=loss, negatives=4, seed=seed)
    loss = build_loss(config, np.ones(30), 30)
    return model, build_optimizer(model, config), loss, WeightAverage(model, 0.5), CPU


def step(model, optimizer, loss, average):
    items = torch.randint(0, 30, (12,))
    encoded = model.encode(Batch(items, torch.tensor([0, 5, 12], dtype=torch.int32), 7))
    value = loss(encoded.hidden, model.output_weight(), items)
    value.backward()
    optimizer.step()
    optimizer.zero_grad()
    average.update(5)
    return value.item(), average.means[0].sum().item()


def test_restored_parts_go_on_as_the_captured_ones():
    *first, _ = captured = parts(1)
    for _ in range(3):
        step(*first)
    state = TrainingState(epoch=2, step=3, durations=[0.5, 1.5], best={"ndcg@10": 0.25})
    tensors, numbers = stored.capture(state, Stored(*captured))
    expected = [step(*first) for _ in range(3)]
    others = parts(2)
    assert stored.restore(tensors, numbers, Stored(*others)) == state
    assert [step(*others[:4]) for _ in range(3)] == expected


def test_captured_tensors_are_copies_that_share_nothing():
    all_parts = parts(1)
    tensors, _ = stored.capture(TrainingState(), Stored(*all_parts))
    before = tensors["model.item_embeddings.weight"].clone()
    step(*all_parts[:4])
    assert torch.equal(tensors["model.item_embeddings.weight"], before)
    assert len({value.data_ptr() for value in tensors.values()}) == len(tensors)


@pytest.mark.parametrize("loss", ["cross_entropy", "sampled_softmax"])
def test_a_fresh_optimizer_and_any_loss_can_be_stored(loss):
    tensors, numbers = stored.capture(TrainingState(), Stored(*parts(1, loss)))
    assert stored.restore(tensors, numbers, Stored(*parts(2, loss))) == TrainingState()


def test_the_next_epoch_begins_with_empty_sums():
    state = TrainingState(
        epoch=1, step=40, epoch_step=9, epoch_seconds=2.0, epoch_events=5, epoch_targets=5,
        loss_sum=3.0, selector_sum=1.0, durations=[1.0],
    )  # fmt: skip
    state.next_epoch()
    assert state == TrainingState(epoch=2, step=40, durations=[1.0, 2.0])
