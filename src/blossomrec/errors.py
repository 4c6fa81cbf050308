"""Errors that the user can mend, and checks of arguments that raise them.

The command line prints them plainly, with exit code 2.
"""

from __future__ import annotations

import reprlib
from collections.abc import Collection
from numbers import Integral
from typing import Any

_SHORT = reprlib.Repr()
_SHORT.maxother = _SHORT.maxstring = _SHORT.maxlong = 80


def shortened(value: Any) -> str:
    """A value for a message: one line, however large it is."""
    shown = " ".join(_SHORT.repr(value).split())
    return shown if len(shown) <= _SHORT.maxother else f"{shown[: _SHORT.maxother]}..."


class BlossomRecError(ValueError):
    """Something given to blossomrec is wrong; the message names the value and its place."""


class DataError(BlossomRecError):
    """A table of events, a prepared log or a list of items is wrong."""


class NoEventsError(DataError):
    """A table has the columns of events, but no rows."""


class ConfigError(BlossomRecError):
    """An option is wrong or does not fit another one; the message names the option."""


class UnknownNameError(ConfigError):
    """A name stands for nothing that is installed.

    Attributes:
        missing: what is needed and would bring it, for a name that stands in a file.
    """

    def __init__(self, what: str, kind: str, group: str, names: tuple[str, ...]):
        known = f"choose one of {', '.join(names)}" if names else f"there is no {kind} here"
        super().__init__(f"{what}: {known}")
        self._given = what, kind, group, names
        self.missing = (
            f"{what}, a {kind} that is not installed here: a package brings it as an entry point "
            f"of the group {group}"
        )

    # Exceptions are pickled by what their base class was given.
    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._given


class RunError(BlossomRecError):
    """A run folder is missing, incomplete, or belongs to another vocabulary."""


class TrainingError(BlossomRecError):
    """Training cannot go on, for example because the loss is not finite."""


class RerankerError(BlossomRecError):
    """A re-ranker of the user's own failed, or gave something else than some of its candidates."""


class MissingExtraError(BlossomRecError):
    """An optional dependency is not installed; the message holds the line that installs it."""

    def __init__(self, module: str, extra: str):
        super().__init__(
            f"this needs the package {module!r}: install it with  pip install 'blossomrec[{extra}]'"
        )


def whole_number(name: str, value: Any, *, low: int = 1) -> int:
    """``value`` as an int of at least ``low``; ConfigError for anything else, also True and 3.0."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ConfigError(f"{name} is {value!r}: a whole number is needed")
    if value < low:
        raise ConfigError(f"{name} is {value}: it must be at least {low}")
    return int(value)


def true_or_false(name: str, value: Any) -> bool:
    """``value`` as a bool; ConfigError for anything but True and False."""
    # A scalar of NumPy has an item; nothing heavy is imported here.
    plain = value.item() if type(value).__module__ == "numpy" and hasattr(value, "item") else value
    if not isinstance(plain, bool):
        raise ConfigError(f"{name} is {value!r}: true or false is needed")
    return plain


def one_of(name: str, value: Any, choices: Collection[str]) -> str:
    """``value`` if it is one of the choices; ConfigError, naming them, otherwise."""
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(f"{name} is {value!r}: choose one of {', '.join(choices)}")
    return value
