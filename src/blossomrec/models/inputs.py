"""Which inputs a model has: what its configuration asks for, as far as a log can give it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from blossomrec.config import ModelConfig, RunConfig
from blossomrec.data.features import Categories, Feature, FeatureTable, Numbers, Vectors
from blossomrec.data.fields import EventFields
from blossomrec.data.split import make_split, resolve_filter_seen
from blossomrec.data.windows import each_once, fill, gather_index
from blossomrec.errors import ConfigError
from blossomrec.ranks import ALONE, Ranks
from blossomrec.registry import BACKBONES, LOSSES

if TYPE_CHECKING:
    from blossomrec.data.log import EventLog

# Share of the training events from which on own items are mixed in unasked, and events looked at
# together to find it.
REPEATED_SHARE = 0.05
PIECE_EVENTS = 1 << 22

TIMES = ("time_gap", "request_time", "clock")


def resolve_inputs(config: RunConfig, log: EventLog, ranks: Ranks = ALONE) -> RunConfig:
    """The configuration with "auto" decided: on where the log has it and the model sees it.

    Args:
        ranks: who decide together.

    Raises:
        ConfigError: something is asked for that the log has not.
    """
    model, backbone, tables = config.model, BACKBONES.get(config.model.backbone), log.tables
    has_kinds, has_context = bool(tables.fields.kinds), bool(tables.fields.context)
    # Of each option, whether the log has it, and what to say if it has not.
    there = {name: (log.has_times, f"{log.folder} has an order, no times") for name in TIMES}
    there |= dict.fromkeys(
        ("event_kinds", "request_kind"), (has_kinds, f"the events of {log.folder} have no kinds")
    )
    there["context"] = (has_context, f"the events of {log.folder} have no context")
    for name, of, table in (
        ("content", "items", tables.items),
        ("user_table", "users", tables.users),
    ):
        reason = f"{log.folder} has no table of {of} that says something of them"
        there[name] = (says_something(table), reason)
    if not backbone.takes_features:
        there = dict.fromkeys(there, (False, f"backbone {model.backbone} sees ids alone"))
    if model.time_share and not there["time_gap"][0]:
        raise ConfigError(f"model.time_share is {model.time_share}: {there['time_gap'][1]}")
    if not backbone.causal:
        model = _masked(model)
    changes = {name: _decided(model, name, *found) for name, found in there.items()}
    changes["repeats"] = _repeats(config, log, ranks)
    return replace(config, model=replace(model, **changes))


def _repeats(config: RunConfig, log: EventLog, ranks: Ranks) -> str:
    """Whether the user's own items are mixed into the catalogue."""
    if config.model.repeats == "on":
        check_repeats(config)
    if config.model.repeats != "auto":
        return config.model.repeats
    # What is left out of rankings anyway is not worth its time.
    if _takes_no_repeats(config) or resolve_filter_seen(config.evaluation, log):
        return "off"
    if not log.has_repeats:
        return "off"
    repeated = repeated_share(log, make_split(log, config.evaluation).train_end, ranks)
    return "on" if repeated >= REPEATED_SHARE else "off"


def check_repeats(config: RunConfig) -> None:
    """Raise ConfigError where backbone or loss cannot have the user's own items mixed in."""
    reason = _takes_no_repeats(config)
    if reason:
        raise ConfigError(
            f"model.repeats is 'on', which {reason} does not take: choose another, or repeats off"
        )


def _takes_no_repeats(config: RunConfig) -> str:
    """Which option stands against it; empty for none."""
    backbone = BACKBONES.get(config.model.backbone)
    if not (backbone.causal and backbone.takes_features):
        return f"model.backbone {config.model.backbone!r}"
    if not LOSSES.get(config.training.loss).by_row:
        return f"training.loss {config.training.loss!r}"
    return ""


def repeated_share(log: EventLog, train_end: np.ndarray, ranks: Ranks = ALONE) -> float:
    """Share of the training events whose item the user had before.

    Args:
        train_end: int64 [U], how many of each user's first events may be trained on.
        ranks: who look at a part of the users each.
    """
    events, distinct, part = int(train_end.sum()), 0, ranks.rows(log.num_users)
    offsets = np.asarray(log.offsets[part.start : part.stop])
    ends = np.asarray(train_end[part.start : part.stop])
    for begin, stop in pairwise(fill(ends, PIECE_EVENTS).tolist()):
        lengths = ends[begin:stop]
        users = np.repeat(np.arange(len(lengths)), lengths)
        items = np.asarray(log.items[gather_index(offsets[begin:stop], lengths)])
        distinct += len(each_once(users * log.num_items + items))
    return 1 - sum(ranks.gathered(distinct)) / max(1, events)


def _masked(model: ModelConfig) -> ModelConfig:
    """Of a masked event time and kind are the moment and the kind for which is recommended."""
    if model.request_time == "off":
        model = _masked_without_times(model)
    if model.event_kinds == "off" and model.request_kind == "on":
        raise ConfigError(
            f"model.event_kinds is 'off': {model.backbone} that is told the wanted kind sees kinds"
        )
    return replace(model, request_kind="off") if model.event_kinds == "off" else model


def _masked_without_times(model: ModelConfig) -> ModelConfig:
    """A masked event has a time, which is the moment for which is recommended."""
    sees = model.time_gap == "on" or model.clock == "on" or model.time_share > 0
    if sees and model.request_time == "off":
        raise ConfigError(
            f"model.request_time is 'off': {model.backbone} that sees times sees the moment for "
            "which it recommends"
        )
    return replace(model, time_gap="off")


def _decided(model: ModelConfig, name: str, there: bool, reason: str) -> str:
    value = getattr(model, name)
    if value == "on" and not there:
        raise ConfigError(f"model.{name} is 'on': {reason}")
    return ("on" if there else "off") if value == "auto" else value


def says_something(features: Mapping[str, Feature] | None) -> bool:
    """Whether a table has more than titles."""
    kinds = (Categories, Numbers, Vectors)
    return features is not None and any(isinstance(one, kinds) for one in features.values())


def needed_table(option: str, table: FeatureTable | None, rows: int = 0) -> FeatureTable:
    """A table that an option of the model needs, of so many rows where they are told.

    Raises:
        ConfigError: there is none, or one of another number of rows.
    """
    if table is not None and (not rows or table.num_rows == rows):
        return table
    found = "none" if table is None else f"one of {table.num_rows} rows"
    needed = f"a table of {rows} items" if rows else "a table of users"
    raise ConfigError(f"model.{option} is 'on': {needed} is needed, {found} was given")


def seen_fields(config: ModelConfig, fields: EventFields) -> EventFields:
    """Of the kinds and the context of a log those that a model of this configuration sees."""
    sees_kinds = "on" in (config.event_kinds, config.request_kind)
    return EventFields(
        fields.kinds if sees_kinds else (), fields.context if config.context == "on" else ()
    )


def inputs_of(config: ModelConfig) -> tuple[str, ...]:
    """Names of the arrays of a history that a model of this configuration takes."""
    asks = config.request_time == "on"
    sees = config.time_gap == "on" or config.clock == "on" or config.time_share > 0
    names = {
        "items": True,
        "times": sees or asks,
        "asked": asks,
        "kinds": config.event_kinds == "on",
        "asked_kinds": config.request_kind == "on",
        "context": config.context == "on",
        "users": config.user_table == "on",
    }
    return tuple(name for name, wanted in names.items() if wanted)
