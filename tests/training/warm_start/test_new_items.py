"""Where new items begin: near what they are like, and no higher than rare items."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from two_periods import begin

from blossomrec.config import EvaluationConfig
from blossomrec.data.batches import HistoryBatches
from blossomrec.data.split import make_split
from blossomrec.training.setup import training_counts
from blossomrec.training.warm_start.new_items import REACH, NewItems


def train_end_of(log):
    return make_split(log, EvaluationConfig()).train_end


def made(counts, around, alike=None):
    """New items among known ones with so many events."""
    known = np.arange(len(counts))
    fresh = len(counts) + np.arange(len(around))
    sparse = None if alike is None else csr_array(np.array(alike, float))
    return NewItems(fresh, known, np.array(counts), csr_array(np.array(around, float)), sparse)


def test_what_stands_near_new_items_is_counted_by_distance(both_log):
    is_fresh = np.random.default_rng(0).random(both_log.num_items) < 0.2
    train_end = train_end_of(both_log)
    expected = Counter()
    for row, end in enumerate(train_end):
        start = both_log.offsets[row]
        items = both_log.items[start : start + end].tolist()
        for place, item in enumerate(items):
            for other, neighbour in enumerate(items):
                distance = abs(place - other)
                if is_fresh[item] and not is_fresh[neighbour] and 0 < distance <= REACH:
                    expected[item, neighbour] += 1 / distance
    new = NewItems.of(both_log, train_end, is_fresh)
    found = new.around.toarray()
    assert found.sum() == pytest.approx(sum(expected.values()))
    for (item, neighbour), weight in expected.items():
        place = np.flatnonzero(new.fresh == item), np.flatnonzero(new.known == neighbour)
        assert found[place] == pytest.approx(weight)
    counts = training_counts(both_log, train_end)
    assert np.array_equal(new.counts, counts[new.known])


def test_with_nothing_known_they_are_the_mean_of_the_rarest():
    rng = np.random.default_rng(1)
    counts, table = [*range(1, 31)], torch.from_numpy(rng.normal(size=(30, 5))).float()
    new = made(counts, np.zeros((2, 30)))
    expected = table[:10].mean(0)
    torch.testing.assert_close(new.embeddings(table), expected.expand(2, 5))
    assert new.told == (0, 0, 2)


def test_items_without_an_event_are_not_the_rarest():
    counts = [0] * 20 + [*range(1, 21)]
    assert made(counts, np.zeros((1, 40))).rare.tolist() == list(range(20, 30))


def test_they_begin_toward_their_neighbours_with_the_size_of_rare_items():
    rng = np.random.default_rng(2)
    # Two groups in two directions, and a third direction that tells how often an item is met.
    group = np.arange(60) % 2
    counts = np.repeat(2 ** np.arange(1, 7), 10)
    table = rng.normal(scale=0.1, size=(60, 8))
    table[np.arange(60), group] += 1.0
    table[:, 2] += np.log(counts)
    frequent = np.zeros((2, 60))
    frequent[0, 50:60:2] = 3  # the most popular items of group 0
    frequent[1, 51:60:2] = 3  # and of group 1
    new = made(counts, frequent)
    tensor = torch.from_numpy(table).float()
    found = new.embeddings(tensor).numpy()
    assert found[0, 0] > found[0, 1] + 0.5 and found[1, 1] > found[1, 0] + 0.5
    size = np.median(np.linalg.norm(table[new.rare], axis=1))
    assert np.linalg.norm(found, axis=1) == pytest.approx([size, size], rel=1e-4)
    # As popular as rare items, not as their neighbours.
    assert found[:, 2] == pytest.approx(table[new.rare, 2].mean(), abs=0.3)
    assert table[50:, 2].min() > 3 > found[:, 2].max()


def test_content_counts_where_there_are_few_events():
    rng = np.random.default_rng(3)
    table = torch.from_numpy(rng.normal(size=(40, 6))).float()
    counts = rng.integers(1, 50, 40)
    by_content, by_events = np.zeros((1, 40)), np.zeros((1, 40))
    by_content[0, 7] = 1
    alone = made(counts, np.zeros((1, 40)), by_content)
    assert alone.told == (0, 1, 0)

    def closeness(new):
        placed = new.embeddings(table) - table[torch.from_numpy(new.rare)].mean(0)
        return torch.nn.functional.cosine_similarity(placed, table[[7, 9]] - table.mean(0)).tolist()

    towards_7, towards_9 = closeness(alone)
    assert towards_7 > 0.5 > towards_9
    by_events[0, 9] = 200
    many = made(counts, by_events, by_content)
    towards_7, towards_9 = closeness(many)
    assert towards_9 > 0.5 > towards_7
    assert many.told == (1, 0, 0)


def test_the_nearest_by_content_are_found(both_tables, seeing_run):
    begun = begin(both_tables, seeing_run)
    content = begun.model.content().detach()
    is_fresh = begun.items < 0
    new = NewItems.of(both_tables, train_end_of(both_tables), is_fresh, content)
    cosine = torch.nn.functional.cosine_similarity(
        content[new.fresh][:, None], content[new.known][None], dim=-1
    )
    for row, nearest in enumerate(cosine.topk(10).indices.tolist()):
        assert sorted(new.alike[[row]].indices.tolist()) == sorted(nearest)


@pytest.fixture(scope="module")
def begun(simulated):
    return begin(simulated.both, simulated.run)


def scores_of(model, log, rows=None):
    """Scores of the catalogue at each validation case of a log, with the targets."""
    cases = make_split(log, EvaluationConfig()).valid
    histories = HistoryBatches(
        log, cases.users, cases.history_end, max_len=model.max_len, tokens_per_batch=4_096
    )
    with torch.no_grad():
        queries = torch.cat([model.queries(batch) for _, batch in histories])
        found = model.scores(queries, 0, model.num_items)
    return found, torch.from_numpy(log.items[log.offsets[cases.users] + cases.history_end]).long()


def test_new_items_are_scored_as_rare_ones_are(simulated, begun):
    log, is_new = simulated.both, begun.items < 0
    assert is_new.sum() == 30 and begun.taken.placed[0] > 20
    counts = training_counts(log, train_end_of(log))
    known = np.flatnonzero(~is_new)
    by_count = known[np.argsort(counts[known], kind="stable")]
    scores, _ = scores_of(begun.model, log)
    ranks = (-scores).argsort(1).argsort(1).double().numpy() / log.num_items
    rare, usual = by_count[: len(by_count) // 10], by_count[len(by_count) // 10 :]
    mean = {
        name: float(scores[:, rows].mean())
        for name, rows in {"new": is_new, "rare": rare, "usual": usual}.items()
    }
    spread = float(scores[:, rare].mean(0).std())
    assert mean["new"] < mean["usual"]
    assert abs(mean["new"] - mean["rare"]) < 0.5 * spread
    assert abs(ranks[:, is_new].mean() - ranks[:, rare].mean()) < 0.1
    # In the first tenth no more often than any item, and some users do see them higher.
    assert (ranks[:, is_new] < 0.1).mean() < 0.1
    assert scores[:, is_new].std(0).mean() > 0.5 * scores[:, rare].std(0).mean()


def test_the_loss_on_old_events_does_not_jump(simulated, begun):
    scores, targets = scores_of(begun.old, simulated.first)
    before = torch.nn.functional.cross_entropy(scores, targets)
    rows = np.full(simulated.first.num_items, -1)
    rows[begun.items[begun.items >= 0]] = np.flatnonzero(begun.items >= 0)

    class Renumbered:
        """The first log in the numbers of the new model."""

        items, offsets = rows[simulated.first.items], simulated.first.offsets
        num_users = simulated.first.num_users
        has_times = False

        @staticmethod
        def columns(inputs):
            return {"items": rows[simulated.first.items]}

    cases = make_split(simulated.first, EvaluationConfig()).valid
    histories = HistoryBatches(
        Renumbered, cases.users, cases.history_end, max_len=40, tokens_per_batch=4_096
    )
    with torch.no_grad():
        queries = torch.cat([begun.model.queries(batch) for _, batch in histories])
        found = begun.model.scores(queries, 0, begun.model.num_items)
    after = torch.nn.functional.cross_entropy(found, torch.from_numpy(rows[targets.numpy()]))
    # A tenth of the items is new: each of them among the least likely.
    assert before < after < before + 0.1
    assert before < np.log(simulated.first.num_items) - 0.2
