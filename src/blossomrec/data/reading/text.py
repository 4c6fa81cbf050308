"""Reading columns of text files: every line is a row, or it is said which one is not."""

from __future__ import annotations

import csv
import gzip
import itertools
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import polars as pl

from blossomrec.data.reading.options import ReadOptions, find_columns
from blossomrec.errors import DataError

# Suffix -> (separator, quote character). RecBole quotes nothing, nor do most who write TSV.
TEXT_FILES = {
    ".csv": (",", '"'),
    **dict.fromkeys((".tsv", ".inter", ".item", ".user"), ("\t", None)),
}
# Tables of RecBole, whose header is ``name:type``.
_TYPED = (".inter", ".item", ".user")
_POLARS_ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException)
_FILE_ERRORS = (UnicodeDecodeError, csv.Error, OSError, EOFError, zlib.error)
_LONGEST_SHOWN = 80
_CHUNK = 1 << 22
# Of a table, rows that are read at a time.
ROWS_AT_ONCE = 2_000_000
_WITHOUT_PUSHDOWN = pl.QueryOptFlags(projection_pushdown=False)


@dataclass(frozen=True)
class TextFile:
    """A text file with a header, and how its lines are taken apart.

    quote: None where nothing is quoted; multiline: quoted fields may run over line ends; typed: the
    header's fields are ``name:type``, as RecBole writes them.
    """

    path: Path
    separator: str
    quote: str | None
    multiline: bool
    typed: bool

    @classmethod
    def of(cls, path: Path, suffix: str, options: ReadOptions) -> TextFile:
        separator, quote = TEXT_FILES[suffix]
        if options.separator is not None:
            separator = options.separator.replace("\\t", "\t")
        if options.quote != "auto":
            quote = None if options.quote == "none" else options.quote
        return cls(path, separator, quote, options.multiline, suffix in _TYPED)

    def columns(self) -> list[str]:
        """Names of all columns; DataError where there is no header to read."""
        try:
            return self._read_header()[1]
        except _FILE_ERRORS as error:
            raise DataError(f"{self.path} cannot be read: {error}") from error

    def declared(self) -> dict[str, str]:
        """Types of the columns, by name, where the header is typed; DataError as of columns."""
        try:
            header = self._header_fields()[1] if self.typed else []
        except _FILE_ERRORS as error:
            raise DataError(f"{self.path} cannot be read: {error}") from error
        pairs = (field.partition(":") for field in header)
        return {name: declared for name, _, declared in pairs if declared}

    def batches(self, names: Mapping[str, str]) -> Iterator[tuple[pl.DataFrame, int]]:
        """Columns of text, named by the keys of ``names``, some rows at a time, in their order.

        With the first of them comes the number of lines of the file, with the others 0.

        Raises DataError for a row that has too many fields, is not UTF-8, or (unless
        ``multiline``) has a quoted field that is not closed on its line.
        """
        try:
            before, header = self._read_header()
            places = self._find_columns(header, list(names.values()))
            lines = self._count_lines()
        except _FILE_ERRORS as error:
            raise DataError(f"{self.path} cannot be read: {error}") from error
        rows = _Rows(self, before + 1, len(header))
        read = self._scan(before + 1, len(header), dict(zip(names, places, strict=True)))
        tables = _without_last_blanks(self._checked(read, rows, lines - before - 1))
        for number, table in enumerate(tables):
            yield table, 0 if number else lines

    def _checked(self, read: pl.LazyFrame, rows: _Rows, expected: int) -> Iterator[pl.DataFrame]:
        """Batches of rows; the last one only once all are known to be as many as ``expected``."""
        table, height = read.clear().collect(), 0
        try:
            # The reader counts the fields of a row only where it reads them all.
            for following in read.collect_batches(
                chunk_size=ROWS_AT_ONCE,
                maintain_order=True,
                engine="streaming",
                optimizations=_WITHOUT_PUSHDOWN,
            ):
                if table.height:
                    yield table
                table, height = following, height + following.height
        except (*_POLARS_ERRORS, OSError) as error:
            rows.refuse_bad_row()
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise DataError(f"{self.path} cannot be read as text of columns: {reason}") from error
        if not self.multiline and height != expected:
            rows.refuse_bad_row()
            raise DataError(
                f"{self.path} has {expected:,} lines below its header, but "
                f"{height:,} rows: is a field quoted that should not be?"
            )
        yield table

    def _scan(self, skipped: int, width: int, places: Mapping[str, int]) -> pl.LazyFrame:
        """Columns by position, below ``skipped`` lines, of rows that have ``width`` fields."""
        scan = pl.scan_csv(
            self.path,
            has_header=False,
            skip_lines=skipped,
            schema={str(place): pl.String for place in range(width)},
            missing_columns="insert",
            separator=self.separator,
            quote_char=self.quote,
            glob=False,
        )
        return scan.select(pl.col(str(place)).alias(name) for name, place in places.items())

    def _read_header(self) -> tuple[int, list[str]]:
        """The number of blank lines before the header, and the names in it."""
        before, header = self._header_fields()
        return before, [name.split(":")[0] for name in header] if self.typed else header

    def _header_fields(self) -> tuple[int, list[str]]:
        """The number of blank lines before the header, and its fields as they are."""
        with self.open() as file:
            start = file.read(_CHUNK)
        if start[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in start[:200]:
            raise DataError(f"{self.path} is not UTF-8 text (UTF-16?): convert it to UTF-8")
        if b"\r" in start and b"\n" not in start:
            raise DataError(
                f"{self.path} ends its lines with carriage returns: convert them to line feeds"
            )
        body = start.removeprefix(b"\xef\xbb\xbf")
        line, _, _ = body.lstrip(b"\r\n").partition(b"\n")
        before = body[: len(body) - len(body.lstrip(b"\r\n"))].count(b"\n")
        try:
            header = self.fields(line.decode("utf-8").rstrip("\r"))
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{self.path}, header: {_shown(str(line))}: {error}") from error
        if not header:
            raise DataError(f"{self.path} has no header: its lines are blank")
        return before, header

    def _find_columns(self, header: list[str], names: list[str]) -> list[int]:
        try:
            return find_columns(str(self.path), header, names)
        except DataError as error:
            line = self.separator.join(header)
            for separator in {*",;\t|"} - {self.separator}:
                if {*map(str, names)} <= {field.strip('"') for field in line.split(separator)}:
                    raise DataError(
                        f"{self.path} separates its fields by {separator!r}, not by "
                        f"{self.separator!r}: give that as the option separator"
                    ) from None
            if self.quote is None and f'"{names[0]}"' in header:
                raise DataError(f"{error}; give '\"' as the option quote") from None
            raise

    def _count_lines(self) -> int:
        """Line feeds, plus one where the last line has none."""
        lines, last = 0, b"\n"
        with self.open() as file:
            while chunk := file.read(_CHUNK):
                lines += chunk.count(b"\n")
                last = chunk[-1:]
        return lines + (last != b"\n")

    def fields(self, line: str) -> list[str]:
        return next(self.reader([line]), [])

    def reader(self, lines: Iterator[str] | list[str]) -> Iterator[list[str]]:
        if self.quote is None:
            return csv.reader(lines, delimiter=self.separator, quoting=csv.QUOTE_NONE)
        return csv.reader(lines, delimiter=self.separator, quotechar=self.quote, strict=True)

    def open(self) -> BinaryIO:
        compressed = self.path.suffix.lower() == ".gz"
        return cast(BinaryIO, gzip.open(self.path)) if compressed else open(self.path, "rb")


@dataclass(frozen=True)
class _Rows:
    """The rows of a file one by one: slow, and only for files that could not be read.

    skipped: lines up to the header, that too; width: fields in the header.
    """

    file: TextFile
    skipped: int
    width: int

    def refuse_bad_row(self) -> None:
        """Raise DataError for the first row that is wrong; do nothing where none is found."""
        row = 1
        try:
            for line, width in self._rows():
                if width > self.width:
                    raise DataError(
                        f"{self.file.path}, row {row}: {_shown(line)} has {width} fields, "
                        f"the header has {self.width}"
                    )
                row += 1
        except _FILE_ERRORS as error:
            raise DataError(f"{self.file.path}, row {row} cannot be read: {error}") from error

    def _rows(self) -> Iterator[tuple[str, int]]:
        """Every row below the header, and the number of its fields."""
        with self.file.open() as binary:
            below = itertools.islice(binary, self.skipped, None)
            lines = (line.decode("utf-8") for line in below)
            if self.file.multiline:
                for fields in self.file.reader(lines):
                    yield self.file.separator.join(fields), len(fields)
                return
            for line in lines:
                row = line.rstrip("\r\n")
                yield row, self._width(row)

    def _width(self, row: str) -> int:
        """The number of fields; csv.Error where quotes are wrong."""
        quotes = row.count(self.file.quote) if self.file.quote is not None else 0
        if quotes == 0:
            return row.count(self.file.separator) + 1
        if quotes % 2:
            raise csv.Error(
                f"{_shown(row)} has a quote that is not closed on its line; give the option "
                "multiline where quoted fields run over line ends, quote none where nothing is "
                "quoted"
            )
        try:
            return len(self.file.fields(row))
        except csv.Error as error:
            raise csv.Error(f"{_shown(row)}: {error}") from error


def _without_last_blanks(tables: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Blank lines at the end are no events; elsewhere they keep their row and are refused."""
    table, blank, met = pl.DataFrame(), 0, False
    for table in tables:
        nulls = table.select(pl.all_horizontal(pl.all().is_null())).to_series()
        last = int(nulls.reverse().cum_min().sum()) if nulls.any() else 0
        if last == table.height:
            blank += last
            continue
        if blank:
            yield table.clear(blank)
        yield table.head(table.height - last)
        blank, met = last, True
    if not met:
        yield table.clear()


def _shown(line: str) -> str:
    text = repr(line)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
