"""Tables of events from files and frames, checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from blossomrec.data.reading.addresses import located, shown
from blossomrec.data.reading.columns import Column, read_times, read_weights
from blossomrec.data.reading.declared import with_declared
from blossomrec.data.reading.files import (
    SourceFiles,
    any_time_zone,
    first_line,
    polars_batches,
)
from blossomrec.data.reading.ids import read_ids
from blossomrec.data.reading.kinds import read_context, read_event_kinds
from blossomrec.data.reading.options import ARROW_STREAM, ReadOptions, find_columns
from blossomrec.data.reading.text import ROWS_AT_ONCE
from blossomrec.errors import DataError, MissingExtraError, NoEventsError

# What the role of a column of the context begins with.
CONTEXT = "context "


@dataclass(frozen=True)
class EventTable:
    """Checked events, as :func:`read_table` describes them, and the lines of the text file.

    lines: the header and blank lines counted too; None where the source is no text file. files:
    paths of the files it is from, in order, with the rows of each; none of a frame.
    context: the columns of the context by their own names, String for categories and Float32 for
    numbers, null where a value is missing.
    """

    events: pl.DataFrame
    lines: int | None = None
    context: dict[str, pl.Series] = field(default_factory=dict)
    files: tuple[tuple[str, int], ...] = ()


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
            RecBole's .inter, whose header is ``name:type``; .gz too), a folder or a pattern of such
            files, whose folders may be called ``NAME=VALUE``; the address of Parquet files, such as
            ``s3://bucket/events/*.parquet``; a polars or pandas frame, or a table that gives an
            Arrow stream, such as those of pyarrow and Hugging Face datasets.
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
    names = column_roles(options, weight, kind, context or ())
    around = {role: name for role, name in names.items() if role.startswith(CONTEXT)}
    batches = SourceBatches(source, names, options)
    context = with_declared(context or {}, batches.declared)
    table = pl.concat(batches)
    if table.height == 0:
        raise no_events(source)
    read, files = {}, tuple(batches.files)
    for role, name in names.items():
        values = table.drop_in_place(role)
        column = Column(describe(source), name, values, batches.textual, files)
        kind_of_context = context.get(name) if role in around else None
        read[role] = (
            read_context(column, kind_of_context)
            if role in around
            else _read(role, column, options)
        )
    columns = {str(name): read.pop(role) for role, name in around.items()}
    return EventTable(pl.DataFrame(read), batches.lines, columns, files)


def column_roles(
    options: ReadOptions, weight: str | None, kind: str | None, context: Iterable[str]
) -> dict[str, str]:
    """Names of columns by what they are to be; those of the context by CONTEXT and their name.

    Raises DataError where one is to be two things.
    """
    names = {"user_id": options.user, "item_id": options.item, "timestamp": options.timestamp}
    names |= {role: name for role, name in (("weight", weight), ("kind", kind)) if name is not None}
    names |= {f"{CONTEXT}{name}": name for name in context}
    _refuse_shared(names)
    return names


def no_events(source: Any) -> NoEventsError:
    """What is raised of a table without rows."""
    return NoEventsError(f"{describe(source)} has no events: it has columns, but no rows")


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
        return shown(source)
    return f"the {type(source).__module__.split('.')[0]} frame"


def _read(role: str, column: Column, options: ReadOptions) -> pl.Series:
    if role == "timestamp":
        return read_times(column)
    if role == "weight":
        return read_weights(column)
    if role == "kind":
        return read_event_kinds(column)
    return read_ids(column, normalize=options.normalize_ids)


class WholeTable(NamedTuple):
    """All columns as they are, whether the source knows only text, and types that it declares."""

    columns: pl.DataFrame
    textual: bool
    declared: dict[str, str]


def read_all(source: Any, options: ReadOptions) -> WholeTable:
    """All columns of a table.

    Raises:
        DataError: as of ``read_events``.
    """
    batches = SourceBatches(source, None, options)
    return WholeTable(pl.concat(batches), batches.textual, batches.declared)


class SourceBatches:
    """Columns of a source as they are, neighbouring rows at a time; all batches of one type.

    Args:
        source: as of :func:`read_table`.
        names: of its columns, by what they are called here; None for all, as they are called.
        options: as of :func:`read_table`.

    Attributes:
        files: paths of the files that were read so far, in order, with the rows of each; none of a
            frame.
        lines: of these files, the headers and blank lines too; None where they are no text.
        whole: whether the batch that was given last is known to be all there is.

    Raises:
        DataError: it is no table, or a column is missing or cannot be read.
    """

    def __init__(self, source: Any, names: Mapping[str, str] | None, options: ReadOptions):
        self._name, self._source = describe(source), source
        self._files: SourceFiles | None = None
        self.files = list[tuple[str, int]]()
        if isinstance(source, (str, Path)):
            self._files = SourceFiles(located(source), options)
        elif is_arrow(source):
            # Read once: some streams are gone then.
            self._source = _from_arrow(source)
        elif not (isinstance(source, (pl.DataFrame, pl.LazyFrame)) or is_pandas(source)):
            raise DataError(
                f"a {type(source).__name__} is not a table of events: give a path, a polars or a "
                "pandas frame, or an Arrow table"
            )
        self._names = {name: name for name in self._columns()} if names is None else names
        self.lines = 0 if self.textual else None
        self.whole = False

    def _columns(self) -> list[str]:
        if self._files is not None:
            return self._files.columns()
        if isinstance(self._source, pl.LazyFrame):
            return self._source.collect_schema().names()
        return list(self._source.columns)

    @property
    def textual(self) -> bool:
        """Whether the source knows only text."""
        return self._files is not None and self._files.textual

    @property
    def declared(self) -> dict[str, str]:
        """Types that the header of the files declares, by column."""
        return {} if self._files is None else self._files.declared()

    def __iter__(self) -> Iterator[pl.DataFrame]:
        """Batches of up to ROWS_AT_ONCE rows, several small files in one."""
        parts, rows, given = list[pl.DataFrame](), 0, False
        for table in self._tables():
            if parts and rows + table.height > ROWS_AT_ONCE:
                yield pl.concat(parts)
                parts, rows, given = [], 0, True
            parts.append(table)
            rows += table.height
        self.whole = not given
        yield pl.concat(parts)

    def _tables(self) -> Iterator[pl.DataFrame]:
        if self._files is not None:
            yield from self._of_files(self._files)
            return
        name, frame = self._name, self._source
        if is_pandas(frame):
            frame, names = read_pandas(name, frame, self._names), {n: n for n in self._names}
        else:
            names = self._names
        yield from polars_batches(name, frame, names)

    def _of_files(self, files: SourceFiles) -> Iterator[pl.DataFrame]:
        for table, number, lines in files.batches(self._names):
            before = self.files.pop()[1] if number < len(self.files) else 0
            self.files.append((files.files[number].told, before + table.height))
            if self.lines is not None:
                self.lines += lines
            yield table


def is_arrow(source: Any) -> bool:
    """Whether ``source`` is a table of another library that gives an Arrow stream."""
    own = isinstance(source, (pl.DataFrame, pl.LazyFrame)) or is_pandas(source)
    return (hasattr(source, ARROW_STREAM) or _is_dataset(source)) and not own


def _is_dataset(source: Any) -> bool:
    """Whether it is a data set of Hugging Face, whose own rows are those of its Arrow format."""
    kind = type(source)
    return kind.__module__.split(".")[0] == "datasets" and kind.__name__ == "Dataset"


def _from_arrow(source: Any) -> pl.DataFrame:
    try:
        with any_time_zone():
            return pl.DataFrame(source.with_format("arrow")[:] if _is_dataset(source) else source)
    except (Exception, pl.exceptions.PanicException) as error:
        raise DataError(f"{describe(source)} cannot be read: {first_line(error)}") from error


def is_pandas(source: Any) -> bool:
    """Whether ``source`` is a pandas frame; pandas is not imported for that."""
    return type(source).__module__.split(".")[0] == "pandas" and hasattr(source, "columns")


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
            raise DataError(f"{where} cannot be read: {first_line(error)}") from error
    return pl.DataFrame(columns)


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
