"""A log as it was: its events, users, items, names and numbers, against plain loops."""

import numpy as np
import polars as pl
import pytest
from days import DAY, FIRST, days_of_events, rich_days

from blossomrec.data.log import EventLog
from blossomrec.rolling import past_log
from blossomrec.rolling.past_log import (
    Part,
    ends_before,
    first_times,
    known_items,
    write_part,
)

CUT = FIRST + 7 * DAY


@pytest.fixture(params=[1 << 20, 7], ids=["whole", "in pieces"])
def pieces(request, monkeypatch):
    monkeypatch.setattr(past_log, "EVENTS_AT_ONCE", request.param)


def before(log, time, folder, **options):
    part = Part(ends_before(log, time), known_items(first_times(log), time))
    return write_part(log, folder, part, **options)


def told(log, whole):
    """What a log says, in the ids of the whole one: histories, by user."""
    users, items = (v.listed() for v in (log.user_vocabulary, log.item_vocabulary))
    names = whole.user_vocabulary.ids(users).to_list()
    ids = whole.item_vocabulary.ids(items).to_list()
    return {
        name: [
            (ids[item], time)
            for item, time in zip(
                log.history(row).items.tolist(),
                log.timestamps[log.offsets[row] : log.offsets[row + 1]].tolist(),
                strict=True,
            )
        ]
        for row, name in enumerate(names)
    }


def test_it_holds_the_events_before_a_time(days, tmp_path, pieces):
    past = before(days, CUT, tmp_path / "past")
    events = days_of_events().filter(pl.col("timestamp") < CUT)
    expected = {}
    for user, item, time in events.iter_rows():
        expected.setdefault(user, []).append((item, time))
    assert told(past, days) == expected
    assert past.num_items == events["item_id"].n_unique() < days.num_items
    assert past.num_users == events["user_id"].n_unique() < days.num_users
    assert (past.has_repeats, past.time_unit) == (days.has_repeats, days.time_unit)
    assert past.last_second == events["timestamp"].max()


def test_rows_of_items_stay_as_days_go_by(days):
    first = first_times(days)
    later = known_items(first, FIRST + 9 * DAY).tolist()
    sooner = known_items(first, CUT).tolist()
    assert later[: len(sooner)] == sooner
    assert len(later) > len(sooner)


def test_an_event_at_the_time_is_after_it(days):
    time = days_of_events()["timestamp"][50]
    ends = ends_before(days, time)
    assert ends.sum() == days_of_events().filter(pl.col("timestamp") < time).height
    assert ends_before(days, time + 0.5).sum() > ends.sum()


def test_all_that_is_known_of_events_and_items_goes_along(rich_log, tmp_path, pieces):
    past = before(rich_log, CUT, tmp_path / "past")
    again = EventLog.open(tmp_path / "past")
    events, items, users = (each for each in rich_days())
    events = events.filter(pl.col("timestamp") < CUT)
    assert past.digest == again.digest
    # Names that came later are not known yet, and means are those of what is there.
    assert past.fields.kinds == ("view",)
    shop, price = past.fields.context
    assert shop.names == ("web",)
    assert price.mean == pytest.approx(events["price"].mean(), rel=1e-5)
    assert rich_log.fields.context[1].mean != pytest.approx(price.mean, rel=0.1)
    for row, user in enumerate(past.user_vocabulary.listed()):
        part = slice(past.offsets[row], past.offsets[row + 1])
        name = rich_log.user_vocabulary.ids([user])[0]
        theirs = events.filter(pl.col("user_id") == name)
        assert past.weights[part].tolist() == pytest.approx(theirs["weight"].to_list(), rel=1e-6)
        assert past.context[part, 1].tolist() == pytest.approx(theirs["price"].to_list(), rel=1e-5)
        town = users.filter(pl.col("user_id") == name)["town"][0]
        assert past.user_features["town"][row] == [town]
    genres = dict(items.select("item_id", "genre").iter_rows())
    for row, item in enumerate(past.item_vocabulary.listed()):
        assert past.item_features["genre"][row] == [genres[rich_log.item_vocabulary.ids([item])[0]]]
    assert "late" not in {past.item_features["genre"].names[n] for n in range(4)}
    assert len(past.item_features["genre"].names) == 4 < len(rich_log.item_features["genre"].names)


def test_events_of_other_items_are_left_out(days, tmp_path):
    items = np.array([5, 2, 9])
    ends = np.diff(np.asarray(days.offsets))
    part = write_part(days, tmp_path / "part", Part(ends, items), tables=False)
    assert part.item_vocabulary.listed().tolist() == [5, 2, 9]
    counts = [int((np.asarray(days.items) == one).sum()) for one in items]
    assert np.bincount(part.items, minlength=3).tolist() == counts
