"""Arguments of public functions, checked: what is wrong is named, in one line."""

from __future__ import annotations

from collections.abc import Collection
from numbers import Integral
from typing import Any

import numpy as np

from blossomrec.errors import ConfigError


def whole_number(name: str, value: Any, *, low: int = 1) -> int:
    """``value`` as an int of at least ``low``; ConfigError for anything else, also True and 3.0."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ConfigError(f"{name} is {value!r}: a whole number is needed")
    if value < low:
        raise ConfigError(f"{name} is {value}: it must be at least {low}")
    return int(value)


def true_or_false(name: str, value: Any) -> bool:
    """``value`` as a bool; ConfigError for anything but True and False."""
    if not isinstance(value, (bool, np.bool_)):
        raise ConfigError(f"{name} is {value!r}: true or false is needed")
    return bool(value)


def one_of(name: str, value: Any, choices: Collection[str]) -> str:
    """``value`` if it is one of the choices; ConfigError, naming them, otherwise."""
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(f"{name} is {value!r}: choose one of {', '.join(choices)}")
    return value
