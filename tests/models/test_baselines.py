"""Baselines against counting by hand."""

from __future__ import annotations

from collections import Counter, defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from blossomrec.data.batch import pack
from blossomrec.errors import ConfigError, DataError
from blossomrec.models.baselines import ItemTransitions, Popularity, RecentPopularity

NUM_ITEMS = 12


def make_log(histories, times=None):
    """What the baselines read of a log."""
    lengths = [len(each) for each in histories]
    items = np.concatenate([np.asarray(each, dtype=np.int32) for each in histories])
    return SimpleNamespace(
        folder="a log in memory",
        offsets=np.cumsum([0, *lengths]),
        items=items,
        columns=lambda inputs: {"items": items},
        timestamps=np.arange(len(items)) if times is None else np.concatenate(times),
        num_items=NUM_ITEMS,
        num_users=len(histories),
    )


@pytest.fixture
def histories():
    rng = np.random.default_rng(3)
    return [rng.integers(0, NUM_ITEMS - 1, length) for length in (9, 1, 30, 2, 4)]


@pytest.fixture
def train_end():
    return np.array([7, 0, 30, 1, 4])


def scores(scorer, histories) -> torch.Tensor:
    return scorer.scores(scorer.queries(pack(histories)), 0, NUM_ITEMS)


def test_popularity_counts_training_events(histories, train_end):
    counts = Counter()
    for history, end in zip(histories, train_end, strict=True):
        counts.update(history[:end].tolist())
    scorer = Popularity.fit(make_log(histories), train_end)
    expected = [float(counts[item]) for item in range(NUM_ITEMS)]
    assert scores(scorer, [[1, 2], [3]]).tolist() == [expected, expected]


def test_recent_popularity_halves_with_age():
    times = [np.array([1000, 1100, 1200]), np.array([1050, 1200, 9999])]
    log = make_log([[0, 1, 2], [0, 2, 5]], times)
    scorer = RecentPopularity.fit(log, np.array([3, 2]), half_life=0.25)
    # The training events span 200 and a half-life is 50; the event at 9999 is not one of them.
    expected = torch.zeros(NUM_ITEMS)
    expected[0] = 2**-4 + 2**-3
    expected[1] = 2**-2
    expected[2] = 2.0
    torch.testing.assert_close(scores(scorer, [[3]])[0], expected)


def test_recent_popularity_of_a_single_moment_is_popularity():
    log = make_log([[0, 1, 1]], [np.array([5, 5, 5])])
    scorer = RecentPopularity.fit(log, np.array([3]))
    assert scores(scorer, [[0]])[0, :3].tolist() == [1.0, 2.0, 0.0]


def counted_transitions(histories, train_end, window, neighbours):
    """Shares of what follows each item, the largest ``neighbours`` of them."""
    counts = defaultdict(Counter)
    for history, end in zip(histories, train_end, strict=True):
        for place in range(end):
            for distance in range(1, min(window, end - 1 - place) + 1):
                counts[history[place]][history[place + distance]] += 1 / distance
    shares = {}
    for item, following in counts.items():
        total = sum(following.values())
        best = sorted(following.items(), key=lambda entry: (-round(entry[1], 9), entry[0]))
        shares[item] = {other: count / total for other, count in best[:neighbours]}
    return shares


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("neighbours", [2, 100])
def test_transitions_against_counting(histories, train_end, window, neighbours):
    log = make_log(histories)
    scorer = ItemTransitions.fit(
        log, train_end, window=window, neighbours=neighbours, recent=3, decay=0.5
    )
    shares = counted_transitions(histories, train_end, window, neighbours)
    asked = [[1, 2, 3, 4, 5], [7], [11], [4, 4]]
    expected = torch.zeros(len(asked), NUM_ITEMS)
    for row, history in enumerate(asked):
        for age, item in enumerate(reversed(history[-3:])):
            for other, share in shares.get(item, {}).items():
                expected[row, other] += share * 0.5**age
    ours = scores(scorer, asked)
    # Popularity is added below the smallest share that a transition can give.
    least = min(share for each in shares.values() for share in each.values()) * 0.25
    backoff = scores(scorer, [[11]])
    torch.testing.assert_close(ours, expected + backoff)
    popularity = scores(Popularity.fit(log, train_end), [[11]])
    torch.testing.assert_close(backoff, popularity / popularity.max() * least / 2)


def test_transitions_are_stored_sparsely(histories, train_end):
    scorer = ItemTransitions.fit(make_log(histories), train_end, window=3, neighbours=2)
    assert len(scorer.keys) <= 2 * NUM_ITEMS
    assert max(each.numel() for each in scorer.buffers()) < NUM_ITEMS**2


def test_chunks_of_scores_are_the_whole(histories, train_end):
    log = make_log(histories)
    for scorer in (
        Popularity.fit(log, train_end),
        RecentPopularity.fit(log, train_end),
        ItemTransitions.fit(log, train_end),
    ):
        queries = scorer.queries(pack([[1, 2, 3], [0], [5, 4]]))
        assert len(queries) == 3
        whole = scorer.scores(queries, 0, NUM_ITEMS)
        parts = [scorer.scores(queries, start, start + 4) for start in (0, 4, 8)]
        assert torch.equal(torch.cat(parts, 1), whole)
        assert whole.dtype == torch.float32


def test_last_events_are_asked_about_latest_first(histories, train_end):
    scorer = ItemTransitions.fit(make_log(histories), train_end, recent=3)
    assert scorer.queries(pack([[1, 2, 3, 4], [7], [8, 9]])).tolist() == [
        [4, 3, 2],
        [7, -1, -1],
        [9, 8, -1],
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window is 0"),
        ({"neighbours": 0}, "neighbours is 0"),
        ({"recent": 0}, "recent is 0"),
        ({"decay": 0.0}, "decay is 0.0"),
    ],
    ids=["window", "neighbours", "recent", "decay"],
)
def test_transition_options_out_of_bounds(histories, train_end, options, message):
    with pytest.raises(ConfigError, match=message):
        ItemTransitions.fit(make_log(histories), train_end, **options)


def test_half_life_must_be_positive(histories, train_end):
    with pytest.raises(ConfigError, match="half_life is 0"):
        RecentPopularity.fit(make_log(histories), train_end, half_life=0)


def test_no_training_events(histories):
    with pytest.raises(DataError, match="no events to train on"):
        Popularity.fit(make_log(histories), np.zeros(5, dtype=int))


def test_transitions_of_a_prepared_log(tiny_log):
    """On a ring of items the next item is the neighbour."""
    scorer = ItemTransitions.fit(tiny_log, np.diff(tiny_log.offsets))
    longest = int(np.diff(tiny_log.offsets).argmax())
    history = tiny_log.history(longest).items
    batch = pack([history[:-1], history[:-20]])
    ranked = scorer.scores(scorer.queries(batch), 0, tiny_log.num_items)
    assert ranked[0].argmax() == history[-1]
    assert ranked[1].argmax() == history[-20]
