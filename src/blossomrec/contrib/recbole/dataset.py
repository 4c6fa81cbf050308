"""A folder of RecBole's atomic files as a prepared log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blossomrec.data.log import EventLog
from blossomrec.data.reading.files import SourceFiles
from blossomrec.data.reading.options import ReadOptions
from blossomrec.errors import DataError

# What RecBole calls columns that hold whole histories.
LISTS = "_list"


def prepare_dataset(folder: str | Path, log: str | Path | None = None, **options: Any) -> EventLog:
    """Prepare a log from ``NAME.inter`` and, where they are, ``NAME.item`` and ``NAME.user``.

    Args:
        folder: of the data set; NAME is the folder's name, or that of the only ``.inter`` in it.
        log: as of :meth:`EventLog.prepare`.
        options: of :meth:`EventLog.prepare`; ``items=None`` leaves the table of items out.

    Raises:
        DataError: there is no ``.inter``, or it holds histories in place of events.

    Example:
        >>> prepare_dataset("dataset/ml-100k", "log", context=("rating",)).num_items
        1682
    """
    events = _events(Path(folder))
    _refuse_histories(events, options.get("separator"))
    for option, suffix in (("items", ".item"), ("users", ".user")):
        table = events.with_suffix(suffix)
        if option not in options and table.is_file():
            options[option] = table
    return EventLog.prepare(events, log, **options)


def _events(folder: Path) -> Path:
    own = folder / f"{folder.name}.inter"
    found = [own] if own.is_file() else sorted(folder.glob("*.inter"))
    if len(found) == 1:
        return found[0]
    there = ", ".join(one.name for one in found) if found else "none"
    raise DataError(f"{folder} must hold {own.name}, or a single .inter file: it has {there}")


def _refuse_histories(events: Path, separator: str | None) -> None:
    options = ReadOptions() if separator is None else ReadOptions(separator=separator)
    for name in SourceFiles(events, options).columns():
        if name.endswith(LISTS):
            raise DataError(
                f"{events} has the column {name!r}: its rows are histories cut into samples; give "
                "the table of events that they were made from"
            )
