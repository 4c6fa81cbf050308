"""One trial: a training, in any process, and the study that is told of it, where it is held."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from blossomrec.data.log import EventLog
from blossomrec.data.split import make_split
from blossomrec.errors import ConfigError, DataError, TrainingError
from blossomrec.models.building import build_model
from blossomrec.models.inputs import resolve_inputs
from blossomrec.tracking import Place
from blossomrec.training.loop import train
from blossomrec.training.state import seeded
from blossomrec.training.trainer import DECISIVE
from blossomrec.tuning.study import Search, load_optuna, suggest, trial_of

if TYPE_CHECKING:
    import optuna

# Told the validation of an epoch, counted from 1; gives whether the trial is to end early.
Report = Callable[[int, float], bool]


@dataclass(frozen=True)
class Ended:
    """How the training of a trial has ended.

    Attributes:
        state: as Optuna calls it.
        value: NDCG@10 of the best validation; None unless the training came to its end.
        facts: what else the study is to know, by name, JSON-ready.
    """

    state: Literal["COMPLETE", "PRUNED", "FAIL"]
    value: float | None
    facts: dict[str, Any]


def trial_folder(folder: Path, number: int) -> Path:
    """The run folder of a trial."""
    return folder / "trials" / f"{number:04d}"


def run_trial(
    folder: Path, search: Search, study: optuna.Study, number: int, *, progress: bool = False
) -> None:
    """Train the options of a trial and tell the study what came of it."""
    told = ToldTrial(search, study, number)
    if (values := told.values()) is not None:
        told.end(train_trial(folder, search, number, values, told.report, progress=progress))


class ToldTrial:
    """A trial that was begun, by this process or one that is gone; tells the study of it."""

    def __init__(self, search: Search, study: optuna.Study, number: int):
        self._space, self._study, self._number = search.space, study, number
        self._trial = trial_of(study, search, number)
        known = study.get_trials(deepcopy=False)[number]
        self._epochs = set(known.intermediate_values)

    def values(self) -> dict[str, Any] | None:
        """A value for each searched option; None where the trial has ended by this."""
        # It was already to end early when the process was killed.
        if self._trial.should_prune():
            self.end(Ended("PRUNED", None, {}))
            return None
        return suggest(self._trial, self._space)

    def report(self, epoch: int, value: float) -> bool:
        """A validation; gives whether the trial is not worth going on with."""
        # An epoch that was told before the process was killed is trained again to the same end.
        if epoch not in self._epochs:
            self._epochs.add(epoch)
            self._trial.report(value, epoch)
        return self._trial.should_prune()

    def end(self, ended: Ended) -> None:
        """The trial is over."""
        for name, value in ended.facts.items():
            self._trial.set_user_attr(name, value)
        state = load_optuna().trial.TrialState[ended.state]
        self._study.tell(self._number, ended.value, state=state)


def failed(reason: str, **facts: Any) -> Ended:
    """The end of a trial that could not go on."""
    return Ended("FAIL", None, facts | {"reason": " ".join(reason.split())[:500]})


def train_trial(
    folder: Path,
    search: Search,
    number: int,
    values: dict[str, Any],
    report: Report,
    *,
    progress: bool = False,
) -> Ended:
    """Train the options of a trial, without the study.

    A training that was broken off goes on from its last checkpoint. One whose options do not fit
    each other, whose loss is not finite or for which memory is short has failed, and says why.

    Args:
        values: of the searched options.
        report: is told each validation.

    Raises:
        DataError: the log has changed since the search began.
        RunError: another process writes the run folder.
        TrainingInterrupted: a signal came; a checkpoint was saved.
    """
    log = EventLog.open(search.log)
    if log.identity != search.identity:
        raise DataError(f"{log.folder} has changed since the search began: begin another one")
    facts = dict[str, Any]()
    try:
        config = resolve_inputs(search.space.config(search.config, values), log)
        split = make_split(log, config.evaluation)
        with seeded(config.training.seed):
            model = build_model(config.model, log.num_items, log.tables)
            facts["parameters"] = sum(part.numel() for part in model.parameters())
            run = trial_folder(folder, number)
            result = train(
                model,
                log,
                split,
                config,
                run,
                resume="auto",
                progress=progress,
                after_epoch=lambda record: _is_to_end(record, report),
                place=_place(run),
            )
    except (ConfigError, TrainingError, torch.OutOfMemoryError) as error:
        return failed(str(error), **facts)
    facts |= {"epochs": result.epochs, "best_epoch": result.best_epoch}
    facts |= {"seconds": result.seconds, "validation": result.validation}
    if result.stopped == "told":
        return Ended("PRUNED", None, facts)
    return Ended("COMPLETE", result.validation[DECISIVE], facts)


def _is_to_end(record: Mapping[str, Any], report: Report) -> bool:
    validation = record["validation"]
    return bool(validation) and report(record["epoch"], validation[DECISIVE])


def _place(run: Path) -> Place:
    """Of a trial in trackers, which all trials of a search share."""
    folder = run.parent.parent
    name = folder.resolve().name
    return Place(folder / "tracking", f"{name}-{run.name}", name)
