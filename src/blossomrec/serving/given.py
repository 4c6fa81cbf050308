"""What callers give, checked: ids, events, tokens, numbers."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Set
from numbers import Real
from typing import Any, TypeVar

from blossomrec.errors import ConfigError, DataError

ItemId = int | str
T = TypeVar("T")
# What an event may say in a request.
EVENT = ("item", "timestamp", "key", "kind", "context")
# Rules that a request may bring.
RULES = ("filter", "boost", "max_per", "diversity", "exclude_seen_days", "fallback")


def as_id(value: Any, name: str) -> ItemId:
    """An id: text, or a whole number of Python or NumPy.

    Raises:
        DataError: it is something else; 12.0 and NaN are no ids, whatever column they come from.
    """
    if isinstance(value, str):
        return _text(value, name)
    number = _whole(value)
    if number is None:
        raise DataError(f"{name} is {_shown(value)}: an id is a whole number or text")
    return number


def as_ids(values: Any, name: str, *, ordered: bool = True) -> list[ItemId]:
    """A list of ids, from anything that holds several.

    Args:
        ordered: their order counts, so that a set is refused.

    Raises:
        DataError: it is text, a mapping or a table, or one of them is no id.
    """
    return [
        as_id(one, f"{name}[{index}]")
        for index, one in enumerate(_listed(values, name, "ids", ordered))
    ]


def as_events(events: Any, kind: Any = None, context: Any = None) -> list[dict[str, Any]]:
    """Events for a request, from item ids and mappings with the names in ``EVENT``.

    Args:
        kind, context: of those events that do not say theirs.

    Raises:
        DataError: see :func:`as_ids`; a time is no finite number, a key or a kind no text, or a
            context no mapping of names to texts and numbers.
    """
    own = {"kind": as_kind(kind, "kind"), "context": as_context(context, "context")}
    own = {name: value for name, value in own.items() if value is not None}
    listed = _listed(events, "events", "events", ordered=True)
    return [own | _event(one, f"events[{index}]") for index, one in enumerate(listed)]


def as_kind(value: Any, name: str) -> str | None:
    """A kind of events, text or None; DataError for anything else."""
    if value is not None and not isinstance(value, str):
        raise DataError(f"{name} is {_shown(value)}: a kind is text")
    return None if value is None else _text(value, name)


def as_context(value: Any, name: str) -> dict[str, Any] | None:
    """What an event happened in: texts and numbers by name, of which NaN is none; or None.

    Raises:
        DataError: it is something else.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise DataError(f"{name} is {_shown(value)}: a context has values by name")
    found = dict[str, Any]()
    for key, one in value.items():
        if not isinstance(key, str):
            raise DataError(f"{name} has the name {_shown(key)}: a name is text")
        found[_text(key, name)] = _value(one, f"{name}[{_shown(key)}]")
    return found


def _value(value: Any, name: str) -> str | int | float | None:
    if value is None or isinstance(value, str):
        return None if value is None else _text(value, name)
    number = _whole(value)
    if number is not None:
        return number
    # What is missing in a column of numbers is NaN.
    if isinstance(value, Real) and not isinstance(value, bool) and not math.isinf(value):
        return None if math.isnan(value) else float(value)
    raise DataError(f"{name} is {_shown(value)}: text, a finite number or None is needed")


def as_listed(values: Any, name: str, read: Callable[[Any, str], T]) -> list[T]:
    """A list of what ``read`` makes of each value and its name; DataError where it is no list."""
    listed = _listed(values, name, "values", ordered=True)
    return [read(one, f"{name}[{index}]") for index, one in enumerate(listed)]


def as_whole(value: Any, name: str) -> int:
    """A whole number; DataError for anything else."""
    number = _whole(value)
    if number is None:
        raise DataError(f"{name} is {_shown(value)}: a whole number is needed")
    return number


def as_choice(value: Any, name: str) -> bool | None:
    """True, False or None; DataError for anything else."""
    plain = value.item() if hasattr(value, "item") else value
    if plain is not None and not isinstance(plain, bool):
        raise DataError(f"{name} is {_shown(value)}: True, False or None is needed")
    return plain


def as_rules(given: Mapping[str, Any]) -> dict[str, Any]:
    """Rules for a request, by name, without those that are None.

    Raises:
        DataError: there is no such rule, or what it says cannot be sent; the server checks more.
    """
    strangers = [name for name in given if name not in RULES]
    if strangers:
        raise DataError(f"there is no rule {_shown(strangers[0])}: known are {', '.join(RULES)}")
    return {name: _rule(one, name) for name, one in given.items() if one is not None}


def _rule(value: Any, name: str) -> Any:
    """A value of JSON, of Python's own types."""
    if isinstance(value, str):
        return _text(value, name)
    if isinstance(value, Mapping):
        return {_text(key, name): _rule(one, f"{name}[{key!r}]") for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rule(one, f"{name}[{index}]") for index, one in enumerate(value)]
    number = _whole(value)
    if number is not None:
        return number
    if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise DataError(f"{name} is {_shown(value)}: text, finite numbers, pairs or limits are needed")


def _event(given: Any, name: str) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        return {"item": as_id(given, name)}
    event = dict(given)
    strangers = [key for key in event if key not in EVENT]
    if strangers or "item" not in event:
        found = ", ".join(map(_shown, event)) or "nothing"
        raise DataError(
            f"{name} has {found}: it has an item, and may have a {', a '.join(EVENT[1:])}"
        )
    event["item"] = as_id(event["item"], f"{name}.item")
    if event.get("timestamp") is not None:
        event["timestamp"] = as_time(event["timestamp"], f"{name}.timestamp")
    if event.get("key") is not None:
        if not isinstance(event["key"], str):
            raise DataError(f"{name}.key is {_shown(event['key'])}: a key is text")
        event["key"] = _text(event["key"], f"{name}.key")
    for part, read in (("kind", as_kind), ("context", as_context)):
        if part in event:
            event[part] = read(event[part], f"{name}.{part}")
    return event


def as_time(value: Any, name: str) -> int | float:
    """A point in time, a finite number; DataError for anything else."""
    number = _whole(value)
    if number is not None:
        return number
    if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise DataError(f"{name} is {_shown(value)}: a timestamp is a finite number")


def _listed(values: Any, name: str, what: str, ordered: bool) -> list[Any]:
    if ordered and isinstance(values, Set):
        raise DataError(f"{name} is a set, which has no order: a list of {what} is needed")
    plain = values
    # Arrays, and columns of frames: with Python's own values in them.
    for method in ("tolist", "to_list"):
        if hasattr(values, method) and not isinstance(values, memoryview):
            plain = getattr(values, method)()
            break
    # Going through text gives its letters, through a frame the names of its columns.
    wrong = isinstance(plain, (str, bytes, bytearray, memoryview, Mapping))
    if wrong or not isinstance(plain, Iterable) or hasattr(plain, "columns"):
        shown = _shown(values)
        advice = f", such as [{shown}]" if isinstance(values, (str, int)) else ""
        raise DataError(f"{name} is {shown}: a list of {what} is needed{advice}")
    return list(plain)


def _whole(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _text(value: str, name: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{name} is {_shown(value)}, which is not Unicode text") from error
    return str(value)


def _shown(value: Any) -> str:
    text = " ".join(ascii(value).split())
    return text if len(text) <= 80 else f"{text[:80]}..."


def check_token(token: str, name: str) -> None:
    """Refuse a token that clients cannot send, or each in a way of its own.

    Args:
        name: what the error calls it; the token itself is never shown.

    Raises:
        ConfigError: it is empty, begins or ends with a space, or has a character that is not
            printable ASCII.
    """
    if not token:
        raise ConfigError(f"{name} is empty: leave it out for no token")
    for position, character in enumerate(token, 1):
        if not " " <= character <= "~":
            raise ConfigError(
                f"position {position} of {name} is not printable ASCII: not every client can send "
                "it in a header"
            )
    if token != token.strip():
        raise ConfigError(f"{name} begins or ends with a space, which a header cannot carry")


LONGEST_ID = 256
REFUSED = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffd]")


def check_text(text: str, what: str = "an id", *, empty: bool = False) -> None:
    """The rule for ids of users, keys and kinds, wherever they come from.

    Any text of 1 to 256 code points is an id, also with joiners and spaces that cannot be seen, but
    for control characters, halves of surrogate pairs, and U+FFFD, which stands for bytes that were
    no UTF-8 and in which users would be mixed up. Ids are the same if their code points are.

    Args:
        what: it is called.
        empty: whether it may have no code point at all.

    Raises:
        ValueError: it is none, and why.
    """
    if not (0 if empty else 1) <= len(text) <= LONGEST_ID:
        raise ValueError(f"{what} has 1 to {LONGEST_ID} characters, this one {len(text)}")
    refused = REFUSED.search(text)
    if refused is not None:
        raise ValueError(
            f"{what} has no control characters, halves of surrogate pairs or U+FFFD: "
            f"U+{ord(refused[0]):04X} is in it"
        )
