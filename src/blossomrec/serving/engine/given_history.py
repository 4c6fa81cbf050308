"""Histories and moments that come with requests, in the numbers of one version of a model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from blossomrec.config import ServingConfig
from blossomrec.data.history import History
from blossomrec.data.units import Time, as_second, as_seconds
from blossomrec.errors import ConfigError
from blossomrec.serving.engine.jobs import Request
from blossomrec.serving.metrics import Metrics
from blossomrec.serving.refusals import Refusal, nothing_known
from blossomrec.serving.stores.store import Context, ItemId
from blossomrec.serving.version.version import ModelVersion

SECONDS_A_DAY = 86_400


class Given(NamedTuple):
    """A history that comes with its request, oldest first; None for what is not told."""

    items: Sequence[ItemId]
    times: Sequence[Time] | None = None
    kinds: Sequence[str | None] | None = None
    contexts: Sequence[Context | None] | None = None

    @staticmethod
    def of(history: Given | Sequence[ItemId]) -> Given:
        """The same, or that of item ids alone."""
        return history if isinstance(history, Given) else Given(history)


def read_history(
    version: ModelVersion,
    history: Given | Sequence[ItemId],
    config: ServingConfig,
    metrics: Metrics,
) -> History:
    """A history that comes with its request, with what the model takes of it.

    Args:
        config: says what of it may be unknown.
        metrics: count the unknown items.

    Raises:
        Refusal: 422, an item is unknown where that is refused, all are, or another part is wrong.
    """
    given, catalogue = Given.of(history), version.catalogue
    keep = config.unknown_items == "keep"
    rows = catalogue.rows(given.items) if keep else catalogue.known_rows(given.items, "history")
    for name, values in given._asdict().items():
        if values is not None and len(values) != len(rows):
            message = f"{name} has {len(values)} entries: the history has {len(rows)} events"
            raise Refusal(422, "invalid", message, field=name, value=len(values))
    _check_events(version, given, refuse=config.unknown_values == "refuse")
    seconds = None if given.times is None else _seconds(given.times)
    columns = version.known.columns(len(rows), None, given.kinds, given.contexts)
    if "times" not in version.model.inputs:
        seconds = None
    known = rows >= 0
    if not known.any():
        raise nothing_known("history", "the model knows no item of the history")
    metrics.unknown.labels("history").inc(len(rows) - int(known.sum()))
    return History(rows, seconds, **columns)[known]


def _check_events(version: ModelVersion, given: Given, *, refuse: bool) -> None:
    """Check kinds and contexts; see :meth:`KnownFields.check_event`."""
    none = [None] * len(given.items)
    each = zip(given.kinds or none, given.contexts or none, strict=True)
    for index, (kind, context) in enumerate(each):
        if kind is not None or context is not None:
            named = (f"kinds[{index}]", kind), (f"contexts[{index}]", context)
            version.known.check_event(*named, refuse=refuse)


def without_seen(
    version: ModelVersion, request: Request, history: Given | Sequence[ItemId] | None, days: float
) -> Request:
    """A request that leaves out what was seen in the last days, and nothing older.

    Args:
        history: that came with it; None for that of a user.

    Raises:
        Refusal: 422, the history comes without times.
    """
    second = request.at - days * SECONDS_A_DAY
    if history is None:
        return replace(request, seen_since=second)
    given = Given.of(history)
    if given.times is None:
        message = f"exclude_seen_days is {days:g}: the history comes without times"
        raise Refusal(422, "no_time", message, field="exclude_seen_days", value=days)
    late = version.catalogue.rows(given.items)[_seconds(given.times) > second]
    choice = replace(request.choice, left_out=[*request.choice.left_out, late[late >= 0]])
    return replace(request, choice=choice, filter_viewed=False)


def moment(at: Time | None) -> int:
    """The moment of a request in whole seconds since 1970; now, where none is given."""
    if at is None:
        return int(time.time())
    try:
        return as_second("at", at)
    except ConfigError as error:
        raise Refusal(422, "no_time", str(error), field="at", value=at) from error


def _seconds(times: Sequence[Time]) -> np.ndarray:
    """Times of a history in whole seconds since 1970."""
    try:
        return as_seconds("times", times, len(times))
    except ConfigError as error:
        field = str(error).partition(" ")[0]
        raise Refusal(422, "no_time", str(error), field=field) from error
