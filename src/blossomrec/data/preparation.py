"""From a checked table of events to the folder of a prepared log."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from blossomrec.data.event_arrays import EventArrays, drop_events, order_ties
from blossomrec.data.identity import log_identity
from blossomrec.data.log import EVENTS, ITEMS, LOG_FORMAT, USERS
from blossomrec.data.log_folder import check_replaceable, new_generation
from blossomrec.data.reading.options import UNUSED_WEIGHTS, PrepareOptions
from blossomrec.data.reading.tables import describe, read_table
from blossomrec.data.summary import summarize
from blossomrec.data.vocabulary import Vocabulary
from blossomrec.data.windows import boundaries
from blossomrec.errors import DataError


def prepare_folder(source: Any, folder: Path, options: PrepareOptions) -> None:
    """Write ``source`` to ``folder`` as a prepared log, all of it or, on an error, nothing."""
    check_replaceable(folder)
    if options.weight is not None:
        warnings.warn(f"weights ({options.weight!r}) are {UNUSED_WEIGHTS}", stacklevel=2)
    table = read_table(source, options, options.weight)
    events, lines, read = table.events, table.lines, table.events.height
    del table
    unit = "microseconds" if events["timestamp"].dtype == pl.Datetime else None
    users, items, arrays = encode_events(events)
    del events
    _check_enough(describe(source), users, items)
    arrays, ties = order_ties(arrays.sorted(), options.ties, describe(source))
    arrays, dropped = drop_events(arrays, options)
    kept_users, kept_items, arrays = _renumber(users, items, arrays)
    if any(entry["events"] for entry in dropped):
        reasons = ", ".join(f"{e['events']:,} ({e['reason']})" for e in dropped if e["events"])
        _check_enough(
            f"{describe(source)}, after dropping {reasons} events,", kept_users, kept_items
        )
    offsets = boundaries(np.bincount(arrays.users, minlength=len(kept_users)))
    summary = summarize(offsets, arrays.times, unit) | {
        "items": len(kept_items),
        "lines": lines,
        "events_read": read,
        "has_repeats": arrays.has_repeats(),
        "ties": ties,
        "weights": arrays.weights is not None,
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
        "options": options.recorded(),
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


def encode_events(events: pl.DataFrame) -> tuple[pl.Series, pl.Series, EventArrays]:
    """Sorted ids of users and items, and the events with positions in those in place of ids."""
    users, user_codes = _codes(events["user_id"])
    items, item_codes = _codes(events["item_id"])
    times = events["timestamp"].to_physical().to_numpy()
    weights = events["weight"].to_numpy() if "weight" in events.columns else None
    return users, items, EventArrays(user_codes, item_codes, times, weights)


def order_table(
    table: pl.DataFrame, ties: Literal["auto", "keep", "shuffle"], source: str
) -> pl.DataFrame:
    """Checked events in the order of a log: by user, then time; ``ties`` as of ``order_ties``."""
    users, items, events = encode_events(table)
    events, _ = order_ties(events.sorted(), ties, source)
    times = pl.Series(events.times).cast(table["timestamp"].dtype)
    return pl.DataFrame(
        {
            "user_id": users.gather(events.users),
            "item_id": items.gather(events.items),
            "timestamp": times,
        }
    )


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
