"""What is rolled: a log, a configuration, periods; and where in its folder everything lies."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from blossomrec.config import EvaluationConfig, RunConfig, check, to_dict
from blossomrec.data.log import EventLog
from blossomrec.errors import ConfigError, RunError, shortened
from blossomrec.files import read_json, write_json
from blossomrec.registry import BACKBONES
from blossomrec.rolling.options import UPDATE, RollingOptions, UpdateOptions
from blossomrec.rolling.past_log import Part, ends_before, first_times, known_items
from blossomrec.rolling.periods import Period, periods_of
from blossomrec.training.resume import CHANGEABLE

FORMAT = 1
DESCRIPTION = "rolling.json"
# Of a configuration, what decides no number. How long a training lasts does.
WHERE = CHANGEABLE - {"training.epochs", "training.minutes", "training.patience"}
# What a rolling evaluation does in its own way.
OWN = ("split", "last_events", "kinds", "ranking")


@dataclass(frozen=True)
class Study:
    """All that decides the numbers, and the folder for them. It pickles.

    Attributes:
        log: folder of the prepared log.
        folder: of runs and numbers.
        config: of the trainings.
        update: in what updates differ from that.
    """

    log: Path
    folder: Path
    config: RunConfig
    options: RollingOptions
    update: UpdateOptions

    def check(self) -> None:
        """Raise ConfigError, naming the option, where one is wrong or does not fit another."""
        for config in (self.config, self.options):
            check(config)
        check(self.update, "update.")
        defaults = EvaluationConfig()
        for name in OWN:
            given = getattr(self.config.evaluation, name)
            if given != getattr(defaults, name):
                raise ConfigError(
                    f"evaluation.{name} is {shortened(given)}: a rolling evaluation ranks all "
                    "items for the events of each period"
                )
        causal = BACKBONES.get(self.config.model.backbone).causal
        if UPDATE in self.options.chosen and self.update.events == "new" and not causal:
            raise ConfigError(
                f"update.events is 'new', but backbone {self.config.model.backbone} does not "
                "predict the next event: choose update.events all"
            )

    def place(self, number: int, strategy: str) -> Path:
        """The folder of what a strategy does for a period."""
        return self.folder / f"{number:03}" / strategy

    def begin(self, log: EventLog) -> None:
        """Write what is rolled into the folder, or check that it is what was begun there.

        Raises:
            ConfigError: the folder was begun with other options or another log.
            RunError: what it says is damaged.
        """
        path, now = self.folder / DESCRIPTION, self._told(log)
        if path.exists():
            _check_same(self.folder, _read(path), now)
        write_json(path, now)

    def _told(self, log: EventLog) -> dict[str, Any]:
        options = asdict(self.options)
        # Others may be added later.
        options.pop("strategies")
        return {
            "format": FORMAT,
            "log": {"identity": log.digest},
            "options": options,
            "update": asdict(self.update),
            **to_dict(self.config),
        }


def _read(path: Path) -> dict[str, Any]:
    try:
        known = read_json(path)
        if known["format"] != FORMAT:
            raise ValueError(f"it has format {shortened(known['format'])}, not {FORMAT}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged: {error}") from error
    return known


def _check_same(folder: Path, known: dict[str, Any], now: dict[str, Any]) -> None:
    if known.get("log") != now["log"]:
        raise ConfigError(f"{folder} was begun with another log: choose another folder")
    for section, values in now.items():
        before = known.get(section)
        for name, value in values.items() if isinstance(values, dict) else ():
            there = before.get(name) if isinstance(before, dict) else None
            given = list(value) if isinstance(value, tuple) else value
            if there != given and f"{section}.{name}" not in WHERE:
                raise ConfigError(
                    f"{section}.{name} is {shortened(value)}, but {folder} was begun with "
                    f"{shortened(there)}: give the same, or choose another folder"
                )


class Opened:
    """A study with its log open.

    Attributes:
        periods: oldest first.

    Raises:
        DataError, ConfigError: as of :func:`blossomrec.rolling.periods.periods_of`.
    """

    def __init__(self, study: Study):
        self.study, self.log = study, EventLog.open(study.log)
        self.periods = periods_of(self.log, study.options)

    @cached_property
    def first(self) -> np.ndarray:
        """Time of the first event of each item; see ``first_times``."""
        return first_times(self.log)

    def catalogue(self, period: Period) -> np.ndarray:
        """Rows of the items that have an event before a period, int64."""
        return known_items(self.first, period.start)

    def before(self, period: Period) -> Part:
        """All events before a period."""
        return Part(ends_before(self.log, period.start), self.catalogue(period))
