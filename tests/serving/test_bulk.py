import numpy as np
import polars as pl
import pytest

from blossomrec.data.log import EventLog
from blossomrec.errors import ConfigError, DataError
from blossomrec.serving.stores import bulk
from blossomrec.serving.stores.bulk import Imported, import_events
from blossomrec.serving.stores.sqlite_store import SQLiteStore
from blossomrec.serving.stores.store import Event
from command_line import refuse, succeed


@pytest.fixture
def store(tmp_path):
    store = SQLiteStore(tmp_path / "events.sqlite")
    yield store
    store.close()


def test_a_table_and_the_log_prepared_from_it_are_the_same(store, tiny_events, tiny_log, tmp_path):
    other = SQLiteStore(tmp_path / "other.sqlite")
    shuffled = tiny_events.sample(fraction=1, shuffle=True, seed=1)
    assert import_events(shuffled, store) == Imported(60, 1_830, 0)
    assert import_events(tiny_log.folder, other) == Imported(60, 1_830, 0)
    for row in range(60):
        user = str(tiny_log.user_vocabulary.ids([row])[0])
        profile = store.profile(user, 1_000)
        assert profile == other.profile(user, 1_000)
        history = tiny_log.item_vocabulary.ids(tiny_log.history(row).items).to_list()
        assert [event.item for event in profile.last] == history
        times = tiny_log.timestamps[tiny_log.offsets[row] : tiny_log.offsets[row + 1]]
        assert [event.timestamp for event in profile.last] == times.tolist()
    other.close()


@pytest.mark.parametrize("together", [1, 50, 20_000])
def test_an_import_can_be_run_again(store, tiny_log, monkeypatch, together):
    monkeypatch.setattr(bulk, "TOGETHER", together)
    with store.transaction():
        store.append("1004", [Event(50_003, 1)], 0)
    original, seen = store.append, []

    def failing(user, events, now):
        seen.append(user)
        if len(seen) == 30:
            raise KeyboardInterrupt
        return original(user, events, now)

    monkeypatch.setattr(store, "append", failing)
    with pytest.raises(KeyboardInterrupt):
        import_events(tiny_log.folder, store)
    monkeypatch.setattr(store, "append", original)
    imported = import_events(tiny_log.folder, store)
    assert imported.users + imported.kept == 60
    assert imported.kept == {1: 30, 50: imported.kept, 20_000: 1}[together]
    assert store.profile("1004", 5).length == 1
    assert import_events(tiny_log.folder, store) == Imported(0, 0, 60)
    lengths = np.diff(np.asarray(tiny_log.offsets))
    stored = [store.profile(str(1001 + 3 * row), 0).length for row in range(60)]
    assert sum(stored) == lengths.sum() - lengths[1] + 1


def test_columns_times_and_large_numbers(store, tmp_path):
    table = pl.DataFrame(
        {
            "who": ["b", "a", "a"],
            "what": pl.Series([2**64 - 1, 5, 6], dtype=pl.UInt64),
            "when": ["2024-01-31T18:45:00", "2024-01-31", "2023-01-31"],
        }
    )
    table.write_csv(tmp_path / "events.csv")
    columns = {"user": "who", "item": "what", "timestamp": "when"}
    assert import_events(tmp_path / "events.csv", store, **columns) == Imported(2, 3, 0)
    assert [event.item for event in store.profile("a", 5).last] == ["6", "5"]
    (event,) = store.profile("b", 5).last
    assert event == Event(str(2**64 - 1), 1_706_726_700_000_000)


def test_a_wrong_table_stores_nothing(store, capsys, tmp_path):
    (tmp_path / "events.csv").write_text("user_id,item_id,timestamp\n1,2,3\n1,,4\n")
    with pytest.raises(DataError, match="column 'item_id', row 2"):
        import_events(tmp_path / "events.csv", store)
    assert store.profile("1", 1) is None
    path = tmp_path / "new.sqlite"
    source = tmp_path / "none.csv"
    refuse(capsys, "import-events", source, "--store", path, words=["none.csv does not exist"])


def test_equal_times_are_ordered_as_in_a_prepared_log(store, tmp_path):
    baskets = [(u, i, t) for u in range(5) for t in range(6) for i in range(t % 3, 9, 2)]
    table = pl.DataFrame(baskets, schema=["user_id", "item_id", "timestamp"], orient="row")
    with pytest.warns(UserWarning, match="equal times are shuffled"):
        import_events(table, store)
    with pytest.warns(UserWarning, match="equal times are shuffled"):
        log = EventLog.prepare(table, tmp_path / "log")
    kept = SQLiteStore(tmp_path / "kept.sqlite")
    import_events(table, kept, ties="keep")
    for user in range(5):
        items = [event.item for event in store.profile(str(user), 100).last]
        assert items == log.item_vocabulary.ids(log.history(user).items).to_list()
        in_order = [item for owner, item, _ in baskets if owner == user]
        assert [event.item for event in kept.profile(str(user), 100).last] == in_order != items
    kept.close()


def test_options_of_reading_are_for_tables(store, tiny_log):
    with pytest.raises(ConfigError, match="is a prepared log"):
        import_events(tiny_log.folder, store, ties="shuffle")
    with pytest.raises(ConfigError, match="unknown option users"):
        import_events(tiny_log.folder, store, users="x")


@pytest.mark.parametrize(
    "user, words",
    [
        ("a\tb", r"an id has no control characters.*U\+0009 is in it"),
        ("\ufffd", r"U\+FFFD is in it"),
        ("x" * 257, "1 to 256 characters, this one 257"),
    ],
)
def test_an_id_that_no_request_takes_is_refused_with_its_row(store, tmp_path, user, words):
    table = pl.DataFrame(
        {"who": ["ok", "ok", user, user], "item_id": [1, 2, 3, 4], "timestamp": [1, 2, 3, 4]}
    )
    with pytest.raises(DataError, match=f"frame, column 'who', row 3: .*{words}"):
        import_events(table, store, user="who")
    log = EventLog.prepare(table, tmp_path / "log", user="who")
    with pytest.raises(DataError, match=f"log, user [12]: .*{words}"):
        import_events(log.folder, store)
    assert store.counts() == (0, 0)


def test_ids_with_joiners_and_spaces_are_taken(store):
    users = ["می\u200cخ", "\U0001f468\u200d\U0001f469", "Anna\u00a0S", "é", "e\u0301", "x" * 256]
    table = pl.DataFrame(
        {"user_id": users, "item_id": range(len(users)), "timestamp": [1] * len(users)}
    )
    assert import_events(table, store) == Imported(len(users), len(users), 0)
    for item, user in enumerate(users):
        assert store.profile(user, 9).last == [Event(item, 1)]


def test_times_in_another_unit_than_the_store_are_refused(store):
    def table(user, time):
        return pl.DataFrame({"user_id": [user] * 2, "item_id": [1, 2], "timestamp": [5, time]})

    assert import_events(table("anna", 1_700_000_000), store).users == 1
    assert store.unit() == "seconds"
    # Numbers that are no times since 1970 have no unit.
    assert import_events(table("ben", 6), store).users == 1
    words = "frame are in milliseconds, such as 1700000000000, those of the store in seconds"
    with pytest.raises(DataError, match=words):
        import_events(table("carl", 1_700_000_000_000), store)
    assert store.counts() == (2, 4)


def test_the_unit_of_datetimes_is_that_of_what_comes_after(store):
    table = pl.DataFrame({"user_id": ["a"], "item_id": [1], "timestamp": ["2024-01-31T18:45:00"]})
    import_events(table, store)
    with store.transaction():
        store.append("a", [Event(2)], 1_764_000_000)
    assert store.profile("a", 1).last == [Event(2, 1_764_000_000_000_000)]


def test_kinds_and_context_of_a_table_and_of_its_log(store, tmp_path):
    table = pl.DataFrame(
        {
            "user_id": ["b", "a", "a", "a"],
            "item_id": [1, 2, 3, 4],
            "timestamp": [7, 3, 2, 1],
            "event": ["buy", "click", None, "buy"],
            "shop": [None, "web", None, "app"],
            "price": [19.99, None, None, -0.1],
        }
    )
    table.write_csv(tmp_path / "events.csv")
    columns = {"kind": "event", "context": ("shop", "price"), "context_kinds": ("shop=category",)}
    log = EventLog.prepare(tmp_path / "events.csv", tmp_path / "log", **columns)
    other = SQLiteStore(tmp_path / "other.sqlite")
    assert import_events(tmp_path / "events.csv", store, **columns) == Imported(2, 4, 0)
    assert import_events(log.folder, other) == Imported(2, 4, 0)
    for each in (store, other):
        assert each.profile("a", 9).last == [
            Event(4, 1, None, "buy", {"shop": "app", "price": -0.1}),
            Event(3, 2),
            Event(2, 3, None, "click", {"shop": "web"}),
        ]
        assert each.profile("b", 9).last == [Event(1, 7, None, "buy", {"price": 19.99})]
    other.close()


def test_what_a_column_holds_is_an_option_of_the_command(tmp_path, capsys):
    text = "user_id,item_id,timestamp,event,shop\nann,1,1,buy,7\nann,2,2,,8\n"
    (tmp_path / "events.csv").write_text(text)
    path = tmp_path / "events.sqlite"
    told = ["--kind", "event", "--context", "shop", "--context-kinds", "shop=category"]
    source = tmp_path / "events.csv"
    succeed(capsys, "import-events", source, "--store", path, *told)
    store = SQLiteStore(path)
    last = store.profile("ann", 2).last
    assert [(one.kind, one.context) for one in last] == [
        ("buy", {"shop": "7"}),
        (None, {"shop": "8"}),
    ]
    store.close()
    refuse(capsys, "import-events", source, "--kind", "what", words=["has no column 'what'"])
