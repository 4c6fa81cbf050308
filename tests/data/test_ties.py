"""Events with equal times: measured, told, and shuffled where their order is that of the ids."""

from __future__ import annotations

import os
import warnings

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from blossomrec.data.event_arrays import Ties
from blossomrec.data.log import EventLog
from blossomrec.data.summary import summary_table

USERS, BASKETS, ITEMS = 12, 4, 5


def baskets(order=None, ids=None, seed=0) -> pl.DataFrame:
    """12 users with 4 baskets of 5 of 40 items at one time, in the order that ``order`` makes."""
    rng = np.random.default_rng(seed)
    ids = np.arange(40) if ids is None else np.array(ids)
    rows = []
    for user in range(USERS):
        for time in range(BASKETS):
            chosen = ids[rng.choice(len(ids), ITEMS, replace=False)]
            chosen = sorted(chosen.tolist()) if order is None else order(chosen.tolist())
            rows += [(user, item, 100 + time) for item in chosen]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


def histories(log) -> list[list]:
    ids = log.item_vocabulary.ids
    return [ids(log.history(row).items).to_list() for row in range(log.num_users)]


def quietly(events, **options) -> EventLog:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return EventLog.prepare(events, **options)


def test_a_table_sorted_by_id_is_shuffled_and_it_is_told():
    events = baskets()
    with pytest.warns(UserWarning, match=r"equal times are shuffled.* 100\.0% of 192 steps"):
        log = EventLog.prepare(events)
    steps = USERS * BASKETS * (ITEMS - 1)
    expected = {"steps": steps, "share": steps / (USERS * (BASKETS * ITEMS - 1))}
    assert log.summary["ties"] == expected | {"share_ascending": 1.0, "shuffled": True}
    kept = quietly(events, ties="keep")
    assert kept.summary["ties"] == expected | {"share_ascending": 1.0, "shuffled": False}
    assert log.timestamps.tolist() == kept.timestamps.tolist()
    rising = 0
    for shuffled, before in zip(histories(log), histories(kept), strict=True):
        for start in range(0, BASKETS * ITEMS, ITEMS):
            basket, sorted_one = shuffled[start : start + ITEMS], before[start : start + ITEMS]
            assert sorted(basket) == sorted_one
            rising += sum(np.diff(basket) > 0)
    assert 0.35 * steps < rising < 0.65 * steps


def test_the_shuffled_order_depends_on_nothing_but_the_events():
    events = baskets()
    orders = [
        histories(EventLog.prepare(table, ties="shuffle"))
        for table in (events, events.reverse(), events.sample(fraction=1, shuffle=True, seed=3))
    ]
    assert orders[0] == orders[1] == orders[2]
    more = pl.concat([events, pl.DataFrame({"user_id": [99], "item_id": [0], "timestamp": [500]})])
    assert histories(EventLog.prepare(more, ties="shuffle"))[:USERS] == orders[0]
    # Each position of a basket gets each rank about as often.
    firsts = [sorted(basket[:ITEMS]).index(basket[0]) for basket in orders[0]]
    assert len(set(firsts)) > 2


def test_every_event_of_doubles_keeps_its_weight():
    events = pl.DataFrame(
        {"user_id": [1] * 6 + [2], "item_id": [5, 5, 5, 6, 6, 7, 5], "timestamp": 1, "w": range(7)}
    )
    logs = [
        EventLog.prepare(table, weight="w", ties="shuffle") for table in (events, events.reverse())
    ]
    assert histories(logs[0]) == histories(logs[1])
    assert logs[0].weights.tolist() == logs[1].weights.tolist()
    assert sorted(logs[0].weights.tolist()) == list(range(7))


@pytest.mark.parametrize(
    "events",
    [
        baskets(order=lambda items: items),
        baskets(order=lambda items: sorted(items, reverse=True)),
        baskets().filter(pl.col("user_id") < 6),
        baskets().with_columns(timestamp=pl.int_range(pl.len())),
    ],
    ids=["real order", "falling", "96 steps", "no ties"],
)
def test_other_orders_are_kept(events):
    log = quietly(events)
    assert not log.summary["ties"]["shuffled"]
    assert histories(log) == histories(quietly(events, ties="keep"))


def test_more_than_95_percent_have_to_rise():
    def with_swaps(swaps):
        events = baskets()
        for basket in range(swaps):
            items = events["item_id"].to_list()
            at = basket * ITEMS
            items[at], items[at + 1] = items[at + 1], items[at]
            events = events.with_columns(item_id=pl.Series(items))
        return events

    # 9 of 192 steps fall: 95.3 % rise. 10: 94.8 %.
    with pytest.warns(UserWarning, match="shuffled"):
        assert EventLog.prepare(with_swaps(9)).summary["ties"]["shuffled"]
    assert not quietly(with_swaps(10)).summary["ties"]["shuffled"]


def test_steps_to_the_same_item_are_neither():
    events = baskets()
    doubled = pl.concat([events, events]).sort("user_id", "timestamp", "item_id")
    with pytest.warns(UserWarning, match=r"100\.0% of 192 steps"):
        ties = EventLog.prepare(doubled).summary["ties"]
    assert ties["steps"] == 12 * 4 * 9 and ties["share_ascending"] == 1.0


@pytest.mark.parametrize("textual", [False, True])
def test_ids_are_compared_as_what_they_are(tmp_path, textual):
    # As text "10" comes before "9".
    by_text = baskets(order=lambda items: sorted(items, key=str), ids=range(1, 41))
    if not textual:
        assert not quietly(by_text).summary["ties"]["shuffled"]
    with pytest.warns(UserWarning, match="shuffled"):
        EventLog.prepare(by_text.with_columns(pl.col("item_id").cast(pl.String)))
    by_text.write_csv(tmp_path / "e.csv")
    assert not quietly(tmp_path / "e.csv").summary["ties"]["shuffled"]


@pytest.mark.parametrize("dtype", [pl.Float64, pl.Datetime("us")])
def test_times_of_every_kind(dtype):
    times = pl.col("timestamp").cast(dtype)
    with pytest.warns(UserWarning, match="shuffled"):
        log = EventLog.prepare(baskets().with_columns(times))
    assert log.summary["ties"]["shuffled"]


def test_counts():
    log = quietly(
        pl.DataFrame({"user_id": [1, 1, 1, 2, 2], "item_id": [3, 4, 2, 1, 1], "timestamp": 1})
    )
    assert log.summary["ties"] == {
        "steps": 3, "share": 1.0, "share_ascending": 0.5, "shuffled": False,
    }  # fmt: skip
    assert Ties(0, 0, 0, 0).share_ascending == 0


@pytest.mark.parametrize(("ties", "order"), [("keep", "as in the source"), ("shuffle", "shuffled")])
def test_the_table_tells(tmp_path, ties, order):
    baskets().write_csv(tmp_path / "e.csv")
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(summary_table(EventLog.prepare(tmp_path / "e.csv", ties=ties).summary))
    rows = {row[0]: row[1] for row in map(_cells, console.export_text().splitlines()) if row}
    assert rows["lines in the file"] == "241" and rows["events read"] == "240"
    assert rows["steps within equal times"] == "84.21%"
    assert rows["of these to a higher item id"] == "100.00%"
    assert rows["order of equal times"] == order


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("│")[1:3]]
