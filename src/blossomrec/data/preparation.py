"""From a checked table of events to the folder of a prepared log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl

from blossomrec.data.event_arrays import (
    EventArrays,
    drop_events,
    encode_fields,
    order_ties,
    rank_fields,
)
from blossomrec.data.features import FeatureTable
from blossomrec.data.fields import EventFields
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
from blossomrec.data.reading.columns import Column
from blossomrec.data.reading.features import FeatureColumns, read_features
from blossomrec.data.reading.kinds import CONTEXT_KINDS, parse_kinds
from blossomrec.data.reading.options import EventOptions, PrepareOptions
from blossomrec.data.reading.tables import EventTable, describe, read_table
from blossomrec.data.source_keys import content_key, file_keys
from blossomrec.data.units import ORDER, UNITS, unit_of_times
from blossomrec.data.vocabulary import Vocabulary
from blossomrec.data.windows import boundaries
from blossomrec.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rich.table import Table


def prepare_folder(source: Any, folder: Path, options: PrepareOptions) -> None:
    """Write ``source`` to ``folder`` as a prepared log, all of it or, on an error, nothing."""
    check_replaceable(folder)
    table = read_table(source, options, options.weight, options.kind, context_columns(options))
    events, lines, read = table.events, table.lines, table.events.height
    unit = _time_unit(events["timestamp"], options.time_unit)
    users, items, arrays = encode_events(events)
    fields, kinds, context = encode_fields(
        events["kind"] if "kind" in events.columns else None, table.context
    )
    arrays = replace(arrays, kinds=kinds, context=context)
    del events, table, kinds, context
    _check_enough(describe(source), users, items)
    arrays = arrays.sorted()
    whole, files = file_keys(source, options)
    key = whole or content_key((users, items), arrays, fields)
    arrays, ties = order_ties(arrays, options.ties, describe(source))
    arrays, dropped = drop_events(arrays, options)
    kept_users, kept_items, arrays = _renumber(users, items, arrays)
    if any(entry["events"] for entry in dropped):
        reasons = ", ".join(f"{e['events']:,} ({e['reason']})" for e in dropped if e["events"])
        _check_enough(
            f"{describe(source)}, after dropping {reasons} events,", kept_users, kept_items
        )
    arrays, fields = rank_fields(arrays, fields)
    item_features, kept_items = _item_features(options, items, kept_items)
    user_features = _user_features(options, users, kept_users)
    tables = {USERS: user_features, ITEMS: item_features}
    tables = {name: each for name, each in tables.items() if each is not None}
    offsets = boundaries(np.bincount(arrays.users, minlength=len(kept_users)))
    summary = summarize(offsets, arrays.times, unit) | {
        "items": len(kept_items),
        "items_without_events": len(kept_items) - int(arrays.items.max()) - 1,
        **{
            FEATURE_TABLES[name]: tables[name].summary() if name in tables else None
            for name in FEATURE_TABLES
        },
        **summarize_fields(fields, arrays),
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
        "format": GENERATION_FORMAT,
        **{name: summary[name] for name in ("users", "items", "events", "has_repeats")},
        "weights": arrays.weights is not None,
        "time_unit": unit,
        "source": describe(source),
        **{FEATURE_TABLES[name]: name in tables for name in FEATURE_TABLES},
        "fields": fields.to_dict(),
        "options": options.recorded(),
        # What is taken in already, so that no append takes it in again.
        "sources": dict.fromkeys(files, 0) | {key: read},
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
        {FEATURE_TABLES[name].replace("_", " "): each.digest for name, each in tables.items()}
        | fields_identity(fields, arrays.kinds, arrays.context),
    )
    with new_generation(folder, description) as places:
        _write_arrays(places[EVENTS], offsets, arrays)
        user_vocabulary.save(places[USERS])
        item_vocabulary.save(places[ITEMS])
        for name, features in tables.items():
            features.save(places[name] / FEATURES)


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
) -> tuple[FeatureTable | None, pl.Series]:
    """The table of items, if one is given, and the catalogue with those in it without an event.

    met: ids of all events, also of those that were dropped; kept: ids of the catalogue.
    """
    if options.items is None:
        return None, kept
    read = read_features(
        options.items, options.item, parse_kinds(options.item_kinds or ()), options
    )
    ids = _met_ids(read, options.item, "an item", met)
    new = ids.filter(~ids.is_in(met.implode())).sort()
    catalogue = pl.concat([kept, new.alias(kept.name)])
    return read.aligned(catalogue), catalogue


def _user_features(options: PrepareOptions, met: pl.Series, kept: pl.Series) -> FeatureTable | None:
    """The table of users, if one is given, of those that are kept; met: ids of all events."""
    if options.users is None:
        return None
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


def _time_unit(times: pl.Series, given: str) -> str:
    """What the times of a checked table are in; datetimes are in microseconds by now."""
    if times.dtype == pl.Datetime:
        if given not in ("auto", "microseconds", ORDER):
            raise ConfigError(f"time_unit is {given!r}: the table has datetimes, which need none")
        return ORDER if given == ORDER else "microseconds"
    return unit_of_times(times.min(), times.max()) if given == "auto" else given  # pyright: ignore[reportArgumentType]


def _write_arrays(folder: Path, offsets: np.ndarray, arrays: EventArrays) -> None:
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "items.npy", arrays.items)
    np.save(folder / "timestamps.npy", arrays.times)
    for name in ("weights", "kinds", "context"):
        if (array := getattr(arrays, name)) is not None:
            np.save(folder / f"{name}.npy", array)


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
    events, _ = order_ties(events.sorted(), ties, source)
    times = pl.Series(events.times).cast(table.events["timestamp"].dtype)
    columns = {"user_id": users.gather(events.users), "item_id": items.gather(events.items)}
    return pl.DataFrame(columns | {"timestamp": times}), fields, events


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


_PERCENTILES = (10, 25, 50, 75, 90, 99)
_LONG_HISTORIES = (500, 1_000, 2_000)
# Kinds that a summary shows, the most frequent ones.
_MOST_KINDS = 10
_UNITS_SHOWN = {ORDER: "an order, no points in time"}


def summarize(offsets: np.ndarray, timestamps: np.ndarray, unit: str) -> dict[str, Any]:
    """Counts, percentiles of history length, share of long histories and time span.

    offsets: int64 [U+1]; timestamps: numbers [E]; unit: one of
    ``UNITS``, or "order". The result is ready for JSON.
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
        "time": _time_span(timestamps, unit),
    }


def summarize_fields(fields: EventFields, events: EventArrays) -> dict[str, Any]:
    """Of the kinds their events, of each column of the context its kind, size and share known."""
    counts = np.bincount(events.kinds, minlength=1) if events.kinds is not None else np.zeros(1)
    context = np.empty((0, 0)) if events.context is None else events.context
    known = [int(np.count_nonzero(~np.isnan(column))) for column in context.T]
    return told_fields(fields, counts, known, len(events.users))


def told_fields(
    fields: EventFields, kinds: np.ndarray, known: Sequence[int], events: int
) -> dict[str, Any]:
    """The same, of counts.

    Args:
        kinds: events of each kind, the unknown one first.
        known: of each column of the context, in how many events it is known.
        events: all of them.
    """
    names = dict(zip(("", *fields.kinds), map(int, kinds), strict=True))
    unknown = names.pop("")
    columns = list[dict[str, Any]]()
    for column, count in zip(fields.context, known, strict=True):
        told: dict[str, Any] = {"name": column.name, "kind": column.kind, "known": count / events}
        if column.kind == "category":
            told["size"] = len(column.names)
        else:
            told |= {"mean": column.mean, "deviation": column.deviation}
        columns.append(told)
    return {"kinds": names, "events_of_unknown_kind": unknown, "context": columns}


def _time_span(timestamps: np.ndarray, unit: str) -> dict[str, Any]:
    """First and last time as numbers, their unit and, unless that is order, both in ISO 8601."""
    first, last = timestamps.min().item(), timestamps.max().item()
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

    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(justify="right")
    if summary.get("lines") is not None:
        table.add_row("lines in the file", f"{summary['lines']:,}")
    if "events_read" in summary:
        table.add_row("events read", f"{summary['events_read']:,}")
    if summary.get("appended_events"):
        table.add_row("events appended since", f"{summary['appended_events']:,}")
    for name in ("users", "items", "events"):
        table.add_row(name, f"{summary[name]:,}")
    table.add_row("events per user, mean", f"{summary['mean_length']:,.1f}")
    for name, value in summary["length_percentiles"].items():
        label = "longest history" if name == "max" else f"history length, {name} %"
        table.add_row(label, f"{value:,.0f}")
    for name, share in summary["share_over"].items():
        table.add_row(f"users over {int(name):,} events", f"{share:.2%}")
    time = summary["time"]
    table.add_row("first event", str(time.get("first_iso", time["first"])))
    table.add_row("last event", str(time.get("last_iso", time["last"])))
    if summary.get("items_without_events"):
        table.add_row("items without events", f"{summary['items_without_events']:,}")
    for what in ("items", "users"):
        for column in summary.get(FEATURE_TABLES[what]) or ():
            table.add_row(f"{what}: {column['name']}", _column_told(column))
    for label, value in _fields_rows(summary):
        table.add_row(label, value)
    if "unit" in time:
        table.add_row("times are", _UNITS_SHOWN.get(time["unit"], time["unit"]))
    table.add_row("items repeat in histories", "yes" if summary["has_repeats"] else "no")
    for label, value in _ties_rows(summary):
        table.add_row(label, value)
    if summary.get("weights"):
        table.add_row("weights", "yes")
    if not summary["dropped"]:
        table.add_row("dropped", "nothing")
    for entry in summary["dropped"]:
        table.add_row(f"dropped: {entry['reason']}", f"{entry['events']:,} events")
    if any(entry["events"] for entry in summary["dropped"]):
        table.add_row("users dropped with them", f"{summary['dropped_users']:,}")
        table.add_row("items dropped with them", f"{summary['dropped_items']:,}")
    return table


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
