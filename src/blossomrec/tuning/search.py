"""The search from the outside: trials until there are enough of them, in one folder."""

from __future__ import annotations

import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blossomrec.config import RunConfig, check
from blossomrec.data.log import EventLog
from blossomrec.data.split import make_split
from blossomrec.device import resolve_device
from blossomrec.errors import ConfigError
from blossomrec.files import locked, write_json
from blossomrec.registry import TRACKERS
from blossomrec.tracking import Place
from blossomrec.training.trainer import DECISIVE
from blossomrec.tuning.options import TuneOptions
from blossomrec.tuning.outcome import (
    importances,
    ranked,
    trial_line,
    trials_of,
    write_importances,
    write_outcome,
)
from blossomrec.tuning.space import read_space
from blossomrec.tuning.study import (
    DESCRIPTION,
    Search,
    check_same,
    load_optuna,
    open_study,
    read_search,
)
from blossomrec.tuning.trial import fail, run_trial
from blossomrec.tuning.workers import run_side_by_side

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class TuneResult:
    """What a search has found.

    Attributes:
        config: the best configuration, as in ``best.yaml``; None where no trial came to its end.
        value: its NDCG@10 of the validation events.
        trials: all trials that have ended, as in ``trials.jsonl``.
        importances: the share of each searched option in what the trials differ by.
    """

    config: RunConfig | None
    value: float | None
    trials: list[dict[str, Any]]
    importances: dict[str, float]


def tune(
    log: EventLog | str | Path,
    folder: str | Path,
    config: RunConfig | None = None,
    *,
    progress: bool = True,
    verbose: bool = False,
    **options: Any,
) -> TuneResult:
    """Search for the options of a configuration that do best on the validation events of a log.

    A trial is a training with the options that Optuna's TPE sampler chose; it counts with the best
    NDCG@10 of its validations, and ends early where others were better at the same epoch. The
    first one is ``config`` itself, where the space has its values. Test events are never looked at.

    All that is known lies in ``folder``: the study as an SQLite file, ``trials.jsonl``,
    ``best.yaml``, ``importances.svg`` where matplotlib is installed, and the runs in ``trials/``,
    of which only the best keep their weights. A search that was stopped or killed goes on when
    it is called again, with the trial it was at.

    Args:
        log: a prepared log, or its folder.
        folder: of the search.
        config: what all trials share, besides what the space says; defaults where it is None.
        progress: print a line for each trial on standard error.
        verbose: show each training as ``train`` does, where one runs at a time.
        options: see :class:`TuneOptions`, such as ``space="blossom"``, ``trials=50``.

    Raises:
        ConfigError: an option or the space is wrong, the log has no validation events, or the
            folder was begun with something else.
        RunError: another process searches in the folder, or something in it is damaged.
        MissingExtraError: Optuna, or the package of a tracker, is not installed.
        TrainingInterrupted: a signal came; trainings under way saved checkpoints.

    Example:
        >>> best = tune("log", "tuning", space="sasrec", trials=30).config
        >>> BlossomRec(best).fit(EventLog.open("log"), "runs/tuned")
    """
    load_optuna()
    log = log if isinstance(log, EventLog) else EventLog.open(log)
    folder, config = Path(folder), config or RunConfig()
    search = _search(log, config, _options(options))
    for name in config.training.trackers:
        # Refused now, not in the first trial.
        TRACKERS.get(name)(Place.of_run(folder))
    with locked(folder):
        if (folder / DESCRIPTION).exists():
            check_same(folder, read_search(folder), search)
        study = open_study(folder, search)
        write_json(folder / DESCRIPTION, search.to_dict())
        return _Running(folder, search, study, progress, verbose).run()


def _options(given: dict[str, Any]) -> TuneOptions:
    known = [entry.name for entry in dataclasses.fields(TuneOptions)]
    for name in given:
        if name not in known:
            raise ConfigError(f"unknown option {name}: known are {', '.join(known)}")
    options = TuneOptions(**given)
    check(options)
    return options


def _search(log: EventLog, config: RunConfig, options: TuneOptions) -> Search:
    check(config)
    resolve_device(config.training.device, "training.device")
    space = read_space(options.space, config.model)
    space.check_base(config)
    if not len(make_split(log, config.evaluation).valid.users):
        raise ConfigError(f"{log.folder} has no validation events: nothing tells trials apart")
    return Search(config, space, options, Path(log.folder), log.identity)


class _Running:
    """A search under way."""

    def __init__(
        self, folder: Path, search: Search, study: optuna.Study, progress: bool, verbose: bool
    ):
        self.folder, self.search, self.study = folder, search, study
        self.progress, self.verbose = progress, verbose
        # One that waits is the first, and was not begun.
        trials = [one for one in study.get_trials(deepcopy=False) if one.state.name != "WAITING"]
        self.begun = len(trials)
        # Those under way belong to a process that is gone: nobody else has the lock.
        self.broken_off = [trial.number for trial in trials if not trial.state.is_finished()]
        minutes = search.options.minutes
        self.deadline = time.monotonic() + 60 * minutes if minutes else float("inf")

    def run(self) -> TuneResult:
        """Run trials until there are enough of them or the time is over."""
        jobs = self.search.options.jobs
        if jobs > 1:
            run_side_by_side(self.folder, jobs, self._next, self._ended)
        else:
            while (number := self._next()) is not None:
                shown = self.progress and self.verbose
                run_trial(self.folder, self.search, self.study, number, progress=shown)
                self._settle(number)
        return self._result()

    def _next(self) -> int | None:
        """The next trial to train, begun in the study; None where no more is to begin."""
        if time.monotonic() >= self.deadline:
            return None
        if self.broken_off:
            return self.broken_off.pop(0)
        if self.begun >= self.search.options.trials:
            return None
        if not self.begun and (own := self.search.space.values_of(self.search.config)):
            self.study.enqueue_trial(own, skip_if_exists=True)
        self.begun += 1
        return self.study.ask().number

    def _ended(self, number: int, code: int) -> None:
        """The process of a trial has ended; one that was killed cannot tell the study."""
        trial = self.study.get_trials(deepcopy=False)[number]
        if not trial.state.is_finished():
            fail(self.study, trial._trial_id, number, f"its process was ended by signal {-code}")
        self._settle(number)

    def _settle(self, number: int) -> None:
        trials = trials_of(self.study)
        write_outcome(self.folder, self.search, trials)
        if self.progress:
            ended = next(trial for trial in trials if trial["trial"] == number)
            print(trial_line(ended, len(trials)), file=sys.stderr, flush=True)

    def _result(self) -> TuneResult:
        trials = trials_of(self.study)
        write_outcome(self.folder, self.search, trials)
        best, shares = ranked(trials), importances(self.study)
        write_importances(self.folder, shares)
        if trials and not best:
            failed = [trial["reason"] for trial in trials if trial["reason"]]
            told = f"; the last: {failed[-1]}" if failed else ""
            raise ConfigError(f"none of {len(trials)} trials came to its end{told}")
        if not best:
            return TuneResult(None, None, trials, shares)
        config = self.search.space.config(self.search.config, best[0]["options"])
        return TuneResult(config, best[0][DECISIVE], trials, shares)
