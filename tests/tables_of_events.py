"""Reading a table of events as tests ask for it."""

from __future__ import annotations

from typing import Any

import polars as pl

from blossomrec.data.reading.options import ReadOptions, with_given
from blossomrec.data.reading.tables import read_table


def read_events(source: Any, *, weight: str | None = None, **options: Any) -> pl.DataFrame:
    """The checked events of a table, with options by name."""
    return read_table(source, with_given(ReadOptions, options), weight).events
