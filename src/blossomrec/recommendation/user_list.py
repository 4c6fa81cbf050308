"""The users whom somebody lists, in a file or in Python, as rows of a log."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from blossomrec.data.reading.options import ReadOptions
from blossomrec.data.reading.tables import read_all
from blossomrec.data.vocabulary import Vocabulary, as_ids
from blossomrec.data.windows import each_once
from blossomrec.errors import DataError, one_of, shortened

TABLES = (".parquet", ".csv", ".tsv")
COLUMN = "user_id"
SHOWN = 3


def listed_users(users: str | Path | Iterable[Any], known: Vocabulary, unknown: str) -> np.ndarray:
    """Rows of the listed users, each once, rising: int64.

    Args:
        users: ids; or the path of a file that has them: a table (.parquet, .csv, .tsv) with a
            column ``user_id`` or a single one, or else text with an id in each line.
        known: the users of the log.
        unknown: what to do with those who are not in the log: "refuse" the list, or "skip" them
            with a warning.

    Raises:
        DataError: the file cannot be read, an id is none, a user is unknown (the first ones are
            named with their place), or nobody is left.
    """
    one_of("unknown", unknown, ("refuse", "skip"))
    ids, source, places = _ids(users)
    rows = known.rows(ids)
    strangers = np.flatnonzero(rows < 0)
    if len(strangers):
        shown = ", ".join(f"{places(each)}: {shortened(ids[each])}" for each in strangers[:SHOWN])
        left = len(strangers) - SHOWN
        shown += f" and {left:,} more" if left > 0 else ""
        told = f"{source}: {len(strangers):,} of {len(ids):,} users are not in the log ({shown})"
        if unknown == "refuse":
            raise DataError(f"{told}; --unknown skip leaves them out")
        warnings.warn(f"{told}; they are left out", stacklevel=3)
    found = each_once(rows[rows >= 0])
    if not len(found):
        raise DataError(f"{source}: no user is given" + (" that is in the log" if ids else ""))
    return found


def _ids(users: Any) -> tuple[list[Any], str, Any]:
    """Ids, what errors call their list, and a function that gives the place of one."""
    if not isinstance(users, (str, Path)):
        return as_ids(users, "user"), "users", lambda place: f"users[{place}]"
    path = Path(users)
    if not path.is_file():
        raise DataError(f"{path} does not exist" if not path.exists() else f"{path} is no file")
    if path.suffix in TABLES:
        ids = _column(path)
        return ids, str(path), lambda place: f"row {place + 1}"
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text: {error}") from error
    numbers = [number for number, line in enumerate(lines, 1) if line]
    return [line for line in lines if line], str(path), lambda place: f"line {numbers[place]}"


def _column(path: Path) -> list[Any]:
    table = read_all(path, ReadOptions()).columns
    if COLUMN not in table.columns and len(table.columns) != 1:
        raise DataError(
            f"{path} has no column {COLUMN!r} and several others: {', '.join(table.columns)}"
        )
    column = table[COLUMN if COLUMN in table.columns else table.columns[0]]
    missing = column.is_null().arg_true()
    if len(missing):
        raise DataError(f"{path}, column {column.name!r}, row {missing[0] + 1}: it is missing")
    return as_ids(column, f"{path}, column {column.name!r}: id")
