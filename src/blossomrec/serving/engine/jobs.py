"""Requests on their way through the thread of the model, and the answers to those ready for one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blossomrec.data.batch import pack
from blossomrec.data.history import History
from blossomrec.errors import RerankerError
from blossomrec.evaluation.scoring import Queries, as_queries, mixes_own
from blossomrec.models.event_inputs import Asked
from blossomrec.models.own_history.items import OwnItems
from blossomrec.models.sequence import SequenceModel
from blossomrec.rules.reranking import AskedFor
from blossomrec.serving.engine.work import fail, succeed
from blossomrec.serving.version.encoder import RequestEncoder
from blossomrec.serving.version.histories import UserHistory
from blossomrec.serving.version.ranking import Choice
from blossomrec.serving.version.version import ModelVersion


@dataclass(frozen=True)
class Request:
    """What is to be recommended.

    Attributes:
        user: whose stored history; None for one that is given.
        history: the given one; None where it is that of the user, or none is needed.
        choice: which items; the history's own are added where they are to be left out.
        filter_viewed: leave out the items of the history.
        at: the second since 1970 for which is recommended; -1 where it is not known.
        kind: number of the kind of event that is wanted; 0 for any.
        seen_since: leave out, in place of all items of a stored history, those of the events after
            this second since 1970; None for all.
    """

    user: str | None
    history: History | None
    choice: Choice
    filter_viewed: bool = True
    at: int = -1
    kind: int = 0
    seen_since: float | None = None


@dataclass(eq=False)
class Job:
    """A request on its way: first its history is read, then encoded, then ranked for.

    With ``events_only`` the history is the answer, as soon as it is read. ``seen`` is what is left
    out of a history of which not all is.
    """

    version: ModelVersion
    request: Request
    future: Future[Any] = field(default_factory=Future)
    history: UserHistory | None = None
    read: bool = False
    seen: np.ndarray | None = None
    events_only: bool = False


@dataclass(eq=False)
class Call:
    """Anything else that the thread of the model has to do."""

    function: Callable[[], Any]
    future: Future[Any] = field(default_factory=Future)


def answer(version: ModelVersion, jobs: list[Job]) -> None:
    """Answer the jobs whose histories are encoded to their ends."""
    ready, choices = list[tuple[Job, UserHistory]](), list[Choice]()
    whole = version.encoder if isinstance(version.encoder, RequestEncoder) else None
    for job in jobs:
        history = job.history
        if job.events_only and history is not None:
            succeed(job.future, history.events.map(np.copy))
            continue
        if history is None or version.encoder.missing(history):
            continue
        if history.query is None and whole is None:
            continue
        ready.append((job, history))
        choices.append(_choice(version, job, history))
    if not ready:
        return
    if whole is None:
        queries = _asked(version.model, ready)
    else:
        # The others wait for the next round.
        count = whole.together([history for _, history in ready])
        ready, choices = ready[:count], choices[:count]
        queries = whole.queries([(one, job.request.at, job.request.kind) for job, one in ready])
    best = version.ranking.best(Queries(as_queries(queries), _own_items(version, ready)), choices)
    for (job, _), result in zip(ready, best, strict=True):
        if isinstance(result, RerankerError):
            fail(job.future, result)
        else:
            succeed(job.future, result)


def _choice(version: ModelVersion, job: Job, history: UserHistory) -> Choice:
    """The choice of a request, with what is known of its history."""
    request, choice = job.request, job.request.choice
    viewed = job.seen if job.seen is not None else history.seen if request.filter_viewed else None
    left_out = [*choice.left_out, *([] if viewed is None else [viewed])]
    asked = None
    if choice.rules is not None and choice.rules.reranking is not None:
        shown = history.events.items[-version.max_len :]
        kind = version.known.fields.kinds[request.kind - 1] if request.kind else None
        asked = AskedFor(request.user, shown, request.at, kind)
    return replace(choice, left_out=left_out, asked=asked)


def _asked(model: SequenceModel, ready: list[tuple[Job, UserHistory]]) -> Tensor:
    """What items are scored from for the moments and kinds of the jobs, [B, D]."""
    kept = torch.cat([history.query for _, history in ready if history.query is not None])
    if model.request_inputs is None:
        return kept
    asked = [(*one.moments(job.request.at), job.request.kind) for job, one in ready]
    columns = torch.tensor(list(zip(*asked, strict=True)))
    return model.ask(kept, Asked(*columns.to(kept.device, non_blocking=True)))


def _own_items(version: ModelVersion, ready: list[tuple[Job, UserHistory]]) -> OwnItems | None:
    """The items of the histories of the jobs, where the model mixes them in.

    They are made of the events in memory, as far as the model sees them, for each request: an event
    that is added costs nothing.
    """
    model = version.model
    if not mixes_own(model):
        return None
    width = len(model.fields.context)
    seen = [
        one.events[one.start :].asked_for(job.request.at, job.request.kind, context=width)
        for job, one in ready
    ]
    batch = pack(seen, model.inputs)
    return model.history_items(batch.to(model.item_embeddings.weight.device))
