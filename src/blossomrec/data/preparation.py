"""From a checked table of events to the folder of a prepared log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl

from blossomrec.data.event_arrays import EventArrays, encode_fields, order_ties
from blossomrec.data.features import FeatureTable
from blossomrec.data.fields import EventFields
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
from blossomrec.data.reading.tables import EventTable, describe
from blossomrec.data.source_keys import content_key, file_keys
from blossomrec.data.units import ORDER, UNITS, unit_of_times
from blossomrec.data.vocabulary import write_vocabulary
from blossomrec.data.windows import boundaries
from blossomrec.errors import ConfigError, DataError
from blossomrec.files import remove

if TYPE_CHECKING:
    from rich.table import Table


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
        if any(entry["events"] for entry in dropped):
            reasons = ", ".join(f"{e['events']:,} ({e['reason']})" for e in dropped if e["events"])
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
    met = len(kept_items)
    ids, tables = {USERS: _taken(users, kept_users), ITEMS: _taken(items, kept_items)}, {}
    if options.items is not None:
        catalogue = items.take(kept_items).series()
        tables[ITEMS], catalogue = _item_features(options, items.series(), catalogue)
        ids[ITEMS] = ids_of(catalogue).parts()
    if options.users is not None:
        kept = users.take(kept_users).series()
        tables[USERS] = _user_features(options, users.series(), kept)
    offsets = boundaries(counts[kept_users])
    np.save(places[EVENTS] / "offsets.npy", offsets)
    dtypes = {USERS: users.dtype, ITEMS: items.dtype}
    vocabularies = {
        name: write_vocabulary(places[name], dtypes[name], each) for name, each in ids.items()
    }
    for name, features in tables.items():
        features.save(places[name] / FEATURES)
    summary = summarize(offsets, written.first, written.last, unit) | {
        "items": vocabularies[ITEMS].size,
        "items_without_events": vocabularies[ITEMS].size - met,
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
        "dropped_items": len(items) - met,
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


def encode_events(events: pl.DataFrame) -> tuple[pl.Series, pl.Series, EventArrays]:
    """Sorted ids of users and items, and the events with positions in those in place of ids."""
    users, user_codes = _codes(events["user_id"])
    items, item_codes = _codes(events["item_id"])
    times = events["timestamp"].to_physical().to_numpy()
    weights = events["weight"].to_numpy() if "weight" in events.columns else None
    return users, items, EventArrays(user_codes, item_codes, times, weights)


def order_table(
    table: EventTable, ties: Literal["auto", "keep", "shuffle"], source: str
) -> tuple[pl.DataFrame, EventFields, EventArrays]:
    """Checked events in the order of a log: by user, then time; ``ties`` as of ``order_ties``.

    Returns:
        Columns user_id, item_id, timestamp; the names of kinds and context, and the same events as
        arrays that have their numbers.
    """
    users, items, events = encode_events(table.events)
    there = "kind" in table.events.columns
    fields, *numbers = encode_fields(table.events["kind"] if there else None, table.context)
    events = replace(events, kinds=numbers[0], context=numbers[1])
    events = order_ties(events.sorted(), ties, source)
    times = pl.Series(events.times).cast(table.events["timestamp"].dtype)
    columns = {"user_id": users.gather(events.users), "item_id": items.gather(events.items)}
    return pl.DataFrame(columns | {"timestamp": times}), fields, events


def _codes(values: pl.Series) -> tuple[pl.Series, np.ndarray]:
    ids = values.unique().sort()
    numbers = pl.Series(np.arange(len(ids), dtype=np.int32))
    return ids, values.replace_strict(ids, numbers, return_dtype=pl.Int32).to_numpy()


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


_PERCENTILES = (10, 25, 50, 75, 90, 99)
_LONG_HISTORIES = (500, 1_000, 2_000)
# Kinds that a summary shows, the most frequent ones.
_MOST_KINDS = 10
_UNITS_SHOWN = {ORDER: "an order, no points in time"}


def summarize(
    offsets: np.ndarray, first: int | float, last: int | float, unit: str
) -> dict[str, Any]:
    """Counts, percentiles of history length, share of long histories and time span.

    offsets: int64 [U+1]; first, last: times; unit: one of ``UNITS``, or "order". The result is
    ready for JSON.
    """
    lengths = np.diff(offsets)
    percentiles = np.percentile(lengths, _PERCENTILES)
    return {
        "users": len(lengths),
        "events": int(offsets[-1]),
        "mean_length": round(float(lengths.mean()), 2),
        "length_percentiles": {
            **{str(p): float(value) for p, value in zip(_PERCENTILES, percentiles, strict=True)},
            "max": int(lengths.max()),
        },
        "share_over": {str(n): float((lengths > n).mean()) for n in _LONG_HISTORIES},
        "time": _time_span(first, last, unit),
    }


def _time_span(first: int | float, last: int | float, unit: str) -> dict[str, Any]:
    """First and last time as numbers, their unit and, unless that is order, both in ISO 8601."""
    span: dict[str, Any] = {"first": first, "last": last, "unit": unit}
    if unit != ORDER:
        ends = (first / UNITS[unit], last / UNITS[unit])
        span["first_iso"], span["last_iso"] = map(_iso, ends)
    return span


def told_moment(time: float | None, unit: str) -> str:
    """A time of a log in ISO 8601, or as the number it is where times are an order."""
    return str(time) if time is None or unit == ORDER else _iso(time / UNITS[unit])


def _iso(seconds: float) -> str:
    return f"{np.datetime64(int(seconds // 1), 's')}Z"


def summary_table(summary: dict[str, Any], title: str = "Events") -> Table:
    """The summary of a prepared log as a table for the terminal."""
    from rich.table import Table
    from rich.text import Text

    # Names of columns and kinds are text: square brackets in them are no markup.
    shown = Text(title, style="table.title")
    table = Table(title=shown, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(justify="right")
    for row in _summary_rows(summary):
        table.add_row(*map(Text, row))
    return table


def _summary_rows(summary: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if summary.get("lines") is not None:
        yield "lines in the file", f"{summary['lines']:,}"
    if "events_read" in summary:
        yield "events read", f"{summary['events_read']:,}"
    if summary.get("appended_events"):
        yield "events appended since", f"{summary['appended_events']:,}"
    for name in ("users", "items", "events"):
        yield name, f"{summary[name]:,}"
    yield "events per user, mean", f"{summary['mean_length']:,.1f}"
    for name, value in summary["length_percentiles"].items():
        label = "longest history" if name == "max" else f"history length, {name} %"
        yield label, f"{value:,.0f}"
    for name, share in summary["share_over"].items():
        yield f"users over {int(name):,} events", f"{share:.2%}"
    time = summary["time"]
    yield "first event", str(time.get("first_iso", time["first"]))
    yield "last event", str(time.get("last_iso", time["last"]))
    if summary.get("items_without_events"):
        yield "items without events", f"{summary['items_without_events']:,}"
    for what in ("items", "users"):
        for column in summary.get(FEATURE_TABLES[what]) or ():
            yield f"{what}: {column['name']}", _column_told(column)
    yield from _fields_rows(summary)
    if "unit" in time:
        yield "times are", _UNITS_SHOWN.get(time["unit"]) or time["unit"]
    yield "items repeat in histories", "yes" if summary["has_repeats"] else "no"
    yield from _ties_rows(summary)
    if summary.get("weights"):
        yield "weights", "yes"
    if not summary["dropped"]:
        yield "dropped", "nothing"
    for entry in summary["dropped"]:
        yield f"dropped: {entry['reason']}", f"{entry['events']:,} events"
    if any(entry["events"] for entry in summary["dropped"]):
        yield "users dropped with them", f"{summary['dropped_users']:,}"
        yield "items dropped with them", f"{summary['dropped_items']:,}"


def _fields_rows(summary: dict[str, Any]) -> Iterator[tuple[str, str]]:
    kinds = summary.get("kinds") or {}
    for name, events in list(kinds.items())[:_MOST_KINDS]:
        yield f"kind: {name}", f"{events:,} events"
    if len(kinds) > _MOST_KINDS:
        yield "more kinds", f"{len(kinds) - _MOST_KINDS:,}"
    if summary.get("events_of_unknown_kind"):
        yield "kind is not known", f"{summary['events_of_unknown_kind']:,} events"
    for column in summary.get("context") or ():
        yield f"context: {column['name']}", _column_told(column)


def _column_told(column: dict[str, Any]) -> str:
    """Kind of a column, in parentheses how many categories, entries or what numbers, and where."""
    size = f" ({column['size']:,})" if column["kind"] in ("category", "vector") else ""
    if "mean" in column:
        size = f" (mean {column['mean']:.4g}, deviation {column['deviation']:.4g})"
    return f"{column['kind']}{size}, known of {column['known']:.1%}"


def _ties_rows(summary: dict[str, Any]) -> Iterator[tuple[str, str]]:
    # Logs prepared by earlier versions know nothing of ties.
    ties = summary.get("ties")
    if ties is None:
        return
    yield "steps within equal times", f"{ties['share']:.2%}"
    if ties["steps"]:
        yield "of these to a higher item id", f"{ties['share_ascending']:.2%}"
        yield "order of equal times", "shuffled" if ties["shuffled"] else "as in the source"
