"""Baselines of a user's own items against plain loops."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from test_baselines import NUM_ITEMS, make_log, scores

from blossomrec.data.batch import pack
from blossomrec.errors import ConfigError, DataError
from blossomrec.models.baselines import PersonalFrequency, PersonalRecency, personal

HISTORIES = [[1, 2, 3, 2, 1, 1], [7], [11, 4, 4, 11], [5, 6, 7, 8, 5, 0, 1], [3, 9, 3, 9, 2]]
TRAIN_END = np.array([6, 1, 3, 7, 4])


def popularity():
    counts = Counter()
    for history, end in zip(HISTORIES, TRAIN_END, strict=True):
        counts.update(history[:end])
    return counts


def best_first(row):
    """Items in the order of their scores, those with equal scores together."""
    found = defaultdict(set)
    for item, score in enumerate(row.tolist()):
        found[score].add(item)
    return [found[score] for score in sorted(found, reverse=True)]


def expected(own):
    """Own items by their keys, then all others by popularity."""
    counts, groups = popularity(), defaultdict(set)
    for item in range(NUM_ITEMS):
        groups[(True, *own[item]) if item in own else (False, counts[item])].add(item)
    return [groups[key] for key in sorted(groups, reverse=True)]


@pytest.mark.parametrize("decay", [1.0, 0.9, 0.5])
def test_frequency_counts_own_events(decay):
    scorer = PersonalFrequency.fit(make_log(HISTORIES), TRAIN_END, decay=decay)
    for history, row in zip(HISTORIES, scores(scorer, HISTORIES), strict=True):
        weights = defaultdict(float)
        for age, item in enumerate(reversed(history)):
            weights[item] += decay**age
        own = {item: (round(weights[item], 9), popularity()[item]) for item in history}
        assert best_first(row) == expected(own)


def test_recency_puts_the_last_first():
    scorer = PersonalRecency.fit(make_log(HISTORIES), TRAIN_END)
    for history, row in zip(HISTORIES, scores(scorer, HISTORIES), strict=True):
        own = {item: (-history[::-1].index(item),) for item in history}
        assert best_first(row) == expected(own)


def test_only_the_last_events_count_where_they_are_limited():
    log = make_log(HISTORIES)
    assert PersonalRecency.fit(log, TRAIN_END, recent=2).max_len == 2
    # Never more than there are, so that little is held of each history.
    assert PersonalRecency.fit(log, TRAIN_END).max_len == 7
    assert PersonalFrequency.fit(log, TRAIN_END, decay=1.0, recent=3).max_len == 3


@pytest.mark.parametrize("kind", [PersonalFrequency, PersonalRecency])
def test_batches_and_tiles_change_nothing(kind):
    options = {"decay": 0.9} if kind is PersonalFrequency else {}
    scorer = kind.fit(make_log(HISTORIES), TRAIN_END, **options)
    whole = scores(scorer, HISTORIES)
    apart = torch.cat([scores(scorer, [history]) for history in HISTORIES])
    queries = scorer.queries(pack(HISTORIES))
    tiles = [scorer.scores(queries, start, start + 4) for start in range(0, NUM_ITEMS, 4)]
    assert whole.dtype == torch.float32
    assert torch.equal(apart, whole) and torch.equal(torch.cat(tiles, 1), whole)
    assert queries.shape == (len(HISTORIES), min(scorer.max_len, NUM_ITEMS), 2)


@pytest.mark.parametrize(
    "history, decay",
    [
        # The same again, where another one is more frequent.
        pytest.param([0, 0, 0, 0, 0, 1, 1, 1], 0.6, id="what was met of late"),
        # The most frequent one, however long ago.
        pytest.param([0, 0, 0, 1, 2, 3, 4, 0], 1.0, id="what was met often"),
    ],
)
def test_the_decay_is_chosen_on_training_events(history, decay):
    # The last event stands for what is held out: it must not be looked at.
    log = make_log([[*history, 9]] * 3)
    train_end = np.full(3, len(history))
    chosen = PersonalFrequency.fit(log, train_end)
    fitted = {one: PersonalFrequency.fit(log, train_end, decay=one) for one in personal.DECAYS}
    gains = {one: personal._gain(fitted[one], log, train_end) for one in fitted}
    assert gains[chosen.decay] == max(gains.values()) == gains[decay]
    assert max(gains.values()) > min(gains.values())


def test_options_out_of_bounds():
    log = make_log(HISTORIES)
    for decay in (0.0, -1.0, 1.5):
        with pytest.raises(ConfigError, match=f"decay is {decay}"):
            PersonalFrequency.fit(log, TRAIN_END, decay=decay)
    for kind in (PersonalFrequency, PersonalRecency):
        with pytest.raises(ConfigError, match="recent is 0"):
            kind.fit(log, TRAIN_END, recent=0)
        with pytest.raises(DataError, match="no events to train on"):
            kind.fit(log, np.zeros(5, dtype=int))
