"""A store of events in a file: whose it is, and what else may be found there."""

import sqlite3
import stat

import pytest

from blossomrec.errors import DataError
from blossomrec.serving import sqlite_store
from blossomrec.serving.refusals import Refusal
from blossomrec.serving.sqlite_store import SQLiteStore
from blossomrec.serving.store import Event, Member, Notices


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


def test_a_file_of_the_format_before_is_taken_over(tmp_path):
    path = tmp_path / "events.sqlite"
    store = SQLiteStore(path)
    append(store, "anna", (1, 1), (2, 2, "k"))
    append(store, "ben", (3, 3))
    with store.transaction():
        store.switch([7], [])
    store.close()
    database = sqlite3.connect(path)
    for statement in (
        "DROP INDEX user_changes",
        "ALTER TABLE users DROP COLUMN change",
        "DROP TABLE notices",
        "PRAGMA user_version = 1",
    ):
        database.execute(statement)
    database.close()
    for _ in range(2):
        store = SQLiteStore(path)
        assert store.members(9) == [Member("ben", 1, 2), Member("anna", 2, 1)]
        assert store.profile("anna", 9).last == [Event(1, 1), Event(2, 2, "k")]
        assert (store.off(), store.notices()) == ([7], Notices(0, 0))
        store.close()
    store = SQLiteStore(path)
    append(store, "anna", (4, 4))
    assert store.members(1) == [Member("anna", 3, 3)]
    store.close()
