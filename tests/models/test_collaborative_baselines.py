"""Item-kNN and EASE against their definitions in plain NumPy."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_baselines import NUM_ITEMS, make_log, scores

from blossomrec.data.batch import pack
from blossomrec.errors import ConfigError, DataError
from blossomrec.models.baselines import Ease, ItemKNN, Popularity, ease, neighbours

ASKED = [[1, 2, 3, 4, 5, 6, 7], [7], [4, 4, 2]]


@pytest.fixture
def log():
    rng = np.random.default_rng(3)
    return make_log([rng.integers(0, NUM_ITEMS - 1, n) for n in (9, 3, 30, 2, 6, 5, 8)])


@pytest.fixture
def train_end():
    return np.array([7, 0, 20, 1, 4, 5, 8])


def met(log, train_end):
    """Users by items, 1 where a training event is."""
    table = np.zeros((log.num_users, NUM_ITEMS))
    for user, end in enumerate(train_end):
        start = log.offsets[user]
        table[user, log.items[start : start + end]] = 1
    return table


def similarities(log, train_end, kind):
    table = met(log, train_end)
    users_of = np.maximum(table.sum(0), 1)
    if kind == "cosine":
        weights = table / np.sqrt(users_of)
    else:
        lengths = np.maximum(table.sum(1), 1)
        damped = 1.2 * (0.25 + 0.75 * lengths / lengths.mean())
        weights = table * (2.2 / (damped + 1))[:, None] * np.log1p(len(table) / users_of)
    found = weights.T @ weights
    np.fill_diagonal(found, 0)
    return found


@pytest.mark.parametrize("held", [1, 30, 1 << 20])
@pytest.mark.parametrize("kind", ["bm25", "cosine"])
def test_neighbours_are_items_of_the_same_users(log, train_end, kind, held, monkeypatch):
    monkeypatch.setattr(neighbours, "HELD", held)
    options = {"recent": 3, "decay": 0.5, "neighbours": NUM_ITEMS}
    scorer = ItemKNN.fit(log, train_end, similarity=kind, **options)
    similar = similarities(log, train_end, kind)
    wanted = np.zeros((len(ASKED), NUM_ITEMS))
    for row, history in enumerate(ASKED):
        for age, item in enumerate(reversed(history[-3:])):
            wanted[row] += similar[item] * 0.5**age
    # Popularity, for what nobody is near to, stays below the smallest similarity.
    popular = scores(Popularity.fit(log, train_end), ASKED[:1])[0]
    wanted += (popular / popular.max()).numpy() * similar[similar > 0].min() * 0.25 / 2
    torch.testing.assert_close(scores(scorer, ASKED), torch.from_numpy(wanted).float())


def test_only_the_nearest_are_kept(log, train_end):
    scorer = ItemKNN.fit(log, train_end, neighbours=2, recent=1)
    similar = similarities(log, train_end, "bm25")
    for item in range(NUM_ITEMS):
        kept = scorer.keys[scorer.keys // NUM_ITEMS == item] % NUM_ITEMS
        largest = [value for value in sorted(similar[item])[-2:] if value > 0]
        assert sorted(similar[item][kept.numpy()]) == pytest.approx(largest)


def test_ease_is_ridge_regression_on_all_other_items(log, train_end):
    scorer = Ease.fit(log, train_end, ridge=3.0)
    table = met(log, train_end)
    wanted = np.zeros((NUM_ITEMS, NUM_ITEMS))
    for item in range(NUM_ITEMS):
        others = np.flatnonzero(np.arange(NUM_ITEMS) != item)
        gram = table[:, others].T @ table[:, others] + 3.0 * np.eye(len(others))
        wanted[others, item] = np.linalg.solve(gram, table[:, others].T @ table[:, item])
    expected = np.stack([wanted[sorted(set(history))].sum(0) for history in ASKED])
    torch.testing.assert_close(scores(scorer, ASKED), torch.from_numpy(expected).float())


@pytest.mark.parametrize("kind", [Ease, ItemKNN])
def test_batches_and_tiles_change_little(log, train_end, kind):
    scorer = kind.fit(log, train_end)
    queries = scorer.queries(pack(ASKED))
    whole = scorer.scores(queries, 0, NUM_ITEMS)
    tiles = [scorer.scores(queries, start, start + 4) for start in range(0, NUM_ITEMS, 4)]
    assert whole.dtype == torch.float32
    torch.testing.assert_close(torch.cat(tiles, 1), whole)
    torch.testing.assert_close(torch.cat([scores(scorer, [one]) for one in ASKED]), whole)


def test_a_catalogue_too_large_for_a_dense_matrix_is_refused():
    large = SimpleNamespace(folder="a log", num_items=ease.MOST_ITEMS + 1)
    with pytest.raises(DataError, match=r"a log has 20,001 items: .* at most 20,000"):
        Ease.fit(large, np.array([3]))


@pytest.mark.parametrize(
    "kind, options, message",
    [
        (ItemKNN, {"similarity": "jaccard"}, "similarity is 'jaccard': choose one of bm25, cosine"),
        (ItemKNN, {"neighbours": 0}, "neighbours is 0"),
        (ItemKNN, {"recent": 0}, "recent is 0"),
        (ItemKNN, {"decay": 2.0}, r"decay is 2\.0"),
        (Ease, {"ridge": 0.0}, r"ridge is 0\.0"),
    ],
)
def test_options_out_of_bounds(log, train_end, kind, options, message):
    with pytest.raises(ConfigError, match=message):
        kind.fit(log, train_end, **options)


@pytest.mark.parametrize("kind", [Ease, ItemKNN])
def test_no_training_events(log, kind):
    with pytest.raises(DataError, match="no events to train on"):
        kind.fit(log, np.zeros(7, dtype=int))
