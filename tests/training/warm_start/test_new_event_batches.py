"""Batches of new events: every one a target once, its history before it, old ones beside."""

import itertools
from collections import Counter

import numpy as np
import pytest
from small_training import small_config

from blossomrec.config import EvaluationConfig
from blossomrec.data.batches import TrainingBatches
from blossomrec.data.split import make_split
from blossomrec.errors import ConfigError, DataError
from blossomrec.registry import BACKBONES
from blossomrec.training.warm_start.batches import NewEventBatches

SIZES = {"max_len": 11, "tokens_per_batch": 97, "seed": 5}


def parts(log, *, share=0.5):
    train_end = make_split(log, EvaluationConfig()).train_end
    rng = np.random.default_rng(2)
    seen = (train_end * np.where(rng.random(len(train_end)) < 0.06, 0, share)).astype(np.int64)
    seen[-1] = train_end[-1]
    return train_end, seen


def batches_of(log, *, replay=0.0, importance=None, share=0.5):
    train_end, seen = parts(log, share=share)
    whole = TrainingBatches(log, train_end, **SIZES, importance=importance)
    return NewEventBatches(whole, log, seen, train_end, replay=replay)


def histories(batch):
    for start, stop in itertools.pairwise(batch.cu_seqlens.tolist()):
        yield batch.items[start:stop].numpy(), batch.targets[start:stop].numpy()


def history_of(log, row, items):
    """Where items stand in a user's history, whose items are all others; None if elsewhere."""
    mine = np.asarray(log.items[log.offsets[row] : log.offsets[row + 1]])
    place = np.flatnonzero(mine == items[0])
    if not len(place) or not np.array_equal(mine[place[0] : place[0] + len(items)], items):
        return None
    return int(place[0])


def test_every_new_event_is_a_target_once_with_the_events_before_it(tiny_log):
    train_end, seen = parts(tiny_log)
    # Where a user's items are all different, items and what follows tell the user's place.
    for epoch in range(2):
        found, events = Counter(), 0
        for batch in batches_of(tiny_log).epoch(epoch):
            for items, targets in histories(batch):
                found.update(targets[targets >= 0].tolist())
                events += len(items)
                # Targets are a run at the end, of what follows.
                first = np.flatnonzero(targets >= 0)[0]
                assert (targets[first:] >= 0).all()
                assert np.array_equal(targets[first:-1], items[first + 1 :])
                assert len(items) <= SIZES["max_len"]
        expected = Counter()
        for row, (start, stop) in enumerate(zip(seen, train_end, strict=True)):
            mine = tiny_log.items[tiny_log.offsets[row] :]
            expected.update(mine[max(start, 1) : stop].tolist())
        assert found == expected and events > found.total()


def test_windows_reach_back_as_far_as_they_may(tiny_log):
    shortest = 0
    for batch in batches_of(tiny_log).epoch(0):
        for items, targets in histories(batch):
            if len(items) < SIZES["max_len"]:
                # Of a user whose history begins here.
                starts = tiny_log.items[tiny_log.offsets[:-1]]
                assert items[0] in starts
                shortest += 1
            else:
                assert (targets >= 0).sum() <= SIZES["max_len"] // 2
    assert shortest


@pytest.mark.parametrize("replay", [0.2, 0.3, 0.5])
def test_old_events_have_their_share_in_every_batch(tiny_log, replay):
    # A fifth of each history is new: with its context, less than what is old.
    _, seen = parts(tiny_log, share=0.8)
    made, shares = batches_of(tiny_log, replay=replay, share=0.8), []
    for batch in made.epoch(1):
        old = 0
        for items, targets in histories(batch):
            if (targets >= 0).all() and any(
                (place := history_of(tiny_log, row, [*items, targets[-1]])) is not None
                and place + len(items) < seen[row]
                for row in range(tiny_log.num_users)
            ):
                old += len(items)
        shares.append(old / len(batch.items))
    events, _ = made.sizes(1)
    assert np.average(shares, weights=events) == pytest.approx(replay, abs=0.05)
    # A batch of some windows cannot have it to the event.
    assert max(abs(share - replay) for share in shares[:-1]) < 0.25
    assert made.steps(1) == len(shares)


def test_of_too_few_old_events_all_are_taken(tiny_log):
    _, seen = parts(tiny_log, share=0.1)
    alone, made = (batches_of(tiny_log, replay=replay, share=0.1) for replay in (0.0, 0.9))
    assert made.sizes(0)[0].sum() == alone.sizes(0)[0].sum() + (seen - 1).clip(0).sum()


def test_without_replay_nothing_old_is_a_target(tiny_log):
    made = batches_of(tiny_log)
    targets = sum(int((batch.targets >= 0).sum()) for batch in made.epoch(0))
    assert targets == made.num_new


def test_an_epoch_is_the_same_each_time_and_another_one_is_not(tiny_log):
    def items(epoch):
        return [batch.items.tolist() for batch in batches_of(tiny_log, replay=0.5).epoch(epoch)]

    assert items(0) == items(0) != items(1)
    from_third = batches_of(tiny_log, replay=0.5).epoch(0, 2)
    assert [batch.items.tolist() for batch in from_third] == items(0)[2:]


def test_weights_go_with_their_targets(tiny_log):
    importance = (np.arange(tiny_log.num_events) % 3).astype(np.float32)
    for batch in batches_of(tiny_log, replay=0.4, importance=importance).epoch(0):
        there = batch.targets >= 0
        assert (batch.target_weights[there] > 0).all()


def test_sizes_hold_what_batches_have(tiny_log):
    made = batches_of(tiny_log, replay=0.5)
    events, counts = made.sizes(0)
    found = list(made.epoch(0))
    assert events.tolist() == [len(batch.items) for batch in found]
    assert counts.tolist() == [batch.num_histories for batch in found]
    assert made.num_events == events.sum()
    assert max(batch.max_length for batch in found) <= made.longest <= SIZES["max_len"]


def test_nothing_new_is_refused(tiny_log):
    train_end, _ = parts(tiny_log)
    whole = TrainingBatches(tiny_log, train_end, **SIZES)
    with pytest.raises(DataError, match=r"no training event that the run was not trained on"):
        NewEventBatches(whole, tiny_log, train_end, train_end, replay=0.5)


def test_a_backbone_that_fills_in_masks_takes_all_events_alone(tiny_log):
    train_end, seen = parts(tiny_log)
    config = small_config(backbone="bert4rec")
    whole = BACKBONES.get("bert4rec").training_batches(tiny_log, train_end, config)
    with pytest.raises(ConfigError, match=r"training\.events is 'new'.*training\.events all"):
        NewEventBatches(whole, tiny_log, seen, train_end, replay=0.5)
