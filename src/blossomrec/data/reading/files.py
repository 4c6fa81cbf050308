"""The files of a table: one, all of a folder, or those of a pattern; columns in their paths."""

from __future__ import annotations

import glob
import hashlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import polars as pl

from blossomrec.data.reading.addresses import (
    found_at,
    is_pattern,
    shown,
    suffix_at,
    told_without,
    without_secrets,
)
from blossomrec.data.reading.options import ReadOptions, find_columns
from blossomrec.data.reading.text import ROWS_AT_ONCE, TEXT_FILES, TextFile
from blossomrec.errors import DataError, NoEventsError
from blossomrec.files import digest

_CHECK_OF_ZONES = "POLARS_IGNORE_TIMEZONE_PARSE_ERROR"
_ZONES = threading.Lock()
# What Hive writes for a partition without a value.
_MISSING_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"


@dataclass(frozen=True)
class TableFile:
    """A file, its kind, and what its path says: ``{"dt": "2024-01-01"}`` for ``dt=2024-01-01/``.

    path: of a file in an object store or on the web its address.
    """

    path: Path | str
    kind: str
    partition: dict[str, str | None]

    @property
    def told(self) -> str:
        """What errors call it."""
        return shown(self.path)


class SourceDigests(NamedTuple):
    """SHA-256 of all files of a source together, if known, and each file by the one of its own."""

    whole: str | None
    files: dict[str, Path]


class SourceFiles:
    """The files that a path stands for, in order of their names.

    Args:
        path: a file; a folder, of which all tables are read, also in folders inside, but those
            whose names begin with ``.`` or ``_``; or a pattern with ``*``, ``?``, ``[...]`` and
            ``**``. Folders called ``NAME=VALUE`` that a file is in give it a column NAME; above
            the folder that is given only those right above it count. Or the address of Parquet
            files that Polars reads, such as ``s3://bucket/events/**/*.parquet``.
        options: how text files are read.

    Raises:
        DataError: there is no such file, or files are of different or unknown kinds.
    """

    def __init__(self, path: Path | str, options: ReadOptions):
        self._path, self._options = path, options
        self.files = list(_files_at(path) if isinstance(path, str) else found_files(path))
        kinds = {one.kind for one in self.files}
        if len(kinds) > 1:
            raise DataError(
                f"{path} has files of several kinds, {', '.join(sorted(kinds))}: give a pattern "
                f"that one kind fits, such as {Path(path) / '**' / ('*' + min(kinds))}"
            )
        self.textual = kinds != {".parquet"}

    def columns(self) -> list[str]:
        """Names of the columns, those of the paths last; all files must have them."""
        first = self.files[0]
        inside = _parquet_columns(first) if not self.textual else self._text(first).columns()
        return [name for name in inside if name not in first.partition] + list(first.partition)

    def declared(self) -> dict[str, str]:
        """Types that the header declares, by column; those of the first file."""
        return self._text(self.files[0]).declared() if self.textual else {}

    def batches(self, names: Mapping[str, str]) -> Iterator[Batch]:
        """Columns named by the keys of ``names``, some rows at a time; of each file one at least.

        All have the same types.

        Raises:
            DataError: a file cannot be read, lacks a column, or has it in another type.
        """
        common = self._common_types(names)
        for number, file in enumerate(self.files):
            there = {role: name for role, name in names.items() if str(name) not in file.partition}
            for table, lines in self._read_file(file, there):
                table = table.with_columns(_partition_columns(file, names)).select(*names)
                if common is not None:
                    table = _as_types(table, common)
                yield Batch(table, number, lines)

    def _common_types(self, names: Mapping[str, str]) -> pl.DataFrame | None:
        """No rows, in types that fit all files; None where they are text, or those of one file."""
        if self.textual or (len(self.files) == 1 and not self.files[0].partition):
            return None
        # Of a file that has rows, one that tells nothing but what stands in its path.
        tables = []
        for file in self.files:
            there = {role: name for role, name in names.items() if str(name) not in file.partition}
            with _parquet_errors(file.path), any_time_zone():
                scan = pl.scan_parquet(file.path, glob=False)
                table = _selected(file.told, scan, there).clear().collect()
                rows = scan.select(pl.len()).collect().item() if file.partition else 0
            one = pl.DataFrame({"row": [0] * min(rows, 1)})
            one = one.with_columns(
                *(pl.lit(None, dtype=dtype).alias(role) for role, dtype in table.schema.items()),
                *_partition_columns(file, names),
            )
            tables.append(one.select(*names))
        try:
            table = pl.concat(tables, how="vertical_relaxed")
        except pl.exceptions.PolarsError as error:
            raise DataError(
                f"{self._path} has columns of different types: {first_line(error)}"
            ) from error
        in_paths = set[str].intersection(*(set(file.partition) for file in self.files))
        return _with_integers(table, [r for r in names if str(names[r]) in in_paths]).clear()

    def digests(self) -> SourceDigests:
        """Of the content of the files and of what their folders say, not of their names.

        None of those at an address, which would be transferred twice.
        """
        if isinstance(self._path, str):
            return SourceDigests(None, {})
        contents = [digest(Path(one.path)) for one in self.files]
        told = [
            f"{sorted(one.partition.items())} {content}"
            for one, content in zip(self.files, contents, strict=True)
        ]
        own = [
            _hashed(text) if one.partition else content
            for one, text, content in zip(self.files, told, contents, strict=True)
        ]
        whole = own[0] if len(own) == 1 else _hashed("\n".join(sorted(told)))
        return SourceDigests(
            whole, {key: Path(one.path) for key, one in zip(own, self.files, strict=True)}
        )

    def _text(self, file: TableFile) -> TextFile:
        return TextFile.of(Path(file.path), file.kind, self._options)

    def _read_file(
        self, file: TableFile, names: Mapping[str, str]
    ) -> Iterator[tuple[pl.DataFrame, int]]:
        # Where all that is asked for stands in the path, rows are counted all the same.
        names = names or {"row": self.columns()[0]}
        if self.textual:
            yield from self._text(file).batches(names)
        else:
            for table in _parquet_batches(file, names):
                yield table, 0


class Batch(NamedTuple):
    """Neighbouring rows of a file of several, and with the first of a text file its lines."""

    table: pl.DataFrame
    file: int
    lines: int


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def found_files(path: Path) -> Iterator[TableFile]:
    """The files that a path stands for, each of whatever kind; see :class:`SourceFiles`.

    Raises:
        DataError: there is no such file, or one is of an unknown kind.
    """
    if path.is_dir():
        if (path / "log.json").is_file():
            raise DataError(f"{path} is a prepared log: give a table of events")
        found = sorted(
            one for one in path.rglob("*") if one.is_file() and not _is_hidden(one, path)
        )
        tables = [one for one in found if _suffix(one) in (".parquet", *TEXT_FILES)]
        if not tables:
            raise DataError(f"{path} is a folder without a file of events: {_known()} are read")
        root = path
    elif not path.exists() and glob.has_magic(str(path)):
        tables = [Path(one) for one in sorted(glob.glob(str(path), recursive=True))]
        tables = [one for one in tables if one.is_file()]
        if not tables:
            raise DataError(f"{path} fits no file")
        root = _before_pattern(path)
    else:
        tables, root = [path], path.parent
    root = _above_partitions(root)
    for one in tables:
        yield TableFile(one, _kind(one), _partition(one.relative_to(root)))


def _files_at(address: str) -> Iterator[TableFile]:
    """The Parquet files that an address stands for; DataError where there is none to read."""
    told = shown(address)
    if (suffix := suffix_at(address)) in (*TEXT_FILES, ".gz"):
        raise DataError(
            f"{told} ends in {suffix!r}: at an address Parquet files are read; copy those of text "
            "to a folder"
        )
    with _parquet_errors(address):
        found = sorted(found_at(address))
    if not found:
        raise NoEventsError(f"{told} has no events: no file there has a row")
    given = _path_at(address)
    if is_pattern(address):
        root = _before_pattern(given)
    else:
        root = given.parent if found == [address] else given
    root = _above_partitions(root)
    for one in found:
        path = _path_at(one)
        # Polars may find files under another address than the one that was given.
        inside = path.relative_to(root) if path.is_relative_to(root) else path
        yield TableFile(one, ".parquet", _partition(inside))


def _path_at(address: str) -> Path:
    """What follows the protocol: bucket or host, folders and name."""
    return Path(without_secrets(address).partition("://")[2])


def _before_pattern(path: Path) -> Path:
    """The folder that a pattern begins with."""
    parts = list(path.parts)
    plain = next(n for n, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:plain]) if plain else Path()


def _above_partitions(folder: Path) -> Path:
    """The folder in which a tree of partitions lies, of which a part was given."""
    while "=" in folder.name.strip("="):
        folder = folder.parent
    return folder


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.relative_to(root).parts)


def _partition(path: Path) -> dict[str, str | None]:
    found = dict[str, str | None]()
    for part in path.parts[:-1]:
        name, equals, value = part.partition("=")
        if name and equals:
            found[unquote(name)] = None if value == _MISSING_PARTITION else unquote(value)
    return found


def _partition_columns(file: TableFile, names: Mapping[str, str]) -> list[pl.Expr]:
    return [
        pl.lit(file.partition[str(name)], dtype=pl.String).alias(role)
        for role, name in names.items()
        if str(name) in file.partition
    ]


def _with_integers(table: pl.DataFrame, roles: Sequence[str]) -> pl.DataFrame:
    """Columns of the paths as integers or dates, where all of their values are such."""
    for role in roles:
        values = table[role]
        if values.null_count() == len(values):
            continue
        if values.str.contains(_INTEGER).all():
            table = table.with_columns(values.cast(pl.Int64))
        elif (dates := _as_dates(values)).null_count() == values.null_count():
            table = table.with_columns(dates)
    return table


def _as_dates(values: pl.Series) -> pl.Series:
    return values.str.to_date("%Y-%m-%d", strict=False)


def _as_types(table: pl.DataFrame, common: pl.DataFrame) -> pl.DataFrame:
    """The table in types that are known to fit its values."""
    dates = [
        _as_dates(table[role])
        for role, dtype in common.schema.items()
        if dtype == pl.Date and table[role].dtype == pl.String
    ]
    integers = [
        table[role].cast(pl.Int64)
        for role, dtype in common.schema.items()
        if dtype == pl.Int64 and table[role].dtype == pl.String
    ]
    return pl.concat([common, table.with_columns(*dates, *integers)], how="vertical_relaxed")


def _suffix(path: Path) -> str:
    suffix = Path(path.stem).suffix if path.suffix.lower() == ".gz" else path.suffix
    return suffix.lower()


def _known() -> str:
    return ", ".join([".parquet", *TEXT_FILES])


def _kind(path: Path) -> str:
    """The suffix that says how a file is read; DataError where it is none to read."""
    kind = _suffix(path)
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if kind != ".parquet" and kind not in TEXT_FILES:
        raise DataError(f"{path} ends in {kind or 'no suffix'!r}: known are {_known()}")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty")
    return kind


def _parquet_batches(file: TableFile, names: Mapping[str, str]) -> Iterator[pl.DataFrame]:
    """Columns named by the keys of ``names``, some rows at a time, none at least."""
    start, rows = 0, 1
    while start < rows:
        with _parquet_errors(file.path), any_time_zone():
            scan = pl.scan_parquet(file.path, glob=False)
            rows = scan.select(pl.len()).collect().item()
            # A scan in batches would read ahead of whoever takes them.
            table = _selected(file.told, scan, names).slice(start, ROWS_AT_ONCE).collect()
        yield table
        start += ROWS_AT_ONCE


@contextmanager
def _parquet_errors(path: Path | str) -> Iterator[None]:
    told = shown(path)
    try:
        yield
    except pl.exceptions.DuplicateError as error:
        raise DataError(f"{told} has several columns of one name: {first_line(error)}") from error
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        why, hint = " (is it truncated?)", ""
        if isinstance(path, str):
            why, hint = "", "" if suffix_at(path) else "; the address of a folder ends in /"
        reason = told_without(str(path), first_line(error))
        raise DataError(f"{told} cannot be read as Parquet{why}: {reason}{hint}") from error


def _parquet_columns(file: TableFile) -> list[str]:
    """Names of the columns of a Parquet file."""
    with _parquet_errors(file.path), any_time_zone():
        return pl.scan_parquet(file.path, glob=False).collect_schema().names()


def polars_batches(
    source: str, frame: pl.DataFrame | pl.LazyFrame, names: Mapping[str, str]
) -> Iterator[pl.DataFrame]:
    """Columns named by the keys of ``names``, some rows at a time, none at least.

    source: what errors call the frame.
    """
    selected = _selected(source, frame.lazy(), names)
    if isinstance(frame, pl.DataFrame):
        yield from (
            selected.collect().iter_slices(ROWS_AT_ONCE) if frame.height else (selected.collect(),)
        )
        return
    met = False
    for table in selected.collect_batches(
        chunk_size=ROWS_AT_ONCE, maintain_order=True, engine="streaming"
    ):
        yield table
        met = True
    if not met:
        yield selected.clear().collect()


def _selected(source: str, frame: pl.LazyFrame, names: Mapping[str, str]) -> pl.LazyFrame:
    """Columns named by the keys of ``names``."""
    there = frame.collect_schema().names()
    places = find_columns(source, there, list(names.values()))
    return frame.select(pl.col(there[p]).alias(name) for name, p in zip(names, places, strict=True))


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


def first_line(error: BaseException) -> str:
    """The first line of what an error says."""
    return next(iter(str(error).splitlines()), type(error).__name__)
