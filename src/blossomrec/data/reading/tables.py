"""Tables of events from files and frames, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from blossomrec.data.reading.columns import Column, read_times, read_weights
from blossomrec.data.reading.frames import is_pandas, read_pandas, read_parquet, read_polars
from blossomrec.data.reading.ids import read_ids
from blossomrec.data.reading.options import ReadOptions
from blossomrec.data.reading.text import TEXT_FILES, TextFile
from blossomrec.errors import DataError


@dataclass(frozen=True)
class EventTable:
    """Checked events, as :func:`read_table` describes them, and the lines of the text file.

    lines: the header and blank lines counted too; None where the source is no text file.
    """

    events: pl.DataFrame
    lines: int | None = None


def read_table(source: Any, options: ReadOptions, weight: str | None = None) -> EventTable:
    """Events with columns user_id, item_id, timestamp and, if asked for, weight, in file order.

    Args:
        source: path of a Parquet file (.parquet), a text file with a header (.csv, .tsv, or
            RecBole's .inter, whose header is ``name:type``; .gz too), or a polars or pandas frame.
        options: the names of the columns ``user``, ``item``, ``timestamp``; of text files
            ``separator``, ``quote`` and ``multiline``; ``normalize_ids``.
        weight: name of the column of weights, None for none.

    Ids are strings or integers (Int64, or UInt64 where some need it). In text files they are
    integers if all of them are written so, without leading zeros; whole floats become integers
    with a warning. Text ids that look like several spellings of one are kept apart with a warning;
    ``normalize_ids`` strips the white space around them and reads ``1.0`` as ``1``. Timestamps are
    numbers in any unit (Int64, Float64) or, from datetimes, dates and ISO 8601 text,
    Datetime("us") in UTC; parts of a microsecond are cut off. Weights are Float32.

    In .csv files fields may be quoted, in .tsv and .inter files not unless ``quote`` says so. A row
    with a quoted field that runs over a line end is refused unless ``multiline`` is true.

    Raises DataError that names table, column, row (from 1, the header not counted) and value.
    """
    names = {"user_id": options.user, "item_id": options.item, "timestamp": options.timestamp}
    if weight is not None:
        names["weight"] = weight
    if len(set(names.values())) < len(names):
        raise DataError(f"one column is given for two things: {names}")
    table, lines = _load(source, names, options)
    if table.height == 0:
        raise DataError(f"{describe(source)} has no events: it has columns, but no rows")
    read = {}
    for role, name in names.items():
        values = table.drop_in_place(role)
        read[role] = _read(role, Column(describe(source), name, values, lines is not None), options)
    return EventTable(pl.DataFrame(read), lines)


def describe(source: Any) -> str:
    """What errors and summaries call a source."""
    if isinstance(source, (str, Path)):
        return str(source)
    return f"the {type(source).__module__.split('.')[0]} frame"


def _read(role: str, column: Column, options: ReadOptions) -> pl.Series:
    if role == "timestamp":
        return read_times(column)
    if role == "weight":
        return read_weights(column)
    return read_ids(column, normalize=options.normalize_ids)


def _load(
    source: Any, names: Mapping[str, str], options: ReadOptions
) -> tuple[pl.DataFrame, int | None]:
    """The named columns as they are, and the lines of a source that knows only text."""
    if isinstance(source, (str, Path)):
        return _load_file(Path(source), names, options)
    if isinstance(source, (pl.DataFrame, pl.LazyFrame)):
        return read_polars(describe(source), source, names), None
    if is_pandas(source):
        return read_pandas(describe(source), source, names), None
    raise DataError(
        f"a {type(source).__name__} is not a table of events: give a path, a polars or a pandas "
        "frame"
    )


def _load_file(
    path: Path, names: Mapping[str, str], options: ReadOptions
) -> tuple[pl.DataFrame, int | None]:
    suffix = Path(path.stem).suffix if path.suffix.lower() == ".gz" else path.suffix
    kind = suffix.lower()
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if path.is_dir():
        raise DataError(f"{path} is a folder: give a file of events")
    if kind != ".parquet" and kind not in TEXT_FILES:
        known = ", ".join([".parquet", *TEXT_FILES])
        raise DataError(f"{path} ends in {suffix or 'no suffix'!r}: known are {known}")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty")
    if kind == ".parquet":
        return read_parquet(path, names), None
    return TextFile.of(path, kind, options).read_columns(names)
