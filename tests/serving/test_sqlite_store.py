"""A store of events in a file: whose it is, and what else may be found there."""

import random
import re
import sqlite3
import stat

import pytest

from blossomrec.errors import DataError
from blossomrec.serving.refusals import Refusal
from blossomrec.serving.stores import sqlite_rows, sqlite_store
from blossomrec.serving.stores.sqlite_store import SQLiteStore
from blossomrec.serving.stores.store import Event, Profile


@pytest.fixture
def store(tmp_path):
    store = SQLiteStore(tmp_path / "events.sqlite")
    yield store
    store.close()


def append(store, user, *events):
    with store.transaction():
        return store.append(user, [Event(*event) for event in events], 0)


def test_a_reader_in_between_delays_the_erasing(store, tmp_path, monkeypatch):
    append(store, "anna", ("secret", 1))
    monkeypatch.setattr(sqlite_store, "BUSY_SECONDS", 0.05)
    reader = sqlite3.connect(tmp_path / "events.sqlite", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM chunks").fetchall()
    with store.transaction():
        store.delete("anna")
    with pytest.raises(Refusal, match="delete again") as refused:
        store.erase()
    assert refused.value.status == 503
    reader.execute("COMMIT")
    store.erase()
    assert all(b"secret" not in path.read_bytes() for path in tmp_path.iterdir())
    reader.close()


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


FORMAT_2 = """
CREATE TABLE users (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    length INTEGER NOT NULL,
    last NOT NULL,
    change INTEGER NOT NULL
);
CREATE TABLE events (
    user INTEGER NOT NULL,
    position INTEGER NOT NULL,
    item NOT NULL,
    timestamp NOT NULL,
    key TEXT,
    PRIMARY KEY (user, position)
) WITHOUT ROWID;
CREATE UNIQUE INDEX event_keys ON events (user, key) WHERE key IS NOT NULL;
CREATE TABLE items_off (item NOT NULL PRIMARY KEY) WITHOUT ROWID;
CREATE UNIQUE INDEX user_changes ON users (change);
CREATE TABLE notices (switches INTEGER NOT NULL, deletions INTEGER NOT NULL);
INSERT INTO notices VALUES (3, 4);
PRAGMA application_id = 1651273587;
PRAGMA journal_mode = WAL;
PRAGMA user_version = 2;
"""
# What format 2 added.
TO_FORMAT_1 = """
DROP INDEX user_changes;
ALTER TABLE users DROP COLUMN change;
DROP TABLE notices;
PRAGMA user_version = 1;
"""


def old_file(path, histories, format_):
    """A file as earlier versions wrote it; users had their last events in the order given."""
    database = sqlite3.connect(path)
    database.executescript(FORMAT_2)
    numbers = {user: number for number, user in enumerate(sorted(histories), 1)}
    if format_ == 1:
        numbers = {user: number for number, user in enumerate(histories, 1)}
    for change, (user, events) in enumerate(histories.items(), 10):
        number, last = numbers[user], events[-1].timestamp
        row = (number, user, len(events), last, change)
        database.execute("INSERT INTO users VALUES (?, ?, ?, ?, ?)", row)
        rows = [(number, place, *event[:3]) for place, event in enumerate(events)]
        database.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?)", rows)
    database.executemany("INSERT INTO items_off VALUES (?)", [(7,), ("x",)])
    database.commit()
    if format_ == 1:
        database.executescript(TO_FORMAT_1)
    database.close()


@pytest.mark.parametrize("format_", [1, 2])
def test_a_file_of_a_format_before_is_taken_over(tmp_path, format_):
    path, draw = tmp_path / "events.sqlite", random.Random(2)
    histories = {
        f"user-{draw.random()}-é": [
            Event(
                draw.choice([place, f"item-{place}", -place]),
                1_600_000_000 + place + draw.choice([0, 0.25]),
                draw.choice([None, f"key {place}"]),
            )
            for place in range(draw.choice([1, 2, 30, 700]))
        ]
        for _ in range(200)
    }
    # Ids that are refused today can have been stored.
    histories |= {user: [Event(1, 1)] for user in ("a\tb", "x" * 300, "\ufffd")}
    old_file(path, histories, format_)
    for _ in range(2):
        store = SQLiteStore(path)
        listed = store.members(1_000)
        # Of equal times the one who had events last comes first.
        by_time = sorted(histories, key=lambda user: histories[user][-1].timestamp)
        assert [one.user for one in listed] == by_time[::-1]
        for user, length, *_ in listed:
            assert store.profile(user, length) == Profile(length, histories[user])
            assert length == len(histories[user])
        assert (store.off(), store.unit()) == ([7, "x"], "seconds")
        assert store.notices() == ((0, 0) if format_ == 1 else (3, 4))
        assert store._database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        store.close()
    store = SQLiteStore(path)
    keyed = next(user for user, events in histories.items() if events[-1].key)
    assert append(store, keyed, histories[keyed][-1]).repeated == 1
    append(store, keyed, (4, 1_700_000_000))
    assert store.members(1)[0].user == keyed
    for user in histories:
        with store.transaction():
            assert store.delete(user)
    store.erase()
    content = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert not any(word in content for word in (b"user-", b"item-", b"key 1", b"a\tb"))
    store.close()


def test_nothing_of_a_thousand_deleted_users_is_left(store, tmp_path):
    """Rows that SQLite moves leave copies in the gaps of pages: none of these is ever moved."""
    draw, lengths, gone, users = random.Random(1), {}, set(), 2_000

    def grow(names):
        with store.transaction():
            for name in names:
                place = lengths.get(name, 0)
                ends = range(place, place + draw.choice([1, 1, 1, 2, 5, 20, 60]))
                events = [
                    Event(f"i-{name}-i", 1_600_000_000 + at, draw.choice([f"k-{name}-{at}", None]))
                    for at in ends
                ]
                store.append(name, events, 0)
                lengths[name] = ends.stop

    for _ in range(80):
        grow(f"<{draw.randrange(users):04}>" for _ in range(60))
    for number, name in enumerate(draw.sample(sorted(lengths), 1_000)):
        with store.transaction():
            assert store.delete(name) == lengths.pop(name)
        gone.add(name)
        if number % 20 == 0:
            grow(
                [
                    *draw.sample(sorted(lengths), 20),
                    *(f"<+{number + more:03}>" for more in range(9)),
                ]
            )
    store.erase()
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    found = {name.decode() for name in re.findall(rb"<[+\d]\d{3}>", content)}
    assert len(gone) == 1_000 and not found & gone
    assert found == set(lengths)
    for name, length in lengths.items():
        assert len(store.profile(name, length).last) == length
    assert store._database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_the_place_of_the_deleted_is_used_again(store, tmp_path):
    sizes = set()
    for number in range(12):
        for user in range(20):
            append(store, f"user {user}", *((item, item) for item in range(300)))
        for user in range(20):
            with store.transaction():
                store.delete(f"user {user}")
        store.erase()
        if number > 0:
            sizes.add((tmp_path / "events.sqlite").stat().st_size)
    assert max(sizes) - min(sizes) <= 8 * 4_096


def test_users_whose_hashes_begin_alike(store, monkeypatch):
    """The directory goes on further down, and knows them apart."""
    original = sqlite_rows.keyed_hash

    def alike(secret, text):
        return b"\0" * 5 + bytes([len(text) & 1]) * 3 + original(secret, text)[8:]

    monkeypatch.setattr(sqlite_rows, "keyed_hash", alike)
    names = [f"u{number}" for number in range(25)]
    for name in names:
        append(store, name, (name, 1))
    with store.transaction():
        for name in names[::3]:
            assert store.delete(name) == 1
    append(store, names[0], (names[0], 1))
    for other in (store, fresh := SQLiteStore(store.path)):
        for number, name in enumerate(names):
            tail = other.tail(name, 0, 0, 9)
            assert (tail and tail.items) == (None if number % 3 == 0 and number else [name])
    fresh.close()


@pytest.mark.parametrize("suffix", ["", "-wal"])
@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_is_gone_takes_no_more_events(store, tmp_path, suffix, replaced):
    append(store, "anna", (1, 1))
    path = tmp_path / f"events.sqlite{suffix}"
    content = path.read_bytes()
    path.rename(tmp_path / "elsewhere")
    if replaced:
        path.write_bytes(content)
    with pytest.raises(sqlite3.Error, match=f"sqlite{suffix} has been removed or rep") as error:
        append(store, "anna", (2, 2))
    assert not store.passes(error.value)
    with pytest.raises(sqlite3.Error, match="removed or replaced"):
        store.check()
    path.unlink(missing_ok=True)
    (tmp_path / "elsewhere").rename(path)
    store.check()
    assert append(store, "anna", (2, 2)).length == 2


def test_a_file_of_junk_is_seen_although_all_of_it_is_in_memory(store, tmp_path):
    append(store, "anna", (1, 1))
    store.erase()
    store.check()
    path = tmp_path / "events.sqlite"
    path.write_bytes(b"junk" * (path.stat().st_size // 4))
    with pytest.raises(sqlite3.Error) as error:
        store.check()
    assert not store.passes(error.value)


def test_who_waits_for_a_writer_finds_the_store_at_work(store, monkeypatch):
    monkeypatch.setattr(sqlite_store, "BUSY_SECONDS", 0.05)
    other = SQLiteStore(store.path)
    with store.transaction():
        other.check()
        with pytest.raises(sqlite3.OperationalError, match="locked") as error:
            append(other, "anna", (1, 1))
    assert other.passes(error.value)
    other.close()


def test_a_full_disk_is_seen(store, monkeypatch):
    monkeypatch.setattr(sqlite_store, "LEAST_FREE", 2**80)
    with pytest.raises(sqlite3.OperationalError, match=r"disk of .*sqlite is full") as error:
        store.check()
    assert not store.passes(error.value)


@pytest.mark.parametrize("lie", [1, 5_000])
def test_a_length_that_lies_is_damage(store, lie):
    append(store, "anna", *((item, item) for item in range(100)))
    number, anna = store._directory.find("anna")
    store._users.write(number, anna._replace(length=100 + lie).packed())
    assert store.tail("anna", number, 20, 80).items == list(range(20, 100))
    for start in (99, 100):
        with pytest.raises(sqlite3.DatabaseError, match=f"number {number} are missing"):
            store.tail("anna", number, start, 4_096)


def test_an_event_takes_no_more_than_it_says():
    """Those without kind and context stand as they always did."""
    assert sqlite_rows.packed_event(Event(1, 2, "k")) == b'[1,2,"k"]\n'
    assert sqlite_rows.packed_event(Event(1, 2, None, "buy")) == b'[1,2,null,"buy"]\n'
    context = {"shop": "web"}
    assert (
        sqlite_rows.packed_event(Event(1, 2, context=context))
        == b'[1,2,null,null,{"shop":"web"}]\n'
    )
