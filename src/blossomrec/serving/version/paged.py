"""Bringing histories up to date on a GPU: kept in pages, so that one step serves many users."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from blossomrec.attention.state import AttentionState, Step, StepGraph
from blossomrec.data.batch import Batch, next_events, pack
from blossomrec.errors import ConfigError
from blossomrec.models.sasrec import SASRec
from blossomrec.serving.version.histories import HistoryCache, UserHistory

# New events of a user up to which steps of one event each are taken. Eight take as long as encoding
# a whole history: 0.7 ms each, beside 5.6 ms for 2,000 events and for 16,000 (H200, two layers).
FEW_STEPS = 8
# Users of one step. Fewer take as long: the graph is filled up.
STEP_USERS = 256
# Events of whole histories in one go: about as long as a user may wait for others.
WHOLE_EVENTS = 131_072
# The table of pages takes at most this share of what the pages take.
TABLE_SHARE = 1 / 8


class PagedEncoder:
    """Encodes a history once, then takes it forward event by event, many users at a time.

    A history that comes with its request is encoded without pages, and so is one for which none can
    be had, even after everybody in the cache has left.

    Args:
        model: in evaluation mode, with Blossom attention.
        max_len, step: see :func:`blossomrec.serving.version.histories.window_start`.
        cache: of the histories encoded here, whose budget the pages have, taken at once. Who was
            asked for longest ago leaves it where pages are short.

    Raises:
        ConfigError: the device has not so much memory free.
    """

    def __init__(self, model: SASRec, max_len: int, step: int, cache: HistoryCache):
        self._model, self._max_len, self._step, self._cache = model, max_len, step, cache
        weight = model.item_embeddings.weight
        self._device = weight.device
        self._states = states = model.states()
        self._size, self._capacity = states.block_size, cache.budget // states.page_bytes
        blocks = self._blocks(max_len)
        users = int(self._capacity * states.page_bytes * TABLE_SHARE) // (4 * blocks)
        users = min(self._capacity, max(1, users))
        try:
            states.reserve(pages=self._capacity, users=users, blocks=blocks)
        except torch.OutOfMemoryError as error:
            message = f"cache_mib is {cache.budget >> 20}: {self._device} has not so much free"
            raise ConfigError(message) from error
        self._last = last = torch.zeros(users + 1, weight.shape[1]).to(weight)

        # Of an event: whole numbers, the time of the event before, and the context in its bits.
        inputs = model.kept_inputs
        names, timed = [name for name in inputs if name != "context"], "times" in inputs
        self._context = inputs.index("context") if "context" in inputs else None
        width = 0 if self._context is None else len(model.fields.context)

        # Without a word of this object, whose memory is so given back at its end.
        def next_event(given: Tensor, step: Step) -> Tensor:
            # Of one column it is a view.
            columns = given.T.contiguous()
            events = dict(zip(names, columns, strict=False))
            if width:
                events["context"] = columns[-width:].int().view(torch.float32).T
            before = columns[len(names)] if timed else None
            hidden = model.extend_paged(next_events(**events), states, step, before)
            last.index_copy_(0, step.user.long(), hidden)
            return hidden

        self._take_together = StepGraph(next_event, states, STEP_USERS)

    def missing(self, history: UserHistory) -> int:
        return history.missing(self._max_len, self._step)

    def advance(self, histories: Sequence[UserHistory], limit: int = WHOLE_EVENTS) -> int:
        few, whole, opened = dict[UserHistory, int](), list[UserHistory](), 0
        for history in histories:
            count = self.missing(history)
            if history.state is not None and count <= FEW_STEPS:
                few[history] = count
                held = history.encoded - history.start
                opened += (held + count - 1) // self._size - (held - 1) // self._size
            elif count:
                whole.append(history)
        if not self._make_room(opened, 0):
            for history in few:
                history.forget_encoding(history.start)
            few, whole = {}, [*few, *whole]
        return self._take_steps(few) + self._encode_whole(whole, limit)

    def _take_steps(self, counts: dict[UserHistory, int]) -> int:
        """Take each history so many events forward."""
        try:
            for number in range(max(counts.values(), default=0)):
                some = [history for history, count in counts.items() if count > number]
                for start in range(0, len(some), STEP_USERS):
                    self._take_step(some[start : start + STEP_USERS])
        except BaseException:
            # How far the pages of each have come is not known.
            for history in counts:
                history.forget_encoding(history.start)
            raise
        return sum(counts.values())

    def _take_step(self, histories: list[UserHistory]) -> None:
        given = self._numbers([history.next_event() for history in histories])
        kept = [cast(AttentionState, history.state) for history in histories]
        _, after = self._take_together(self._pinned(given), kept)
        for history, state in zip(histories, after, strict=True):
            history.state = state
            history.encoded += 1

    def _numbers(self, events: list[tuple[Any, ...]]) -> np.ndarray:
        """What the step is given of events, int64 [B, ...]."""
        place = self._context
        if place is None:
            return np.array(events, np.int64)
        context = np.frombuffer(b"".join([event[place] for event in events]), np.int32)
        numbers = [event[:place] + event[place + 1 :] for event in events]
        return np.concatenate((np.array(numbers), context.reshape(len(events), -1)), axis=1)

    def _encode_whole(self, histories: list[UserHistory], limit: int) -> int:
        """Encode histories from their first event, at least the first of them."""
        kept, others, events, pages = [], [], 0, 0
        for history in histories:
            length = len(history) - history.start
            if events and events + length > limit:
                break
            events += length
            history.forget_encoding(history.start)
            more = self._blocks(length)
            fits = history.number and pages + more <= self._capacity
            if fits and self._make_room(pages + more, len(kept) + 1):
                kept.append(history)
                pages += more
            else:
                others.append(history)
        if kept:
            self._fill_pages(kept)
        if others:
            queries = self._model.open_queries(self._batch(others))
            for history, query in zip(others, queries.split(1), strict=True):
                # A view would keep the others' numbers alive.
                history.query, history.encoded = query.clone(), len(history)
        return events

    def _fill_pages(self, histories: list[UserHistory]) -> None:
        lengths = [len(history) - history.start for history in histories]
        starts = [AttentionState.empty(self._states) for _ in histories]
        step, states = self._states.step(starts, lengths)
        hidden = self._model.prefill(self._batch(histories), self._states, step)
        rows = [state.row.index for state in states]
        self._last.index_copy_(0, self._pinned(rows).to(self._device, non_blocking=True), hidden)
        for history, state, row in zip(histories, states, rows, strict=True):
            history.state, history.encoded = state, len(history)
            # A view: each step writes the next one there.
            history.query = self._last[row : row + 1]

    def _make_room(self, pages: int, users: int) -> bool:
        """Whether so many pages and rows are free, once enough others have left."""
        while pages > self._states.free_pages or users > self._states.free_users:
            if not self._cache.evict():
                return False
        return True

    def _batch(self, histories: list[UserHistory]) -> Batch:
        parts = [history.events[history.start :] for history in histories]
        return pack(parts, self._model.kept_inputs).to(self._device)

    def _pinned(self, numbers: Sequence[int] | np.ndarray) -> Tensor:
        """On the host, to be copied to the device without a wait."""
        found = torch.from_numpy(np.asarray(numbers, np.int64))
        return found.pin_memory() if self._device.type == "cuda" else found

    def _blocks(self, events: int) -> int:
        return -(-events // self._size)
