"""Events on disk in parts, as a preparing has them, from arrays and back."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from blossomrec.data.event_arrays import EventArrays, joined
from blossomrec.data.preparing import parts, sorted_runs
from blossomrec.data.preparing.filters import drop_events
from blossomrec.data.preparing.parts import EventParts
from blossomrec.data.reading import files, tables, text
from blossomrec.data.reading.options import Filters


@contextmanager
def at_once(rows: int) -> Iterator[None]:
    """Tables are read in batches of so many rows, and logs made of parts of so many events."""
    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(parts, "EVENTS_AT_ONCE", rows))
        patches.enter_context(mock.patch.object(sorted_runs, "VALUES_AT_ONCE", rows))
        for module in (text, files, tables):
            patches.enter_context(mock.patch.object(module, "ROWS_AT_ONCE", rows))
        yield


def filtered(
    events: EventArrays, filters: Filters, rows: int = 2_000_000
) -> tuple[EventArrays, list[dict[str, Any]]]:
    """What filters leave of sorted events in parts of so many, and what they dropped."""
    users = np.unique(events.users)
    places = np.searchsorted(users, events.users).astype(np.int32)
    with at_once(rows), tempfile.TemporaryDirectory() as folder:
        there = EventParts(Path(folder) / "events", np.bincount(places))
        there.add(EventArrays(**vars(events) | {"users": places}))
        dropped = drop_events(there, np.bincount(events.items), filters)
        left = list(there)
        there.close()
    kept = joined(left) if left else events.take(np.zeros(len(places), bool))
    return EventArrays(**vars(kept) | {"users": users[kept.users]}), dropped
