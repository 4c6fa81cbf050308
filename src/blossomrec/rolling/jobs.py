"""A rolling evaluation from the outside: jobs that can run side by side, all in one folder."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blossomrec.config import RunConfig, check
from blossomrec.data.log import EventLog
from blossomrec.device import resolve_device
from blossomrec.errors import ConfigError, RunError
from blossomrec.files import locked, read_json, remove, write_json, write_text
from blossomrec.rolling.measured import DECISIVE, Line, Result, Rolled
from blossomrec.rolling.options import RETRAIN, STALE, UPDATE, RollingOptions, UpdateOptions
from blossomrec.rolling.paired import share_interval, write_ranks
from blossomrec.rolling.periods import Period
from blossomrec.rolling.study import Opened, Study
from blossomrec.rolling.targets import rank_targets, targets_of
from blossomrec.rolling.training import Trained, trained_before
from blossomrec.run.description import read_run_config

MEASURED, LINES = "measured.json", "periods.jsonl"
# Called with each line as soon as it is there.
Tell = Callable[[Line], None]


@dataclass(frozen=True)
class RollingJob:
    """Trainings and measurements that follow each other, beside which other jobs may run.

    Attributes:
        number: the period whose training from nothing it is; None is all that begins with the
            first training: the stale model, and that which is brought up to date.
    """

    study: Study
    number: int | None = None
    verbose: bool = False

    def __str__(self) -> str:
        if self.number is None:
            return "the first training, and what follows from it"
        return f"period {self.number}, {RETRAIN}"

    def run(self, tell: Tell = lambda line: None) -> list[Line]:
        """The lines, those that were there before among them.

        Raises:
            RunError: something in the folder is damaged, or another process writes it.
            TrainingError, TrainingInterrupted: as of :func:`blossomrec.training.train`.
        """
        opened, found = Opened(self.study), list[Line]()
        lines = _follow(opened, self.verbose) if self.number is None else self._anew(opened)
        for line in lines:
            tell(line)
            found.append(line)
        return found

    def _anew(self, opened: Opened) -> Iterator[Line]:
        assert self.number is not None
        period = opened.periods[self.number - 1]
        place = self.study.place(period.number, RETRAIN)
        trained = trained_before(opened, period, place, verbose=self.verbose)
        yield _measured(opened, period, RETRAIN, trained)
        # Nothing goes on from it.
        remove(place / "run" / "checkpoints")


def jobs_of(study: Study, *, verbose: bool = False) -> list[RollingJob]:
    """The jobs of a study, the longest first; each is independent of the others."""
    found = [RollingJob(study, None, verbose)]
    if RETRAIN in study.options.chosen:
        # In the first period it is the first training.
        numbers = range(study.options.periods, 1, -1)
        found += [RollingJob(study, number, verbose) for number in numbers]
    return found


def _follow(opened: Opened, verbose: bool) -> Iterator[Line]:
    """The first training, and all that begins with it, period after period."""
    study, chosen = opened.study, opened.study.options.chosen
    first = trained_before(opened, opened.periods[0], study.place(1, STALE), verbose=verbose)
    updated = first
    for period in opened.periods:
        begins = period.number == 1
        kept = dataclasses.replace(first, seconds=0.0, epochs=0, steps=0)
        if STALE in chosen:
            yield _measured(opened, period, STALE, first if begins else kept)
        if begins and RETRAIN in chosen:
            yield _measured(opened, period, RETRAIN, first)
        if UPDATE not in chosen:
            continue
        if begins:
            yield _measured(opened, period, UPDATE, kept)
            continue
        before, place = updated, study.place(period.number, UPDATE)
        updated = trained_before(opened, period, place, before, verbose=verbose)
        yield _measured(opened, period, UPDATE, updated)
        if before.run not in (first.run, updated.run):
            # The next update goes on from a later one.
            remove(study.folder / before.run / "checkpoints")


def _measured(opened: Opened, period: Period, strategy: str, trained: Trained) -> Line:
    """The line of a strategy and period, measured where it is not there."""
    study = opened.study
    place = study.place(period.number, strategy)
    path, run = place / MEASURED, study.folder / trained.run
    if path.exists():
        return _read_line(path)
    targets = targets_of(opened.log, period, first=study.options.targets == "first")
    device = resolve_device(study.config.training.device)
    ranks = rank_targets(opened, targets, run, device)
    result = Result(period, strategy, targets, trained, ranks)
    line = result.line(opened, read_run_config(run).num_items)
    write_ranks(place, targets.users, ranks)
    write_json(path, line)
    return line


def _read_line(path: Path) -> Line:
    try:
        line = read_json(path)
        if not isinstance(line["period"], int) or not isinstance(line["strategy"], str):
            raise ValueError("it is no line of a period")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged: {error}; remove it to measure again") from error
    return line


def collected(study: Study, beside: Study | None = None) -> Rolled:
    """All lines that the folder of a study has, which are written to ``periods.jsonl``.

    Args:
        beside: a study of the same periods whose trainings from nothing stand for those that this
            one has none of.
    """
    lines, missing = list[Line](), list[str]()
    studies = {strategy: study for strategy in study.options.chosen}
    if beside is not None and RETRAIN in beside.options.chosen:
        studies.setdefault(RETRAIN, beside)
    for number in range(1, study.options.periods + 1):
        for strategy, of in studies.items():
            path = of.place(number, strategy) / MEASURED
            if path.exists():
                lines.append(_read_line(path))
            else:
                missing.append(f"period {number}, {strategy}")
    own = [line for line in lines if studies[line["strategy"]] is study]
    write_text(study.folder / LINES, "".join(json.dumps(line) + "\n" for line in own))
    rolled = Rolled(lines, missing)
    intervals = {name: _interval(studies, rolled, name) for name in rolled.strategies}
    known = {name: each for name, each in intervals.items() if each is not None}
    return dataclasses.replace(rolled, intervals=known)


def _interval(
    studies: Mapping[str, Study], rolled: Rolled, strategy: str
) -> tuple[float, float] | None:
    if strategy == RETRAIN or rolled.shares(strategy) is None:
        return None
    numbers = [{line["period"] for line in rolled.of(one, first=2)} for one in (strategy, RETRAIN)]
    return share_interval(
        (studies[strategy].place(number, strategy), studies[RETRAIN].place(number, RETRAIN))
        for number in sorted(numbers[0] & numbers[1])
    )


def begun(
    log: str | Path,
    folder: str | Path,
    config: RunConfig | None,
    options: RollingOptions,
    update: UpdateOptions,
) -> Study:
    """A checked study whose folder says what it is; see :func:`rolling`."""
    study = Study(Path(log), Path(folder), config or RunConfig(), options, update)
    study.check()
    study.begin(Opened(study).log)
    return study


def rolling(
    log: EventLog | str | Path,
    folder: str | Path,
    config: RunConfig | None = None,
    *,
    update: UpdateOptions = UpdateOptions(),  # noqa: B008 (frozen)
    progress: bool = True,
    verbose: bool = False,
    **options: Any,
) -> Rolled:
    """Train and test a model period after period, as it would have been used.

    All that is known lies in ``folder``, the runs of each period below its number: the same call
    goes on where one was stopped or killed, to the same numbers.

    Args:
        log: a prepared log with times, or its folder.
        folder: of the evaluation.
        config: of the trainings; defaults where it is None.
        update: in what bringing up to date differs from that.
        progress: print a line for each period and strategy on standard error.
        verbose: show each training as ``train`` does.
        options: see :class:`RollingOptions`, such as ``period="1d"``, ``periods=30``.

    Raises:
        ConfigError: an option is wrong, or the folder was begun with others.
        DataError: the log has an order and no times, or no event before the first period.
        RunError: another process writes the folder, or something in it is damaged.
        TrainingInterrupted: a signal came; the training under way saved a checkpoint.

    Example:
        >>> rolled = rolling("log", "rolling", period="1d", periods=7)
        >>> rolled.shares("update")  # of retraining: NDCG@10, seconds
    """
    where = log.folder if isinstance(log, EventLog) else log
    known = [entry.name for entry in dataclasses.fields(RollingOptions)]
    for name in options:
        if name not in known:
            raise ConfigError(f"unknown option {name}: known are {', '.join(known)}")
    given = RollingOptions(**options)
    check(given)
    with locked(Path(folder)):
        study = begun(where, folder, config, given, update)
        for job in jobs_of(study, verbose=verbose):
            job.run(say if progress else lambda line: None)
        return collected(study)


def say(line: Line) -> None:
    """Print what a strategy came to in a period, on standard error."""
    values = line["metrics"]
    shown = f"{DECISIVE} {values[DECISIVE]:.4f}" if values else "no targets"
    print(
        f"period {line['period']} ({line['start']}), {line['strategy']}: {shown}, "
        f"{line['targets']:,} targets, {line['seconds']:.1f} s of training",
        file=sys.stderr,
        flush=True,
    )
