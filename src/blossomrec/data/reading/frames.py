"""Columns of Parquet files and of frames as they are, whatever their time zones are called."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from blossomrec.data.reading.options import find_columns
from blossomrec.errors import DataError, MissingExtraError

_CHECK_OF_ZONES = "POLARS_IGNORE_TIMEZONE_PARSE_ERROR"
_ZONES = threading.Lock()


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
