"""What the tests of a store are given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from blossomrec.serving.stores.store import Appended, Event, EventStore, carried_out

NOW = 1_000


class StoreTests:
    """Base of the tests: fixtures that a subclass overrides."""

    @pytest.fixture
    def open_store(self) -> Callable[[], EventStore]:
        """Opens one store, empty at first, once more with each call."""
        raise NotImplementedError("override the fixture open_store")

    @pytest.fixture
    def stored_bytes(self) -> Callable[[], bytes]:
        """Gives everything that the store keeps, to look for what should be gone."""
        pytest.skip("the store does not show what it keeps: override the fixture stored_bytes")

    @pytest.fixture
    def where(self) -> str:
        """What ``--store`` would be, for other processes, where ``open_store`` opens it."""
        pytest.skip("the store is of one process: override the fixture where")

    @pytest.fixture
    def store(self, open_store: Callable[[], EventStore]) -> Iterator[EventStore]:
        """The store, closed after the test."""
        store = open_store()
        yield store
        store.close()


def append(store: EventStore, user: str, *events: Any) -> Appended:
    """Append events, given as tuples, in a transaction of their own."""
    listed = [Event(*event) for event in events]
    return carried_out(store, lambda: store.append(user, listed, NOW))


def store_append(
    store: EventStore, user: str, events: list[Event], now: float, ahead: float | None
) -> Appended:
    """Append events, with a bound on how far in the future they are."""
    return carried_out(store, lambda: store.append(user, events, now, ahead))
