"""The search from the outside: trials until there are enough of them, in one folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blossomrec.config import RunConfig, check
from blossomrec.data.log import EventLog
from blossomrec.data.split import make_split
from blossomrec.device import resolve_device
from blossomrec.engines import check_engine
from blossomrec.errors import ConfigError
from blossomrec.files import locked, write_json
from blossomrec.registry import TRACKERS
from blossomrec.tracking import Place
from blossomrec.training.trainer import DECISIVE
from blossomrec.tuning.on_ray import run_on_ray
from blossomrec.tuning.options import TuneOptions
from blossomrec.tuning.outcome import (
    importances,
    ranked,
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
from blossomrec.tuning.trial import run_trial
from blossomrec.tuning.trials import Trials
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
        RunError: another process searches in the folder, or something in it is damaged; or Ray has
            no GPU or core.
        MissingExtraError: Optuna, Ray, or the package of a tracker, is not installed.
        TrainingInterrupted: a signal came; trainings under way saved checkpoints.

    Example:
        >>> best = tune("log", "tuning", space="sasrec", trials=30).config
        >>> BlossomRec(best).fit(EventLog.open("log"), "runs/tuned")
    """
    load_optuna()
    chosen = _options(options)
    check_engine(chosen.engine)
    log = log if isinstance(log, EventLog) else EventLog.open(log)
    folder, config = Path(folder), config or RunConfig()
    search = _search(log, config, chosen)
    for name in config.training.trackers:
        # Refused now, not in the first trial.
        TRACKERS.get(name)(Place.of_run(folder))
    with locked(folder):
        if (folder / DESCRIPTION).exists():
            check_same(folder, read_search(folder), search)
        study = open_study(folder, search)
        write_json(folder / DESCRIPTION, search.to_dict())
        trials = Trials(folder, search, study, progress=progress)
        _run(trials, shown=progress and verbose)
        return _result(folder, search, study)


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
    if options.engine == "local":
        # With Ray the machines that train may have another one.
        resolve_device(config.training.device, "training.device")
    space = read_space(options.space, config.model)
    space.check_base(config)
    if not len(make_split(log, config.evaluation).valid.users):
        raise ConfigError(f"{log.folder} has no validation events: nothing tells trials apart")
    return Search(config, space, options, Path(log.folder), log.identity)


def _run(trials: Trials, *, shown: bool) -> None:
    """Run trials until there are enough of them or the time is over."""
    options = trials.search.options
    if options.engine == "ray":
        run_on_ray(trials)
    elif options.jobs > 1:
        run_side_by_side(trials)
    else:
        while (number := trials.next()) is not None:
            run_trial(trials.folder, trials.search, trials.study, number, progress=shown)
            trials.settle(number)


def _result(folder: Path, search: Search, study: optuna.Study) -> TuneResult:
    trials = trials_of(study)
    write_outcome(folder, search, trials)
    best, shares = ranked(trials), importances(study)
    write_importances(folder, shares)
    if trials and not best:
        failed = [trial["reason"] for trial in trials if trial["reason"]]
        told = f"; the last: {failed[-1]}" if failed else ""
        raise ConfigError(f"none of {len(trials)} trials came to its end{told}")
    if not best:
        return TuneResult(None, None, trials, shares)
    config = search.space.config(search.config, best[0]["options"])
    return TuneResult(config, best[0][DECISIVE], trials, shares)
