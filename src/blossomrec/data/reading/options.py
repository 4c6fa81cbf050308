"""How a table of events is read, filtered and ordered; finding its columns by their names."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from blossomrec.config import check, column, option
from blossomrec.data.reading.addresses import without_secrets
from blossomrec.errors import ConfigError, DataError

Options = TypeVar("Options")
# What tables of other libraries have that give their columns as an Arrow stream.
ARROW_STREAM = "__arrow_c_stream__"


@dataclass(frozen=True)
class ReadOptions:
    """How a table becomes events; ``separator``, ``quote`` and ``multiline`` are of text files."""

    user: str = column("user_id", "column of the user ids")
    item: str = column("item_id", "column of the item ids")
    timestamp: str = column("timestamp", "column of the times, numbers or datetimes")
    separator: str | None = option(
        None, "character between fields; a comma in .csv, a tab in .tsv and .inter without it"
    )
    quote: str = option(
        "auto", 'character that quotes fields, or none; auto is " in .csv, none in .tsv and .inter'
    )
    multiline: bool = option(
        False, "let quoted fields run over line ends; a row with such a field is refused without it"
    )
    normalize_ids: bool = option(
        False, "strip white space around text ids and read whole decimals as integers: 1.0 is 1"
    )
    time_unit: Literal[
        "auto", "seconds", "milliseconds", "microseconds", "nanoseconds", "order"
    ] = option(
        "auto",
        "unit of numbers as times since 1970, or order where they only tell what came first; auto: "
        "told from the numbers",
    )
    ties: Literal["auto", "keep", "shuffle"] = option(
        "auto",
        "events of a user with equal times: keep their order, shuffle them (always the same way), "
        "or auto: shuffle where their order is that of the item ids",
    )

    def __post_init__(self):
        check(self)
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            lists = str(entry.type).startswith("tuple") and value is not None
            if lists and not isinstance(value, (tuple, list)):
                raise ConfigError(
                    f"{entry.name} is {value!r}: a list is needed, such as [{value!r}]"
                )
        for name in ("user", "item", "timestamp"):
            if getattr(self, name) is None:
                raise ConfigError(f"{name} is None: the name of a column is needed")
        for name, words in (("separator", (None, r"\t")), ("quote", ("auto", "none"))):
            value = getattr(self, name)
            if value in words:
                continue
            if not (isinstance(value, str) and len(value) == 1 and value.isascii()):
                raise ConfigError(f"{name} is {value!r}: a single ASCII character is needed")
            if value in "\r\n\0":
                raise ConfigError(f"{name} is {value!r}: it cannot be a line end or NUL")
        if self.separator == self.quote:
            raise ConfigError(f"separator and quote are both {self.quote!r}")


@dataclass(frozen=True)
class EventOptions(ReadOptions):
    """The same, with what else is told of events."""

    kind: str | None = option(None, "column of the kinds of events, such as click and purchase")
    context: tuple[str, ...] | None = option(
        None,
        "columns of what events happened in: categories such as shops, numbers such as prices",
    )
    context_kinds: tuple[str, ...] | None = option(
        None, "COLUMN=KIND of columns of the context that are not to be guessed: category or number"
    )


@dataclass(frozen=True)
class Filters:
    """What is dropped; the defaults drop nothing."""

    min_user_events: int = option(
        1, "drop users with fewer events, again and again together with the items"
    )
    min_item_events: int = option(1, "drop items with fewer events")
    merge_repeats: bool = option(
        False, "keep the first of neighbouring events with the same item and kind"
    )
    drop_duplicates: bool = option(
        False, "keep the first of events with the same user, item, time and kind"
    )

    def __post_init__(self):
        for name in ("min_user_events", "min_item_events"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}: an integer of at least 1 is needed")


@dataclass(frozen=True)
class PrepareOptions(Filters, EventOptions):
    """All that ``EventLog.prepare`` can be told about a table."""

    weight: str | None = option(
        None, "column of the events' weights: how much each counts in training"
    )
    items: str | Path | None = option(
        None,
        "table of items (.parquet, .csv, .tsv, .item, an address of .parquet), by the column of "
        "item ids: titles, categories, numbers, vectors; items in it without an event belong to "
        "the catalogue",
    )
    item_kinds: tuple[str, ...] | None = option(
        None,
        "COLUMN=KIND of columns of that table that are not to be guessed: title, category, number, "
        "vector or none",
    )
    users: str | Path | None = option(
        None,
        "table of users (.parquet, .csv, .tsv, .user), by the column of user ids, as of items; "
        "users in it without an event are left out",
    )
    user_kinds: tuple[str, ...] | None = option(
        None, "COLUMN=KIND of columns of that table, as item_kinds"
    )

    def __post_init__(self):
        EventOptions.__post_init__(self)
        Filters.__post_init__(self)
        for kinds, table in (("item_kinds", self.items), ("user_kinds", self.users)):
            if (given := getattr(self, kinds)) and table is None:
                what = f"{kinds[:4]}s"
                raise ConfigError(f"{kinds} is {' '.join(given)!r}: no table of {what} is given")

    def recorded(self) -> dict[str, Any]:
        """The options that are not None, ready for JSON."""
        return {
            name: value if isinstance(value, (bool, int)) else _told(value)
            for name, value in vars(self).items()
            if value is not None
        }


def _told(value: Any) -> str:
    """An option as text; of a frame what it is."""
    if any(hasattr(value, name) for name in ("columns", "column_names", ARROW_STREAM)):
        return f"the {type(value).__module__.split('.')[0]} frame"
    if isinstance(value, str):
        return without_secrets(value)
    return " ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def with_given(cls: type[Options], given: dict[str, Any]) -> Options:
    """An instance of a class above; ConfigError for a name that it does not know."""
    known = [entry.name for entry in dataclasses.fields(cls)]  # pyright: ignore[reportArgumentType]
    for name in given:
        if name not in known:
            raise ConfigError(f"unknown option {name}: known are {', '.join(known)}")
    return cls(**given)


def find_columns(source: str, there: Sequence[Any], names: Sequence[Any]) -> list[int]:
    """Positions of the columns called ``names`` among the names ``there``.

    A name that is no text, such as a number in a pandas frame, is also found by its text. Raises
    DataError for a name that is not there, or is there more than once.
    """
    return [_find_column(source, there, name) for name in names]


def _find_column(source: str, there: Sequence[Any], name: Any) -> int:
    places = [place for place, one in enumerate(there) if type(one) is type(name) and one == name]
    places = places or [place for place, one in enumerate(there) if str(one) == str(name)]
    if len(places) == 1:
        return places[0]
    if places:
        numbers = " and ".join(str(place + 1) for place in places)
        raise DataError(
            f"{source} has the column {name!r} {len(places)} times, as columns {numbers}: "
            "it is not clear which one to read"
        )
    lower = {str(column).lower(): column for column in there}
    close = difflib.get_close_matches(str(name).lower(), list(lower), n=1, cutoff=0.4)
    hint = f"; did you mean {lower[close[0]]!r}?" if close else ""
    raise DataError(
        f"{source} has no column {name!r}: its columns are {', '.join(map(repr, there))}{hint}"
    )
