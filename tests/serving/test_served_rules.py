"""Rules in requests, against all scores sorted, and how they are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_runs import Server, write_run

from blossomrec.data.log import EventLog
from blossomrec.errors import ConfigError
from blossomrec.recommender import BlossomRec
from blossomrec.rules import Rules
from blossomrec.rules.item_table import ItemTable
from blossomrec.serving.engine.jobs import Request
from blossomrec.serving.version.ranking import Choice

pytestmark = pytest.mark.usefixtures("one_thread")
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def oracle(ruled, ruled_log, items):
    """All scores of a user, and the table, in the order of the rows."""
    every = ruled.service.version.catalogue
    table = {row["item_id"]: row for row in items.to_dicts()}

    def scores(user, **options):
        found = ruled.recommend(user_id=user, k=80, filter_viewed=False, **options)
        return {one["item"]: one["score"] for one in found}

    return scores, table, [every.id(row) for row in range(len(every))]


def users_of(log):
    return log.user_vocabulary.ids([3, 17, 41]).to_list()


def refusal(server, body, status=422, code="invalid"):
    return server.refused(server.client.post("/v1/recommend", json=body), status, code)


ATOMS = [
    "price < 12",
    "price >= 7.5",
    "price == null",
    "sold_out",
    "not sold_out",
    'brand in ("a", "c")',
    'brand != "b"',
    'kinds == "x"',
    'kinds contains "Z"',
    "item_id != 50003",
]
PLAIN = {
    "price < 12": lambda one: one["price"] is not None and one["price"] < 12,
    "price >= 7.5": lambda one: one["price"] is not None and one["price"] >= 7.5,
    "price == null": lambda one: one["price"] is None,
    "sold_out": lambda one: one["sold_out"],
    "not sold_out": lambda one: not one["sold_out"],
    'brand in ("a", "c")': lambda one: one["brand"] in "ac",
    'brand != "b"': lambda one: one["brand"] != "b",
    'kinds == "x"': lambda one: "x" in one["kinds"].split("|"),
    'kinds contains "Z"': lambda one: one["kinds"] == "z",
    "item_id != 50003": lambda one: one["item_id"] != 50_003,
}


@st.composite
def expressions(draw):
    """A text and a function of one item's row, made side by side."""
    text = draw(st.sampled_from(ATOMS))
    holds = PLAIN[text]
    for _ in range(draw(st.integers(0, 3))):
        joined, other = draw(st.sampled_from(["and", "or", "not"])), draw(st.sampled_from(ATOMS))
        if joined == "not":
            text, holds = f"not ({text})", (lambda one, part=holds: not part(one))
        elif joined == "and":
            text = f"({text}) and {other}"
            holds = lambda one, a=holds, b=PLAIN[other]: a(one) and b(one)  # noqa: E731
        else:
            text = f"({text}) or {other}"
            holds = lambda one, a=holds, b=PLAIN[other]: a(one) or b(one)  # noqa: E731
    return text, holds


def greedy(ordered, table, limits, k):
    """Items in order, each that no limit forbids."""
    chosen = []
    for item in ordered:
        fits = all(
            sum(value in table[other][column].split("|") for other in chosen) < limit
            for column, limit in limits.items()
            for value in table[item][column].split("|")
        )
        if fits and len(chosen) < k:
            chosen.append(item)
    return chosen


@settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=150)
@given(st.data())
def test_answers_are_those_of_all_scores_filtered_and_sorted(ruled, ruled_log, oracle, data):
    scores, table, ids = oracle
    user, k = data.draw(st.sampled_from(users_of(ruled_log))), data.draw(st.integers(1, 30))
    body: dict = {"user_id": user, "k": k, "filter_viewed": data.draw(st.booleans())}
    text, holds = data.draw(expressions())
    boosts = data.draw(st.lists(st.tuples(expressions(), st.floats(-3, 3)), max_size=2))
    limits = data.draw(st.dictionaries(st.sampled_from(["brand", "kinds"]), st.integers(1, 4)))
    if data.draw(st.booleans()):
        body["filter"] = text
    body["boost"] = [[each, amount] for (each, _), amount in boosts]
    body["max_per"] = limits
    among = data.draw(st.none() | st.lists(st.sampled_from(ids), min_size=1, max_size=60))
    if among is not None:
        body["items"] = among
    body["exclude"] = data.draw(st.lists(st.sampled_from(ids), max_size=10))
    row = ruled_log.user_vocabulary.rows([user])[0]
    viewed = set(ruled_log.item_vocabulary.ids(ruled_log.history(int(row)).items))
    plain = scores(user)
    boosted = {
        item: score + sum(amount for (_, where), amount in boosts if where(table[item]))
        for item, score in plain.items()
    }
    allowed = [
        item
        for item in boosted
        if (among is None or item in among)
        and item not in body["exclude"]
        and not (body["filter_viewed"] and item in viewed)
        and ("filter" not in body or holds(table[item]))
    ]
    ordered = sorted(allowed, key=lambda item: -boosted[item])
    wanted, found = greedy(ordered, table, limits, k), ruled.recommend(**body)
    assert [one["rank"] for one in found] == [*range(1, len(wanted) + 1)]
    got = [one["item"] for one in found]
    for one in found:
        assert one["score"] == pytest.approx(boosted[one["item"]], abs=TOLERANCE)
    if got != wanted:
        # Only sums that are equal within rounding may have changed places.
        close = [abs(boosted[a] - boosted[b]) for a, b in zip(got, wanted, strict=True)]
        assert max(close) < TOLERANCE


def test_the_same_as_the_library(ruled, ruled_run, ruled_log):
    recommender = BlossomRec.from_pretrained(ruled_run, ruled_log, device="cpu")
    given = {
        "filter": "price < 25",
        "boost": [['brand == "a"', 0.5], ["price >= 20", -2]],
        "max_per": {"brand": 2, "kinds": 3},
        "diversity": 0.4,
    }
    at = ruled_log.last_second
    for user in users_of(ruled_log):
        for more in ({}, {"exclude_seen_days": 600 / 86_400}):
            frame = recommender.recommend([user], 6, at=at, rules=Rules(**given, **more))
            found = ruled.recommend(user_id=user, k=6, at=at, **given, **more)
            assert [one["item"] for one in found] == frame["item_id"].to_list()
            scores = [one["score"] for one in found]
            assert scores == pytest.approx(frame["score"].to_list(), abs=TOLERANCE)


def test_the_engine_answers_plain_and_ruled_requests_together(ruled, ruled_log, items):
    """One batch, of which each has its own number, rules and limits."""
    version = ruled.service.version
    of = lambda **rules: version.rules.of(Rules(**rules))  # noqa: E731
    choices = [
        Choice(4),
        Choice(7, rules=of(filter="not sold_out")),
        Choice(3, rules=of(max_per={"brand": 1})),
        Choice(80, rules=of(boost=[("sold_out", 5)])),
        Choice(2),
    ]
    user = str(users_of(ruled_log)[0])
    engine = ruled.service._engine
    alone = [engine.recommend(version, Request(user, None, each)).result() for each in choices]
    futures = [engine.recommend(version, Request(user, None, each)) for each in choices]
    for one, future in zip(alone, futures, strict=True):
        rows, scores = future.result()
        assert rows.tolist() == one[0].tolist()
        np.testing.assert_allclose(scores, one[1], atol=1e-5)
    assert [len(rows) for rows, _ in alone[:3]] == [4, 7, 3]


WRONG = [
    ({"filter": "price <"}, "filter", "price <", 8, "character 8: a number"),
    ({"filter": "prise < 3"}, "filter", "prise < 3", 1, "did you mean 'price'?"),
    ({"filter": 'price < "a"'}, "filter", 'price < "a"', 9, "a number is expected, not 'a'"),
    ({"filter": "brand < 3"}, "filter", "brand < 3", 1, "brand is a category"),
    ({"filter": ""}, "filter", "", 1, "is expected, not the end"),
    ({"filter": 7}, "filter", 7, None, "filter is 7: an expression is needed"),
    ({"boost": [["sold_out", 1], ["brand <", 1]]}, "boost[1]", "brand <", 8, "character 8"),
    ({"boost": [["sold_out"]]}, "boost[0]", "['sold_out']", None, "(expression, amount)"),
    ({"boost": [["sold_out", 1e31]]}, "boost[0]", 1e31, None, "from -1e+30 to 1e+30"),
    ({"boost": [["sold_out", 10**400]]}, "boost[0]", None, None, "a finite number is needed"),
    ({"boost": "sold_out"}, "boost", "sold_out", None, "pairs of an expression"),
    ({"max_per": {"price": 1}}, "max_per['price']", "price", None, "there are sold_out, brand"),
    ({"max_per": {"brand": 0}}, "max_per['brand']", 0, None, "must be at least 1"),
    ({"max_per": {"brand": 1.5}}, "max_per['brand']", 1.5, None, "a whole number is needed"),
    ({"max_per": [2]}, "max_per", "[2]", None, "limits by column are needed"),
    ({"diversity": 1}, "diversity", 1, None, "from 0 to under 1"),
    ({"diversity": "much"}, "diversity", "much", None, "a finite number is needed"),
    ({"exclude_seen_days": 0}, "exclude_seen_days", 0, None, "it must be over 0"),
    ({"exclude_seen_days": True}, "exclude_seen_days", True, None, "a finite number is needed"),
    ({"fallback": "any"}, "fallback", "any", None, "choose one of none, recent-popularity"),
    (
        {"exclude_seen_days": 3, "filter_viewed": False},
        "filter_viewed",
        False,
        None,
        "exclude_seen_days leaves viewed items out",
    ),
    (
        {"exclude_seen_days": 3, "filter_viewed": True},
        "filter_viewed",
        True,
        None,
        "exclude_seen_days lets older ones come again",
    ),
]


@pytest.mark.parametrize("rules, field, value, place, words", WRONG)
def test_wrong_rules_are_refused_with_their_place(ruled, rules, field, value, place, words):
    error = refusal(ruled, {"history": [50_003], **rules})
    assert error["field"] == field and error.get("place") == place
    assert words in error["message"] and "id" not in error
    if value is not None:
        assert error["value"] == value


def test_the_message_is_that_of_the_library(ruled, ruled_run):
    recommender = BlossomRec.from_pretrained(ruled_run)
    for rules in ({"filter": "price < 3 and prise"}, {"max_per": {"title": 1}}):
        with pytest.raises(ConfigError) as error:
            recommender.recommend([1001], rules=Rules(**rules))
        assert refusal(ruled, {"history": [50_003], **rules})["message"] == str(error.value)


def test_a_long_name_is_not_sent_back_whole(ruled):
    error = refusal(ruled, {"history": [50_003], "max_per": {"c" * 5_000: 1}})
    assert len(error["field"]) < 100 and len(error["message"]) < 400


@pytest.mark.parametrize(
    "rules, field",
    [
        ({"filter": "sold_out or " * 400 + "sold_out"}, "filter"),
        ({"boost": [["sold_out", 1]] * 33}, "boost"),
        ({"boost": [["(" * 5_000, 1]]}, "boost[0]"),
        ({"max_per": {f"c{n}": 1 for n in range(33)}}, "max_per"),
        ({"diversity": 0.5, "k": 101}, "k"),
    ],
)
def test_rules_that_are_too_large_are_refused(ruled, rules, field):
    assert refusal(ruled, {"history": [50_003], **rules}, code="too_many")["field"] == field


@settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=150)
@given(st.text(alphabet="price<sold_ut bran=\"'`()01.e9 \\\n\ud800notinad", max_size=25))
def test_any_text_is_answered_or_refused_inside_of_it(ruled, text):
    body = json.dumps({"history": [50_003], "filter": text})
    headers = {"content-type": "application/json"}
    answer = ruled.client.post("/v1/recommend", content=body, headers=headers)
    if answer.status_code != 200:
        error = ruled.refused(answer, 422, "invalid")
        assert error["field"] == "filter" and 1 <= error["place"] <= len(text) + 1


def test_a_filter_that_leaves_nothing_gives_nothing(ruled, recwarn):
    for text in ("price > 1000", 'brand == "none such"', "item_id == 7"):
        assert ruled.recommend(history=[50_003], filter=text) == []
    # What clients write is not told to whoever runs the server.
    assert not [one for one in recwarn if "no item has" in str(one.message)]


def test_readyz_names_the_columns(ruled, server):
    names = ["price", "sold_out", "brand", "kinds", "item_id"]
    assert ruled.client.get("/readyz").json()["columns"] == names
    assert server.client.get("/readyz").json()["columns"] == ["item_id"]


def test_null_is_no_rule(ruled):
    names = ("filter", "boost", "max_per", "diversity", "exclude_seen_days", "fallback")
    plain = ruled.recommend(history=[50_003])
    assert ruled.recommend(history=[50_003], **dict.fromkeys(names)) == plain


def test_an_expression_is_looked_up_once(ruled, monkeypatch):
    asked, where = [], ItemTable.where
    monkeypatch.setattr(
        ItemTable, "where", lambda self, text: asked.append(text) or where(self, text)
    )
    for _ in range(3):
        ruled.recommend(history=[50_003], filter="price < 17.25", boost=[["price > 4.75", 1]])
        ruled.recommend(history=[50_010], filter="price < 17.25", max_per={"brand": 2})
    assert sorted(asked) == ["price < 17.25", "price > 4.75"]


def test_memory_for_expressions_is_bounded(ruled_run, tmp_path):
    with Server(ruled_run, tmp_path / "events.sqlite", rules_mib=0) as server:
        wanted = server.recommend(history=[50_003], filter="price < 9")
        kept = server.service.version.rules._rules._kept
        assert len(kept) == 0 and kept.nbytes == 0
        kept.budget = 10_000
        for number in range(200):
            server.recommend(history=[50_003], filter=f"price < {number}")
            assert kept.nbytes <= kept.budget
        assert 1 < len(kept) < 100
        assert server.recommend(history=[50_003], filter="price < 9") == wanted


# What is seen: 60 events of a user, a minute apart.


def test_days_count_for_stored_and_given_histories(ruled, ruled_log, monkeypatch):
    from blossomrec.serving.engine import reading

    monkeypatch.setattr(reading, "READ_AT_ONCE", 4)
    user = users_of(ruled_log)[2]
    row = int(ruled_log.user_vocabulary.rows([user])[0])
    history = ruled_log.history(row)
    at, ids = int(history.times[-1]) + 30, ruled_log.item_vocabulary
    for minutes in (1, 7, 10_000):
        rules = {"exclude_seen_days": minutes / 1_440, "at": at, "k": 80}
        late = set(ids.ids(history.items[history.times > at - 60 * minutes]))
        assert len(late) == min(minutes, len(history))
        found = ruled.recommend(user_id=user, **rules)
        assert {one["item"] for one in found} == set(ids.read()) - late
        events = {"history": ids.ids(history.items).to_list(), "times": history.times.tolist()}
        given = ruled.recommend(**events, **rules)
        assert [one["item"] for one in given] == [one["item"] for one in found]
    del events["times"]
    assert "without times" in refusal(ruled, {**events, **rules}, code="no_time")["message"]


def test_days_need_times_of_the_store(ruled_run, tmp_path):
    with Server(ruled_run, tmp_path / "events.sqlite") as server:
        server.append("ann", [{"item": 50_003, "timestamp": 1}])
        body = {"user_id": "ann", "exclude_seen_days": 3}
        assert "only tell an order" in refusal(server, body, code="no_time")["message"]


def test_who_is_unknown_gets_the_fallback_by_the_other_rules(ruled, ruled_run, ruled_log):
    body = {"user_id": "nobody", "k": 9}
    refusal(ruled, body, 404, "unknown_user")
    refusal(ruled, {**body, "fallback": "none"}, 404, "unknown_user")
    body["fallback"] = "recent-popularity"
    rules = {"filter": "not sold_out", "max_per": {"brand": 2}, "boost": [["price < 9", 1]]}
    for more in ({}, rules):
        found = ruled.recommend(**body, **more)
        assert found == ruled.recommend(**body, **more)
        mine = Rules(fallback="recent-popularity", **more)
        assert [one["item"] for one in found] == offline_fallback(ruled_run, ruled_log, mine, 9)
    # So does a history of which no item is known.
    given = {"history": ["never seen"], "k": 9}
    refusal(ruled, given, 422, "no_known_item")
    mine = Rules(fallback="recent-popularity")
    by_fallback = ruled.recommend(**given, fallback="recent-popularity")
    assert [one["item"] for one in by_fallback] == offline_fallback(ruled_run, ruled_log, mine, 9)
    known = users_of(ruled_log)[0]
    usual = ruled.recommend(user_id=known)
    assert ruled.recommend(user_id=known, fallback="recent-popularity") == usual
    off = found[0]["item"]
    ruled.post("/v1/items", {"off": [off]})
    assert off not in [one["item"] for one in ruled.recommend(**body)]
    ruled.post("/v1/items", {"on": [off]})


def offline_fallback(run, log, rules, k):
    """What the library gives a user of a log of whom the model knows no item."""
    from blossomrec.evaluation.top_k import TopK
    from blossomrec.rules.catalogue import item_rules
    from blossomrec.run.weights import load_model

    model = load_model(run)
    found = item_rules(rules, model, log.item_vocabulary, log, None)
    rows = None if found.allowed is None else np.flatnonzero(found.allowed)
    top = TopK(model, k, 1, items=rows, boosts=found.boosts, choice=found.choice)
    rows = top.of_all(found.fallback)[0]
    return log.item_vocabulary.ids(rows[rows >= 0]).to_list()


def test_without_its_log_there_is_no_fallback_but_what_the_run_keeps(tiny_events, items, tmp_path):
    import shutil

    log = EventLog.prepare(tiny_events, tmp_path / "log", items=items)
    run = write_run(tmp_path / "run", log, content="off")
    shutil.rmtree(tmp_path / "log")
    with Server(run, tmp_path / "events.sqlite") as server:
        assert server.recommend(history=[50_003], filter="price < 9")
        error = refusal(server, {"user_id": "nobody", "fallback": "recent-popularity"})
        assert error["field"] == "fallback" and "is not there" in error["message"]
        assert str(tmp_path) not in error["message"]


def test_without_a_table_there_are_ids_alone(server):
    found = server.recommend(history=[50_003], filter="item_id in (50010, '50017')", k=3)
    assert {one["item"] for one in found} == {50_010, 50_017}
    error = refusal(server, {"history": [50_003], "filter": "price < 3"})
    assert error["place"] == 1
    assert "the items have no table and item_id; prepare the log with --items" in error["message"]
    error = refusal(server, {"history": [50_003], "max_per": {"brand": 3}})
    assert "there are none, since the items have no table" in error["message"]
