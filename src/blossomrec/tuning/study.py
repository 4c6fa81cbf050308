"""The memory of a search: Optuna's study in an SQLite file, in which nothing is pickled."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blossomrec.config import RunConfig, from_dict, to_dict
from blossomrec.errors import ConfigError, MissingExtraError, RunError, shortened
from blossomrec.files import read_json
from blossomrec.run.description import FORMAT as RUN_FORMAT
from blossomrec.run.description import bring_up_to_date
from blossomrec.training.resume import CHANGEABLE
from blossomrec.tuning.options import TuneOptions
from blossomrec.tuning.space import Space

if TYPE_CHECKING:
    import optuna

FORMAT = 1
DESCRIPTION, STUDY = "tune.json", "study.db"
# Seconds that a process waits while others write to the study.
PATIENCE = 60
# Of the options of a search, those that decide what a trial tries and when it ends.
DECIDING = ("seed", "pruner", "startup", "min_epochs")
# Of the configuration, what may change. How long a trial may last may not: it decides its outcome.
WHERE = CHANGEABLE - {"training.epochs", "training.patience"}


@dataclass(frozen=True)
class Search:
    """What is searched, from which configuration on, how, and on which log."""

    config: RunConfig
    space: Space
    options: TuneOptions
    log: Path
    identity: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The form of ``tune.json``."""
        return {
            "format": FORMAT,
            "log": str(self.log.resolve()),
            "identity": self.identity,
            "options": asdict(self.options),
            "space": asdict(self.space),
            "config": to_dict(self.config),
        }


def read_search(folder: Path) -> Search:
    """The search of a folder.

    Raises:
        RunError: ``tune.json`` is missing, damaged or of another format.
    """
    path = folder / DESCRIPTION
    try:
        values = read_json(path)
        if values["format"] != FORMAT:
            raise ValueError(f"it has format {shortened(values['format'])}, not {FORMAT}")
        bring_up_to_date(values["config"], RUN_FORMAT)
        return Search(
            from_dict(values["config"]),
            Space(**values["space"]),
            TuneOptions(**values["options"]),
            Path(values["log"]),
            values["identity"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged: {error}") from error


def check_same(folder: Path, known: Search, given: Search) -> None:
    """Raise ConfigError where a search would go on as another one than it was begun as."""
    before, now = _deciding(known), _deciding(given)
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise ConfigError(
                f"{name} is {shortened(now.get(name))}, but {folder} was begun with "
                f"{shortened(before.get(name))}: go on with the same or choose another folder"
            )


def _deciding(search: Search) -> dict[str, Any]:
    """What must not change from call to call, by name."""
    options = {name: getattr(search.options, name) for name in DECIDING}
    config = {
        f"{section}.{name}": value
        for section, values in to_dict(search.config).items()
        for name, value in values.items()
        if f"{section}.{name}" not in WHERE
    }
    space = {
        f"{name} of the search space": value
        for name, value in (search.space.searched | search.space.fixed).items()
    }
    return {**options, **config, **space, "log": search.identity}


def load_optuna() -> Any:
    """The package, told to be silent; MissingExtraError without it."""
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError(error.name or "optuna", "tune") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def open_study(folder: Path, search: Search) -> optuna.Study:
    """The study of a folder, made where there is none.

    Raises:
        MissingExtraError: Optuna is not installed.
        RunError: the file is damaged, or cannot be written.
    """
    optuna = load_optuna()
    path = (folder / STUDY).resolve()
    if "?" in str(path):
        raise ConfigError(f"folder is {folder}: SQLite takes no path with a question mark")
    from sqlalchemy.exc import SQLAlchemyError

    try:
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": PATIENCE}}
        )
        return optuna.create_study(
            storage=storage,
            study_name="blossomrec",
            direction="maximize",
            load_if_exists=True,
            pruner=_pruner(search),
        )
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"{path} cannot be opened: {reason}") from error


def _pruner(search: Search) -> Any:
    pruners, options = load_optuna().pruners, search.options
    if options.pruner == "none":
        return pruners.NopPruner()
    if options.pruner == "hyperband":
        epochs = search.config.training.epochs
        return pruners.HyperbandPruner(min(options.min_epochs, epochs), max_resource=epochs)
    return pruners.MedianPruner(options.startup, n_warmup_steps=options.min_epochs)


def sampler(options: TuneOptions, number: int) -> Any:
    """The sampler of one trial, whose random numbers are its own.

    So a search that was broken off goes on as if it had not been, and processes that sample at
    the same time do not sample the same.
    """
    seed = int(np.random.SeedSequence([options.seed, number]).generate_state(1)[0])
    return load_optuna().samplers.TPESampler(seed=seed, n_startup_trials=options.startup)


def trial_of(study: optuna.Study, search: Search, number: int) -> optuna.Trial:
    """A trial that was begun, by this process or by one that is gone."""
    study.sampler = sampler(search.options, number)
    known = study.get_trials(deepcopy=False)[number]
    return load_optuna().trial.Trial(study, known._trial_id)


def suggest(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    """A value for each searched option; those that the trial has already stay."""
    values: dict[str, Any] = {}
    for name, searched in space.searched.items():
        if "choices" in searched:
            values[name] = trial.suggest_categorical(name, searched["choices"])
            continue
        low, high, log = (searched[key] for key in ("low", "high", "log"))
        if isinstance(low, int):
            step = searched["step"] or 1
            values[name] = trial.suggest_int(name, low, high, step=step, log=log)
        else:
            values[name] = trial.suggest_float(name, low, high, step=searched["step"], log=log)
    return values
