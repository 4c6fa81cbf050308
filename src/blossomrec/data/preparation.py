"""From a checked table of events to the folder of a prepared log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from blossomrec.data.features import FeatureTable
from blossomrec.data.id_arrays import IDS_AT_ONCE, IdArrays, ids_of
from blossomrec.data.identity import fields_identity, log_identity
from blossomrec.data.log import (
    EVENTS,
    FEATURE_TABLES,
    FEATURES,
    GENERATION_FORMAT,
    ITEMS,
    USERS,
)
from blossomrec.data.log_folder import check_replaceable, new_generation
from blossomrec.data.preparing.columns import TimeColumn
from blossomrec.data.preparing.filters import drop_events
from blossomrec.data.preparing.reading import ReadEvents
from blossomrec.data.preparing.sorting import SortedEvents
from blossomrec.data.reading.columns import Column
from blossomrec.data.reading.features import FeatureColumns, read_features
from blossomrec.data.reading.kinds import CONTEXT_KINDS, parse_kinds
from blossomrec.data.reading.options import EventOptions, PrepareOptions
from blossomrec.data.reading.tables import describe
from blossomrec.data.source_keys import content_key, file_keys
from blossomrec.data.summary import summarize
from blossomrec.data.units import ORDER, unit_of_times
from blossomrec.data.vocabulary import Vocabulary, write_vocabulary
from blossomrec.data.windows import boundaries
from blossomrec.errors import ConfigError, DataError
from blossomrec.files import remove


def prepare_folder(source: Any, folder: Path, options: PrepareOptions) -> None:
    """Write ``source`` to ``folder`` as a prepared log, all of it or, on an error, nothing.

    Memory is that of a batch of the table, of a part of the events, of users and items, and of
    their tables; the events are on disk in between, in the folder that the log's are going to be.
    """
    check_replaceable(folder)
    description = dict[str, Any]()
    with new_generation(folder, description) as places:
        # In a folder that the next one sweeps, should this process be killed.
        spilled = places[EVENTS] / "spilled"
        spilled.mkdir()
        _prepare(source, options, places, spilled, description)
        remove(spilled)


def _prepare(
    source: Any,
    options: PrepareOptions,
    places: dict[str, Path],
    spilled: Path,
    description: dict[str, Any],
) -> None:
    read = ReadEvents(source, options, context_columns(options), spilled / "read")
    unit = _time_unit(read.times, options.time_unit)
    users, items = read.users, read.items
    _check_enough(describe(source), users, items)
    whole, files = file_keys(source, options)
    with SortedEvents(read, spilled / "sorted", hashed=whole is None) as events:
        key = whole or content_key((users, items), events.digests, read.fields)
        ties = events.order_ties(options.ties, describe(source))
        dropped = drop_events(events.parts, events.item_counts, options)
        counts = events.user_counts()
        kept_users, kept_items = np.flatnonzero(counts), _by_events(events.item_counts)
        if reasons := ", ".join(f"{e['events']:,} ({e['reason']})" for e in dropped if e["events"]):
            _check_enough(
                f"{describe(source)}, after dropping {reasons} events,",
                users.take(kept_users[:2]),
                items.take(kept_items[:2]),
            )
        written = events.write(
            places[EVENTS],
            _row_numbers(kept_users, len(users)),
            _row_numbers(kept_items, len(items)),
        )
    offsets = boundaries(counts[kept_users])
    np.save(places[EVENTS] / "offsets.npy", offsets)
    vocabularies, tables = _write_tables(read, options, places, kept_users, kept_items)
    summary = summarize(offsets, written.first, written.last, unit) | {
        "items": vocabularies[ITEMS].size,
        "items_without_events": vocabularies[ITEMS].size - len(kept_items),
        **{
            FEATURE_TABLES[name]: tables[name].summary() if name in tables else None
            for name in FEATURE_TABLES
        },
        **written.fields_summary,
        "lines": read.lines,
        "events_read": read.num_events,
        "has_repeats": written.has_repeats,
        "ties": ties,
        "weights": "weights" in written.digests,
        "dropped": dropped,
        "dropped_users": len(users) - len(kept_users),
        "dropped_items": len(items) - len(kept_items),
    }
    description |= {
        "format": GENERATION_FORMAT,
        **{name: summary[name] for name in ("users", "items", "events", "has_repeats")},
        "weights": summary["weights"],
        "time_unit": unit,
        "source": describe(source),
        **{FEATURE_TABLES[name]: name in tables for name in FEATURE_TABLES},
        "fields": written.fields.to_dict(),
        "options": options.recorded(),
        # What is taken in already, so that no append takes it in again.
        "sources": dict.fromkeys(files, 0) | {key: read.num_events},
        "summary": summary,
    }
    description["identity"] = log_identity(
        vocabularies[USERS].fingerprint,
        vocabularies[ITEMS].fingerprint,
        offsets,
        written.digests,
        vocabularies[ITEMS].size,
        {FEATURE_TABLES[name].replace("_", " "): each.digest for name, each in tables.items()}
        | fields_identity(written.fields, written.digests),
    )


def _write_tables(
    read: ReadEvents,
    options: PrepareOptions,
    places: dict[str, Path],
    kept_users: np.ndarray,
    kept_items: np.ndarray,
) -> tuple[dict[str, Vocabulary], dict[str, FeatureTable]]:
    """Write the vocabularies, and what tables say of users and items, if any were given.

    kept_users, kept_items: of the ids that were read those with events left, in order of row.
    """
    users, items, tables = read.users, read.items, dict[str, FeatureTable]()
    ids = {USERS: _taken(users, kept_users), ITEMS: _taken(items, kept_items)}
    if options.items is not None:
        catalogue = items.take(kept_items).series()
        tables[ITEMS], catalogue = _item_features(options, items.series(), catalogue)
        ids[ITEMS] = ids_of(catalogue).parts()
    if options.users is not None:
        kept = users.take(kept_users).series()
        tables[USERS] = _user_features(options, users.series(), kept)
    dtypes = {USERS: users.dtype, ITEMS: items.dtype}
    vocabularies = {
        name: write_vocabulary(places[name], dtypes[name], each) for name, each in ids.items()
    }
    for name, features in tables.items():
        features.save(places[name] / FEATURES)
    return vocabularies, tables


def context_columns(options: EventOptions) -> dict[str, str | None]:
    """The columns of the context, and "category" or "number" for those of which that is given."""
    columns = dict[str, str | None]()
    for name in options.context or ():
        if name in columns:
            raise ConfigError(f"context has {name!r} twice")
        columns[name] = None
    kinds = parse_kinds(options.context_kinds or (), CONTEXT_KINDS)
    for name, kind in kinds.items():
        if name not in columns:
            raise ConfigError(f"context has no column {name!r}: its kind was given as {kind!r}")
    return columns | kinds


def _item_features(
    options: PrepareOptions, met: pl.Series, kept: pl.Series
) -> tuple[FeatureTable, pl.Series]:
    """The table of items, and the catalogue with those in it without an event.

    met: ids of all events, also of those that were dropped; kept: ids of the catalogue.
    """
    read = read_features(
        options.items, options.item, parse_kinds(options.item_kinds or ()), options
    )
    ids = _met_ids(read, options.item, "an item", met)
    new = ids.filter(~ids.is_in(met.implode())).sort()
    catalogue = pl.concat([kept, new.alias(kept.name)])
    return read.aligned(catalogue), catalogue


def _user_features(options: PrepareOptions, met: pl.Series, kept: pl.Series) -> FeatureTable:
    """The table of users, of those that are kept; met: ids of all events."""
    read = read_features(
        options.users, options.user, parse_kinds(options.user_kinds or ()), options
    )
    _met_ids(read, options.user, "a user", met)
    return read.aligned(kept)


def _met_ids(read: FeatureColumns, column: str, what: str, met: pl.Series) -> pl.Series:
    """The ids of a table in the type of those of the events; DataError where none of them meets."""
    ids = read.ids.cast(met.dtype, strict=False)
    wrong = Column(read.source, column, read.ids)
    wrong.refuse(ids.is_null(), f"is no id of {what}: those of the events are {_kind(met)}")
    if not ids.is_in(met.implode()).any():
        raise DataError(
            f"{read.source}, column {column!r}: none of its {len(ids):,} ids, such as {ids[0]!r}, "
            f"is that of an event, such as {met[0]!r}"
        )
    return ids


def _kind(ids: pl.Series) -> str:
    return "text" if ids.dtype == pl.String else "integers"


def _time_unit(times: TimeColumn, given: str) -> str:
    """What the times of a checked table are in; datetimes are in microseconds by now."""
    if times.datetimes:
        if given not in ("auto", "microseconds", ORDER):
            raise ConfigError(f"time_unit is {given!r}: the table has datetimes, which need none")
        return ORDER if given == ORDER else "microseconds"
    return unit_of_times(times.first, times.last) if given == "auto" else given


def _by_events(counts: np.ndarray) -> np.ndarray:
    """Places of those that have events, in falling order of these, then of place: int64."""
    there = np.flatnonzero(counts)
    return there[np.argsort(-counts[there], kind="stable")]


def _taken(ids: IdArrays, rows: np.ndarray) -> Iterator[IdArrays]:
    """Ids of some rows, not all at once."""
    for start in range(0, len(rows), IDS_AT_ONCE):
        yield ids.take(rows[start : start + IDS_AT_ONCE])


def _row_numbers(kept: np.ndarray, size: int) -> np.ndarray:
    rows = np.full(size, -1, dtype=np.int32)
    rows[kept] = np.arange(len(kept), dtype=np.int32)
    return rows


def _check_enough(what: str, users: IdArrays, items: IdArrays) -> None:
    if len(users) == 0:
        raise DataError(f"{what} has no events left")
    if len(users) == 1:
        raise DataError(f"{what} has a single user, {users.to_list()[0]!r}: at least 2 are needed")
    if len(items) == 1:
        raise DataError(f"{what} has a single item, {items.to_list()[0]!r}: at least 2 are needed")
