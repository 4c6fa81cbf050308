"""Bringing histories up to date with a model, a bounded number of events at a time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import Protocol, cast

from torch import Tensor

from blossomrec.attention import PagedStates
from blossomrec.data.batch import pack
from blossomrec.data.history import History
from blossomrec.errors import ConfigError
from blossomrec.models.recurrent import RecurrentState
from blossomrec.models.sasrec import SASRec
from blossomrec.models.sequence import SequenceModel
from blossomrec.models.state import ModelState
from blossomrec.serving.version.histories import HistoryCache, UserHistory
from blossomrec.serving.version.paged import PagedEncoder

# A history with no more new events than this is brought up to date at once.
FEW_EVENTS = 16
# Events of all other histories in one go: about as long as a user may wait for others.
MANY_EVENTS = 512
# Users to have room for in the table of pages; it grows where there are more.
MANY_USERS = 65_536


class Encoder(Protocol):
    """Encodes histories that have events yet to be encoded, in the order given."""

    def advance(self, histories: Sequence[UserHistory], limit: int = MANY_EVENTS) -> int:
        """Go on with some of the histories, at least with the first; gives the events encoded.

        Args:
            limit: events of histories that are not brought up to date at once.
        """
        ...

    def missing(self, history: UserHistory) -> int:
        """Events yet to be encoded."""
        ...


class StateEncoder:
    """Extends kept states: the cost of an event does not grow with the history.

    Args:
        model: in evaluation mode, of a backbone that keeps a state.
        max_len, step: see :func:`blossomrec.serving.version.histories.window_start`.
        budget: bytes of the states that are kept.

    Raises:
        ConfigError: there is not so much memory.
    """

    def __init__(self, model: SequenceModel, max_len: int, step: int, budget: int):
        self._model, self._max_len, self._step = model, max_len, step
        self._device = model.item_embeddings.weight.device
        self._start = model.start
        if isinstance(model, SASRec) and model.keeps_pages:
            self._start = partial(model.start, self._pages(model, budget))

    def _pages(self, model: SASRec, budget: int) -> PagedStates:
        """Where the states are kept; on a CPU with all room at once, so that nothing is copied.

        What is not used takes no memory. There is room for twice the budget, since some are not yet
        in the cache.
        """
        states = model.states()
        if self._device.type == "cpu":
            pages, blocks = 2 * budget // states.page_bytes, self._max_len // states.block_size + 1
            users = min(pages, max(1, budget // (4 * blocks)), MANY_USERS)
            try:
                states.reserve(pages=pages, users=users, blocks=blocks)
            except MemoryError as error:
                message = f"cache_mib is {budget >> 20}: there is not so much memory"
                raise ConfigError(message) from error
        return states

    def missing(self, history: UserHistory) -> int:
        return history.missing(self._max_len, self._step)

    def advance(self, histories: Sequence[UserHistory], limit: int = MANY_EVENTS) -> int:
        room, taken, parts = limit, [], list[History]()
        for history in histories:
            count = self.missing(history)
            if count > FEW_EVENTS:
                count = min(count, room)
                room -= count
            if count:
                taken.append(history)
                parts.append(history.events[history.encoded : history.encoded + count])
        batch = pack(parts, self._model.kept_inputs).to(self._device)
        before = [self._state(history) for history in taken]
        _, states = self._model.extend_batch(batch, before)
        for history, state, part in zip(taken, states, parts, strict=True):
            history.state, history.query = state, state.query
            history.encoded += len(part)
        return len(batch.items)

    def _state(self, history: UserHistory) -> ModelState | RecurrentState:
        # Whatever kind of state the backbone keeps: it comes from this encoder alone.
        return self._start() if history.state is None else cast(RecurrentState, history.state)


class WholeEncoder:
    """Encodes a history from its first event whenever it has grown, for models without a state."""

    def __init__(self, model: SequenceModel, max_len: int, step: int):
        self._model, self._max_len, self._step = model, max_len, step
        self._device = model.item_embeddings.weight.device

    def missing(self, history: UserHistory) -> int:
        missing = history.missing(self._max_len, self._step)
        return len(history) - history.start if missing else 0

    def advance(self, histories: Sequence[UserHistory], limit: int = MANY_EVENTS) -> int:
        room, taken = limit, []
        for history in histories:
            if taken and self.missing(history) > room:
                break
            room -= self.missing(history)
            taken.append(history)
        parts = [history.events[history.start :] for history in taken]
        queries = self._queries(parts)
        for history, query in zip(taken, queries.split(1), strict=True):
            # A view would keep the others' numbers alive.
            history.query, history.encoded = query.clone(), len(history)
        return sum(map(len, parts))

    def _queries(self, parts: list[History]) -> Tensor:
        model = self._model
        return model.open_queries(pack(parts, model.kept_inputs).to(self._device))


class RequestEncoder(WholeEncoder):
    """Encodes a history for every request, for models that see what is asked as they encode.

    Such as BERT4Rec: its masked event has the time and the kind of the request.
    """

    def missing(self, history: UserHistory) -> int:
        # The window may have moved.
        history.missing(self._max_len, self._step)
        return 0

    def advance(self, histories: Sequence[UserHistory], limit: int = MANY_EVENTS) -> int:
        return 0

    def together(self, histories: Sequence[UserHistory], limit: int = MANY_EVENTS) -> int:
        """How many of the histories, at least one, are encoded in one go."""
        events = list(accumulate(len(history) - history.start for history in histories))
        return max(1, bisect_right(events, limit))

    def queries(self, asked: Sequence[tuple[UserHistory, int, int]]) -> Tensor:
        """What the next item is scored from, [B, D], for a moment and a kind of each history."""
        model = self._model
        parts = [
            history.events[history.start :].asked_for(second, kind)
            for history, second, kind in asked
        ]
        return model.queries(pack(parts, model.inputs).to(self._device))


def build_encoder(model: SequenceModel, max_len: int, step: int, cache: HistoryCache) -> Encoder:
    """The encoder for a model on its device: one that keeps states if the backbone has any."""
    try:
        model.start()
    except ConfigError:
        asked = model.request_inputs is None and model.kept_inputs != model.inputs
        return (RequestEncoder if asked else WholeEncoder)(model, max_len, step)
    if isinstance(model, SASRec) and model.captures_steps:
        return PagedEncoder(model, max_len, step, cache)
    return StateEncoder(model, max_len, step, cache.budget)
