"""A table of events that memory holds, in the order of a log."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import polars as pl

from blossomrec.data.event_arrays import EventArrays, encode_fields, order_ties
from blossomrec.data.fields import EventFields
from blossomrec.data.reading.tables import EventTable


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
