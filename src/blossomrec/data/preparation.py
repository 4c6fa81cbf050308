"""From a checked table of events to the folder of a prepared log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from blossomrec.data.events import describe, read_events
from blossomrec.data.filters import EventArrays, Filters, drop_events
from blossomrec.data.identity import log_identity
from blossomrec.data.log import EVENTS, ITEMS, LOG_FORMAT, USERS
from blossomrec.data.log_folder import check_replaceable, new_generation
from blossomrec.data.ragged import boundaries
from blossomrec.data.summary import summarize
from blossomrec.data.vocabulary import Vocabulary
from blossomrec.errors import DataError


def prepare_folder(
    source: Any, folder: Path, columns: Mapping[str, str | None], filters: Filters
) -> None:
    """Write ``source`` to ``folder`` as a prepared log, all of it or, on an error, nothing.

    columns: the arguments user, item, timestamp and weight of ``read_events``.
    """
    check_replaceable(folder)
    given = {name: column for name, column in columns.items() if column is not None}
    events = read_events(source, **given)
    unit = "microseconds" if events["timestamp"].dtype == pl.Datetime else None
    users, items, arrays = _encode(events)
    del events
    _check_enough(describe(source), users, items)
    arrays, dropped = drop_events(arrays.sorted(), filters)
    kept_users, kept_items, arrays = _renumber(users, items, arrays)
    if any(entry["events"] for entry in dropped):
        reasons = ", ".join(f"{e['events']:,} ({e['reason']})" for e in dropped if e["events"])
        _check_enough(
            f"{describe(source)}, after dropping {reasons} events,", kept_users, kept_items
        )
    offsets = boundaries(np.bincount(arrays.users, minlength=len(kept_users)))
    summary = summarize(offsets, arrays.times, unit) | {
        "items": len(kept_items),
        "has_repeats": arrays.has_repeats(),
        "dropped": dropped,
        "dropped_users": len(users) - len(kept_users),
        "dropped_items": len(items) - len(kept_items),
    }
    description = {
        "format": LOG_FORMAT,
        **{name: summary[name] for name in ("users", "items", "events", "has_repeats")},
        "weights": arrays.weights is not None,
        "timestamp_unit": unit,
        "source": describe(source),
        "options": {**given, **asdict(filters)},
        "summary": summary,
    }
    user_vocabulary, item_vocabulary = Vocabulary(kept_users), Vocabulary(kept_items)
    description["identity"] = log_identity(
        user_vocabulary.fingerprint,
        item_vocabulary.fingerprint,
        offsets,
        arrays.items,
        arrays.times,
        arrays.weights,
        len(kept_items),
    )
    with new_generation(folder, description) as places:
        _write_arrays(places[EVENTS], offsets, arrays)
        user_vocabulary.save(places[USERS])
        item_vocabulary.save(places[ITEMS])


def _write_arrays(folder: Path, offsets: np.ndarray, arrays: EventArrays) -> None:
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "items.npy", arrays.items)
    np.save(folder / "timestamps.npy", arrays.times)
    if arrays.weights is not None:
        np.save(folder / "weights.npy", arrays.weights)


def _encode(events: pl.DataFrame) -> tuple[pl.Series, pl.Series, EventArrays]:
    """Sorted ids of users and items, and the events with positions in those in place of ids."""
    users, user_codes = _codes(events["user_id"])
    items, item_codes = _codes(events["item_id"])
    times = events["timestamp"].to_physical().to_numpy()
    weights = events["weight"].to_numpy() if "weight" in events.columns else None
    return users, items, EventArrays(user_codes, item_codes, times, weights)


def _codes(values: pl.Series) -> tuple[pl.Series, np.ndarray]:
    ids = values.unique().sort()
    numbers = pl.Series(np.arange(len(ids), dtype=np.int32))
    return ids, values.replace_strict(ids, numbers, return_dtype=pl.Int32).to_numpy()


def _renumber(
    users: pl.Series, items: pl.Series, arrays: EventArrays
) -> tuple[pl.Series, pl.Series, EventArrays]:
    """Rows without gaps: users in order of id, items in falling order of events, then of id."""
    user_counts = np.bincount(arrays.users, minlength=len(users))
    item_counts = np.bincount(arrays.items, minlength=len(items))
    kept_users = np.flatnonzero(user_counts)
    kept_items = np.flatnonzero(item_counts)
    kept_items = kept_items[np.argsort(-item_counts[kept_items], kind="stable")]
    return (
        users.gather(kept_users),
        items.gather(kept_items),
        arrays.renumbered(
            _row_numbers(kept_users, len(users)), _row_numbers(kept_items, len(items))
        ),
    )


def _row_numbers(kept: np.ndarray, size: int) -> np.ndarray:
    rows = np.full(size, -1, dtype=np.int32)
    rows[kept] = np.arange(len(kept), dtype=np.int32)
    return rows


def _check_enough(what: str, users: pl.Series, items: pl.Series) -> None:
    if len(users) == 0:
        raise DataError(f"{what} has no events left")
    if len(users) == 1:
        raise DataError(f"{what} has a single user, {users[0]!r}: at least 2 are needed")
    if len(items) == 1:
        raise DataError(f"{what} has a single item, {items[0]!r}: at least 2 are needed")
