"""What is searched: options of a configuration, each with its range or its choices, as a file.

A file has the sections of a configuration. An option with ``low`` and ``high`` is searched in
between, on a logarithmic scale with ``log = true``; one with ``choices`` among these; one with a
plain value has this value in every trial.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blossomrec.config import (
    ModelConfig,
    RunConfig,
    TrainingConfig,
    check_option,
    from_dict,
    hints_of,
    instead,
    read_file,
    to_dict,
)
from blossomrec.errors import ConfigError, shortened

SPACES = Path(__file__).parent / "spaces"
SECTIONS: dict[str, type] = {"model": ModelConfig, "training": TrainingConfig}
# What a trial is judged by, and where it runs, is the same for all of them.
NOT_SEARCHED = {
    f"training.{name}" for name in ("validation_users", "device", "tracker", "track_model")
}
RANGE, CHOICES = {"low", "high", "log", "step"}, {"choices"}

# Of one option, such as {"low": 0.0, "high": 0.5} or {"choices": [8, 16]}.
Searched = dict[str, Any]


@dataclass(frozen=True)
class Space:
    """The options that are searched, and those that all trials share, by names such as
    ``model.dropout``."""

    source: str
    searched: dict[str, Searched]
    fixed: dict[str, Any]

    def config(self, base: RunConfig, values: dict[str, Any]) -> RunConfig:
        """``base`` with the fixed options and those of a trial; ConfigError where they clash."""
        nested = to_dict(base)
        for name, value in (self.fixed | values).items():
            section, option = name.split(".")
            nested[section][option] = value
        return from_dict(nested)

    def check_base(self, base: RunConfig) -> None:
        """Raise ConfigError where ``base`` was given another value than the space fixes."""
        given, default = to_dict(base), to_dict(RunConfig())
        for name, value in self.fixed.items():
            section, option = name.split(".")
            known = given[section][option]
            if known not in (value, default[section][option]):
                raise ConfigError(f"{name} is {shortened(known)}, but {self.source} has {value!r}")

    def values_of(self, config: RunConfig) -> dict[str, Any] | None:
        """What a configuration has for the searched options; None where that is not searched."""
        nested = to_dict(config)
        values = {name: nested[name.split(".")[0]][name.split(".")[1]] for name in self.searched}
        inside = (_contains(self.searched[name], value) for name, value in values.items())
        return values if all(inside) else None


def _contains(searched: Searched, value: Any) -> bool:
    if "choices" in searched:
        return value in searched["choices"]
    step = searched.get("step")
    on_grid = step is None or abs((value - searched["low"]) / step % 1) < 1e-9
    return searched["low"] <= value <= searched["high"] and on_grid


def names() -> list[str]:
    """The spaces that come with the package."""
    return sorted(path.stem for path in SPACES.glob("*.toml"))


def read_space(name: str, model: ModelConfig) -> Space:
    """The space of a file or a name; without either, that of the backbone and attention.

    Raises:
        ConfigError: there is no such file or name, or something in it is no option, has no range,
            or a range that the option does not allow; the message names file, option and value.
    """
    known = SPACES / f"{name or _own_name(model)}.toml"
    path = known if known.is_file() and not Path(name).is_file() else Path(name)
    if not path.is_file():
        given = f"no search space {name}" if name else f"no search space of {_own_name(model)}"
        raise ConfigError(f"{given}: give a file, or one of {', '.join(names())}")
    source = path.stem if path == known else str(path)
    try:
        return _space(source, read_file(path))
    except ConfigError as error:
        message = str(error)
        raise ConfigError(message if source in message else f"{source}: {message}") from error


def _own_name(model: ModelConfig) -> str:
    """The name of the space for a backbone with an attention."""
    if model.backbone == "sasrec":
        return "sasrec" if model.attention == "full" else model.attention
    if model.backbone == "bert4rec" and model.attention != "full":
        return f"bert4rec-{model.attention}"
    return model.backbone


def _space(source: str, content: dict[str, Any]) -> Space:
    searched: dict[str, Searched] = {}
    fixed: dict[str, Any] = {}
    for section, options in content.items():
        if section not in SECTIONS:
            raise ConfigError(f"{shortened(section)} is searched: only model and training can be")
        if not isinstance(options, dict):
            raise ConfigError(f"{section} is {shortened(options)}: a table of options is needed")
        for option, given in options.items():
            name = f"{section}.{option}"
            entry, hint = _field(section, option)
            if name in NOT_SEARCHED:
                raise ConfigError(f"{name} is the same for all trials: give it to tune")
            if isinstance(given, dict):
                searched[name] = _searched(entry, hint, name, given)
            else:
                fixed[name] = _checked(entry, hint, name, given)
    if not searched:
        raise ConfigError("nothing is searched: no option has low and high, or choices")
    return Space(source, searched, fixed)


def _field(section: str, option: str) -> tuple[dataclasses.Field[Any], Any]:
    fields = {entry.name: entry for entry in dataclasses.fields(SECTIONS[section])}
    if option not in fields:
        known = instead(str(option), list(fields))
        raise ConfigError(f"unknown option {section}.{shortened(option)}: {known}")
    return fields[option], hints_of(SECTIONS[section])[option]


def _searched(entry: dataclasses.Field[Any], hint: Any, name: str, given: Searched) -> Searched:
    """The range or the choices of an option, checked."""
    wanted = CHOICES if "choices" in given else RANGE
    for key in given:
        if key not in wanted:
            raise ConfigError(f"{name}.{key} is unknown: {', '.join(sorted(wanted))} may be given")
    if "choices" in given:
        choices = given["choices"]
        if not isinstance(choices, list) or not choices:
            raise ConfigError(f"{name}.choices is {shortened(choices)}: a list is needed")
        checked = [
            _checked(entry, hint, f"{name}.choices[{place}]", one)
            for place, one in enumerate(choices)
        ]
        return {"choices": checked}
    return _range(entry, hint, name, given)


def _range(entry: dataclasses.Field[Any], hint: Any, name: str, given: Searched) -> Searched:
    if hint not in (int, float):
        raise ConfigError(f"{name} is {shortened(given)}: choices are needed, it is no number")
    for key in ("low", "high"):
        if key not in given:
            raise ConfigError(f"{name}.{key} is missing: a range has low and high")
    low, high = (_checked(entry, hint, f"{name}.{key}", given[key]) for key in ("low", "high"))
    log, step = given.get("log", False), given.get("step")
    if low > high:
        raise ConfigError(f"{name}.low is {low}: it must be at most high, {high}")
    if not isinstance(log, bool):
        raise ConfigError(f"{name}.log is {shortened(log)}: true or false is needed")
    if log and low <= 0:
        raise ConfigError(f"{name}.low is {low}: with log it must be above 0")
    if step is not None:
        kinds = int if hint is int else (int, float)
        if isinstance(step, bool) or not isinstance(step, kinds) or not step > 0 or log:
            raise ConfigError(
                f"{name}.step is {shortened(step)}: a number above 0 is needed, and no log"
            )
    return {"low": low, "high": high, "log": log, "step": step}


def _checked(entry: dataclasses.Field[Any], hint: Any, name: str, value: Any) -> Any:
    """A value that the option takes."""
    if isinstance(value, (list, dict)):
        raise ConfigError(f"{name} is {shortened(value)}: a single value is needed")
    check_option(entry, hint, name, value)
    return float(value) if hint is float else value
