"""Options as fields of dataclasses: their explanation, their bounds, and how a value is checked."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import field
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from blossomrec.errors import ConfigError, shortened
from blossomrec.registry import Registry

# The largest that every generator of random numbers takes.
LARGEST_SEED = 2**63 - 1
LARGEST_HISTORY = 10_000_000
Switch = Literal["auto", "on", "off"]


def option(default: Any, help: str, *, low: float | None = None, high: float | None = None) -> Any:
    """A dataclass field with its explanation and, for numbers, its inclusive bounds."""
    return field(default=default, metadata={"help": help, "low": low, "high": high})


def column(default: str, help: str) -> Any:
    """A dataclass field that names a column; in frames of pandas a name may be a number, too."""
    return field(
        default=default, metadata={"help": help, "low": None, "high": None, "column": True}
    )


def named(registry: Registry[Any], default: str, help: str) -> Any:
    """A dataclass field whose value is a name in a registry; its explanation lists the names."""
    help = f"{help}: {', '.join(registry.names())}"
    bounds = {"low": None, "high": None}
    return field(default=default, metadata={"help": help, **bounds, "registry": registry})


# What a field of a type takes, and what to call it.
_NEEDED: dict[Any, tuple[Any, str]] = {
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: ((int, float), "a finite number"),
}


# Annotations are text, and making types of them takes most of the time of reading a configuration.
hints_of = cache(get_type_hints)


def check(config: Any, where: str = "") -> None:
    """Raise ConfigError, naming option and value, where a type is wrong or a bound is broken."""
    hints = hints_of(type(config))
    for entry in dataclasses.fields(config):
        name, value = f"{where}{entry.name}", getattr(config, entry.name)
        if dataclasses.is_dataclass(value):
            check(value, f"{name}.")
        else:
            check_option(entry, hints[entry.name], name, value)
    if hasattr(config, "check_together"):
        config.check_together(where)


def check_option(entry: dataclasses.Field[Any], hint: Any, name: str, value: Any) -> None:
    """Raise ConfigError unless a value is of the type of its field and within the bounds."""
    if "registry" in entry.metadata:
        entry.metadata["registry"].check(name, value)
    elif "column" not in entry.metadata:
        _check_value(name, value, hint)
    low, high = entry.metadata.get("low"), entry.metadata.get("high")
    for number in value if isinstance(value, (tuple, list)) else (value,):
        if low is not None and not number >= low:
            raise ConfigError(f"{name} is {shortened(value)}: it must be at least {low}")
        if high is not None and not number <= high:
            raise ConfigError(f"{name} is {shortened(value)}: it must be at most {high}")


def _check_value(name: str, value: Any, hint: Any) -> None:
    """Raise ConfigError unless the value is of the type, or among the choices, of its field."""
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            choices = ", ".join(map(str, get_args(hint)))
            raise ConfigError(f"{name} is {shortened(value)}: choose one of {choices}")
    elif get_origin(hint) is tuple:
        if not isinstance(value, (tuple, list)) or not value:
            raise ConfigError(f"{name} is {shortened(value)}: a list of numbers is needed")
        for place, number in enumerate(value):
            _check_value(f"{name}[{place}]", number, get_args(hint)[0])
    elif hint is str:
        if not isinstance(value, str):
            raise ConfigError(f"{name} is {shortened(value)}: a text is needed")
    elif hint in _NEEDED:
        kinds, needed = _NEEDED[hint]
        # A bool counts as an int in Python, not in an option.
        wrong = hint is not bool and isinstance(value, bool)
        if wrong or not isinstance(value, kinds) or not abs(value) < math.inf:
            raise ConfigError(f"{name} is {shortened(value)}: {needed} is needed")
