"""One trial: a training whose validations are told to the study, in any process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from blossomrec.config import RunConfig
from blossomrec.data.log import EventLog
from blossomrec.data.split import make_split
from blossomrec.errors import ConfigError, TrainingError
from blossomrec.models.building import build_model
from blossomrec.models.inputs import resolve_inputs
from blossomrec.tracking import Place
from blossomrec.training.loop import TrainingResult, train
from blossomrec.training.state import seeded
from blossomrec.training.trainer import DECISIVE, AfterEpoch
from blossomrec.tuning.study import Search, load_optuna, suggest, trial_of

if TYPE_CHECKING:
    import optuna


def trial_folder(folder: Path, number: int) -> Path:
    """The run folder of a trial."""
    return folder / "trials" / f"{number:04d}"


def run_trial(
    folder: Path, search: Search, study: optuna.Study, number: int, *, progress: bool = False
) -> None:
    """Train the options of a trial and tell the study what came of it.

    A trial that was broken off goes on from its last checkpoint. One whose options do not fit each
    other, whose loss is not finite or for which memory is short has failed; the study knows why.
    """
    state = load_optuna().trial.TrialState
    trial = trial_of(study, search, number)
    # It was already to end early when the process was killed.
    if trial.should_prune():
        study.tell(number, state=state.PRUNED)
        return
    try:
        config = search.space.config(search.config, suggest(trial, search.space))
        run = trial_folder(folder, number)
        result = _train(config, search, run, _watch(trial), trial, progress)
    except (ConfigError, TrainingError, torch.OutOfMemoryError) as error:
        fail(study, trial._trial_id, number, str(error))
        return
    facts = {"epochs": result.epochs, "best_epoch": result.best_epoch, "seconds": result.seconds}
    for name, value in (facts | {"validation": result.validation}).items():
        trial.set_user_attr(name, value)
    if result.stopped == "told":
        study.tell(number, state=state.PRUNED)
    else:
        study.tell(number, result.validation[DECISIVE])


def fail(study: optuna.Study, identity: int, number: int, reason: str) -> None:
    """Tell the study that a trial has failed, and why."""
    reason = " ".join(reason.split())[:500]
    study._storage.set_trial_user_attr(identity, "reason", reason)
    study.tell(number, state=load_optuna().trial.TrialState.FAIL)


def _train(
    config: RunConfig,
    search: Search,
    run: Path,
    watch: AfterEpoch,
    trial: optuna.Trial,
    progress: bool,
) -> TrainingResult:
    log = EventLog.open(search.log)
    config = resolve_inputs(config, log)
    split = make_split(log, config.evaluation)
    with seeded(config.training.seed):
        model = build_model(config.model, log.num_items, log.tables)
        trial.set_user_attr("parameters", sum(part.numel() for part in model.parameters()))
        return train(
            model,
            log,
            split,
            config,
            run,
            resume="auto",
            progress=progress,
            after_epoch=watch,
            place=_place(run),
        )


def _place(run: Path) -> Place:
    """Of a trial in trackers, which all trials of a search share."""
    folder = run.parent.parent
    name = folder.resolve().name
    return Place(folder / "tracking", f"{name}-{run.name}", name)


def _watch(trial: optuna.Trial) -> AfterEpoch:
    """Report each validation; ends the training of a trial that is not worth going on with."""
    told = set(trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values)

    def after_epoch(record: Mapping[str, Any]) -> bool:
        if not record["validation"]:
            return False
        epoch = record["epoch"]
        # An epoch that was told before the process was killed is trained again to the same end.
        if epoch not in told:
            trial.report(record["validation"][DECISIVE], epoch)
        return trial.should_prune()

    return after_epoch
