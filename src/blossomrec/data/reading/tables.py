"""Tables of events from files and frames, checked."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from blossomrec.data.reading.columns import Column, read_times, read_weights
from blossomrec.data.reading.ids import read_ids
from blossomrec.data.reading.kinds import read_context, read_event_kinds
from blossomrec.data.reading.options import ReadOptions, find_columns
from blossomrec.data.reading.text import TEXT_FILES, TextFile
from blossomrec.errors import DataError, MissingExtraError

_CHECK_OF_ZONES = "POLARS_IGNORE_TIMEZONE_PARSE_ERROR"
_ZONES = threading.Lock()


@dataclass(frozen=True)
class EventTable:
    """Checked events, as :func:`read_table` describes them, and the lines of the text file.

    lines: the header and blank lines counted too; None where the source is no text file.
    context: the columns of the context by their own names, String for categories and Float32 for
    numbers, null where a value is missing.
    """

    events: pl.DataFrame
    lines: int | None = None
    context: dict[str, pl.Series] = field(default_factory=dict)


def read_table(
    source: Any,
    options: ReadOptions,
    weight: str | None = None,
    kind: str | None = None,
    context: Mapping[str, str | None] | None = None,
) -> EventTable:
    """Events with columns user_id, item_id, timestamp and, if asked for, weight and kind.

    They are in the order of the file.

    Args:
        source: path of a Parquet file (.parquet), a text file with a header (.csv, .tsv, or
            RecBole's .inter, whose header is ``name:type``; .gz too), or a polars or pandas frame.
        options: the names of the columns ``user``, ``item``, ``timestamp``; of text files
            ``separator``, ``quote`` and ``multiline``; ``normalize_ids``.
        weight, kind: names of the columns of weights and of the kinds of events, None for none.
        context: columns of the context, each a "category" or "number", or None to have it guessed.

    Ids are strings or integers (Int64, or UInt64 where some need it). In text files they are
    integers if all of them are written so, without leading zeros; whole floats become integers
    with a warning. Text ids that look like several spellings of one are kept apart with a warning;
    ``normalize_ids`` strips the white space around them and reads ``1.0`` as ``1``. Timestamps are
    numbers in any unit (Int64, Float64) or, from datetimes, dates and ISO 8601 text,
    Datetime("us") in UTC; parts of a microsecond are cut off. Weights are Float32, kinds String
    or null.

    In .csv files fields may be quoted, in .tsv and .inter files not unless ``quote`` says so. A row
    with a quoted field that runs over a line end is refused unless ``multiline`` is true.

    Raises DataError that names table, column, row (from 1, the header not counted) and value.
    """
    names = {"user_id": options.user, "item_id": options.item, "timestamp": options.timestamp}
    names |= {role: name for role, name in (("weight", weight), ("kind", kind)) if name is not None}
    around = {f"context {name}": name for name in context or ()}
    names |= around
    _refuse_shared(names)
    table, lines = _load(source, names, options)
    if table.height == 0:
        raise DataError(f"{describe(source)} has no events: it has columns, but no rows")
    read = {}
    for role, name in names.items():
        values = table.drop_in_place(role)
        column = Column(describe(source), name, values, lines is not None)
        kind_of_context = context.get(name) if context and role in around else None
        read[role] = (
            read_context(column, kind_of_context)
            if role in around
            else _read(role, column, options)
        )
    columns = {str(name): read.pop(role) for role, name in around.items()}
    return EventTable(pl.DataFrame(read), lines, columns)


def _refuse_shared(names: Mapping[str, Any]) -> None:
    """DataError where a column is to be two things."""
    roles = dict[Any, str]()
    for role, name in names.items():
        if name in roles:
            raise DataError(
                f"one column is given for two things: {name!r} is {roles[name]} and {role}"
            )
        roles[name] = role


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
    if role == "kind":
        return read_event_kinds(column)
    return read_ids(column, normalize=options.normalize_ids)


def read_all(source: Any, options: ReadOptions) -> tuple[pl.DataFrame, bool]:
    """All columns of a table as they are, and whether its source knows only text.

    Raises:
        DataError: as of ``read_events``.
    """
    names = {name: name for name in _column_names(source, options)}
    table, lines = _load(source, names, options)
    return table, lines is not None


def _column_names(source: Any, options: ReadOptions) -> list[str]:
    if isinstance(source, (str, Path)):
        path, kind = Path(source), _kind(Path(source))
        if kind == ".parquet":
            return parquet_columns(path)
        return TextFile.of(path, kind, options).columns()
    if isinstance(source, (pl.DataFrame, pl.LazyFrame)):
        return source.lazy().collect_schema().names()
    return list(getattr(source, "columns", ()))


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
    kind = _kind(path)
    if kind == ".parquet":
        return read_parquet(path, names), None
    return TextFile.of(path, kind, options).read_columns(names)


def _kind(path: Path) -> str:
    """The suffix that says how a file is read; DataError where it is none to read."""
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
    return kind


def is_pandas(source: Any) -> bool:
    """Whether ``source`` is a pandas frame; pandas is not imported for that."""
    return type(source).__module__.split(".")[0] == "pandas" and hasattr(source, "columns")


def read_parquet(path: Path, names: Mapping[str, str]) -> pl.DataFrame:
    """Columns named by the keys of ``names``."""
    try:
        with any_time_zone():
            return read_polars(str(path), pl.scan_parquet(path, glob=False), names)
    except pl.exceptions.DuplicateError as error:
        raise DataError(f"{path} has several columns of one name: {_first_line(error)}") from error
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise DataError(
            f"{path} cannot be read as Parquet (is it truncated?): {_first_line(error)}"
        ) from error


def parquet_columns(path: Path) -> list[str]:
    """Names of the columns of a Parquet file."""
    try:
        with any_time_zone():
            return pl.scan_parquet(path, glob=False).collect_schema().names()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise DataError(
            f"{path} cannot be read as Parquet (is it truncated?): {_first_line(error)}"
        ) from error


def read_polars(
    source: str, frame: pl.DataFrame | pl.LazyFrame, names: Mapping[str, str]
) -> pl.DataFrame:
    """Columns named by the keys of ``names``; ``source`` is what errors call the frame."""
    there = frame.lazy().collect_schema().names()
    places = find_columns(source, there, list(names.values()))
    columns = [pl.col(there[p]).alias(name) for name, p in zip(names, places, strict=True)]
    return frame.lazy().select(columns).collect()


def read_pandas(source: str, frame: Any, names: Mapping[str, Any]) -> pl.DataFrame:
    """Columns named by the keys of ``names``; ``source`` is what errors call the frame."""
    places = find_columns(source, list(frame.columns), list(names.values()))
    columns = {}
    for (role, name), place in zip(names.items(), places, strict=True):
        series = frame.iloc[:, place]
        where = f"{source}, column {name!r}"
        if series.dtype == object:
            _check_objects(where, series)
        try:
            with any_time_zone():
                columns[role] = pl.from_pandas(series, nan_to_null=False)
        except ModuleNotFoundError as error:
            raise MissingExtraError(error.name or "pyarrow", "pandas") from error
        except (Exception, pl.exceptions.PanicException) as error:
            raise DataError(f"{where} cannot be read: {_first_line(error)}") from error
    return pl.DataFrame(columns)


@contextmanager
def any_time_zone() -> Iterator[None]:
    """Within it polars takes every name of a time zone, such as +05:30, instead of panicking.

    Instants are kept in UTC whatever the zone is; such a column is only fit for ``to_physical``.
    """
    # The variable is of the whole process: one thread at a time.
    with _ZONES:
        before = os.environ.get(_CHECK_OF_ZONES)
        os.environ[_CHECK_OF_ZONES] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[_CHECK_OF_ZONES]
            else:
                os.environ[_CHECK_OF_ZONES] = before


def _check_objects(where: str, series: Any) -> None:
    """DataError for the first Python object unlike the first one, or that no column can hold."""
    there = series.notna().to_numpy().nonzero()[0].tolist()
    values = series.tolist()
    for row in there:
        value, first = values[row], values[there[0]]
        place = f"{where}, row {row + 1}: {value!r}"
        if type(value) is not type(first):
            raise DataError(
                f"{place} is of type {type(value).__name__}, but row {there[0] + 1} has "
                f"{type(first).__name__}"
            )
        if isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise DataError(f"{place} has over 64 bits; give ids as strings")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
