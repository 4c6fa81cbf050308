"""A log as it was at a time: the events before it, and the users and items that had occurred."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from blossomrec.data.event_arrays import EventArrays
from blossomrec.data.feature_rows import taken_rows
from blossomrec.data.features import Categories, FeatureTable
from blossomrec.data.field_counts import FieldCounts
from blossomrec.data.growth.feature_rows import without_unused
from blossomrec.data.identity import array_digests, fields_identity, log_identity
from blossomrec.data.log import (
    EVENTS,
    FEATURE_TABLES,
    FEATURES,
    GENERATION_FORMAT,
    ITEMS,
    USERS,
    EventLog,
)
from blossomrec.data.log_folder import new_generation
from blossomrec.data.vocabulary import Vocabulary
from blossomrec.data.windows import boundaries, fill, gather_index

# Of a piece; a user with more is a piece alone.
EVENTS_AT_ONCE = 2_000_000
# Columns of events, as a log and as its files call them, and as arrays of events do.
COLUMNS = {"items": "items", "timestamps": "times"}
OPTIONAL = ("weights", "kinds", "context")


@dataclass(frozen=True)
class Part:
    """Which events of a log.

    Attributes:
        ends: of each user so many of the first events, int64 [U].
        items: rows of the items whose events are taken, in the order of their new rows, int64.
    """

    ends: np.ndarray
    items: np.ndarray


def ends_before(log: EventLog, time: float) -> np.ndarray:
    """How many events of each user are before a time, int64 [U]."""
    ends = np.zeros(log.num_users, np.int64)
    for start, stop, part in _pieces(log):
        earlier = np.asarray(log.timestamps[part]) < time
        counts = boundaries(earlier)
        edges = np.asarray(log.offsets[start : stop + 1]) - part.start
        ends[start:stop] = counts[edges[1:]] - counts[edges[:-1]]
    return ends


def first_times(log: EventLog) -> np.ndarray:
    """Time of the first event of each item, float64 or int64 [I]; the largest there is without."""
    dtype = log.timestamps.dtype
    never = np.iinfo(dtype).max if dtype.kind == "i" else np.inf
    first = np.full(log.num_items, never, dtype)
    for _, _, part in _pieces(log):
        np.minimum.at(first, log.items[part], log.timestamps[part])
    return first


def known_items(first: np.ndarray, time: float) -> np.ndarray:
    """Rows of the items with an event before a time, in the order in which they came, int64.

    What came at a later time only follows: a row once given is never given again.

    Args:
        first: as of :func:`first_times`.
    """
    order = np.argsort(first, kind="stable")
    return order[: np.count_nonzero(first < time)]


def write_part(log: EventLog, folder: Path, part: Part, *, tables: bool = True) -> EventLog:
    """Write a part of a log as a log of its own, in whose vocabularies ids are rows of this one.

    It has the users with an event that is taken, in their order, and the items of the part. Names
    of kinds and of categories that none of it has are left out, and means of numbers are its own.
    It costs as much as reading the log once, and memory for a piece of it. Whether items repeat is
    said as of the whole log, so that all parts are ranked alike.

    Args:
        folder: of the new log; one that is there is replaced.
        tables: also take what tables say of items and users.

    Raises:
        DataError: the folder cannot be written.
    """
    rows = np.full(log.num_items, -1, np.int32)
    rows[part.items] = np.arange(len(part.items), dtype=np.int32)
    lengths, counts = np.zeros(log.num_users, np.int64), FieldCounts(log.fields)
    for start, stop, events in _taken(log, part.ends, rows):
        lengths[start:stop] = np.bincount(events.users - start, minlength=stop - start)
        counts.add(events)
    fields, renumbered = counts.without_unused()
    users = np.flatnonzero(lengths)
    offsets = boundaries(lengths[users])
    counts, description = FieldCounts(fields), dict[str, Any]()
    with new_generation(folder, description) as places:
        np.save(places[EVENTS] / "offsets.npy", offsets)
        files = _Columns(places[EVENTS], log, int(offsets[-1]), has_kinds=bool(fields.kinds))
        for _, _, events in _taken(log, part.ends, rows):
            events = renumbered(events)
            files.write(events)
            counts.add(events)
        files.close()
        fields = counts.measured()
        found = {
            USERS: _write_table(places[USERS], users, log.user_features if tables else None),
            ITEMS: _write_table(places[ITEMS], part.items, log.item_features if tables else None),
        }
        description |= _described(log, places[EVENTS], fields, found)
    return EventLog.open(folder)


def _pieces(log: EventLog) -> Iterator[tuple[int, int, slice]]:
    """Users ``start .. stop-1`` and where their events lie, piece by piece."""
    cuts = fill(np.diff(np.asarray(log.offsets)), EVENTS_AT_ONCE).tolist()
    for start, stop in pairwise(cuts):
        yield start, stop, slice(int(log.offsets[start]), int(log.offsets[stop]))


def _taken(
    log: EventLog, ends: np.ndarray, rows: np.ndarray
) -> Iterator[tuple[int, int, EventArrays]]:
    """The events that are taken, users by their rows in the log and items by their new ones."""
    offsets = np.asarray(log.offsets)
    for start, stop in pairwise(fill(ends, EVENTS_AT_ONCE).tolist()):
        lengths = ends[start:stop]
        index = gather_index(offsets[start:stop], lengths)
        users = np.repeat(np.arange(start, stop, dtype=np.int32), lengths)
        items = rows[log.items[index]]
        kept = items >= 0
        index = index[kept]
        others = {name: getattr(log, name) for name in OPTIONAL}
        found = {name: each[index] for name, each in others.items() if each is not None}
        times = np.asarray(log.timestamps[index])
        yield start, stop, EventArrays(users[kept], items[kept], times, **found)


class _Columns:
    """The files of the events of a new log, memory-mapped and written piece by piece."""

    def __init__(self, folder: Path, log: EventLog, length: int, *, has_kinds: bool):
        names = [*COLUMNS, *(name for name in OPTIONAL if getattr(log, name) is not None)]
        self._files = {
            name: np.lib.format.open_memmap(
                folder / f"{name}.npy",
                "w+",
                getattr(log, name).dtype,
                (length, *getattr(log, name).shape[1:]),
            )
            for name in names
            if name != "kinds" or has_kinds
        }
        self._written = 0

    def write(self, events: EventArrays) -> None:
        place = slice(self._written, self._written + len(events.items))
        for name, file in self._files.items():
            file[place] = getattr(events, COLUMNS.get(name, name))
        self._written = place.stop

    def close(self) -> None:
        for file in self._files.values():
            file.flush()
        self._files.clear()


def _write_table(
    folder: Path, rows: np.ndarray, table: FeatureTable | None
) -> tuple[Vocabulary, FeatureTable | None]:
    """Write the ids of a vocabulary, which are rows, and what a table says of these."""
    vocabulary = Vocabulary(rows.astype(np.int64))
    vocabulary.save(folder)
    if table is None:
        return vocabulary, None
    taken = taken_rows([table], rows)
    features = {
        name: without_unused(each) if isinstance(each, Categories) else each
        for name, each in taken.items()
    }
    table = FeatureTable(features, len(rows))
    table.save(folder / FEATURES)
    return vocabulary, table


def _described(
    log: EventLog,
    events: Path,
    fields: Any,
    found: dict[str, tuple[Vocabulary, FeatureTable | None]],
) -> dict[str, Any]:
    """What ``log.json`` says."""
    arrays = {path.stem: np.load(path, mmap_mode="r") for path in events.iterdir()}
    times, tables = arrays["timestamps"], {name: table for name, (_, table) in found.items()}
    counts = {
        "users": found[USERS][0].size,
        "items": found[ITEMS][0].size,
        "events": len(times),
        "has_repeats": log.has_repeats,
    }
    ends = {"first": times.min().item(), "last": times.max().item()} if len(times) else {}
    names = {"items": "items", "times": "timestamps"} | {n: n for n in OPTIONAL}
    contents = array_digests(**{name: arrays.get(file) for name, file in names.items()})
    digests = {
        FEATURE_TABLES[name].replace("_", " "): each.digest
        for name, each in tables.items()
        if each is not None
    }
    return {
        "format": GENERATION_FORMAT,
        **counts,
        "weights": "weights" in arrays,
        "time_unit": log.time_unit,
        **{FEATURE_TABLES[name]: each is not None for name, each in tables.items()},
        "fields": fields.to_dict(),
        "summary": counts | {"time": {**ends, "unit": log.time_unit}},
        "identity": log_identity(
            found[USERS][0].fingerprint,
            found[ITEMS][0].fingerprint,
            arrays["offsets"],
            contents,
            found[ITEMS][0].size,
            digests | fields_identity(fields, contents),
        ),
    }
