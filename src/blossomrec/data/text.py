"""Finding the row at which a text file of columns is broken."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

from blossomrec.errors import DataError


def refuse_bad_row(path: Path, separator: str, quote: str | None) -> None:
    """Raise DataError for the first row that is not UTF-8 or has more fields than the header.

    Slow, and only for files that could not be read. Does nothing where no such row is found.
    """
    quoting = csv.QUOTE_NONE if quote is None else csv.QUOTE_MINIMAL
    opener = gzip.open if path.suffix == ".gz" else open
    row = 0
    with opener(path, "rt", encoding="utf-8", newline="") as file:
        try:
            lines = csv.reader(file, delimiter=separator, quotechar=quote, quoting=quoting)
            header = next(lines, [])
            for row, fields in enumerate(lines, start=1):
                if len(fields) > len(header):
                    raise DataError(
                        f"{path}, row {row}: {separator.join(fields)!r} has {len(fields)} fields, "
                        f"the header has {len(header)}"
                    )
        except (UnicodeDecodeError, csv.Error, EOFError, OSError) as error:
            raise DataError(f"{path} cannot be read after row {row}: {error}") from error
