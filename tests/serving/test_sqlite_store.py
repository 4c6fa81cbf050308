import sqlite3
import stat
import threading

import pytest

from blossomrec.errors import DataError
from blossomrec.serving.refusals import Refusal
from blossomrec.serving.sqlite_store import SQLiteStore
from blossomrec.serving.store import Appended, Event

NOW = 1_000


@pytest.fixture
def store(tmp_path):
    store = SQLiteStore(tmp_path / "events.sqlite")
    yield store
    store.close()


def append(store, user, *events):
    with store.transaction():
        return store.append(user, [Event(*event) for event in events], NOW)


def test_events_come_back_in_order_and_in_their_types(store, tmp_path):
    assert append(store, "anna", ("milk", 1), (7, 1.5, "k")) == Appended(2, 0, 2)
    assert append(store, "anna", ("7", 2)) == Appended(1, 0, 3)
    assert append(store, "ben", (1, 0)) == Appended(1, 0, 1)
    store.close()
    again = SQLiteStore(tmp_path / "events.sqlite")
    tail = again.tail("anna", 0, 0, 10)
    assert tail.items == ["milk", 7, "7"]
    assert (tail.start, tail.length) == (0, 3)
    profile = again.profile("anna", 2)
    assert profile.length == 3
    assert profile.last == [Event(7, 1.5, "k"), Event("7", 2, None)]
    assert again.profile("anna", 0).last == []
    assert again.tail("carl", 0, 0, 10) is None and again.profile("carl", 5) is None
    again.close()


def test_a_tail_goes_on_where_it_ended(store):
    append(store, "anna", *((item, item) for item in range(10)))
    number = store.tail("anna", 0, 0, 1).number
    assert store.tail("anna", number, 4, 3).items == [4, 5, 6]
    assert store.tail("anna", number, 8, 3).items == [8, 9]
    assert store.tail("anna", number, 10, 3).items == []
    # Of another user of that name, or of more events than there are, nothing is known.
    for other, start in ((number + 1, 4), (number, 11)):
        tail = store.tail("anna", other, start, 2)
        assert (tail.start, tail.items) == (0, [0, 1])


def test_an_event_with_a_known_key_is_stored_once(store):
    assert append(store, "anna", (1, 5, "a"), (1, 5, "a"), (2, 6, "b")) == Appended(2, 1, 2)
    assert append(store, "anna", (1, 5, "a"), (2, None, "b"), (3, 7, "c")) == Appended(1, 2, 3)
    # A key belongs to a user.
    assert append(store, "ben", (1, 5, "a")) == Appended(1, 0, 1)
    assert append(store, "anna", (3, 7), (3, 7)) == Appended(2, 0, 5)


@pytest.mark.parametrize("event", [(9, 5, "a"), (1, 6, "a"), ("1", 5, "a")])
def test_a_key_of_another_event_is_refused(store, event):
    append(store, "anna", (1, 5, "a"))
    with pytest.raises(Refusal, match=r"events\[1\].key is 'a'") as refused:
        append(store, "anna", (4, 8, "b"), event)
    assert (refused.value.status, refused.value.field) == (409, "events[1].key")
    assert store.profile("anna", 9).length == 1
    with pytest.raises(Refusal, match=r"events\[1\].key"):
        append(store, "new", (1, 5, "a"), (2, 5, "a"))
    assert store.profile("new", 9) is None


def test_events_are_in_order_of_time(store):
    append(store, "anna", (1, 5), (2, 5), (3, 7.5))
    for events, index, last in (([(4, 7)], 0, 7.5), ([(4, 9), (5, 8)], 1, 9)):
        with pytest.raises(Refusal, match=f"the event before it was at {last}") as refused:
            append(store, "anna", *events)
        assert refused.value.status == 409
        assert refused.value.field == f"events[{index}].timestamp"
    assert store.profile("anna", 9).length == 3
    append(store, "anna", (4, 7.5))


def test_an_event_without_a_time_is_now_and_never_before_the_last(store):
    append(store, "anna", (1, None), (2, None), (3, 5_000), (4, None))
    assert [event.timestamp for event in store.profile("anna", 9).last] == [NOW, NOW, 5_000, 5_000]


def test_a_transaction_is_all_or_nothing_and_an_attempt_undone_alone(store):
    with pytest.raises(RuntimeError), store.transaction():
        store.append("anna", [Event(1, 1)], NOW)
        raise RuntimeError
    assert store.profile("anna", 1) is None
    with store.transaction():
        store.append("anna", [Event(1, 1)], NOW)
        with pytest.raises(RuntimeError), store.attempt():
            store.append("anna", [Event(2, 2)], NOW)
            store.append("ben", [Event(2, 2)], NOW)
            raise RuntimeError
        with store.attempt():
            store.append("carl", [Event(3, 3)], NOW)
    assert store.tail("anna", 0, 0, 9).items == [1]
    assert store.profile("ben", 1) is None and store.profile("carl", 1).length == 1


def test_what_is_deleted_is_in_no_file(store, tmp_path):
    for number in range(50):
        events = [(f"item-{number}-{place}", place, f"key-{number}") for place in range(1)]
        events += [(f"item-{number}-{place}", place) for place in range(1, 40)]
        append(store, f"user-{number}", *events)
    with store.transaction():
        assert store.delete("user-17") == 40
        assert store.delete("user-17") == 0
    store.erase()
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for word in (b"user-17", b"item-17-", b"key-17"):
        assert word not in content
    for word in (b"user-16", b"item-18-3", b"key-18"):
        assert word in content
    # Who comes back is somebody else.
    number = store.tail("user-16", 0, 0, 1).number
    append(store, "user-17", ("x", 1))
    assert store.tail("user-17", 0, 0, 1).number > 50 > number
    assert store.profile("user-17", 5).length == 1


def test_a_reader_in_between_delays_the_erasing(store, tmp_path, monkeypatch):
    append(store, "anna", ("secret", 1))
    store._database.execute("PRAGMA busy_timeout = 50")
    reader = sqlite3.connect(tmp_path / "events.sqlite", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM events").fetchall()
    with store.transaction():
        store.delete("anna")
    with pytest.raises(Refusal, match="delete again") as refused:
        store.erase()
    assert refused.value.status == 503
    reader.execute("COMMIT")
    store.erase()
    assert all(b"secret" not in path.read_bytes() for path in tmp_path.iterdir())
    reader.close()


def test_items_are_switched_off_and_on(store):
    with store.transaction():
        assert store.switch([3, "x", 3], []) == [3, "x"]
        assert store.switch([3], ["x", "y"]) == [3]
        assert store.switch([], []) == [3]


def test_two_objects_see_each_others_changes(store, tmp_path):
    other = SQLiteStore(tmp_path / "events.sqlite")

    def write(mine, name):
        for place in range(30):
            append(mine, name, (place, place))

    threads = [threading.Thread(target=write, args=pair) for pair in ((store, "a"), (other, "b"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine in (store, other):
        assert mine.profile("a", 0).length == mine.profile("b", 0).length == 30
    other.close()


def test_only_the_owner_may_read_the_files(store, tmp_path):
    append(store, "anna", (1, 1))
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_other_files_are_refused_and_left_alone(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("notes " * 1000)
    other = tmp_path / "other.sqlite"
    database = sqlite3.connect(other)
    database.execute("CREATE TABLE things (name)")
    database.commit()
    database.close()
    newer = tmp_path / "newer.sqlite"
    SQLiteStore(newer).close()
    database = sqlite3.connect(newer)
    database.execute("PRAGMA user_version = 9")
    database.close()
    for path, words in ((text, "not a database"), (other, "not a store"), (newer, "format 9")):
        before = path.read_bytes()
        with pytest.raises(DataError, match=words) as error:
            SQLiteStore(path)
        assert str(path) in str(error.value)
        assert path.read_bytes() == before
    with pytest.raises(DataError, match="none/events"):
        SQLiteStore(tmp_path / "none" / "events.sqlite")
