"""Histories of many users of a log as packed batches, in the numbers of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from blossomrec.data.batch import Batch, make_batch
from blossomrec.data.batching.prefetch import prefetch
from blossomrec.data.known import known_columns
from blossomrec.data.windows import boundaries, fill, gather_index, positions_within
from blossomrec.evaluation.top_k import Seen
from blossomrec.recommendation.request import Request

if TYPE_CHECKING:
    from blossomrec.data.log import EventLog
    from blossomrec.data.vocabulary import Vocabulary
    from blossomrec.models.sequence import SequenceModel

# Users and events encoded together: enough to keep the device busy, few enough to bound memory.
USERS_AT_ONCE = 1_024
EVENTS_AT_ONCE = 65_536
# Of histories longer than the model sees, so many times as many events are read together.
READ_AT_ONCE = 32
SECONDS_A_DAY = 86_400


@dataclass(frozen=True)
class Part:
    """Neighbouring users.

    Attributes:
        users: rows in the log, int64 [n].
        known: which of them have an event of a known item, bool [n].
        batch: the histories of those; None where there is none.
        seen: what must not be recommended to them; None for nothing.
    """

    users: np.ndarray
    known: np.ndarray
    batch: Batch | None
    seen: Seen | None


class UserHistories:
    """The last events of known items of users of a log, and what is not to be recommended.

    The log may be any: items and users meet by their external ids. Memory is that of some tens of
    thousands of encoded events and of two million events that are read, or of one longer history.

    Args:
        items: the catalogue of the model.
        users: of the table of users that the model sees; None where it sees none.
    """

    def __init__(
        self,
        log: EventLog,
        model: SequenceModel,
        items: Vocabulary,
        users: Vocabulary | None,
        request: Request,
    ):
        self._log, self._model, self._request = log, model, request
        self._offsets = np.asarray(log.offsets)
        same = log.item_vocabulary.fingerprint == items.fingerprint
        self._rows = None if same else items.rows_of(log.item_vocabulary)
        there = {
            "times": log.has_times,
            "kinds": log.kinds is not None and bool(model.fields.kinds),
            "context": log.context is not None and bool(model.fields.context),
            "users": users is not None,
        }
        names = [name for name in there if there[name] and name in model.inputs]
        self._columns: Mapping[str, Any] = known_columns(log, names, model.fields, users)
        self._days = None if request.rules is None else request.rules.exclude_seen_days

    def parts(self, users: np.ndarray) -> Iterator[Part]:
        """The users in their order, int64 rows of the log, made ahead by a thread."""
        lengths = np.diff(self._offsets)[users]
        read = -(-lengths // READ_AT_ONCE)
        cost = np.maximum(np.minimum(lengths, self._request.max_len), read)
        # Nobody counts less than a share of the events, which bounds the number of users as well.
        cuts = fill(np.maximum(cost, EVENTS_AT_ONCE // USERS_AT_ONCE), EVENTS_AT_ONCE).tolist()
        return prefetch(self._part(users[start:stop]) for start, stop in pairwise(cuts))

    def user_ids(self, users: np.ndarray) -> list[int | str]:
        """External ids of rows of the log."""
        return self._log.user_vocabulary.ids(users).to_list()

    def kind_name(self, number: int) -> str | None:
        """Name of a kind of events that the model knows; None for any, 0."""
        return self._model.fields.kinds[number - 1] if number else None

    def _part(self, users: np.ndarray) -> Part:
        lengths = self._offsets[users + 1] - self._offsets[users]
        events = gather_index(self._offsets[users], lengths)
        owners = np.repeat(np.arange(len(users)), lengths)
        items = self._log.items[events].astype(np.int64)
        if self._rows is not None:
            items = self._rows[items]
            there = items >= 0
            events, owners, items = events[there], owners[there], items[there]
        counts = np.bincount(owners, minlength=len(users))
        known = counts > 0
        if not known.any():
            return Part(users, known, None, None)
        # Numbers among those who have a history.
        owners = (np.cumsum(known) - 1)[owners]
        seen = self._seen(owners, items, events)
        counts = counts[known]
        shown = positions_within(counts) >= np.repeat(counts - self._request.max_len, counts)
        batch = self._batch(np.minimum(counts, self._request.max_len), events[shown], items[shown])
        return Part(users, known, batch, seen)

    def _seen(self, owners: np.ndarray, items: np.ndarray, events: np.ndarray) -> Seen | None:
        if self._days is not None:
            times = self._log.columns(["times"])["times"][events]
            late = times > self._request.moment - self._days * SECONDS_A_DAY
            return Seen(owners[late], items[late])
        return Seen(owners, items) if self._request.filter_viewed else None

    def _batch(self, lengths: np.ndarray, events: np.ndarray, items: np.ndarray) -> Batch:
        """Histories that are asked for what is wanted; what is not known of them is filled in."""
        n, width = int(boundaries(lengths)[-1]), len(self._model.fields.context)
        columns: dict[str, np.ndarray] = {"items": items}
        unknown = {
            "times": lambda: np.full(n, -1),
            "asked": lambda: np.full(n, self._request.moment),
            "kinds": lambda: np.zeros(n, np.int64),
            "asked_kinds": lambda: np.full(n, self._request.kind),
            "context": lambda: np.full((n, width), np.nan, np.float32),
            "users": lambda: np.full(n, -1),
        }
        for name in self._model.inputs:
            if name in self._columns:
                columns[name] = self._columns[name][events]
            elif name != "items":
                columns[name] = unknown[name]()
        return make_batch(lengths, columns)
