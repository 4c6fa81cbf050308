"""Parts by which a sequence model sees more of events and requests than items, and their input."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from blossomrec.attention.packing import histories
from blossomrec.config import ModelConfig
from blossomrec.data.fields import EventFields, Tables
from blossomrec.models.event_inputs import Asked, EventInputs, gaps, passed
from blossomrec.models.features import UserContent
from blossomrec.models.fused.embedding import embedding
from blossomrec.models.inputs import needed_table, seen_fields

if TYPE_CHECKING:
    from blossomrec.data.batch import Batch
    from blossomrec.data.features import FeatureTable
    from blossomrec.models.sequence import SequenceModel

# Share of the events of a training step after which nobody says for when is asked, or for what.
UNTIMED_SHARE = 0.05
ANY_KIND_SHARE = 0.1
# Share of the histories of a training step whose user is not known.
STRANGER_SHARE = 0.05


def seen_tables(config: ModelConfig, tables: Tables) -> Tables:
    """What a model of this configuration sees of the tables of a log."""
    return Tables(
        items=tables.items if config.content == "on" else None,
        users=tables.users if config.user_table == "on" else None,
        fields=seen_fields(config, tables.fields),
    )


def user_part(
    config: ModelConfig, table: FeatureTable | None, *, may_fuse: bool
) -> UserContent | None:
    """What is seen of users; None where nothing is.

    Raises:
        ConfigError: something is, and there is no table of users.
    """
    if config.user_table != "on":
        return None
    found = needed_table("user_table", table)
    return UserContent(found, config.hidden_size, may_fuse=may_fuse)


def event_part(
    config: ModelConfig, fields: EventFields, users: UserContent | None, *, may_fuse: bool
) -> EventInputs | None:
    """What is seen of events besides their items; None where nothing is.

    Args:
        fields: kinds and context that the model sees.
        users: as of :func:`user_part`.
    """
    gap, clock, sees = (
        each == "on" for each in (config.time_gap, config.clock, config.event_kinds)
    )
    known = 0 if users is None else users.width
    if not (gap or clock or sees or fields.context or known):
        return None
    return EventInputs(
        config.hidden_size,
        gap=gap,
        clock=clock,
        kinds=len(fields.kinds) if sees else None,
        context=fields.context,
        users=known,
        may_fuse=may_fuse,
    )


def request_part(config: ModelConfig, fields: EventFields, *, may_fuse: bool) -> EventInputs | None:
    """What is seen of requests: the moment and the kind that is wanted; None where neither is."""
    asks = config.request_time == "on"
    kinds = len(fields.kinds) if config.request_kind == "on" else None
    if not asks and kinds is None:
        return None
    clock = asks and config.clock == "on"
    return EventInputs(config.hidden_size, gap=asks, clock=clock, kinds=kinds, may_fuse=may_fuse)


def rescaled(fields: EventFields, by: EventFields) -> EventFields:
    """Fields whose numbers have mean and deviation as ``by`` has them, where it does."""
    known = {one.name: one for one in by.context if one.kind == "number"}
    context = tuple(
        replace(one, mean=known[one.name].mean, deviation=known[one.name].deviation)
        if one.kind == "number" and one.name in known
        else one
        for one in fields.context
    )
    return EventFields(fields.kinds, context)


def besides_items(
    model: SequenceModel, inputs: EventInputs, batch: Batch, before: Tensor | None
) -> Tensor:
    """What a model sees of events besides their items, [T, D].

    Args:
        inputs: of the model, for events.
        before: time of the event before each history's first, int64 [B], negative for none.
    """
    gap = users = vectors = None
    if inputs.gap:
        gap = _gaps(batch, before)
    if model.user_content is not None:
        rows, history = _user_rows(batch, training=model.training)
        # A lookup is its own where every event is a history.
        users = model.user_content(rows)
        if len(model.user_content.of_many):
            vectors = model.user_content.vectors(rows)
        if history is not None:
            fuses = inputs.may_fuse
            # Its gradient is summed in a fixed order.
            users = embedding(history, users, may_fuse=fuses)
            vectors = None if vectors is None else embedding(history, vectors, may_fuse=fuses)
    x = inputs(gap, batch.times, batch.kinds, batch.context, users)
    return x if vectors is None else x + vectors


def told(inputs: EventInputs, batch: Batch, *, training: bool) -> Asked:
    """What a model is told of the request after each event.

    Args:
        inputs: of the model, for requests.
        training: leave out some of it, so that this is met as well.
    """
    gap = second = kind = None
    if inputs.gap:
        assert batch.asked is not None and batch.times is not None
        second, ahead = batch.asked, (batch.asked - batch.times).clamp(min=0)
        unknown = (batch.asked < 0) | (batch.times < 0)
        gap = torch.where(unknown | _untold(ahead, UNTIMED_SHARE, training), -1, ahead)
    if inputs.kinds is not None:
        assert batch.asked_kinds is not None
        any_kind = _untold(batch.asked_kinds, ANY_KIND_SHARE, training)
        kind = torch.where(any_kind, 0, batch.asked_kinds)
    return Asked(gap, second, kind)


def is_one_each(batch: Batch) -> bool:
    """Whether every history of a batch is a single event."""
    return batch.max_length == 1 and len(batch.items) == batch.num_histories


def _untold(like: Tensor, share: float, training: bool) -> Tensor:
    """Which are not told, bool [T]: in training some."""
    if not training:
        return torch.zeros_like(like, dtype=torch.bool)
    return torch.rand(len(like), device=like.device) < share


def _user_rows(batch: Batch, *, training: bool) -> tuple[Tensor, Tensor | None]:
    """Rows of the users of the histories, and which history each event is of; None where each is
    one of its own."""
    assert batch.users is not None
    if is_one_each(batch):
        return batch.users, None
    total = len(batch.items)
    rows = batch.users[batch.cu_seqlens[:-1].long().clamp(max=max(total - 1, 0))]
    if training:
        # So that a user that is not in the table is met in training.
        strangers = torch.rand(len(rows), device=rows.device) < STRANGER_SHARE
        rows = torch.where(strangers, -1, rows)
    return rows, histories(batch.cu_seqlens, total)


def _gaps(batch: Batch, before: Tensor | None) -> Tensor:
    assert batch.times is not None
    if before is not None and is_one_each(batch):
        return passed(before, batch.times)
    return gaps(batch.times, batch.cu_seqlens, before)
