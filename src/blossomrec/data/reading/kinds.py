"""What columns of tables hold: their kind told from name and values, the values checked."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import polars as pl

from blossomrec.data.reading.columns import Column, plain_text
from blossomrec.errors import ConfigError, DataError

KINDS = ("title", "category", "number", "vector", "none")
# Text between which a cell lists several categories.
SEPARATOR = "|"
# Text of which more than half of the rows differ is no category, and of this many names none is.
MAX_NAMES, MAX_SHARE = 100_000, 0.5
# Of events: what a column of their context may be, and how many kinds of them there may be.
CONTEXT_KINDS = ("category", "number")
MAX_KINDS = 1_000
# A whole number, also as a decimal.
_WHOLE = r"^-?(0|[1-9]\d*)(\.0+)?$"


def guess_kind(column: Column) -> str:
    """What a column holds, told by its name, its type and how often its values repeat."""
    values, name = column.values, column.name.lower()
    dtype = values.dtype
    if isinstance(dtype, (pl.List, pl.Array)):
        return "category" if dtype.inner in (pl.String, pl.Categorical) else "vector"  # pyright: ignore[reportAttributeAccessIssue]
    if dtype == pl.Boolean:
        return "category"
    if dtype == pl.String:
        if is_title(name):
            return "title"
        if column.textual and _as_numbers(values).null_count() == values.null_count():
            return "category" if name.endswith("_id") else "number"
        few = values.n_unique() <= max(2, min(MAX_NAMES, int(MAX_SHARE * len(values))))
        return "category" if few or values.str.contains(SEPARATOR, literal=True).any() else "none"
    if dtype.is_numeric():
        return "category" if name.endswith("_id") else "number"
    return "number" if dtype in (pl.Datetime, pl.Date) else "none"


def is_title(name: str) -> bool:
    """Whether a column is called a title."""
    return name.lower() == "title" or name.lower().endswith("_title")


def _read_titles(column: Column) -> pl.Series:
    if column.values.dtype != pl.String:
        column.refuse_type("texts")
    return column.values


def _read_categories(column: Column) -> pl.Series:
    """Lists of names, without blanks and repeats."""
    values = column.values
    if isinstance(values.dtype, (pl.List, pl.Array)):
        lists = values.cast(pl.List(pl.String))
    elif values.dtype == pl.String:
        lists = values.str.split(SEPARATOR)
    elif values.dtype.is_integer() or values.dtype == pl.Boolean:
        lists = values.cast(pl.String).str.split(SEPARATOR)
    else:
        column.refuse_type("texts, integers or lists of texts")
    stripped = lists.list.eval(pl.element().str.strip_chars())
    kept = stripped.list.eval(
        pl.element().filter(pl.element().is_not_null() & (pl.element() != ""))
    )
    return kept.list.unique(maintain_order=True)


def _read_numbers(column: Column) -> pl.Series:
    values = column.values
    if values.dtype in (pl.Datetime, pl.Date):
        values = values.cast(pl.Datetime("us")).to_physical() / 86_400e6
    elif values.dtype == pl.String:
        numbers = _as_numbers(values)
        column.refuse(numbers.is_null() & values.is_not_null() & (values != ""), "is not a number")
        values = numbers
    elif not values.dtype.is_numeric() and values.dtype not in (pl.Boolean, pl.Null):
        column.refuse_type("numbers")
    numbers = values.cast(pl.Float32).fill_nan(None)
    column.refuse(numbers.is_not_null() & ~numbers.is_finite(), "is not finite in 32 bits")
    return numbers


def _read_vectors(column: Column) -> pl.Series:
    values = column.values
    if not isinstance(values.dtype, (pl.List, pl.Array)):
        column.refuse_type("lists of numbers")
    try:
        lists = values.cast(pl.List(pl.Float32))
    except pl.exceptions.PolarsError:
        column.refuse_type("lists of numbers")
    lengths = lists.list.len()
    first = lengths.drop_nulls()
    if not len(first) or not first[0]:
        raise DataError(f"{column.source}, column {column.name!r}: there is no vector in it")
    column.refuse(lengths != first[0], f"has another length than the first vector, {first[0]}")
    finite = lists.list.eval(pl.element().is_finite().fill_null(False)).list.all()
    column.refuse(lists.is_not_null() & ~finite, "is not finite in 32 bits")
    return lists


def _as_numbers(values: pl.Series) -> pl.Series:
    return values.replace("", None).cast(pl.Float64, strict=False)


READERS = {
    "title": _read_titles,
    "category": _read_categories,
    "number": _read_numbers,
    "vector": _read_vectors,
}


def read_event_kinds(column: Column, *, sparse: bool = False) -> pl.Series:
    """Names of the kinds of events: String, null where none is given.

    Args:
        sparse: there may be none at all.

    Raises:
        DataError: they are no text, whole numbers or booleans, or over ``MAX_KINDS``.
    """
    return _names(column, "kind", MAX_KINDS, sparse)


def read_context(column: Column, kind: str | None = None, *, sparse: bool = False) -> pl.Series:
    """A column of the context of events: String for a category, Float32 for a number.

    Args:
        kind: one of ``CONTEXT_KINDS``; told from name and type as :func:`guess_kind` does without
            it, but text is never left out.
        sparse: there may be no value at all.

    Raises:
        DataError: values are of another kind, there is none, or there are over ``MAX_NAMES``.
    """
    column = plain_text(column)
    if kind is None and column.textual:
        warn_of_strays(column, "category", "the option context_kinds decides")
    if (kind or guess_kind(column)) != "number":
        return _names(column, "category", MAX_NAMES, sparse)
    numbers = _read_numbers(column)
    if numbers.null_count() == len(numbers) and not sparse:
        raise DataError(f"{column.source}, column {column.name!r}: there is no number in it")
    return numbers


def warn_of_strays(column: Column, kind: str, hint: str) -> None:
    """Tell of the first text that is no number where most are, so that all are of another kind."""
    given = column.values.is_not_null() & (column.values != "")
    strays = given & _as_numbers(column.values).is_null()
    share = 1 - column.count(strays) / max(column.count(given), 1)
    if 0.5 < share < 1 and not column.name.lower().endswith("_id"):
        row = strays.arg_true()[0]
        taken = "left out" if kind == "none" else "taken as categories"
        warnings.warn(
            f"{column.place(row)}: {column.values[row]!r} is no "
            f"number, as {share:.1%} of the values are, so that all are {taken} ({hint})",
            stacklevel=2,
        )


def _names(column: Column, what: str, limit: int, sparse: bool) -> pl.Series:
    """One name in each row, String, without white space around it; null where it is missing."""
    column = plain_text(column)
    values = column.values
    if values.dtype.is_float():
        # Frames of pandas hold integers with gaps as floats.
        values = values.fill_nan(None).cast(pl.Int64, strict=False)
        wrong = values.is_null() & column.values.fill_nan(None).is_not_null()
        wrong |= values.cast(column.values.dtype) != column.values
        column.refuse(wrong, f"is not a {what}: it is not a whole number")
    elif values.dtype not in (pl.String, pl.Boolean, pl.Null) and not values.dtype.is_integer():
        column.refuse_type("texts, integers or booleans")
    names = values.cast(pl.String).str.strip_chars().replace("", None)
    if column.textual and names.str.contains(_WHOLE).all():
        # Files written by pandas have decimals where integers have gaps.
        names = names.str.replace(r"\.0+$", "")
    if names.null_count() == len(names) and not sparse:
        raise DataError(f"{column.source}, column {column.name!r}: there is no {what} in it")
    new = names.is_first_distinct() & names.is_not_null()
    column.refuse(
        new & (new.cum_sum() > limit),
        f"is one {what} too many: there may be up to {limit:,}",
        "; is it an id, or a number?",
    )
    return names


def parse_kinds(given: Sequence[str], known: Sequence[str] = KINDS) -> dict[str, str]:
    """Kinds by column from words ``COLUMN=KIND``, as the command line takes them.

    Args:
        known: kinds that there are.

    Raises:
        ConfigError: a word is none.
    """
    kinds = {}
    for word in given:
        name, _, kind = word.rpartition("=")
        if not name or kind not in known:
            choices = ", ".join(known)
            raise ConfigError(f"{word!r} is not COLUMN=KIND, where KIND is one of {choices}")
        kinds[name] = kind
    return kinds
