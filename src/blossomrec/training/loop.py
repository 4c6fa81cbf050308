"""Training from the outside: what ``train`` promises, and what it returns."""

from __future__ import annotations

import statistics
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blossomrec.config import RunConfig, check
from blossomrec.data.log import EventLog
from blossomrec.data.split import Split
from blossomrec.errors import ConfigError
from blossomrec.files import locked
from blossomrec.models.sequence import SequenceModel
from blossomrec.ranks import ALONE, Ranks
from blossomrec.run.description import check_vocabulary
from blossomrec.run.weights import read_weights
from blossomrec.run.writing import write_run_config
from blossomrec.tracking.tracker import Place
from blossomrec.tracking.trackers import Trackers
from blossomrec.training.checkpoint import Checkpoints
from blossomrec.training.progress import open_display
from blossomrec.training.resume import Resume, check_resume, find_checkpoint, identity
from blossomrec.training.setup import build_parts, describe, open_fabric
from blossomrec.training.state import TrainingState, seeded
from blossomrec.training.trainer import AfterEpoch, Trainer
from blossomrec.training.validation import Validation
from blossomrec.training.warm_start.ancestor import Ancestor, find_ancestor
from blossomrec.training.warm_start.seen import write_seen
from blossomrec.training.watch import Interrupts, NoLog, RunLog


@dataclass(frozen=True)
class TrainingResult:
    """What came of a training.

    epochs and steps trained; best_epoch, counted from 1 (0: none was validated, or none was better
    than the run that it began as), and its validation metrics; seconds in all and, as a median, in
    the training part of an epoch, 0 where its minutes were over before there was one; peak_mib of
    the GPU or, without one, of the process; stopped is "early", "epochs", "minutes", or "told" by
    ``after_epoch``.
    """

    epochs: int
    steps: int
    best_epoch: int
    validation: dict[str, float]
    seconds: float
    seconds_per_epoch: float
    peak_mib: float
    stopped: str


def train(
    model: SequenceModel,
    log: EventLog,
    split: Split,
    config: RunConfig,
    run: str | Path,
    *,
    resume: Resume = "auto",
    progress: bool = True,
    after_epoch: AfterEpoch | None = None,
    ancestor: str | Path | None = None,
    ranks: Ranks | None = None,
    place: Place | None = None,
) -> TrainingResult:
    """Train ``model`` and leave the run folder ``run`` with its best weights.

    Validation ranks the whole catalogue for a fixed sample of the validation cases; NDCG@10 decides
    which weights are best and when to stop. Without validation cases the last weights are kept.
    Afterwards ``model`` holds the best weights, in evaluation mode, on the device of the training.
    The global random generators, seeded with ``config.training.seed`` meanwhile, are as before.
    The run folder is locked until the end.

    Args:
        model: built with ``config.model`` for the catalogue of ``log``.
        resume: "auto" goes on from the newest good checkpoint in ``run``, with the same outcome as
            if training had never stopped, and begins afresh where there is none; "never" begins
            afresh and refuses a folder that holds checkpoints.
        progress: show what is trained and a live display on a terminal, elsewhere a line an epoch
            and one every half minute.
        after_epoch: called after each epoch with its line of ``log.jsonl``, before the checkpoint;
            training ends where it gives True. An epoch that is trained again after a kill is told
            again.
        ancestor: folder of a run that is brought up to date: the model begins as its published
            weights, by external ids, and by default is trained on the events that it was not.
            A training that is resumed knows it.
        ranks: who train together, of which this one has built the model with its rows of the item
            table; all call this, and rank 0 alone writes and shows anything. Afterwards the model
            is in pieces: it is to be opened from the run folder.
        place: of the training in trackers; None is that of a run by itself.

    Raises:
        ConfigError: an option is wrong, or differs from that of the run that is resumed.
        MissingExtraError: the package of a tracker is not installed.
        RunError: the folder belongs to other data, nothing in it can be resumed, or another
            process writes it.
        TrainingError: a loss, gradient or weight is not finite; the last checkpoint stays.
        TrainingInterrupted: SIGINT, SIGTERM or SIGHUP came; a checkpoint was saved.
    """
    run, ranks = Path(run), ranks or ALONE
    check(config)
    check_resume(resume)
    if ranks.alone and config.training.devices > 1:
        raise ConfigError(
            f"training.devices is {config.training.devices}, but this is one process: start it by "
            "blossomrec train, or by torchrun"
        )
    check_vocabulary(run, log)
    same = identity(config, log, split)
    trackers = _trackers(run, config, same, ranks, place)
    run_log = RunLog(run, trackers) if ranks.first else NoLog()
    given = None if ancestor is None else Path(ancestor)
    began = find_ancestor(run, given, log, split.train_end, config, ranks)
    seen = None if began is None else began.seen
    if began is not None:
        model.keep_scales(began.fields)
    fabric = open_fabric(config.training, ranks)
    parts = build_parts(model, log, split.train_end, config, fabric, seen, ranks)
    lock = locked(run) if ranks.first else nullcontext()
    with lock, seeded(config.training.seed, fabric.device):
        checkpoints = _checkpoints(run, model, ranks)
        checkpoint = find_checkpoint(run, checkpoints, resume, same)
        if began is not None and checkpoint is None:
            began = began.taken_over(parts, log, split.train_end, checkpoints)
        if ranks.first:
            _describe_run(run, config, log, split, model, began)
        validation = Validation(model, log, split, config, fabric, ranks)
        display = open_display(progress and ranks.first, config.training.epochs)
        told = []
        # Ranks look at the log together, whoever of them shows what is found.
        if progress or not ranks.alone:
            told = describe(parts, validation.count, log, config, run)
        for line in [*told, *(began.lines() if began is not None else ())]:
            display.note(line)
        trainer = Trainer(
            parts, validation, checkpoints, run_log, display, config.training, same, after_epoch
        )
        with trackers, closing(run_log), display, Interrupts() as interrupts:
            trainer.start(checkpoint, keep=began is not None)
            stopped = trainer.run(interrupts)
        if trainer.state.best_epoch and began is not None and ranks.first:
            write_seen(run, log, split.train_end)
        if ranks.alone and (trainer.state.best_epoch or began is not None):
            model.load_state_dict(read_weights(run / "model.safetensors"))
    model.eval()
    return _result(trainer.state, stopped)


def _checkpoints(run: Path, model: SequenceModel, ranks: Ranks) -> Checkpoints:
    folder = run / "checkpoints"
    if ranks.alone:
        return Checkpoints(folder)
    from blossomrec.training.ranks.checkpoints import ShardedCheckpoints

    return ShardedCheckpoints(folder, ranks, model)


def _trackers(
    run: Path, config: RunConfig, same: dict[str, Any], ranks: Ranks, place: Place | None
) -> Trackers:
    names = config.training.trackers if ranks.first else ()
    return Trackers(run, names, same, place=place, with_model=config.training.track_model)


def _describe_run(
    run: Path,
    config: RunConfig,
    log: EventLog,
    split: Split,
    model: SequenceModel,
    began: Ancestor | None,
) -> None:
    """Write what the run is, on what it is trained, and as which other one it began."""
    # Until something is better, the weights are those that have not learned what is new.
    if began is not None and config.training.events == "new":
        write_seen(run, log, began.seen)
    else:
        write_seen(run, log, split.train_end)
    if began is None:
        write_run_config(run, config, log)
        return
    began.remember(run)
    write_run_config(run, config, log, fields=model.fields, ancestor=began.told)


def _result(state: TrainingState, stopped: str) -> TrainingResult:
    return TrainingResult(
        epochs=state.epoch,
        steps=state.step,
        best_epoch=state.best_epoch,
        validation=state.best,
        seconds=state.seconds,
        seconds_per_epoch=statistics.median(state.durations or [0.0]),
        peak_mib=state.peak_mib,
        stopped=stopped,
    )
