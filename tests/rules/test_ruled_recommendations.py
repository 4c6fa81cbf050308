"""Rules of recommendations to users, one by one and in files."""

from __future__ import annotations

import warnings

import numpy as np
import polars as pl
import pytest

from blossomrec.data.log import EventLog
from blossomrec.errors import ConfigError, DataError, RunError
from blossomrec.recommender import BlossomRec
from blossomrec.rules import RERANKERS, Rules
from command_line import refuse
from small_options import SMALL

pytestmark = pytest.mark.usefixtures("one_thread", "wide_terminal")


@pytest.fixture(scope="module")
def items(tiny_events):
    """Price, stock and brands of every item, and vectors."""
    rng, ids = np.random.default_rng(1), tiny_events["item_id"].unique().sort()
    return pl.DataFrame(
        {
            "item_id": ids,
            "price": rng.integers(5, 30, len(ids)) * 1.0,
            "sold_out": rng.random(len(ids)) < 0.3,
            "brand": rng.choice(["a", "b", "c", "d"], len(ids)),
            "vector": rng.normal(size=(len(ids), 3)).tolist(),
        }
    )


@pytest.fixture(scope="module")
def place(tiny_events, items, tmp_path_factory):
    """A folder with a log that has a table of items, and a run that sees none of it."""
    folder = tmp_path_factory.mktemp("ruled")
    log = EventLog.prepare(tiny_events, folder / "log", items=items)
    BlossomRec(**SMALL | {"epochs": 2}).fit(log, folder / "run", progress=False)
    return folder


@pytest.fixture
def recommender(place):
    return BlossomRec.from_pretrained(place / "run")


def plain(recommender, user, **options):
    """Everything that may be recommended to a user without rules, best first."""
    return recommender.recommend([user], 1_000, **options).drop("user_id", "rank")


def test_filters_boosts_and_limits_are_those_of_all_scores_sorted(recommender, items):
    rules = Rules(
        filter="price < 25 and not sold_out",
        boost=[('brand == "a"', 0.05), ("price >= 20", -0.02)],
        max_per={"brand": 2},
    )
    users = recommender.log.user_vocabulary.ids([3, 17, 59]).to_list()
    found = recommender.recommend(users, 6, rules=rules)
    for user in users:
        all_of_them = plain(recommender, user).join(items, on="item_id").with_columns(
            score=pl.col("score")
            + pl.when(pl.col("brand") == "a").then(0.05).otherwise(0.0)
            - pl.when(pl.col("price") >= 20).then(0.02).otherwise(0.0)
        )  # fmt: skip
        allowed = all_of_them.filter((pl.col("price") < 25) & ~pl.col("sold_out"))
        wanted = (
            allowed.sort("score", descending=True)
            .with_columns(n=pl.col("brand").cum_count().over("brand"))
            .filter(pl.col("n") <= 2)
            .head(6)
        )
        own = found.filter(user_id=user)
        assert own["item_id"].to_list() == wanted["item_id"].to_list()
        assert np.allclose(own["score"], wanted["score"], atol=1e-5)
        assert own["rank"].to_list() == [*range(1, len(wanted) + 1)]


def test_k_items_are_found_where_there_are_k(recommender, items):
    """The filter comes before the list is cut."""
    cheap = items.filter(pl.col("price") < 8)["item_id"].to_list()
    found = recommender.recommend(k=3, filter_viewed=False, rules=Rules(filter="price < 8"))
    assert set(found["item_id"]) <= set(cheap) and len(cheap) >= 3
    assert (found.group_by("user_id").len()["len"] == 3).all()
    assert recommender.recommend(k=3, rules=Rules(filter="price<8"), items=cheap[:1]).height <= 60


def test_what_was_seen_long_ago_may_come_again(recommender):
    """Events of a user are a minute apart, and end at the same time or before."""
    log, day = recommender.log, 86_400
    row = int(np.diff(log.offsets).argmax())
    user, history = log.user_vocabulary.ids([row])[0], log.history(row)
    at = int(history.times[-1]) + 30
    rules = Rules(exclude_seen_days=10 * 60 / day)
    found = recommender.recommend([user], 1_000, at=at, rules=rules)
    late = history.items[history.times > at - 600]
    assert len(late) == 10
    left_out = set(recommender.items.read()) - set(found["item_id"])
    assert left_out == set(recommender.items.ids(late))


@pytest.mark.parametrize(
    "viewed, words", [(False, "leaves viewed items out"), (True, "lets older ones come again")]
)
def test_of_viewed_items_one_thing_is_said(recommender, viewed, words, tmp_path):
    rules = Rules(exclude_seen_days=3)
    told = f"filter_viewed is {viewed}, but exclude_seen_days {words}: give one of them"
    options = {"rules": rules, "filter_viewed": viewed}
    history = {"item_id": [50_003], "timestamp": [1_700_000_000]}
    with pytest.raises(ConfigError, match=told):
        recommender.recommend([1001], **options)
    with pytest.raises(ConfigError, match=told):
        recommender.recommend_all(tmp_path / "out.parquet", k=5, **options)
    with pytest.raises(ConfigError, match=told):
        recommender.recommend_history(history, at=1_700_000_060, **options)
    assert not list(tmp_path.iterdir())


def test_diversity_changes_the_order_by_vectors_of_the_model(recommender):
    user = recommender.log.user_vocabulary.ids([5])[0]
    usual = recommender.recommend([user], 5)
    found = recommender.recommend([user], 5, rules=Rules(diversity=0.9))
    assert found["item_id"][0] == usual["item_id"][0]
    assert found["item_id"].n_unique() == 5 and not found.equals(usual)
    pool = recommender.recommend([user], 50)
    assert set(found["item_id"]) <= set(pool["item_id"])


def test_who_has_no_known_item_gets_what_was_popular_of_late(recommender, tiny_events, tmp_path):
    strangers = pl.DataFrame({"user_id": [5, 5], "item_id": [1, 2], "timestamp": [1.7e9] * 2})
    some = tiny_events.filter(pl.col("user_id") < 1_060)
    last = some["timestamp"].max()
    # One item is bought again and again at the end.
    late = pl.DataFrame(
        {"user_id": [1001] * 40, "item_id": [50_003] * 40, "timestamp": [last] * 40}
    )
    table = pl.concat([some, late, strangers.cast({"timestamp": pl.Int64})])
    recommender.log = log = EventLog.prepare(table, tmp_path / "log")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert recommender.recommend([5]).height == 0
        found = recommender.recommend([5, 1004], 80, rules=Rules(fallback="recent-popularity"))
        usual = recommender.recommend([1004], 80)
    assert found.filter(user_id=1004).equals(usual)
    own = found.filter(user_id=5)
    first, span = log.summary["time"]["first"], log.summary["time"]["last"]
    weights = table.filter(pl.col("item_id") >= 50_003).select(
        "item_id", w=2.0 ** ((pl.col("timestamp") - span) / (span - first) / 0.1)
    )
    sums = weights.group_by("item_id").sum()
    total = sums["w"].sum()
    shares = {item: np.log((w + 1) / (total + 80)) for item, w in sums.iter_rows()}
    wanted = {each: shares.get(each, np.log(1 / (total + 80))) for each in recommender.items.read()}
    assert own["item_id"][0] == 50_003 and own.height == 80
    assert np.allclose(own["score"], [wanted[each] for each in own["item_id"]], atol=1e-5)
    assert (own["score"].diff().drop_nulls() <= 0).all()


def test_a_run_keeps_the_table_for_rules_and_no_vectors_unless_its_model_sees_them(
    place, recommender, items, tmp_path
):
    """A log without a table, as of a service, and what save_pretrained wrote."""
    assert recommender.model.features is None
    kept = recommender._item_table
    assert list(kept) == ["price", "sold_out", "brand"]
    log = EventLog.prepare(pl.read_parquet(_events(place, tmp_path)), tmp_path / "log")
    recommender.save_pretrained(tmp_path / "saved")
    rules = Rules(filter="price < 9")
    for folder in (place / "run", tmp_path / "saved"):
        other = BlossomRec.from_pretrained(folder, log)
        found = other.recommend([1001], 5, rules=rules)
        assert found.equals(recommender.recommend([1001], 5, rules=rules))
    (tmp_path / "saved" / "features" / "features.json").unlink()
    with pytest.raises(RunError, match=r"features\.json"):
        BlossomRec.from_pretrained(tmp_path / "saved", log)


def _events(place, folder):
    log = EventLog.open(place / "log")
    lengths = np.diff(log.offsets)
    path = folder / "events.parquet"
    pl.DataFrame(
        {
            "user_id": log.user_vocabulary.ids(np.repeat(np.arange(log.num_users), lengths)),
            "item_id": log.item_vocabulary.ids(log.items),
            "timestamp": np.asarray(log.timestamps),
        }
    ).write_parquet(path)
    return path


def test_the_table_of_the_day_goes_before_that_of_the_training(place, recommender, items, tmp_path):
    changed = items.with_columns(sold_out=~pl.col("sold_out"), price=pl.lit(1.0))
    events = pl.read_parquet(_events(place, tmp_path))
    # Items stand in other rows, since another one is the most popular.
    more = pl.concat([events, events.filter(item_id=events["item_id"].max())])
    other = BlossomRec.from_pretrained(
        place / "run", EventLog.prepare(more, tmp_path / "log", items=changed)
    )
    rules = {"filter": "not sold_out and price == 1"}
    stock = set(changed.filter(~pl.col("sold_out"))["item_id"])
    of_log = other.recommend([1001], 80, filter_viewed=False, rules=Rules(**rules))
    given = Rules(**rules, items=changed)
    of_rules = recommender.recommend([1001], 80, filter_viewed=False, rules=given)
    assert set(of_log["item_id"]) == set(of_rules["item_id"]) == stock


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"filter": "prise < 3"}, ConfigError, "filter: 'prise < 3', character 1: there is no"),
        ({"boost": [("brand < 3", 1)]}, ConfigError, r"boost\[0\]: 'brand < 3', character 1"),
        ({"max_per": {"price": 2}}, ConfigError, "no column of categories .* sold_out, brand"),
        ({"filter": "price < 1"}, DataError, "filter 'price < 1' leaves no item"),
    ],
)
def test_rules_that_do_not_fit_the_table_are_named(recommender, options, error, words):
    with pytest.raises(error, match=words):
        recommender.recommend([1001], rules=Rules(**options))


def test_days_need_times(ordered_log, place):
    other = BlossomRec.from_pretrained(place / "run", ordered_log)
    with pytest.raises(ConfigError, match="only tell an order"):
        other.recommend([1001], rules=Rules(exclude_seen_days=3))


def history_of(log, user):
    """All events of a user, as they are given by hand, and the moment after them."""
    (row,) = log.user_vocabulary.rows([user])
    history = log.history(row)
    given = {
        "item_id": log.item_vocabulary.ids(history.items),
        "timestamp": history.times.tolist(),
    }
    return given, int(history.times[-1]) + 30


@pytest.fixture
def backwards(monkeypatch):
    """A re-ranker that gives what it gets from the last to the first."""
    monkeypatch.setattr(RERANKERS, "_registered", {})

    @RERANKERS.register("backwards")
    def reranker(candidates):
        assert candidates.user in (None, 1001) and candidates.at > 0 and candidates.history
        return [*zip(candidates.items, candidates.scores, strict=True)][::-1]


@pytest.mark.parametrize(
    "options",
    [
        {"filter": "price < 20 and not sold_out"},
        {"boost": [('brand == "a"', 0.5)], "max_per": {"brand": 2}},
        {"diversity": 0.6},
        {"exclude_seen_days": 10 * 60 / 86_400},
        {"exclude_seen_days": 10 * 60 / 86_400, "filter": "price < 20", "max_per": {"brand": 3}},
        {"reranker": "backwards", "rerank_depth": 9},
        {"reranker": "backwards", "rerank_depth": 20, "max_per": {"brand": 1}},
        {"fallback": "recent-popularity"},
    ],
)
def test_a_history_that_is_given_is_ruled_as_that_of_a_user(recommender, backwards, options):
    rules = Rules(**options)
    given, at = history_of(recommender.log, 1001)
    wanted = recommender.recommend([1001], 8, at=at, rules=rules)
    found = recommender.recommend_history(given, 8, at=at, rules=rules)
    assert found.drop("score").equals(wanted.drop("user_id", "score"))
    assert np.allclose(found["score"], wanted["score"], atol=1e-5)


def test_a_history_without_a_known_item_gets_the_fallback(recommender):
    rules = Rules(fallback="recent-popularity", filter="price < 20", max_per={"brand": 2})
    with pytest.warns(UserWarning, match="are unknown and skipped"):
        found = recommender.recommend_history([1, 2], 5, rules=rules)
    assert found.equals(recommender.recommend_history([], 5, rules=rules))
    empty = Rules(fallback="recent-popularity")
    assert recommender.recommend_history([], 80, rules=empty)["score"].is_sorted(descending=True)
    for other in (None, Rules(filter="price < 20")):
        with pytest.raises(DataError, match="an empty history has no item"):
            recommender.recommend_history([], 5, rules=other)


def test_what_a_rule_lacks_for_a_history_is_named(recommender):
    given, at = history_of(recommender.log, 1001)
    days, fallback = Rules(exclude_seen_days=3), Rules(fallback="recent-popularity")
    with pytest.raises(ConfigError, match=r"exclude_seen_days is 3: .* comes without timestamps"):
        recommender.recommend_history(given["item_id"], at=at, rules=days)
    with pytest.raises(ConfigError, match="exclude_seen_days is 3: at, from which they count"):
        recommender.recommend_history(given, rules=days)
    # A log is needed for the fallback alone.
    recommender.log = None
    found = recommender.recommend_history(given, 80, at=at, rules=Rules(filter="price < 20"))
    assert 0 < found.height < 80
    with pytest.raises(ConfigError, match=r"fallback is 'recent-popularity': .* there is none"):
        recommender.recommend_history(given, at=at, rules=fallback)


def test_rules_on_the_command_line_and_in_files(cli, capsys, place, recommender, items, tmp_path):
    flags = ["--filter", "price < 25", "--boost", 'brand in ("a", "b"): 0.5', "sold_out: -1"]
    flags += ["--max-per", "brand=2", "sold_out=4", "--k", 4]
    rules = Rules(
        filter="price < 25",
        boost=[('brand in ("a", "b")', 0.5), ("sold_out", -1)],
        max_per={"brand": 2, "sold_out": 4},
    )
    out = tmp_path / "recs.parquet"
    cli("recommend", place / "run", "--all", "--out", out, *flags)
    wanted = recommender.recommend(k=4, rules=rules)
    assert pl.read_parquet(out).drop("score").equals(wanted.drop("score"))
    items.write_parquet(tmp_path / "items.parquet")
    asked = ["recommend", place / "run", "--user", "1001", "--json", *flags]
    shown = cli(*asked, "--item-table", tmp_path / "items.parquet")
    assert pl.read_json(shown.encode())["item_id"].to_list() == wanted["item_id"][:4].to_list()
    # Other rules, or another table, are another job.
    changed = tmp_path / "changed.parquet"
    items.with_columns(pl.col("price") + 1).write_parquet(changed)
    for more, words in (
        (["--diversity", 0.5], "diversity: 0.0, now 0.5"),
        (["--item-table", changed], "digest of the item table"),
    ):
        asked = ["recommend", place / "run", "--all", "--out", out, *flags, *more]
        refuse(capsys, *asked, words=["is of another job", words])


@pytest.mark.parametrize(
    "options, words",
    [
        (["--filter", "price <"], ["filter: 'price <', character 8"]),
        (["--boost", "brand"], ["boost is 'brand': 'EXPRESSION: AMOUNT' is needed"]),
        (["--boost", "brand: much"], ["boost is 'brand: much'"]),
        (["--boost", "brand <: 1"], ["boost[0]: 'brand <', character 8"]),
        (["--max-per", "brand"], ["max-per is 'brand': COLUMN=LIMIT is needed"]),
        (["--fallback", "any"], ["--fallback", '"any"']),
        (["--item-table", "none.parquet", "--filter", "price<3"], ["none.parquet"]),
    ],
)
def test_wrong_rules_on_the_command_line(capsys, place, options, words):
    refuse(capsys, "recommend", place / "run", "--user", "1001", *options, words=words)


def test_rules_for_a_history_on_the_command_line(cli, capsys, place, recommender):
    asked = ["recommend", place / "run", "--history", "50003", "--k", 4, "--json"]
    shown = cli(*asked, "--filter", "price < 25", "--boost", "sold_out: -1")
    rules = Rules(filter="price < 25", boost=[("sold_out", -1)])
    wanted = recommender.recommend_history([50_003], k=4, rules=rules)
    assert pl.read_json(shown.encode())["item_id"].to_list() == wanted["item_id"].to_list()
    refuse(capsys, *asked, "--exclude-seen-days", 3, words=["exclude_seen_days", "timestamp"])
