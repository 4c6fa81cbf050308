"""The models of the paper's table of accuracy, each tuned as much as the others.

Every model has as many trials: trainings with options at random from its space of ``blossomrec
tune``, the first one with those of that table. They are the trials that ``tune`` begins with, each
by itself, so that they can run in any order and go on anywhere. What is reported are trainings with
the options that were best on validation events, by several seeds.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.accuracy import accuracy_study
from benchmarks.accuracy.paper_tables import PRESETS, TABLES, Form
from benchmarks.accuracy.paper_training import Line, Training, measured
from benchmarks.accuracy.paper_training import measure as measure_training
from benchmarks.accuracy.reproduce import Plan, append_tests, read
from benchmarks.job_queue import FOREVER
from blossomrec.errors import BlossomRecError, ConfigError

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
TRIALS = 6
TRIAL = "trial"


@dataclass(frozen=True)
class Trial:
    """A training of a model on a data set with the options of a number; 0 are those of the table.

    Attributes:
        epochs: most epochs of a training; None are those of the data set.
    """

    dataset: str
    model: str
    number: int
    epochs: int | None = None

    @property
    def name(self) -> str:
        return f"{self.dataset} {self.model} trial {self.number}"

    @property
    def key(self) -> Line:
        """What tells its line from those of others."""
        return {
            "measure": TRIAL,
            "dataset": self.dataset,
            "model": self.model,
            "trial": self.number,
            "most_epochs": self.epochs,
        }

    @property
    def options(self) -> Line:
        """The options that are searched, by names such as ``model.dropout``."""
        return drawn(self.dataset, self.model, self.number)


def drawn(dataset: str, model: str, number: int) -> Line:
    """The options of a trial, by names such as ``model.dropout``.

    They follow from the number alone, and are those that a search by ``tune`` draws for it before
    others decide.
    """
    from blossomrec.tuning.options import TuneOptions
    from blossomrec.tuning.space import read_space
    from blossomrec.tuning.study import load_optuna, sampler, suggest

    config = training_with({}, dataset, model).configure()
    space = read_space(SPACES[model], config.model)
    if number == 0:
        own = space.values_of(config)
        if own is None:
            raise ConfigError(f"{space.source} does not have the options of {model} on {dataset}")
        return own
    study = load_optuna().create_study(sampler=sampler(TuneOptions(), number))
    return suggest(study.ask(), space)


def training_with(
    options: Line, dataset: str, model: str, seed: int = 0, epochs: int | None = None
) -> Training:
    """The training of a model with options that are searched in place of its own."""
    form = _forms()[model]
    sections: dict[str, dict[str, Any]] = {"model": {}, "training": {}}
    for name, value in options.items():
        section, option = name.split(".")
        sections[section][option] = value
    form = dataclasses.replace(
        form,
        model={**form.model, **sections["model"]},
        training={**form.training, **sections["training"]},
    )
    return Training(dataset, form, PRESETS[dataset].max_len, seed, epochs)


def _forms() -> dict[str, Form]:
    return {form.name: form for form in TABLES["accuracy"].forms}


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
        out: JSONL file that gets a line for each trial, training and ranking; what it has is not
            done again
        runs: where the run folders go; training that was stopped goes on
        jobs: how many train at the same time, on the GPUs in turn
        seconds: until all has to end; what is not done goes on in the next call

    Raises:
        ConfigError: a data set, a model or a number is wrong; nothing is begun.
        MissingExtraError: Optuna is not installed.
        BlossomRecError: some did not finish, after all others have; the message names them.
    """
    from blossomrec.tuning.study import load_optuna

    accuracy_study.check_jobs(jobs)
    if trials < 1:
        raise ConfigError(f"trials is {trials}: it must be at least 1")
    load_optuna()
    ends, of = time.time() + seconds, tuple(dict.fromkeys(seeds or (0, 1, 2)))
    cases = planned(datasets, models, trials, of, epochs)
    # A trial of every model, then another: the longer it goes on, the more each was tuned.
    every = [one for numbered in zip(*cases, strict=True) for one in numbered]
    known = read(out)
    to_try = [trial for trial in every if _line_of(known, trial) is None]
    print(f"{len(every)} trials, {len(to_try)} to do", flush=True)

    def do(measure: Callable[..., Any], to_do: Sequence[Any]) -> BlossomRecError | None:
        left = ends - time.time() if seconds < FOREVER else FOREVER
        try:
            accuracy_study.in_processes(
                measure, to_do, logs, runs, out=out, jobs=jobs, seconds=left
            )
        except BlossomRecError as error:
            return error
        return None

    failures = [do(try_options, to_try)]
    best = [found for case in cases if (found := best_of(read(out), case)) is not None]
    trainings = [
        training_with(line["options"], line["dataset"], line["model"], seed, epochs)
        for line in best
        for seed in of
    ]
    known = read(out)
    to_do = [training for training in trainings if not measured(known, training)]
    print(f"{len(trainings)} trainings with the best options, {len(to_do)} to do", flush=True)
    failures.append(do(measure_training, to_do))
    append_tests(Plan(trainings, to_do, ()), of, runs, out)
    for failure in filter(None, failures):
        raise failure


def planned(
    datasets: Sequence[str] | None,
    models: Sequence[str] | None,
    trials: int,
    seeds: Sequence[int],
    epochs: int | None = None,
) -> list[list[Trial]]:
    """The trials of each model; ConfigError where a data set, a model or an option is wrong."""
    known = TABLES["accuracy"].datasets
    for name in datasets or ():
        accuracy_study.known_or_refused(name, known)
    for name in models or ():
        accuracy_study.known_or_refused(name, SPACES)
    cases = [
        [Trial(dataset, model, number, epochs) for number in range(trials)]
        for dataset in datasets or known
        for model in models or SPACES
    ]
    for first, *_ in cases:
        for seed in seeds:
            training_with({}, first.dataset, first.model, seed, epochs).configure()
    return cases


def try_options(trial: Trial, logs: Path, runs: Path, jobs: int = 1) -> tuple[list[Line], str]:
    """Train with the options of a trial: its line, and the headline. Test events are not seen."""
    from benchmarks.results import provenance
    from blossomrec.data.log import EventLog
    from blossomrec.training.trainer import DECISIVE

    options = trial.options
    training = training_with(options, trial.dataset, trial.model, epochs=trial.epochs)
    log, run = EventLog.open(logs / trial.dataset), training.run(runs)
    result, device = accuracy_study.trained(training.configure(), log, run, jobs)
    value = result.validation[DECISIVE]
    told = {
        "options": options,
        "validation": round(value, 6),
        "best_epoch": result.best_epoch,
        "epochs": result.epochs,
        "seconds": round(result.seconds, 1),
    }
    line = trial.key | told | provenance(device)
    return [line], f"{accuracy_study.said(result)}, validation {value:.4f}"


def best_of(lines: Sequence[Line], trials: Sequence[Trial]) -> Line | None:
    """The line of a model's best trial, the first of equal ones; None where one is missing."""
    found = [_line_of(lines, trial) for trial in trials]
    if any(line is None for line in found):
        return None
    return max(filter(None, found), key=lambda line: line["validation"])


def _line_of(lines: Sequence[Line], trial: Trial) -> Line | None:
    """The last line of a trial, where there is one."""
    return next((line for line in lines[::-1] if trial.key.items() <= line.items()), None)
