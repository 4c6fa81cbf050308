"""Re-rankers in the library: what they get, what may come back, and what is told of the rest."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from blossomrec.data.log import EventLog
from blossomrec.errors import ConfigError, RerankerError
from blossomrec.recommender import BlossomRec
from blossomrec.registry import RERANKERS
from blossomrec.rules import Rules
from command_line import refuse
from small_options import SMALL

pytestmark = pytest.mark.usefixtures("one_thread", "wide_terminal")


@pytest.fixture(scope="module")
def items(tiny_events):
    ids = tiny_events["item_id"].unique().sort()
    brands = np.random.default_rng(1).choice(["a", "b", "c", "d"], len(ids))
    return pl.DataFrame({"item_id": ids, "brand": brands})


@pytest.fixture(scope="module")
def run(tiny_events, items, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reranked")
    log = EventLog.prepare(tiny_events, folder / "log", items=items)
    BlossomRec(**SMALL | {"epochs": 1}).fit(log, folder / "run", progress=False)
    return folder / "run"


@pytest.fixture
def recommender(run):
    return BlossomRec.from_pretrained(run)


@pytest.fixture
def named(monkeypatch):
    """Puts a re-ranker under the name "own" for a test."""
    monkeypatch.setattr(RERANKERS, "_registered", {})
    return RERANKERS.register("own")


def backwards(candidates):
    return list(zip(candidates.items, candidates.scores, strict=True))[::-1]


def test_a_new_order_of_the_best_items(recommender, named):
    given = []

    @named
    def reranker(candidates):
        given.append(candidates)
        return [(item, -score) for item, score in backwards(candidates)]

    user = recommender.log.user_vocabulary.ids([5])[0]
    usual = recommender.recommend([user], 12)
    rules = Rules(reranker="own", rerank_depth=12, boost=[("true", 1.0)])
    found = recommender.recommend([user], 4, rules=rules)
    assert found["item_id"].to_list() == usual["item_id"].to_list()[:-5:-1]
    assert np.allclose(found["score"], -usual["score"].to_numpy()[:-5:-1] - 1, atol=1e-5)
    (candidates,) = given
    assert candidates.items == usual["item_id"].to_list() and len(candidates.scores) == 12
    assert (candidates.k, candidates.user, candidates.kind) == (4, user, None)
    log = recommender.log
    assert candidates.at == log.last_second
    shown = log.item_vocabulary.ids(log.history(5).items).to_list()
    assert candidates.history == shown[-recommender.config.model.max_len :]


def test_k_is_the_least_depth_and_fewer_may_come_back(recommender, named):
    named(lambda candidates: backwards(candidates)[::2])
    found = recommender.recommend([1001], 9, rules=Rules(reranker="own", rerank_depth=1))
    usual = recommender.recommend([1001], 9)
    assert found["item_id"].to_list() == usual["item_id"].to_list()[::-2]


def test_limits_choose_from_what_comes_back(recommender, items, named):
    named(backwards)
    rules = Rules(reranker="own", rerank_depth=30, max_per={"brand": 1})
    found = recommender.recommend([1001], 4, rules=rules)
    usual = (
        recommender.recommend([1001], 30).reverse().join(items, on="item_id", maintain_order="left")
    )
    wanted = usual.unique("brand", keep="first", maintain_order=True)["item_id"].to_list()
    assert found["item_id"].to_list() == wanted[:4]


def test_a_class_is_made_once_and_may_keep_something(recommender, named, tmp_path):
    made = []

    @named
    class Counting:
        def __init__(self):
            made.append(self)
            self.users = []

        def __call__(self, candidates):
            self.users.append(candidates.user)
            return backwards(candidates)

    rules = Rules(reranker="own", rerank_depth=20)
    written = recommender.recommend_all(tmp_path / "out.parquet", k=3, rules=rules, progress=False)
    users = recommender.log.user_vocabulary.read().to_list()
    assert [sorted(one.users) for one in made] == [users]
    found = pl.read_parquet(written.files)
    assert found.drop("score").equals(recommender.recommend(k=3, rules=rules).drop("score"))


def test_the_fallback_is_given_a_new_order_too(recommender, named, tiny_events, tmp_path):
    users = []

    @named
    def reranker(candidates):
        users.append((candidates.user, candidates.history))
        return backwards(candidates)

    strangers = pl.DataFrame({"user_id": [5, 6], "item_id": [1, 2], "timestamp": [1.7e9] * 2})
    table = pl.concat([tiny_events, strangers.cast({"timestamp": pl.Int64})])
    recommender.log = EventLog.prepare(table, tmp_path / "log")
    rules = {"fallback": "recent-popularity"}
    with pytest.warns(UserWarning):
        usual = recommender.recommend([5, 6], 80, rules=Rules(**rules))
        mine = Rules(**rules, reranker="own", rerank_depth=80)
        found = recommender.recommend([5, 6], 80, rules=mine)
    for user in (5, 6):
        wanted = usual.filter(user_id=user)["item_id"].to_list()[::-1]
        assert found.filter(user_id=user)["item_id"].to_list() == wanted
    assert users == [(5, []), (6, [])]


def raising(candidates):
    raise KeyError("no such margin")


@pytest.mark.parametrize(
    "reranker, words",
    [
        (raising, "failed for user 1001: KeyError: 'no such margin'"),
        (lambda c: 3, "failed for user 1001: TypeError"),
        (lambda c: c.items, r"gave \d+ at 0 for user 1001: an item and its score are needed"),
        (lambda c: [(c.items[0], 1.0), (1, 2.0)], r"gave \(1, 2.0\) at 1 .* none of the 20 items"),
        (lambda c: [(c.items[0], 1.0)] * 2, "at 1 for user 1001: it was given before"),
        (lambda c: [(c.items[0], float("nan"))], "a score is a finite number"),
        (lambda c: [(c.items[0], 1e39)], "a score is a finite number"),
        (lambda c: [(c.items[0], "much")], "a score is a finite number"),
        (lambda c: [([], 1.0)], "it is none of the 20 items"),
    ],
)
def test_what_is_no_new_order_is_an_error(recommender, named, reranker, words):
    named(reranker)
    with pytest.raises(RerankerError, match=f"reranker 'own' .*{words}"):
        recommender.recommend([1001], 5, rules=Rules(reranker="own", rerank_depth=20))


def test_a_class_that_cannot_be_made_is_an_error(recommender, named):
    @named
    class Broken:
        def __init__(self):
            raise OSError("margins.csv is not there")

    with pytest.raises(RerankerError, match=r"'own' cannot be made: OSError: margins\.csv"):
        recommender.recommend([1001], rules=Rules(reranker="own"))


def test_names_and_depths_are_checked(monkeypatch):
    monkeypatch.setattr(RERANKERS, "_registered", {})
    with pytest.raises(ConfigError, match="reranker is 'own': there is no reranker here"):
        Rules(reranker="own")
    with pytest.raises(ConfigError, match="rerank_depth is 0: it must be at least 1"):
        Rules(rerank_depth=0)


def test_on_the_command_line_and_in_files(cli, capsys, run, recommender, named, tmp_path):
    named(backwards)
    flags = ["--reranker", "own", "--rerank-depth", 15, "--k", 3]
    out = tmp_path / "recs.parquet"
    cli("recommend", run, "--all", "--out", out, *flags)
    wanted = recommender.recommend(k=3, rules=Rules(reranker="own", rerank_depth=15))
    assert pl.read_parquet(out).drop("score").equals(wanted.drop("score"))
    asked = ["recommend", run, "--all", "--out", out, "--k", 3]
    refuse(capsys, *asked, words=["is of another job", 'reranker: "own", now none'])
    refuse(capsys, *asked[:2], "--user", 1001, "--reranker", "none", words=["reranker is 'none'"])
