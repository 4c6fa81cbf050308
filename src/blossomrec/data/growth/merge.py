"""Generation and segments of a log written as one new generation, piece by piece."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from blossomrec.data.event_arrays import EventArrays
from blossomrec.data.event_files import EVENTS_AT_ONCE, EventFiles
from blossomrec.data.features import FeatureTable
from blossomrec.data.field_counts import FieldCounts
from blossomrec.data.fields import EventFields
from blossomrec.data.growth.feature_rows import grown_table
from blossomrec.data.growth.grown_log import GrownLog
from blossomrec.data.id_arrays import IdArrays
from blossomrec.data.identity import fields_identity, log_identity
from blossomrec.data.log import (
    EVENTS,
    FEATURE_TABLES,
    FEATURES,
    GENERATION_FORMAT,
    ITEMS,
    USERS,
)
from blossomrec.data.summary import summarize
from blossomrec.data.vocabulary import Vocabulary, write_vocabulary
from blossomrec.data.windows import boundaries, fill


def merge(
    log: GrownLog,
    description: dict[str, Any],
    places: dict[str, Path],
    forgotten: np.ndarray | None = None,
) -> None:
    """Write a log to the folders of a new generation, and tell of it in ``description``.

    Memory is that of a piece of the events, of the users and items, and of their tables.

    Args:
        description: of ``log.json``; what it says of the generation and its segments is changed.
        places: by table, as of :func:`blossomrec.data.log_folder.new_generation`.
        forgotten: rows of users who are left out, int64 [n], with names of kinds and categories
            that nobody else has; rows after them move up.
    """
    fields = log.base.fields
    if forgotten is not None:
        counts = FieldCounts(fields)
        for events in _pieces(log, forgotten):
            counts.add(events)
        fields, renumbered = counts.without_unused()
    else:
        renumbered = None
    tables = _write_tables(log, places, forgotten)
    lengths = log.lengths if forgotten is None else np.delete(log.lengths, forgotten)
    offsets = boundaries(lengths)
    np.save(places[EVENTS] / "offsets.npy", offsets)
    found = _Written(fields, log.num_items)
    with EventFiles(places[EVENTS], int(offsets[-1])) as files:
        for events in _pieces(log, forgotten):
            if renumbered is not None:
                events = renumbered(events)
            files.write(events)
            found.add(events, log, forgotten)
    _describe(log, description, places, tables, found, files.digests())


def _pieces(log: GrownLog, forgotten: np.ndarray | None) -> Iterator[EventArrays]:
    for start, stop in pairwise(fill(log.lengths, EVENTS_AT_ONCE).tolist()):
        events = log.events(start, stop)
        if forgotten is not None:
            gone = np.isin(events.users, forgotten)
            events = events.take(~gone) if gone.any() else events
        yield events


class _Written:
    """What is counted of events while they are written."""

    def __init__(self, fields: EventFields, num_items: int):
        self.counts = FieldCounts(fields)
        self.items = np.zeros(num_items, np.int64)
        self.has_repeats = False
        self.ends: tuple[Any, Any] = (math.inf, -math.inf)

    def add(self, events: EventArrays, log: GrownLog, forgotten: np.ndarray | None) -> None:
        self.counts.add(events)
        self.items += np.bincount(events.items, minlength=len(self.items))
        if len(events.times):
            first, last = self.ends
            ends = events.times.min().item(), events.times.max().item()
            self.ends = min(first, ends[0]), max(last, ends[1])
        if not self.has_repeats:
            self.has_repeats = _has_repeats(events, log, forgotten)


def _has_repeats(events: EventArrays, log: GrownLog, forgotten: np.ndarray | None) -> bool:
    if log.base.has_repeats:
        # Only those who are left out may have had them.
        return forgotten is None or (len(events.users) > 0 and events.has_repeats())
    if not len(events.users):
        return False
    touched = log.touched(int(events.users[0]), int(events.users[-1]) + 1)
    part = events.take(np.isin(events.users, touched)) if len(touched) else None
    return part is not None and len(part.users) > 0 and part.has_repeats()


def _write_tables(
    log: GrownLog, places: dict[str, Path], forgotten: np.ndarray | None
) -> dict[str, tuple[Vocabulary, FeatureTable | None]]:
    """Write the vocabularies and what tables say of users and items."""
    written = {}
    for table, base in ((USERS, log.base.user_features), (ITEMS, log.base.item_features)):
        removed = forgotten if table == USERS else None
        dtype = (log.base.user_vocabulary if table == USERS else log.base.item_vocabulary).dtype
        vocabulary = write_vocabulary(places[table], dtype, _kept(log.id_parts(table), removed))
        features = None
        if base is not None:
            features = grown_table(base, log.features(table), log.size(table), removed)
            features.save(places[table] / FEATURES)
        written[table] = vocabulary, features
    return written


def _kept(parts: Iterator[IdArrays], removed: np.ndarray | None) -> Iterator[IdArrays]:
    """Ids that come in parts, without those of some rows."""
    first = 0
    for part in parts:
        if removed is None:
            yield part
        else:
            kept = np.setdiff1d(np.arange(first, first + len(part)), removed)
            yield part.take(kept - first)
        first += len(part)


def _describe(
    log: GrownLog,
    description: dict[str, Any],
    places: dict[str, Path],
    tables: dict[str, tuple[Vocabulary, FeatureTable | None]],
    found: _Written,
    digests: dict[str, str],
) -> None:
    offsets = np.load(places[EVENTS] / "offsets.npy", mmap_mode="r", allow_pickle=False)
    users, items = tables[USERS][0], tables[ITEMS][0]
    fields = found.counts.measured()
    summary = summarize(offsets, *found.ends, log.base.time_unit)
    # How the first table was read, and what was dropped from it, goes on to be told.
    summary = log.base.summary | summary | found.counts.summary(fields)
    appended = sum(len(one.columns["items"]) for one in log.segments)
    features = {table: each for table, (_, each) in tables.items() if each is not None}
    summary |= {
        "items": items.size,
        "items_without_events": int(np.count_nonzero(found.items == 0)),
        "has_repeats": found.has_repeats,
        "appended_events": summary.get("appended_events", 0) + appended,
        **{FEATURE_TABLES[table]: each.summary() for table, each in features.items()},
    }
    identity = log_identity(
        users.fingerprint,
        items.fingerprint,
        offsets,
        digests,
        items.size,
        {FEATURE_TABLES[table].replace("_", " "): each.digest for table, each in features.items()}
        | fields_identity(fields, digests),
    )
    description.pop("segments", None)
    description |= {
        "format": GENERATION_FORMAT,
        **{name: summary[name] for name in ("users", "items", "events", "has_repeats")},
        "fields": fields.to_dict(),
        "summary": summary,
        "identity": identity,
    }
