"""Rules that a server was started with, its table of items, and its flags."""

from __future__ import annotations

import time

import polars as pl
import pytest
from serving_runs import Process, Server, write_run

from blossomrec.data.log import EventLog
from blossomrec.errors import ConfigError, DataError
from blossomrec.rules import Rules

pytestmark = pytest.mark.usefixtures("one_thread")


def test_rules_of_the_server_hold_for_every_request(ruled_run, ruled, items, tmp_path):
    always = Rules(
        filter="not sold_out",
        boost=[('brand == "b"', 2.0)],
        max_per={"brand": 3},
        diversity=0.3,
        exclude_seen_days=1.0,
        fallback="recent-popularity",
    )
    told = {name: getattr(always, name) for name in ("filter", "boost", "max_per", "diversity")}
    with Server(ruled_run, tmp_path / "events.sqlite", rules=always) as server:
        asked = {"history": [50_003, 50_010], "k": 8}
        times = {"times": [time.time() - 9 * 86_400, time.time()]}
        wanted = ruled.recommend(**asked, **times, **told, exclude_seen_days=1)
        assert server.recommend(**asked, **times) == wanted
        more = {"filter": "price < 20", "boost": [["price < 9", 1.0]], "max_per": {"brand": 1}}
        both = {
            "filter": "not sold_out and price < 20",
            "boost": [['brand == "b"', 2.0], ["price < 9", 1.0]],
            "max_per": {"brand": 1},
            "diversity": 0.3,
        }
        found = server.recommend(**asked, filter_viewed=True, **more)
        assert [one["item"] for one in found] == [
            one["item"] for one in ruled.recommend(**asked, filter_viewed=True, **both)
        ]
        plain = {name: told[name] for name in ("filter", "boost", "max_per")}
        found = server.recommend(**asked, filter_viewed=False, diversity=0)
        assert found == ruled.recommend(**asked, filter_viewed=False, **plain)
        stock = set(items.filter(~pl.col("sold_out"))["item_id"])
        assert {one["item"] for one in server.recommend(user_id="nobody", k=80)} <= stock
        answer = server.client.post("/v1/recommend", json={"user_id": "nobody", "fallback": "none"})
        server.refused(answer, 404, "unknown_user")


@pytest.mark.parametrize(
    "rules, error, words",
    [
        ({"filter": "prise < 3"}, ConfigError, "filter: 'prise < 3', character 1"),
        ({"filter": "price > 1000"}, DataError, "filter 'price > 1000' leaves no item"),
        ({"max_per": {"price": 3}}, ConfigError, "no column of categories"),
        ({"items": "none.parquet"}, DataError, "none.parquet"),
    ],
)
def test_a_server_does_not_start_with_rules_that_do_not_fit(
    ruled_run, tmp_path, rules, error, words
):
    with pytest.raises(error, match=words):
        Server(ruled_run, tmp_path / "events.sqlite", rules=Rules(**rules))


def test_the_table_of_the_day_is_read_with_the_model(ruled_run, items, tmp_path):
    """As SIGHUP does; a table that does not fit leaves things as they are."""
    table = tmp_path / "items.parquet"
    items.with_columns(sold_out=pl.col("item_id") > 50_100).write_parquet(table)
    always = Rules(filter="not sold_out", items=table)
    with Server(ruled_run, tmp_path / "events.sqlite", rules=always) as server:
        asked = {"history": [50_003], "k": 80, "filter_viewed": False}
        assert {one["item"] for one in server.recommend(**asked)} == {*range(50_003, 50_101, 7)}
        items.with_columns(sold_out=pl.col("item_id") > 50_020).write_parquet(table)
        server.reload()
        assert {one["item"] for one in server.recommend(**asked)} == {50_003, 50_010, 50_017}
        items.drop("sold_out").write_parquet(table)
        with pytest.raises(ConfigError, match="there is no column 'sold_out'"):
            server.reload()
        assert len(server.recommend(**asked)) == 3


def test_a_new_model_brings_its_own_table_and_catalogue(tiny_events, items, tmp_path):
    current = tmp_path / "current"
    log = EventLog.prepare(tiny_events, tmp_path / "log", items=items)
    current.symlink_to(write_run(tmp_path / "run", log, content="off"))
    with Server(current, tmp_path / "events.sqlite") as server:
        asked = {"history": [50_003], "filter": "price == 999", "k": 3}
        assert server.recommend(**asked) == []
        events = tiny_events.filter(pl.col("item_id") != 50_017)
        dear = items.with_columns(price=pl.lit(999.0))
        other = EventLog.prepare(events, tmp_path / "other", items=dear.filter(item_id=50_010))
        current.unlink()
        current.symlink_to(write_run(tmp_path / "new", other, seed=1, content="off"))
        server.reload()
        assert [one["item"] for one in server.recommend(**asked)] == [50_010]


def test_with_approximate_ranking_rules_are_exact(ruled_run, ruled, tmp_path):
    pytest.importorskip("faiss")
    with Server(ruled_run, tmp_path / "events.sqlite", probes=1) as server:
        for rules in ({"filter": "price < 20"}, {"boost": [["sold_out", 1]]}):
            asked = {"history": [50_003], "k": 20, **rules}
            assert server.recommend(**asked) == ruled.recommend(**asked)


def test_flags_of_the_command_line(ruled_run, items, tmp_path):
    items.write_csv(tmp_path / "items.csv")
    flags = ["--filter", "not sold_out", "--max-per", "brand=1", "--boost", "price < 9: 1.5"]
    flags += ["--item-table", tmp_path / "items.csv"]
    with Process(ruled_run, tmp_path / "events.sqlite", *flags) as process:
        from blossomrec.serving import Client, ServerError

        with Client(process.url) as client:
            found = client.recommend_history([50_003], 4, filter="price < 25")
            table = {row["item_id"]: row for row in items.to_dicts()}
            rows = [table[one["item"]] for one in found]
            assert {row["brand"] for row in rows} == {"a", "b", "c", "d"}
            assert not any(row["sold_out"] for row in rows)
            assert all(row["price"] < 25 for row in rows)
            with pytest.raises(ServerError, match="character 9") as error:
                client.recommend_history([50_003], filter="price < ")
            assert (error.value.field, error.value.place) == ("filter", 9)
