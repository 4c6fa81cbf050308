"""What the verbs that train do: train, update, rollback, tune."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from blossomrec.commands.parameters import ConfigFile
from blossomrec.commands.printing import show_part
from blossomrec.config import (
    EvaluationConfig,
    ModelConfig,
    RunConfig,
    TrainingConfig,
    check,
    to_dict,
)
from blossomrec.tuning.options import TuneOptions
from blossomrec.updating.options import DailyOptions


def train(
    log: Path,
    run: Path,
    *,
    from_run: Annotated[Path | None, Parameter(name="--from")] = None,
    config: ConfigFile = None,
    model: ModelConfig = ModelConfig(),  # noqa: B008 (frozen)
    training: TrainingConfig = TrainingConfig(),  # noqa: B008
    evaluation: EvaluationConfig = EvaluationConfig(),  # noqa: B008
    resume: Literal["auto", "never"] = "never",
    verbose: bool = False,
    quiet: bool = False,
) -> None:
    """Train a model on a prepared log; --resume auto continues after a stop.

    Args:
        log: folder that ``prepare`` wrote
        run: folder of the run: configuration, weights, vocabulary, logs, checkpoints
        from_run: folder of a run that is brought up to date: the model begins as it, with its own
            options where none are given, and is trained on the events that it was not; it stays as
            it is
        resume: auto continues a run that was stopped, with its own options where none are given;
            never refuses a folder that was used
        verbose: print the whole configuration first
        quiet: show nothing but errors
    """
    from blossomrec.data.log import EventLog
    from blossomrec.device import resolve_device
    from blossomrec.ranks import launched, open_ranks
    from blossomrec.recommender import BlossomRec
    from blossomrec.training import TrainingInterrupted
    from blossomrec.training.ranks.launch import launch, reported

    resolved = RunConfig(model, training, evaluation)
    check(resolved)
    again = shlex.join(["blossomrec", "train", str(log), str(run), "--resume", "auto"])
    if training.devices > 1 and not launched():
        EventLog.open(log)
        given = ["train", str(log), str(run), "--resume", resume]
        given += [] if from_run is None else ["--from", str(from_run)]
        flags = {"--verbose": verbose, "--quiet": quiet}
        launch(resolved, [*given, *(name for name, wanted in flags.items() if wanted)], again)
        return
    device = resolve_device(training.device, "training.device")
    with reported(), open_ranks(device) as ranks:
        events = ranks.in_turn(lambda: EventLog.open(log))
        if verbose and ranks.first:
            print(json.dumps(to_dict(resolved), indent=2), flush=True)
        try:
            recommender = BlossomRec(resolved).fit(
                events, run, resume=resume, progress=not quiet, from_run=from_run
            )
        except TrainingInterrupted as stop:
            raise TrainingInterrupted(stop.signum, again) from stop
    result = recommender.training
    if not quiet and ranks.first and result is not None:
        print(
            f"best epoch {result.best_epoch} of {result.epochs}"
            + (", " if result.best_epoch or from_run is None else " (as it began), ")
            + ", ".join(
                f"{name} {value:.4f}" for name, value in result.validation.items() if "@10" in name
            )
            + f" (validation), {result.seconds:.0f} s; next: blossomrec evaluate {run}"
        )


def update(
    log: Path,
    runs: Path,
    *,
    options: Annotated[DailyOptions, Parameter(name="*")] = DailyOptions(),  # noqa: B008
    config: ConfigFile = None,
    model: ModelConfig = ModelConfig(),  # noqa: B008
    training: TrainingConfig = TrainingConfig(),  # noqa: B008
    evaluation: EvaluationConfig = EvaluationConfig(),  # noqa: B008
    quiet: bool = False,
) -> None:
    """Take what is new into log and model, and the model into use if it is not worse.

    Args:
        log: folder that ``prepare`` wrote
        runs: folder of runs, whose link ``current`` leads to the one in use
        quiet: show nothing but errors
    """
    from blossomrec.updating.loop import update as update_once
    from blossomrec.updating.options import seconds_of
    from blossomrec.updating.runs import Runs
    from blossomrec.updating.schedule import repeat

    resolved = RunConfig(model, training, evaluation)
    check(resolved)
    options.checked()

    def tell(line: str) -> None:
        # At once, for whoever reads it in the log of a service.
        if not quiet:
            print(line, flush=True)

    def once() -> None:
        update_once(log, runs, resolved, options, tell=tell, progress=not quiet)

    if options.every is None:
        once()
    else:
        repeat(Runs(runs), seconds_of(options.every), once, tell)


def rollback(runs: Path, *, wait: float = 600.0) -> None:
    """Use the run again that was in use before the last update.

    Args:
        runs: folder of runs, as of ``update``
        wait: seconds in which a server must answer with it
    """
    from blossomrec.updating.rollback import roll_back

    roll_back(runs, wait=wait)


def tune(
    log: Path,
    folder: Path,
    *,
    options: Annotated[TuneOptions, Parameter(name="*")] = TuneOptions(),  # noqa: B008
    config: ConfigFile = None,
    model: ModelConfig = ModelConfig(),  # noqa: B008
    training: TrainingConfig = TrainingConfig(),  # noqa: B008
    evaluation: EvaluationConfig = EvaluationConfig(),  # noqa: B008
    verbose: bool = False,
    quiet: bool = False,
) -> None:
    """Search for the options that do best on the validation events of a log.

    Args:
        log: folder that ``prepare`` wrote
        folder: of the search; where one was stopped, it goes on
        verbose: show each training, where one runs at a time
        quiet: show nothing but the outcome and errors
    """
    from blossomrec.tuning.outcome import outcome_table
    from blossomrec.tuning.search import tune as search

    base = RunConfig(model, training, evaluation)
    result = search(log, folder, base, progress=not quiet, verbose=verbose, **vars(options))
    show_part(outcome_table(result))
    if result.config is not None:
        best = ["--config", str(folder / "best.yaml")]
        print("next:", shlex.join(["blossomrec", "train", str(log), "runs/tuned", *best]))
