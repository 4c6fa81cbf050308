"""Errors that the user can mend: the command line prints them plainly, exit code 2."""

from __future__ import annotations

import reprlib
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


class ConfigError(BlossomRecError):
    """An option is wrong or does not fit another one; the message names the option."""


class UnknownNameError(ConfigError):
    """A name stands for nothing that is installed.

    Attributes:
        missing: what is needed and would bring it, for a name that stands in a file.
    """

    def __init__(self, what: str, kind: str, group: str, names: tuple[str, ...]):
        super().__init__(f"{what}: choose one of {', '.join(names)}")
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


class MissingExtraError(BlossomRecError):
    """An optional dependency is not installed; the message holds the line that installs it."""

    def __init__(self, module: str, extra: str):
        super().__init__(
            f"this needs the package {module!r}: install it with  pip install 'blossomrec[{extra}]'"
        )
