"""Appending tables to a log: one more segment, at the cost of what is appended."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from blossomrec.data.features import FeatureTable
from blossomrec.data.growth.appended import Appended
from blossomrec.data.growth.compact import merge_segments
from blossomrec.data.growth.grown_log import GrownLog
from blossomrec.data.growth.new_events import NewEvents, as_ids_of, no_new_events
from blossomrec.data.growth.options import AppendOptions
from blossomrec.data.growth.segment import FeatureRows, Segment
from blossomrec.data.log import ITEMS, USERS, EventLog
from blossomrec.data.log_folder import LogChange, changing
from blossomrec.data.reading.columns import Column
from blossomrec.data.reading.features import FeatureColumns, read_features
from blossomrec.data.source_keys import file_keys
from blossomrec.data.vocabulary import Vocabulary
from blossomrec.errors import ConfigError, DataError
from blossomrec.files import digest

# An append opens them all: with so many, one of them merges the log first.
MAX_SEGMENTS = 64
LARGEST_ROW = np.iinfo(np.int32).max
# Of ``log.json``: digest of the table of items that was appended last.
APPENDED_ITEMS = "appended_items"


def append_events(source: Any, folder: Path, options: AppendOptions) -> Appended:
    """Append a table of events to the log in ``folder``; what is new.

    See :meth:`blossomrec.EventLog.append`.
    """
    with changing(folder) as change:
        log = _open(change)
        sources = change.description.setdefault("sources", {})
        whole, files = file_keys(source, options.reading(log.base))
        key = options.key or whole
        if key in sources:
            return Appended(str(key), is_new=False)
        if options.key is None:
            _check_files(files, sources)
        with change.scratch() as folder:
            new_events = NewEvents(source, log.base, options, folder / "events")
            key = key or new_events.key
            if key in sources:
                return Appended(key, is_new=False)
            users, items = new_events.users, new_events.items
            met = _met(log, options, {USERS: users, ITEMS: items}, new_events.source)
            with closing(new_events.by_rows(met.rows[USERS], met.rows[ITEMS])) as events:
                segment = Segment(events, len(events), met.new, met.features)
                new = _told(log, segment, key)
                with change.new_segment() as (place, told):
                    told |= segment.save(place)
                    sources |= dict.fromkeys(files, 0) | {key: new.events}
                    change.description["fields"] = new_events.fields.to_dict()
                    if options.items is not None:
                        # Another one than was appended alone, or the same one in another form.
                        change.description.pop(APPENDED_ITEMS, None)
    return new


def append_items(folder: Path, table: Path) -> Appended:
    """Append a table of items without events; what is new.

    What it says of an item, known or new, replaces what was known of that. Where it is the one that
    was appended last, by its content, nothing changes.

    Raises:
        ConfigError: the log has no table of items to add to.
        DataError: the table does not fit the log; the message names column, row and value. Or
            another process writes the log.
    """
    options = AppendOptions(items=table)
    with changing(folder) as change:
        key = digest(table)
        if change.description.get(APPENDED_ITEMS) == key:
            return Appended(key, is_new=False)
        log = _open(change)
        base = log.base
        none = {
            name: pl.Series("id", dtype=getattr(pl, one.dtype))
            for name, one in ((USERS, base.user_vocabulary), (ITEMS, base.item_vocabulary))
        }
        met = _met(log, options, none, str(table))
        segment = Segment([no_new_events(base)], 0, met.new, met.features)
        with change.new_segment() as (place, told):
            told |= segment.save(place)
            change.description[APPENDED_ITEMS] = key
    return Appended(key, is_new=True, items=len(segment.ids[ITEMS]), unit=base.time_unit)


def _open(change: LogChange) -> GrownLog:
    """The log whose lock is held, with room for one more segment."""
    if len(change.description.get("segments", ())) >= MAX_SEGMENTS:
        merge_segments(change)
    return GrownLog(change.folder, change.description)


def _check_files(files: Mapping[str, Path], sources: Mapping[str, int]) -> None:
    """DataError where some files of a table were taken in before, and others were not."""
    again = [path for key, path in files.items() if key in sources]
    if again:
        raise DataError(
            f"{len(again)} of {len(files)} files were taken in before, such as {again[0]}: append "
            "the others alone, or give a key to take in all of them"
        )


class _Met(NamedTuple):
    """What an append has of users and items, by table.

    Attributes:
        rows: of the ids of events, int32.
        new: ids in the rows after those that are there.
        features: what tables say of them.
    """

    rows: dict[str, np.ndarray]
    new: dict[str, pl.Series]
    features: dict[str, FeatureRows]


def _met(log: GrownLog, options: AppendOptions, ids: Mapping[str, pl.Series], source: str) -> _Met:
    """Rows of the ids of events, new ones after those that are there, and of tables."""
    tables = _read_tables(log.base, options)
    rows, new = {}, {}
    features = dict[str, FeatureRows]()
    for table in (USERS, ITEMS):
        met, size, given = ids[table], log.size(table), tables.get(table)
        found = log.rows(table, met)
        unknown = met.filter(pl.Series(found < 0)).alias("id")
        new[table] = unknown
        wanted = np.empty(0, np.int64) if given is None else log.rows(table, given.ids)
        if given is not None and table == ITEMS:
            # Items without an event belong to the catalogue.
            others = given.ids.filter(pl.Series(wanted < 0))
            new[table] = pl.concat([unknown, others.alias("id")]).unique().sort()
        if size + len(new[table]) > LARGEST_ROW:
            raise DataError(f"{source} brings the {table} to over {LARGEST_ROW:,}")
        added = Vocabulary(new[table])
        found[found < 0] = size + added.rows_of(Vocabulary(unknown))
        rows[table] = found.astype(np.int32)
        if given is not None:
            there = added.rows_of(Vocabulary(given.ids))
            features[table] = _feature_rows(given, np.where(there < 0, wanted, size + there))
    return _Met(rows, new, features)


def _told(log: GrownLog, segment: Segment, key: str) -> Appended:
    late, ends = 0, list[Any]()
    for events in segment.events:
        users, counts = np.unique(events.users, return_counts=True)
        there, last = (np.repeat(each, counts) for each in log.last_times(users))
        late += int(np.count_nonzero(there & (events.times < last)))
        ends += [events.times.min().item(), events.times.max().item()]
    return Appended(
        key,
        is_new=True,
        events=segment.num_events,
        users=len(segment.ids[USERS]),
        items=len(segment.ids[ITEMS]),
        late=late,
        first=min(ends),
        last=max(ends),
        unit=log.base.time_unit,
    )


def _read_tables(log: EventLog, options: AppendOptions) -> dict[str, FeatureColumns]:
    """Tables of items and users that are given, with the log's columns."""
    found, reading = {}, options.reading(log)
    for table, known, column, vocabulary in (
        (USERS, log.user_features, reading.user, log.user_vocabulary),
        (ITEMS, log.item_features, reading.item, log.item_vocabulary),
    ):
        source = getattr(options, table)
        if source is None:
            continue
        if known is None:
            raise ConfigError(
                f"{log.folder} has no table of {table} to add to: prepare it with --{table}"
            )
        kinds = {name: one.kind for name, one in known.items()}
        read = read_features(source, column, kinds, reading, only=True)
        ids = as_ids_of(Column(read.source, column, read.ids), vocabulary.dtype, f"the {table}")
        _check_vectors(read, known)
        found[table] = replace(read, ids=ids)
    return found


def _check_vectors(read: FeatureColumns, known: FeatureTable) -> None:
    for name, feature in known.items():
        if feature.kind == "vector":
            given = int(read.columns[name].list.len().drop_nulls()[0])
            if given != (length := feature.arrays()["values"].shape[1]):
                raise DataError(
                    f"{read.source}, column {name!r}: its vectors have {given} numbers, those of "
                    f"the log {length}"
                )


def _feature_rows(given: FeatureColumns, rows: np.ndarray) -> FeatureRows:
    """What a table says of ids, by the rows that they have then; those without one, -1, are out."""
    kept = np.flatnonzero(rows >= 0)
    return FeatureRows(rows[kept], given.aligned(given.ids.gather(kept)))
