"""Measure a trained run or a simple baseline on the held-out events of a log."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from blossomrec.config import EvaluationConfig, check
from blossomrec.data.identity import differences
from blossomrec.data.known import known_columns
from blossomrec.data.log import EventLog
from blossomrec.data.split import make_split, split_name
from blossomrec.data.vocabulary import Vocabulary
from blossomrec.device import resolve_device
from blossomrec.errors import ConfigError, RunError, one_of
from blossomrec.evaluation import (
    Asked,
    Evaluation,
    RankingOptions,
    evaluate,
    resolve_filter_seen,
)
from blossomrec.evaluation.own_metrics import OwnMetrics
from blossomrec.models.baselines import BASELINES
from blossomrec.models.scorer import Scorer
from blossomrec.models.sequence import SequenceModel
from blossomrec.ranks import ALONE, Ranks
from blossomrec.run.description import RunInfo, read_run_config
from blossomrec.run.tables import open_users
from blossomrec.run.weights import load_model

HeldOut = Literal["test", "valid"]
SPLIT_OPTIONS = ("split", "valid_share", "test_share", "last_events", "kinds")


def evaluate_run(
    run: str | Path,
    log: EventLog | str | Path | None = None,
    *,
    on: HeldOut = "test",
    device: str = "auto",
    own_metrics: Sequence[str] = (),
    segments: Sequence[str] = (),
    ranks: Ranks = ALONE,
    **options: Any,
) -> Evaluation:
    """Evaluate the best weights of a run folder.

    Args:
        log: the prepared log; None is the one the run was trained on, which must still be the same.
        on: which held-out events of the split that the run was trained with.
        own_metrics, segments: see :class:`blossomrec.evaluation.Asked`.
        ranks: who evaluate together, each with a part of the item table; all call this, and all get
            the evaluation.
        options: fields of :class:`EvaluationConfig` that override the run's own; None is no change.

    Raises:
        RunError: the run is incomplete, its log is gone or has changed, or the log has another
            vocabulary.
        ConfigError: an option, a metric or a column is unknown, out of bounds or one of the split,
            whose other form would test on what the run was trained on, or the device is not there.
    """
    check_run_options(run, on, options)
    info = read_run_config(run)
    # Opening merges what was appended, which one rank does for all.
    events = ranks.in_turn(lambda: open_log(run, info, log))
    config = override(info.config.evaluation, options)
    device = resolve_device(device)
    asked = Asked(own_metrics=own_metrics, segments=segments)
    protocol = _Protocol(config, on, device, asked.checked(events, config.ranking), ranks)
    model, columns = load_seeing(run, info, events, device, ranks)
    return _evaluate(model, events, protocol, columns)


def load_seeing(
    run: str | Path, info: RunInfo, log: EventLog, device: str, ranks: Ranks = ALONE
) -> tuple[SequenceModel, dict[str, Any]]:
    """The model of a run, and the arrays [E] of a log that it takes, in its numbers.

    Raises:
        RunError: as of :func:`blossomrec.run.weights.load_model`.
        DataError: the log has not what the model takes.
    """
    model, users = load_model(run, device, ranks), open_users(run, info)
    known = None if users is None else users[0]
    return model, known_columns(log, model.inputs, model.fields, known)


def evaluate_model(
    model: SequenceModel,
    info: RunInfo,
    log: EventLog,
    *,
    users: Vocabulary | None = None,
    on: HeldOut,
    options: dict[str, Any],
    asked: Asked,
    named: bool,
) -> Evaluation:
    """Evaluate a model in memory as :func:`evaluate_run` does that of a folder.

    Args:
        info: what its run says.
        log: the log it was trained on, or another one with the same items.
        users: of the table of users that the model sees; None where it sees none.
        asked: what is measured besides the usual metrics.
        named: the log was named by whoever asks, and may differ from the one trained on.
    """
    check_run_options("this model", on, options)
    check_log("this model", info, log, named=named)
    config = override(info.config.evaluation, options)
    device = str(model.item_embeddings.weight.device)
    columns = known_columns(log, model.inputs, model.fields, users)
    protocol = _Protocol(config, on, device, asked.checked(log, config.ranking))
    return _evaluate(model, log, protocol, columns)


def check_run_options(run: str | Path, on: HeldOut, options: dict[str, Any]) -> None:
    """Raise ConfigError for options that an evaluation of a run does not take."""
    one_of("on", on, get_args(HeldOut))
    for name in SPLIT_OPTIONS:
        if options.get(name) is not None:
            flag = f"--{name.replace('_', '-')} {options[name]}"
            raise ConfigError(f"{flag} is for baselines: {run} keeps the split of its run")


def open_log(run: str | Path, info: RunInfo, log: EventLog | str | Path | None) -> EventLog:
    """The log of a run: what is given or, for None, the one it was trained on.

    Another log with the same items may be given, which is told in a warning.

    Raises:
        RunError: the log is gone, it is not given and is not the one the run was trained on any
            more, or it has another vocabulary.
    """
    if log is None and not (info.data / "log.json").is_file():
        raise RunError(f"{info.data}, the log {run} was trained on, is not there: give the log")
    events = log if isinstance(log, EventLog) else EventLog.open(log or info.data)
    check_log(run, info, events, named=log is not None)
    return events


def check_log(run: str | Path, info: RunInfo, events: EventLog, *, named: bool) -> None:
    """Whether a run may be measured on a log; see :func:`open_log`.

    Args:
        named: the log was named by whoever asks, and may differ from the one trained on.
    """
    differing = differences(info.log or {}, events.identity)
    if events.item_vocabulary.begins_with(info.num_items, info.fingerprint):
        more = events.num_items - info.num_items
        raise RunError(
            f"{events.folder} has grown by {more:,} items that {run} does not know: train a new "
            f"run from it, blossomrec train {events.folder} NEW --from RUN"
        )
    if differing and not named:
        raise RunError(
            f"{events.folder} has changed since {run} was trained on it ({differing}): what is "
            "held out now may have been trained on; train again, or name the log, --log "
            f"{events.folder}, to measure all the same"
        )
    if events.item_vocabulary.fingerprint != info.fingerprint:
        raise RunError(f"{run} belongs to another vocabulary than {events.folder}")
    if differing:
        warnings.warn(
            f"{events.folder} is not what {run} was trained on ({differing}): what is held out "
            "there may have been trained on",
            stacklevel=3,
        )
    if info.log is None:
        warnings.warn(
            f"{run} does not tell the identity of its log, as older runs do not: whether "
            f"{events.folder} is still what it was trained on is not known",
            stacklevel=3,
        )


def evaluate_baseline(
    name: str,
    log: EventLog,
    *,
    on: HeldOut = "test",
    own_metrics: Sequence[str] = (),
    segments: Sequence[str] = (),
    **options: Any,
) -> Evaluation:
    """Fit one of ``BASELINES`` on the training events, and evaluate it.

    What the validation events tell is for the test known to all models alike through the
    histories; the counts are of training events only. A warning says where a baseline that
    recommends items of the history is measured without them.

    Raises:
        ConfigError: the baseline, an option, a metric or a column is unknown or out of bounds.
        DataError: the log is too small for the split, or its catalogue too large for the baseline.
    """
    baseline = BASELINES.get(name)
    one_of("on", on, get_args(HeldOut))
    config = override(EvaluationConfig(), options)
    asked = Asked(own_metrics=own_metrics, segments=segments).checked(log, config.ranking)
    split = make_split(log, config)
    if baseline.own_items and resolve_filter_seen(config, log):
        warnings.warn(
            f"{name} recommends items of the history, which this evaluation leaves out: what is "
            "measured is popularity; with filter_seen no it is measured as it is",
            stacklevel=2,
        )
    protocol = _Protocol(config, on, "cpu", asked)
    return _evaluate(baseline.fit(log, split.train_end), log, protocol)


def override(config: EvaluationConfig, options: dict[str, Any]) -> EvaluationConfig:
    """``config`` with the options that are not None, checked; ConfigError names a wrong one."""
    known = {entry.name for entry in dataclasses.fields(EvaluationConfig)}
    for name in options:
        if name not in known:
            raise ConfigError(f"unknown option {name}: known are {', '.join(sorted(known))}")
    given = {name: value for name, value in options.items() if value is not None}
    config = dataclasses.replace(config, **given)
    check(config)
    return config


class _Protocol(NamedTuple):
    """How something is measured, and where."""

    config: EvaluationConfig
    on: HeldOut
    device: str
    own: OwnMetrics
    ranks: Ranks = ALONE


def _evaluate(
    scorer: Scorer, log: EventLog, protocol: _Protocol, columns: dict[str, Any] | None = None
) -> Evaluation:
    config = protocol.config
    options = RankingOptions(
        filter_seen=resolve_filter_seen(config, log),
        ranking=config.ranking,
        ks=config.ks,
        seed=config.seed,
        split=split_name(config),
        own_metrics=protocol.own.of_ranks,
    )
    split = make_split(log, config)
    cases = getattr(split, protocol.on)
    found = evaluate(
        *(scorer, log, cases, options),
        train_end=split.train_end,
        columns=columns,
        device=protocol.device,
        processes=protocol.ranks,
    )
    return protocol.own.added(found, log, cases, split.train_end)
