"""Events of a store in the log, each once; users who were deleted there are not."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
import pytest
from daily_world import DAY, START, World, walks

from blossomrec.data.log import EventLog
from blossomrec.errors import RunError
from blossomrec.serving.stores.sqlite_store import SQLiteStore
from blossomrec.serving.stores.store import Event
from blossomrec.updating import store_events
from blossomrec.updating.taking import Taking


@pytest.fixture
def fresh(tmp_path):
    """A log and a store that was filled from it; nothing was taken yet."""
    return World(tmp_path).begin()


def take(world: World, **options):
    store = world.store()
    try:
        return Taking(world.runs, world.log).take(store, "the store", **options)
    finally:
        store.close()


def go_back(world: World, copy: Path) -> None:
    """Put an older copy in the place of the store."""
    shutil.copy(copy, world.path)
    for rest in ("-wal", "-shm"):
        Path(f"{world.path}{rest}").unlink(missing_ok=True)


def test_what_the_store_was_filled_from_is_not_taken_again(fresh):
    before = fresh.logged()
    assert take(fresh)[1:] == (0, 0, 0, None)
    assert fresh.logged() == before == fresh.stored()
    assert take(fresh) is None


@pytest.mark.parametrize("first", [True, False], ids=["before any", "after the first"])
def test_new_events_are_taken_once(fresh, first, monkeypatch):
    monkeypatch.setattr(store_events, "USERS_TOGETHER", 7)
    monkeypatch.setattr(store_events, "EVENTS_TOGETHER", 3)
    if not first:
        take(fresh)
    fresh.a_day()
    assert take(fresh).events == 104
    assert fresh.logged() == fresh.stored()
    assert take(fresh) is None
    log = EventLog.open(fresh.log)
    assert log.num_items == 51 and log.num_users == 31
    fresh.add("user 3", [100, 100], day=2)
    assert take(fresh).events == 2
    assert fresh.logged() == fresh.stored()


def test_a_user_of_whom_the_log_has_other_events_keeps_them(fresh):
    take(fresh)
    late = pl.DataFrame({"user_id": ["elsewhere"], "item_id": [100], "timestamp": [START]})
    EventLog.open(fresh.log).append(late)
    # One of the two is the event that the log has.
    store = fresh.store()
    with store.transaction():
        store.append("elsewhere", [Event(100, START), Event(100, START)], START)
    store.close()
    assert take(fresh).events == 1
    assert fresh.logged() == fresh.stored()


def test_who_was_deleted_leaves_the_log(fresh):
    take(fresh)
    fresh.a_day()
    fresh.delete("user 3")
    fresh.delete("user 29")
    assert take(fresh)[1:3] == (99, 2)
    assert fresh.logged() == fresh.stored()
    names = {user for user, *_ in fresh.logged()}
    assert "user 3" not in names and "user 29" not in names and "user 4" in names
    (batch,) = (fresh.runs / "store").iterdir()
    assert sorted(path.name for path in batch.iterdir()) == ["batch.json", "positions.parquet"]
    assert '"user 3"' not in (batch / "batch.json").read_text()
    positions = pl.read_parquet(batch / "positions.parquet")["user"].to_list()
    assert "user 4" in positions and "user 3" not in positions


def test_who_was_deleted_and_is_back_begins_afresh(fresh):
    take(fresh)
    length = sum(user == "user 3" for user, *_ in fresh.logged().elements())
    fresh.delete("user 3")
    # As many events as before: only the number tells.
    fresh.add("user 3", [149] * length)
    taken = take(fresh)
    assert (taken.events, taken.forgotten) == (length, 1)
    assert fresh.logged() == fresh.stored()


def test_deleted_users_do_not_come_back_with_a_table(fresh):
    take(fresh)
    fresh.delete("user 3")
    take(fresh)
    export = walks(range(3, 5), seed=1).with_columns(pl.col("timestamp") + DAY)
    EventLog.open(fresh.log).append(export)
    taking = Taking(fresh.runs, fresh.log)
    assert taking.forget_again() == 1
    assert taking.forget_again() == 0
    names = {user for user, *_ in fresh.logged()}
    assert "user 3" not in names and "user 4" in names
    # Once the store has the user again, so may the log.
    fresh.add("user 3", [100, 101])
    take(fresh)
    assert taking.forget_again() == 0
    assert fresh.logged()["user 3", "101", START + DAY + 1] == 1


def test_another_store_forgets_nobody(fresh, tmp_path):
    take(fresh)
    fresh.a_day()
    take(fresh)
    before = fresh.logged()
    shutil.move(fresh.path, tmp_path / "lost.sqlite")
    SQLiteStore(fresh.path).close()
    fresh.add("somebody", [100, 101])
    with pytest.raises(RunError, match=r"31 users are missing from the store, which counts 0"):
        take(fresh)
    assert fresh.logged() == before
    assert take(fresh, restored=True).events == 2
    assert fresh.logged() == before + fresh.stored()
    assert take(fresh) is None


def test_another_name_is_another_store(fresh):
    take(fresh)
    store = fresh.store()
    with pytest.raises(RunError, match="takes events from the store, not from another"):
        Taking(fresh.runs, fresh.log).take(store, "another")
    store.close()


def test_an_older_copy_of_the_store_is_matched(fresh, tmp_path):
    fresh.add("user 3", [100, 101], day=1)
    take(fresh)
    shutil.copy(fresh.path, tmp_path / "copy.sqlite")
    fresh.add("user 3", [102, 103], day=2)
    take(fresh)
    go_back(fresh, tmp_path / "copy.sqlite")
    fresh.add("user 3", [110], day=3)
    # What the copy lacks stays in the log, and what came since is new.
    before = fresh.logged()
    assert take(fresh).events == 1
    assert fresh.logged() - before == {("user 3", "110", START + 3 * DAY): 1}


def test_an_older_copy_in_which_a_user_went_further_is_matched(fresh, tmp_path):
    """More events than were taken, of which the first are not those that were."""
    fresh.add("user 3", [100, 101], day=1)
    take(fresh)
    shutil.copy(fresh.path, tmp_path / "copy.sqlite")
    fresh.add("user 3", [102, 103], day=2)
    fresh.add("user 4", [104], day=2)
    take(fresh)
    go_back(fresh, tmp_path / "copy.sqlite")
    fresh.add("user 3", [110, 111, 112], day=3)
    # As many as were taken: it shows with the next one.
    fresh.add("user 4", [120], day=3)
    before = fresh.logged()
    assert take(fresh).events == 3
    new = {("user 3", str(110 + n), START + 3 * DAY + n): 1 for n in range(3)}
    assert fresh.logged() - before == new
    fresh.add("user 4", [121], day=4)
    assert take(fresh).events == 2
    new |= {("user 4", "120", START + 3 * DAY): 1, ("user 4", "121", START + 4 * DAY): 1}
    assert fresh.logged() - before == new and not fresh.stored() - fresh.logged()
    assert take(fresh) is None


def test_positions_of_an_earlier_version_are_gone_on_from(fresh):
    fresh.add("user 3", [100, 101], day=1)
    take(fresh)
    (path,) = fresh.runs.glob("store/*/positions.parquet")
    pl.read_parquet(path).drop("last").write_parquet(path)
    assert take(fresh) is None
    fresh.add("user 3", [102], day=2)
    assert take(fresh).events == 1
    assert fresh.logged() == fresh.stored()


def test_brackets_in_the_name_of_a_folder_are_no_pattern(tmp_path):
    world = World(tmp_path / "of [1").begin()
    take(world)
    world.add("user 3", [100], day=1)
    assert take(world).events == 1
    assert world.logged() == world.stored()


def test_a_store_that_lacks_deletions_is_an_older_copy(fresh, tmp_path):
    fresh.add("user 3", [100], day=1)
    take(fresh)
    shutil.copy(fresh.path, tmp_path / "copy.sqlite")
    fresh.delete("user 4")
    take(fresh)
    go_back(fresh, tmp_path / "copy.sqlite")
    before = fresh.logged()
    with pytest.raises(RunError, match="counts 1 deletions fewer than at the last update"):
        take(fresh)
    assert fresh.logged() == before


def test_a_log_that_was_prepared_anew_is_matched_where_that_is_told(fresh):
    take(fresh)
    fresh.a_day()
    take(fresh)
    EventLog.prepare(walks(), fresh.log)
    fresh.add("user 3", [100], day=2)
    with pytest.raises(RunError, match="has not what was taken from the store"):
        take(fresh)
    assert take(fresh, restored=True).events == 105
    assert fresh.logged() == fresh.stored()


def test_what_the_log_cannot_have_is_left_out_and_told(fresh):
    take(fresh)
    fresh.add("user 3", [100, "a name", "007", 101])
    taken = take(fresh)
    assert (taken.events, taken.left_out) == (2, 2)
    assert "'a name'" in taken.example and "'user 3'" in taken.example
    assert take(fresh) is None


def test_deletions_before_the_first_look_are_told(fresh):
    fresh.delete("user 3")
    with pytest.warns(UserWarning, match="counts 1 deletions before its events were first taken"):
        take(fresh)
    assert "user 3" in {user for user, *_ in fresh.logged()}


def test_kinds_context_weights_and_units_are_those_of_the_log(tmp_path):
    events = walks().with_columns(
        kind=pl.lit("click"),
        shop=pl.lit("web"),
        price=pl.col("item_id") / 2,
        weight=pl.lit(2.0),
        timestamp=pl.from_epoch("timestamp"),
    )
    world = World(tmp_path)
    given = {"kind": "kind", "context": ("shop", "price"), "weight": "weight"}
    log = EventLog.prepare(events, world.log, **given)
    store, day = world.store(), START + DAY
    with store.transaction():
        # In seconds, where the log has microseconds.
        context = {"shop": "app", "price": 1.5, "colour": "red"}
        told = Event(100, day, None, "buy", context)
        wrong = Event(101, day + 1, None, "click", {"price": "dear"})
        store.append("user 3", [told, wrong, Event(102, day + 2)], day)
    store.close()
    assert log.time_unit == "microseconds"
    assert take(world).events == 3
    log = EventLog.open(world.log)
    (row,) = log.user_vocabulary.rows(["user 3"])
    last = log.history(row)[-3:]
    assert log.item_vocabulary.ids(last.items).to_list() == [100, 101, 102]
    end = log.offsets[row + 1]
    assert log.timestamps[end - 3 : end].tolist() == [(day + n) * 10**6 for n in range(3)]
    assert log.weights is not None and log.weights[end - 3 : end].tolist() == [1.0, 1.0, 1.0]
    assert [(None, *log.fields.kinds)[n] for n in last.kinds] == ["buy", "click", None]
    values = [log.fields.values(one) for one in last.context]
    assert values == [{"shop": "app", "price": 1.5}, None, None]
