"""Tables of events from files and frames, checked."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from blossomrec.data.columns import Column, read_ids, read_times, read_weights
from blossomrec.data.text import refuse_bad_row
from blossomrec.errors import DataError, MissingExtraError

# Suffix of a text file -> (separator, quote character). RecBole quotes nothing.
_TEXT_FILES = {".csv": (",", '"'), ".tsv": ("\t", '"'), ".inter": ("\t", None)}
_READERS = {
    "user_id": read_ids,
    "item_id": read_ids,
    "timestamp": read_times,
    "weight": read_weights,
}
_POLARS_ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)


def read_events(
    source: Any,
    *,
    user: str = "user_id",
    item: str = "item_id",
    timestamp: str = "timestamp",
    weight: str | None = None,
) -> pl.DataFrame:
    """Events with columns user_id, item_id, timestamp and, if asked for, weight, in file order.

    source: path of a Parquet file (.parquet), a text file with a header (.csv, .tsv, or RecBole's
    .inter, whose header is ``name:type``; .gz too), or a polars or pandas frame. The other
    arguments name its columns.

    Ids are strings or integers (Int64, or UInt64 where some need it). In text files they are
    integers if all of them are written so, without leading zeros; whole floats become integers
    with a warning. Timestamps are numbers in any unit (Int64, Float64) or, from datetimes, dates
    and ISO 8601 text, Datetime("us") in UTC; parts of a microsecond are cut off. Weights are
    Float32.

    Raises DataError that names table, column, row (from 1, the header not counted) and value.
    """
    wanted = {"user_id": user, "item_id": item, "timestamp": timestamp}
    if weight is not None:
        wanted["weight"] = weight
    names = list(wanted.values())
    if len(set(names)) < len(names):
        raise DataError(f"one column is given for two things: {wanted}")
    table, textual = _load(source, names)
    if table.height == 0:
        raise DataError(f"{describe(source)} has no events: it has columns, but no rows")
    read = {}
    for name, column in wanted.items():
        values = table.drop_in_place(column)
        read[name] = _READERS[name](Column(describe(source), column, values, textual))
    return pl.DataFrame(read)


def describe(source: Any) -> str:
    """What errors and summaries call a source."""
    if isinstance(source, (str, Path)):
        return str(source)
    return f"the {type(source).__module__.split('.')[0]} frame"


def _load(source: Any, names: Sequence[str]) -> tuple[pl.DataFrame, bool]:
    """The named columns as they are, and whether the source knows only text."""
    if isinstance(source, (str, Path)):
        return _load_file(Path(source), names)
    if isinstance(source, (pl.DataFrame, pl.LazyFrame)):
        _check_columns(describe(source), source.lazy().collect_schema().names(), names)
        return source.lazy().select(names).collect(), False
    if type(source).__module__.split(".")[0] == "pandas" and hasattr(source, "columns"):
        return _load_pandas(source, names), False
    raise DataError(
        f"a {type(source).__name__} is not a table of events: give a path, a polars or a pandas "
        "frame"
    )


def _load_file(path: Path, names: Sequence[str]) -> tuple[pl.DataFrame, bool]:
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if path.is_dir():
        raise DataError(f"{path} is a folder: give a file of events")
    if suffix != ".parquet" and suffix not in _TEXT_FILES:
        known = ", ".join([".parquet", *_TEXT_FILES])
        raise DataError(f"{path} ends in {suffix or 'no suffix'!r}: known are {known}")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty")
    try:
        if suffix == ".parquet":
            return _load_parquet(path, names), False
        return _load_text(path, suffix, names), True
    except _POLARS_ERRORS as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        if suffix == ".parquet":
            raise DataError(
                f"{path} cannot be read as Parquet (is it truncated?): {reason}"
            ) from error
        refuse_bad_row(path, *_TEXT_FILES[suffix])
        raise DataError(f"{path} cannot be read as text of columns: {reason}") from error


def _load_parquet(path: Path, names: Sequence[str]) -> pl.DataFrame:
    table = pl.scan_parquet(path, glob=False)
    _check_columns(str(path), table.collect_schema().names(), names)
    return table.select(names).collect()


def _load_text(path: Path, suffix: str, names: Sequence[str]) -> pl.DataFrame:
    separator, quote = _TEXT_FILES[suffix]
    options: dict[str, Any] = {
        "separator": separator,
        "quote_char": quote,
        "infer_schema": False,
        "glob": False,
    }
    header = pl.read_csv(path, n_rows=0, **options).columns
    plain = [name.split(":")[0] for name in header] if suffix == ".inter" else header
    _check_columns(str(path), plain, names)
    places = [plain.index(name) for name in names]
    table = pl.read_csv(path, columns=[header[place] for place in places], **options)
    table = table.select(pl.col(header[p]).alias(n) for p, n in zip(places, names, strict=True))
    # Blank lines at the end are no events; blank lines elsewhere keep their row and are refused.
    blank = table.select(pl.all_horizontal(pl.all().is_null())).to_series()
    return table.head(len(blank) - int(blank.reverse().cum_min().sum())) if blank.any() else table


def _load_pandas(frame: Any, names: Sequence[str]) -> pl.DataFrame:
    _check_columns(describe(frame), [str(name) for name in frame.columns], names)
    columns = {}
    for name in names:
        if frame[name].dtype == object:
            _check_objects(frame, name)
        try:
            columns[name] = pl.from_pandas(frame[name], nan_to_null=False)
        except ModuleNotFoundError as error:
            raise MissingExtraError(error.name or "pyarrow", "pandas") from error
        except Exception as error:
            raise DataError(
                f"{describe(frame)}, column {name!r} cannot be read: {error}"
            ) from error
    return pl.DataFrame(columns)


def _check_objects(frame: Any, name: str) -> None:
    """DataError for the first Python object unlike the first one, or that no column can hold."""
    there = frame[name].notna().to_numpy().nonzero()[0].tolist()
    values = frame[name].tolist()
    for row in there:
        value, first = values[row], values[there[0]]
        if type(value) is not type(first):
            raise DataError(
                f"{_place(frame, name, row, value)} is of type {type(value).__name__}, but row "
                f"{there[0] + 1} has {type(first).__name__}"
            )
        if isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise DataError(
                f"{_place(frame, name, row, value)} has over 64 bits; give ids as strings"
            )


def _place(frame: Any, name: str, row: int, value: Any) -> str:
    return f"{describe(frame)}, column {name!r}, row {row + 1}: {value!r}"


def _check_columns(source: str, there: Sequence[str], names: Sequence[str]) -> None:
    for name in names:
        if name in there:
            continue
        lower = {column.lower(): column for column in there}
        close = difflib.get_close_matches(name.lower(), list(lower), n=1, cutoff=0.4)
        hint = f"; did you mean {lower[close[0]]!r}?" if close else ""
        raise DataError(
            f"{source} has no column {name!r}: its columns are {', '.join(map(repr, there))}{hint}"
        )
