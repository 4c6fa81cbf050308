import warnings

import numpy as np
import polars as pl
import pytest
import torch

from blossomrec.data.batch import pack
from blossomrec.errors import ConfigError, DataError
from blossomrec.evaluation import scoring
from blossomrec.evaluation.top_k import TopK
from blossomrec.models.sasrec import SASRec
from blossomrec.recommendation import user_histories
from blossomrec.recommender import BlossomRec
from blossomrec.registry import BACKBONES
from small_options import SMALL

COLUMNS = ["user_id", "item_id", "score", "rank"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def recommender(tiny_log):
    """A recommender whose scores tell items apart. Read only."""
    return BlossomRec(**SMALL | {"epochs": 3}).fit(tiny_log, progress=False)


def item_ids(log, rows):
    return log.item_vocabulary.ids(rows).to_list()


def user_id(log, row):
    return log.user_vocabulary.ids([row])[0]


def expected(recommender, log, row, k, *, filter_viewed=True, items=None):
    """The best items by scoring one whole history alone, without anything of the recommender."""
    model, history = recommender.model, torch.tensor(log.history(row).items.copy()).long()
    shown = history[-model.max_len :]
    with torch.no_grad():
        hidden = model.encode(pack([shown])).hidden[-1]
        scores = model.item_embeddings.weight @ hidden
    if filter_viewed:
        scores[history] = -torch.inf
    if items is not None:
        left_out = torch.ones(len(scores), dtype=torch.bool)
        left_out[torch.tensor(items)] = False
        scores[left_out] = -torch.inf
    order = scores.argsort(descending=True)[:k]
    order = order[scores[order] > -torch.inf]
    return item_ids(log, order.numpy()), scores[order].numpy()


def test_recommendations_are_the_best_next_items(recommender, tiny_log):
    rows = [3, 59, 17]
    users = [user_id(tiny_log, row) for row in rows]
    frame = recommender.recommend(users, 7)
    assert frame.columns == COLUMNS
    assert frame["user_id"].to_list() == np.repeat(users, 7).tolist()
    assert frame["rank"].to_list() == [1, 2, 3, 4, 5, 6, 7] * 3
    for row, user in zip(rows, users, strict=True):
        own = frame.filter(pl.col("user_id") == user)
        items, scores = expected(recommender, tiny_log, row, 7)
        assert own["item_id"].to_list() == items
        assert own["score"].to_list() == pytest.approx(scores, abs=1e-5)


def test_a_trained_model_finds_the_next_item_of_the_ring(recommender, tiny_log):
    """Histories walk along a ring of items, so that the next one is known."""
    frame = recommender.recommend(k=5)
    found = 0
    for row in range(tiny_log.num_users):
        last = item_ids(tiny_log, tiny_log.history(row).items[-1:])[0]
        follows = ((last - 50_003) // 7 + 1) % 80 * 7 + 50_003
        own = frame.filter(pl.col("user_id") == user_id(tiny_log, row))
        found += follows in own["item_id"].to_list()
    # Chance finds it for 60 * 5 / 80, which is under 4 of the users.
    assert found > 12


def test_viewed_items_and_only_they_are_left_out(recommender, tiny_log):
    every = set(tiny_log.item_vocabulary.ids(np.arange(tiny_log.num_items)))
    for row in (0, 30):
        user, history = user_id(tiny_log, row), tiny_log.history(row).items
        viewed = set(item_ids(tiny_log, history))
        left = recommender.recommend([user], 1_000)["item_id"].to_list()
        assert len(left) == len(set(left))
        assert set(left) == every - viewed
        everything = recommender.recommend([user], 1_000, filter_viewed=False)
        assert set(everything["item_id"]) == every
        kept = everything.filter(~pl.col("item_id").is_in(viewed))["item_id"].to_list()
        assert kept == left


def test_items_viewed_before_the_longest_history_of_the_model_are_left_out(recommender, tiny_log):
    lengths = np.diff(np.asarray(tiny_log.offsets))
    row = int(lengths.argmax())
    assert lengths[row] > recommender.config.model.max_len
    first = item_ids(tiny_log, tiny_log.history(row).items[:1])[0]
    frame = recommender.recommend([user_id(tiny_log, row)], 1_000)
    assert first not in frame["item_id"].to_list()


def test_items_are_chosen_from_those_given(recommender, tiny_log):
    user = user_id(tiny_log, 5)
    viewed = tiny_log.history(5).items
    unseen = np.setdiff1d(np.arange(tiny_log.num_items), viewed)[:6]
    chosen = np.concatenate([unseen, viewed[:2]])
    ids = item_ids(tiny_log, chosen)
    frame = recommender.recommend([user], 4, items=ids)
    assert frame["item_id"].to_list() == expected(recommender, tiny_log, 5, 4, items=chosen)[0]
    frame = recommender.recommend([user], 100, items=iter(ids + ids))
    assert sorted(frame["item_id"]) == sorted(item_ids(tiny_log, unseen))
    frame = recommender.recommend([user], 100, items=ids, filter_viewed=False)
    assert sorted(frame["item_id"]) == sorted(ids)


def test_none_is_everybody_in_parts_of_any_size(recommender, tiny_log, monkeypatch):
    whole = recommender.recommend(k=3)
    everybody = tiny_log.user_vocabulary.ids(np.arange(tiny_log.num_users)).to_list()
    assert whole["user_id"].unique(maintain_order=True).to_list() == everybody
    parts, rank = [], TopK.of

    def counted(self, batch, *options):
        parts.append((batch.num_histories, len(batch.items)))
        return rank(self, batch, *options)

    monkeypatch.setattr(TopK, "of", counted)
    for users, events, many in ((7, 65_536, 9), (1_024, 50, 15)):
        monkeypatch.setattr(user_histories, "USERS_AT_ONCE", users)
        monkeypatch.setattr(user_histories, "EVENTS_AT_ONCE", events)
        parts.clear()
        again = recommender.recommend(k=3)
        assert again.drop("score").equals(whole.drop("score"))
        assert np.allclose(again["score"], whole["score"], atol=1e-5)
        assert len(parts) >= many
        assert max(part[0] for part in parts) <= users
        assert max(part[1] for part in parts) <= events
        # An iterator can be read only once, whatever the number of parts.
        ids = item_ids(tiny_log, np.arange(40))
        chosen = recommender.recommend(k=3, items=iter(ids))
        assert set(chosen["item_id"]) <= set(ids)
        assert chosen["user_id"].n_unique() > 50


def test_a_user_of_the_log_is_a_history_like_any_other(recommender, tiny_log):
    for row in (2, 40):
        history = item_ids(tiny_log, tiny_log.history(row).items)
        for options in ({}, {"filter_viewed": False}, {"items": history[:3], "k": 2}):
            of_user = recommender.recommend([user_id(tiny_log, row)], **options)
            of_history = recommender.recommend_history(history, **options)
            assert of_history.columns == ["item_id", "score", "rank"]
            assert of_history.drop("score").equals(of_user.drop("user_id", "score"))
            assert np.allclose(of_history["score"], of_user["score"], atol=1e-5)


def test_users_may_come_twice_and_from_any_list(recommender, tiny_log):
    users = tiny_log.user_vocabulary.ids([4, 2, 4])
    frames = [
        recommender.recommend(given, 2)
        for given in (users, users.to_list(), users.to_numpy(), iter(map(str, users)))
    ]
    assert frames[0]["user_id"].to_list() == np.repeat(users.to_numpy(), 2).tolist()
    assert all(frame.equals(frames[0]) for frame in frames)


def test_who_has_viewed_everything_gets_nothing(recommender, tiny_log):
    everything = item_ids(tiny_log, np.arange(tiny_log.num_items))
    frame = recommender.recommend_history(everything)
    assert frame.columns == ["item_id", "score", "rank"]
    assert frame.height == 0
    # However many are asked for, memory is taken for no more than there are.
    assert recommender.recommend_history(everything[:-2], 10**12).height == 2
    user = user_id(tiny_log, 8)
    only = item_ids(tiny_log, tiny_log.history(8).items)
    assert recommender.recommend([user], items=only).columns == COLUMNS
    assert recommender.recommend([user], items=only).height == 0


@pytest.mark.parametrize(
    "users, words",
    [
        ([1001, 5], "unknown user 5"),
        (["nobody"], "unknown user 'nobody'"),
        (np.array([7]), "unknown user 7"),
        (list(range(1, 8)), "unknown user 1, 2, 3, 4, 5 and 2 more"),
        ([None], "user[0] is None: an id is a whole number or text, such as 12 or '12'"),
        ([1001, 12.0], "user[1] is 12.0: an id is a whole number or text, such as 12 or '12'"),
        ("12", "'12' is not a list of ids: give a list of users, such as ['12']"),
        (b"12", "b'12' is not a list of ids: give a list of users"),
        (1001, "1001 is not a list of ids: give a list of users, such as [1001]"),
        ([], "no user is given"),
    ],
)
def test_unknown_users_are_named(recommender, users, words):
    with pytest.raises(DataError) as error:
        recommender.recommend(users)
    assert str(error.value) == words


def test_unknown_items_to_choose_from_are_named(recommender):
    with pytest.raises(DataError, match="unknown item 4"):
        recommender.recommend(items=[50_003, 4])
    with pytest.raises(DataError, match="no item is given"):
        recommender.recommend(items=[])
    with pytest.raises(DataError, match="unknown item 'x'"):
        recommender.recommend_history([50_003], items=["x"])


@pytest.mark.parametrize("text", ["50003", "", b"50003", 50_003])
def test_text_is_no_list_of_items(recommender, text):
    for ask in (
        lambda: recommender.recommend_history(text),
        lambda: recommender.similar_items(text),
        lambda: recommender.recommend(items=text),
        lambda: recommender.recommend_history([50_003], items=text),
    ):
        with pytest.raises(DataError, match="is not a list of ids: give a list of items"):
            ask()


def test_what_is_no_id_is_refused_not_skipped(recommender):
    for wrong in (None, float("nan"), 50_003.0, np.float64(50_003), True, b"50003"):
        with pytest.raises(DataError, match=r"item\[1\] is .*: an id is a whole number or text"):
            recommender.recommend_history([50_003, wrong])
    with pytest.raises(DataError, match="has no order: give a list of items, oldest first"):
        recommender.recommend_history({50_003, 50_010})
    users = recommender.recommend({1001}, 2, items={50_003, 50_010, 50_017})
    assert users["user_id"].unique().to_list() == [1001]


@pytest.mark.parametrize("k", [1.5, "3", None, True])
def test_k_is_a_whole_number(recommender, k):
    with pytest.raises(ConfigError, match=r"k is .*: a whole number is needed"):
        recommender.recommend_history([50_003], k)
    with pytest.raises(ConfigError, match=r"max_len is 1\.5: a whole number is needed"):
        recommender.recommend_history([50_003], max_len=1.5)


@pytest.mark.parametrize("k", [0, -3])
def test_k_is_at_least_one(recommender, k):
    for ask in (
        lambda: recommender.recommend(k=k),
        lambda: recommender.recommend_history([50_003], k),
        lambda: recommender.similar_items([50_003], k),
    ):
        with pytest.raises(ConfigError, match=f"k is {k}: it must be at least 1"):
            ask()


def test_unknown_items_of_a_history_are_skipped_with_a_warning(recommender):
    known = [50_003, 50_010, 50_017]
    with pytest.warns(UserWarning, match=r"2 of 5 items of the history .* skipped: 5, 'x'$"):
        frame = recommender.recommend_history([50_003, 5, 50_010, "x", 50_017])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert frame.equals(recommender.recommend_history(known))


def test_unknown_items_of_a_history_are_refused_where_asked_for(recommender):
    with pytest.raises(DataError, match=r"unknown item 5, 6$"):
        recommender.recommend_history([50_003, 5, 6], unknown="refuse")
    assert recommender.recommend_history([50_003], unknown="refuse").height == 10
    with pytest.raises(ConfigError, match="unknown is 'drop'"):
        recommender.recommend_history([50_003], unknown="drop")


@pytest.mark.filterwarnings("ignore:.*are unknown and skipped")
def test_a_history_needs_an_item_that_is_known(recommender):
    with pytest.raises(DataError, match="an empty history has no item that the model knows"):
        recommender.recommend_history([])
    with pytest.raises(DataError, match="the history 5, 6 has no item that the model knows"):
        recommender.recommend_history([5, 6])


def test_histories_may_be_typed_as_strings(recommender):
    ids = [50_003, 50_010]
    frame = recommender.recommend_history(ids)
    assert recommender.recommend_history([str(one) for one in ids]).equals(frame)
    assert recommender.recommend_history(np.array(ids)).equals(frame)
    assert recommender.recommend_history(pl.Series(ids)).equals(frame)
    assert frame["item_id"].dtype == pl.Int64


def test_similar_items_are_the_closest_by_cosine(recommender, tiny_log, monkeypatch):
    weight = recommender.model.item_embeddings.weight.detach().numpy().astype(np.float64)
    table = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    rows = [9, 0, 33]
    ids = item_ids(tiny_log, rows)
    for elements in (1 << 26, 100):
        monkeypatch.setattr(scoring, "SCORE_ELEMENTS", elements)
        frame = recommender.similar_items(ids, 6)
        assert frame.columns == ["item_id", "similar_id", "score", "rank"]
        assert frame["item_id"].to_list() == np.repeat(ids, 6).tolist()
        assert frame["rank"].to_list() == [1, 2, 3, 4, 5, 6] * 3
        for number, row in enumerate(rows):
            cosine = table @ table[row]
            cosine[row] = -2
            best = np.argsort(-cosine)[:6]
            own = frame[6 * number : 6 * number + 6]
            assert own["similar_id"].to_list() == item_ids(tiny_log, best)
            assert own["score"].to_list() == pytest.approx(cosine[best], abs=1e-5)


def test_similar_items_leaves_an_item_itself_out(recommender, tiny_log):
    own = item_ids(tiny_log, [3])[0]
    frame = recommender.similar_items([own], 1_000)
    assert frame.height == tiny_log.num_items - 1
    assert own not in frame["similar_id"].to_list()
    assert (frame["score"].diff().drop_nulls() <= 0).all()
    with pytest.raises(DataError, match="unknown item 4"):
        recommender.similar_items([4])
    with pytest.raises(DataError, match="no item is given"):
        recommender.similar_items([])


@pytest.mark.parametrize("graph", ["on", "off"])
def test_times_travel_from_the_log_to_a_backbone_that_takes_them(tiny_log, monkeypatch, graph):
    latest = []

    class Timed(SASRec):
        inputs = ("items", "times")

        def embed(self, batch):
            assert batch.times.shape == batch.items.shape
            latest.append(int(batch.times.max()))
            return super().embed(batch)

    monkeypatch.setitem(BACKBONES._registered, "timed", Timed)
    options = SMALL | {"epochs": 1, "graph": graph}
    timed = BlossomRec(**options | {"backbone": "timed"}).fit(tiny_log, progress=False)
    plain = BlossomRec(**options).fit(tiny_log, progress=False)
    assert timed.recommend(k=4).equals(plain.recommend(k=4))
    assert timed.evaluate().metrics == plain.evaluate().metrics
    assert max(latest) == tiny_log.timestamps.max()
    # Of a list of items it is not known when they were.
    timed.recommend_history(item_ids(tiny_log, [3]))
    assert latest[-1] == -1
