"""The trainings of a rolling evaluation: from nothing, or from yesterday's model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from blossomrec.config import RunConfig
from blossomrec.data.log import EventLog
from blossomrec.data.split import Cases, Split
from blossomrec.errors import RunError
from blossomrec.files import read_json, remove, write_json
from blossomrec.models.building import build_model
from blossomrec.models.inputs import resolve_inputs
from blossomrec.rolling.past_log import write_part
from blossomrec.rolling.periods import Period
from blossomrec.rolling.study import Opened
from blossomrec.run.description import read_run_config
from blossomrec.training import train
from blossomrec.training.state import seeded
from blossomrec.training.warm_start.seen import seen_events

TRAINED = "trained.json"
# Events of a user without which none is held out.
FEWEST = 3


@dataclass(frozen=True)
class Trained:
    """The run that a strategy has for a period, and what it took; nothing where it is older.

    Attributes:
        run: below the folder of the study.
        events: how many there were before the period.
    """

    run: str
    events: int
    seconds: float = 0.0
    epochs: int = 0
    steps: int = 0

    @classmethod
    def read(cls, path: Path) -> Trained:
        """Raises RunError where the file is damaged."""
        try:
            return cls(**read_json(path))
        except (OSError, ValueError, TypeError) as error:
            raise RunError(f"{path} is damaged: {error}") from error


def trained_before(
    opened: Opened,
    period: Period,
    place: Path,
    begun: Trained | None = None,
    *,
    verbose: bool = False,
) -> Trained:
    """Train on the events before a period, or go on with it, or find it done.

    The log of these events lies in ``place`` meanwhile.

    Args:
        place: folder for the run.
        begun: what is brought up to date; None trains from nothing. Where there is no new event
            to learn from since, it stays what it is.
        verbose: show the training.

    Raises:
        RunError: something there is damaged, or another process writes it.
        TrainingError, TrainingInterrupted: as of :func:`blossomrec.training.train`.
    """
    path, folder = place / TRAINED, opened.study.folder
    if path.exists():
        return Trained.read(path)
    log = write_part(opened.log, place / "log", opened.before(period))
    ancestor = None if begun is None else folder / begun.run
    config = _config(opened, log, ancestor)
    held_out = ancestor is None or opened.study.update.validate
    share = opened.study.options.validation if held_out else 0.0
    split = split_before(log, share, config.training.seed, opened.log.num_users)
    if begun is not None and not _has_new(begun, folder, log, split):
        found = Trained(begun.run, log.num_events)
    else:
        found = _train(log, split, config, place / "run", ancestor, verbose=verbose)
        found = replace(found, run=str((place / "run").relative_to(folder)))
    write_json(path, asdict(found))
    remove(place / "log")
    return found


def split_before(log: EventLog, share: float, seed: int, num_users: int) -> Split:
    """Training on all events but the last ones of some users, which are for validation.

    The users are a share of all, the same ones in the logs of all periods: what was held out is
    never what an earlier training has seen.

    Args:
        log: whose users' ids are rows from 0 to ``num_users - 1``.
    """
    chosen = np.random.default_rng(seed).random(num_users) < share
    lengths = np.diff(np.asarray(log.offsets))
    users = np.flatnonzero(chosen[np.asarray(log.user_vocabulary.listed())] & (lengths >= FEWEST))
    train_end = lengths.copy()
    train_end[users] -= 1
    none = np.empty(0, np.int64)
    return Split(train_end, Cases(users, train_end[users], lengths[users]), Cases(none, none, none))


def _config(opened: Opened, log: EventLog, ancestor: Path | None) -> RunConfig:
    config, update = opened.study.config, opened.study.update
    if ancestor is None:
        return resolve_inputs(config, log)
    changes: dict[str, Any] = update.of(config.training)
    model = read_run_config(ancestor).config.model
    return replace(config, model=model, training=replace(config.training, **changes))


def _has_new(begun: Trained, folder: Path, log: EventLog, split: Split) -> bool:
    """Whether events have come since a run that it can learn from."""
    if log.num_events == begun.events:
        return False
    seen = seen_events(folder / begun.run, log, split.train_end)
    # The first event of a user is never predicted.
    return bool((split.train_end > np.maximum(seen, 1)).any())


def _train(
    log: EventLog,
    split: Split,
    config: RunConfig,
    run: Path,
    ancestor: Path | None,
    *,
    verbose: bool,
) -> Trained:
    began = perf_counter()
    with seeded(config.training.seed):
        model = build_model(config.model, log.num_items, log.tables)
        result = train(model, log, split, config, run, progress=verbose, ancestor=ancestor)
    # One that was resumed counts what it took before; any other one also how it was set up.
    seconds = max(perf_counter() - began, result.seconds)
    return Trained("", log.num_events, round(seconds, 3), result.epochs, result.steps)
