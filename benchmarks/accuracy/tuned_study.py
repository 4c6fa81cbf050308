"""The models of the paper's table of accuracy, each tuned as much as the others.

Options are searched by ``blossomrec tune``, in the spaces of the package, with as many trials of
every model; the first trial is the model as that table has it. What is reported are trainings with
the options that were best on validation events, by several seeds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.accuracy import accuracy_study as study
from benchmarks.accuracy.paper_tables import PRESETS, TABLES, Form
from benchmarks.accuracy.paper_training import Line, Training
from benchmarks.accuracy.paper_training import measure as measure_training
from benchmarks.accuracy.reproduce import Plan, append_tests, read
from benchmarks.job_queue import FOREVER
from blossomrec.errors import BlossomRecError, ConfigError

if TYPE_CHECKING:
    from blossomrec.tuning.search import TuneResult

# The search space of each model, by its name in the lines.
SPACES = {
    "SASRec": "sasrec",
    "BlossomRec": "blossom",
    "SASRec (linrec)": "linrec",
    "SASRec (window)": "window",
    "BERT4Rec": "bert4rec",
    "BERT4Rec-Blossom": "bert4rec-blossom",
    "GRU4Rec": "gru4rec",
    "Mamba4Rec": "mamba4rec",
    "HSTU": "hstu",
    "eSASRec": "esasrec",
}
TRIALS = 12
TUNING = "tuning"


@dataclass(frozen=True)
class Case:
    """A model to tune on a data set, and to train with the best options once for each seed.

    Attributes:
        trials: how many options are tried, those of the table of accuracy first.
        epochs: most epochs of a training; None are those of the data set.
    """

    dataset: str
    model: str
    trials: int = TRIALS
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int | None = None

    @property
    def name(self) -> str:
        return f"{self.dataset} {self.model}, {self.trials} trials"

    @property
    def key(self) -> Line:
        """What tells the line of its search from those of others."""
        return {
            "measure": TUNING,
            "dataset": self.dataset,
            "model": self.model,
            "trials": self.trials,
            "seeds": list(self.seeds),
            "most_epochs": self.epochs,
        }

    def training(self, options: Line | None = None, seed: int = 0) -> Training:
        """The training of a seed, with options by names such as ``model.dropout``."""
        form, max_len = _forms()[self.model], PRESETS[self.dataset].max_len
        return Training(self.dataset, _with(form, options or {}), max_len, seed, self.epochs)


def _forms() -> dict[str, Form]:
    return {form.name: form for form in TABLES["accuracy"].forms}


def _with(form: Form, options: Line) -> Form:
    """A form with options that are searched, in place of its own."""
    sections: dict[str, dict[str, Any]] = {"model": {}, "training": {}}
    for name, value in options.items():
        section, option = name.split(".")
        sections[section][option] = value
    return dataclasses.replace(
        form,
        model={**form.model, **sections["model"]},
        training={**form.training, **sections["training"]},
    )


def measure_tuned(
    logs: Path,
    *,
    datasets: list[str] | None = None,
    models: list[str] | None = None,
    trials: int = TRIALS,
    seeds: list[int] | None = None,
    epochs: int | None = None,
    out: Path = Path("results/tuned.jsonl"),
    runs: Path = Path("runs/tuned"),
    jobs: int = 1,
    seconds: float = FOREVER,
) -> None:
    """Measure the models beside each other, each tuned by the same number of trials.

    Args:
        logs: folder with a prepared log for each data set, such as ml-1m or amazon-beauty
        datasets: some of those of the paper; all without it
        models: some of the paper's table of accuracy, by their names in the lines; all without it
        trials: options that are tried of each model, the first of them those of that table
        seeds: of the trainings with the best options; 0, 1 and 2 without it
        epochs: most epochs, if other than a data set's own
        out: JSONL file that gets lines for each model; what it has is not done again
        runs: where searches and run folders go; what was stopped goes on
        jobs: how many models are tuned at the same time, on the GPUs in turn
        seconds: until all has to end; what is not done goes on in the next call

    Raises:
        ConfigError: a data set, a model or a number is wrong; nothing is begun.
        MissingExtraError: Optuna is not installed.
        BlossomRecError: some did not finish, after all others have; the message names them.
    """
    from blossomrec.tuning.study import load_optuna

    study.check_jobs(jobs)
    if trials < 1:
        raise ConfigError(f"trials is {trials}: it must be at least 1")
    load_optuna()
    of = tuple(dict.fromkeys(seeds or (0, 1, 2)))
    cases = planned(datasets, models, trials, of, epochs)
    lines = read(out)
    to_do = [case for case in cases if not _found(lines, case)]
    print(f"{len(cases)} models to tune, {len(to_do)} to do", flush=True)
    failure = None
    try:
        study.in_processes(measure, to_do, logs, runs, out=out, jobs=jobs, seconds=seconds)
    except BlossomRecError as error:
        failure = error
    _append_tests(cases, to_do, of, runs, out)
    if failure is not None:
        raise failure


def planned(
    datasets: Sequence[str] | None,
    models: Sequence[str] | None,
    trials: int,
    seeds: tuple[int, ...],
    epochs: int | None = None,
) -> list[Case]:
    """The cases; ConfigError where a data set, a model or an option is wrong."""
    known = TABLES["accuracy"].datasets
    for name in datasets or ():
        study.known_or_refused(name, known)
    for name in models or ():
        study.known_or_refused(name, SPACES)
    cases = [
        Case(dataset, model, trials, seeds, epochs)
        for dataset in datasets or known
        for model in models or SPACES
    ]
    for case in cases:
        for seed in seeds:
            case.training(seed=seed).configure()
    return cases


def measure(case: Case, logs: Path, runs: Path, jobs: int = 1) -> tuple[list[Line], str]:
    """Tune, train with the best options, evaluate: the lines, and the headline.

    The line of the search comes last: where it is in a file, those of the trainings are, too.
    """
    from blossomrec.data.log import EventLog
    from blossomrec.training.trainer import DECISIVE
    from blossomrec.tuning.outcome import ranked
    from blossomrec.tuning.search import tune

    log, first = EventLog.open(logs / case.dataset), case.training()
    folder = runs / f"{TUNING}-{case.trials}-{first.run(runs).name}"
    found: TuneResult = tune(
        log,
        folder,
        first.configure(),
        space=SPACES[case.model],
        trials=case.trials,
        jobs=1,
        keep=1,
        progress=False,
    )
    if found.config is None:
        raise BlossomRecError(f"{case.name}: no trial came to its end")
    best = ranked(found.trials)[0]
    lines, headlines = [], [f"validation {best[DECISIVE]:.4f}"]
    for seed in case.seeds:
        training = case.training(best["options"], seed)
        measured, headline = measure_training(training, logs, runs, jobs)
        lines += [line | {"trials": case.trials} for line in measured]
        headlines.append(headline)
    return [*lines, case.key | _told(found, best) | _where(lines)], "; ".join(headlines)


def _told(found: TuneResult, best: Line) -> Line:
    """What is told of a search: the best options, and how the trials ended."""
    from blossomrec.training.trainer import DECISIVE

    states = [trial["state"] for trial in found.trials]
    first = next(trial for trial in found.trials if trial["trial"] == 0)
    return {
        "options": best["options"],
        "best_trial": best["trial"],
        "validation": round(best[DECISIVE], 6),
        "first_validation": first[DECISIVE] and round(first[DECISIVE], 6),
        "states": {state: states.count(state) for state in dict.fromkeys(states)},
        "seconds": round(sum(trial["seconds"] or 0 for trial in found.trials), 1),
    }


def _where(lines: Sequence[Line]) -> Line:
    """The provenance of lines that were measured together."""
    return {name: lines[0][name] for name in ("hardware", "versions", "commit")}


def _found(lines: Sequence[Line], case: Case) -> Line | None:
    """The line of a case's search, where there is one."""
    return next((line for line in lines[::-1] if case.key.items() <= line.items()), None)


def _append_tests(
    cases: Sequence[Case], done: Sequence[Case], seeds: Sequence[int], runs: Path, out: Path
) -> None:
    """Append the paired test of each model to the tuned one with dense attention."""
    lines = read(out)
    searched = [(case, line) for case in cases if (line := _found(lines, case)) is not None]
    trainings = {
        case: [case.training(line["options"], seed) for seed in seeds] for case, line in searched
    }
    to_do = [one for case in done for one in trainings.get(case, ())]
    every = [one for some in trainings.values() for one in some]
    append_tests(Plan(every, to_do, ()), seeds, runs, out)
