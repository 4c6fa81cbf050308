"""How a table that is appended to a log is read: as the log was prepared, where nothing is said."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blossomrec.config import check, option
from blossomrec.data.reading.options import ReadOptions
from blossomrec.errors import ConfigError

if TYPE_CHECKING:
    from blossomrec.data.log import EventLog

_AS_PREPARED = "as the log was prepared without it"


@dataclass(frozen=True)
class AppendOptions:
    """All that ``EventLog.append`` can be told about a table; None is as the log was prepared."""

    user: str | None = option(None, f"column of the user ids, {_AS_PREPARED}")
    item: str | None = option(None, f"column of the item ids, {_AS_PREPARED}")
    timestamp: str | None = option(None, f"column of the times, {_AS_PREPARED}")
    kind: str | None = option(None, f"column of the kinds of events, {_AS_PREPARED}")
    weight: str | None = option(None, f"column of the events' weights, {_AS_PREPARED}")
    separator: str | None = option(None, f"character between fields, {_AS_PREPARED}")
    quote: str | None = option(None, f"character that quotes fields, or none, {_AS_PREPARED}")
    multiline: bool | None = option(None, f"let quoted fields run over line ends, {_AS_PREPARED}")
    normalize_ids: bool | None = option(
        None, f"strip white space around text ids and read 1.0 as 1, {_AS_PREPARED}"
    )
    items: str | Path | None = option(
        None,
        "table of items with the columns of the log's own: what it says of an item, known or new, "
        "replaces what was known of that",
    )
    users: str | Path | None = option(
        None, "table of users, as of items; unknown users are left out"
    )
    key: str | None = option(
        None,
        "name of the table, which is taken in once; a digest of what it holds without it",
    )

    def __post_init__(self):
        check(self)
        if self.key is not None and not (isinstance(self.key, str) and self.key.strip()):
            raise ConfigError(f"key is {self.key!r}: a text is needed")

    def reading(self, log: EventLog) -> ReadOptions:
        """How events are read: what is given, and what the log was prepared with."""
        known = log.options
        names = [entry.name for entry in dataclasses.fields(ReadOptions)]
        values = {name: known[name] for name in names if name in known}
        given = {name: getattr(self, name, None) for name in names}
        return ReadOptions(**(values | {n: one for n, one in given.items() if one is not None}))

    def column(self, name: str, log: EventLog) -> Any:
        """The column of "weight" or "kind"; None where the log has none.

        Raises:
            ConfigError: the log has none, and one is given, which would be lost.
        """
        given = getattr(self, name)
        if getattr(log, f"{name}s") is not None:
            return given or log.options.get(name, name)
        if given is not None:
            raise ConfigError(f"{name} is {given!r}: {log.folder} was prepared without {name}s")
        return None
