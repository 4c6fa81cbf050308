"""What every store of events does, and a server's deletions with each of them."""

import contextlib

import pytest

from blossomrec.serving.engine.store_threads import Committer
from blossomrec.serving.metrics import Metrics
from blossomrec.serving.refusals import Refusal
from blossomrec.serving.testing import StoreContract
from blossomrec.serving.testing.base import append


class TestStores(StoreContract):
    """SQLite and Redis keep the contract."""

    @pytest.fixture
    def open_store(self, place):
        return place.open

    @pytest.fixture
    def stored_bytes(self, place):
        return place.content

    @pytest.fixture
    def where(self, place):
        return place.where


def test_a_deletion_whose_answer_was_lost_is_erased_all_the_same(place, monkeypatch):
    """What was sent may have been carried out; the one who deletes again finds nobody."""
    store = place.open()
    append(store, "anna-the-first", (1, 1))
    original = store.transaction

    @contextlib.contextmanager
    def lost():
        with original():
            yield
        monkeypatch.setattr(store, "transaction", original)
        raise store.failures[0]("the answer is lost")

    erased = []
    erase = store.erase
    monkeypatch.setattr(store, "erase", lambda: (erase(), erased.append(1)))
    committer = Committer(store, 10, Metrics())
    # The first deletion of a process erases in any case.
    committer.submit(lambda store: store.delete("nobody"), erase=True).result(60)
    erased.clear()
    monkeypatch.setattr(store, "transaction", lost)
    future = committer.submit(lambda store: store.delete("anna-the-first"), erase=True)
    with pytest.raises(Refusal):
        future.result(60)
    assert (
        committer.submit(lambda store: store.delete("anna-the-first"), erase=True).result(60) == 0
    )
    committer.close()
    assert erased and b"anna-the-first" not in place.content()


def test_traces_that_another_process_left_are_removed(place, monkeypatch):
    """Whoever is asked to delete again, it may be another server than the first time."""
    first, second = (Committer(place.open(), 10, Metrics()) for _ in range(2))

    def delete(committer, user):
        future = committer.submit(lambda store: store.delete(user), erase=True)
        return future.result(60)

    for committer in (first, second):
        assert delete(committer, "nobody") == 0
    append(first._store, "anna-the-first", (1, 1))
    with monkeypatch.context() as patched:

        def fails():
            raise first._store.failures[0]("the disk is full")

        patched.setattr(first._store, "erase", fails)
        with pytest.raises(Refusal):
            delete(first, "anna-the-first")
    assert b"anna-the-first" in place.content()
    erased = []
    erase = second._store.erase
    monkeypatch.setattr(second._store, "erase", lambda: (erase(), erased.append(1)))
    for _ in range(2):
        assert delete(second, "anna-the-first") == 0
    assert erased == [1] and b"anna-the-first" not in place.content()
    for committer in (first, second):
        committer.close()


def test_who_is_deleted_is_erased_whatever_the_store_counts(place, monkeypatch):
    """A store that was emptied, or taken back from a copy, counts from a lower number again."""
    committer = Committer(place.open(), 10, Metrics())

    def delete(user):
        future = committer.submit(lambda store: store.delete(user), erase=True)
        return future.result(60)

    append(committer._store, "anna-the-first", (1, 1))
    assert delete("anna-the-first") == 1
    counted = committer._store.notices()
    append(committer._store, "ben-the-second", (1, 1))
    monkeypatch.setattr(committer._store, "notices", lambda: counted)
    assert delete("ben-the-second") == 1
    committer.close()
    assert b"ben-the-second" not in place.content()
