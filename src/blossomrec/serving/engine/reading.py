"""Reading on in the store where a history in memory ends, and encoding for nobody in particular."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator, Sequence

import numpy as np

from blossomrec.data.history import History
from blossomrec.data.units import UNITS, Time, seconds
from blossomrec.serving.metrics import Metrics
from blossomrec.serving.refusals import Refusal, shown, unavailable, unknown_user
from blossomrec.serving.stores.store import EventStore, Tail
from blossomrec.serving.version.histories import UserHistory
from blossomrec.serving.version.version import ModelVersion

# Events of one user that are read before others have their turn.
READ_AT_ONCE = 4_096
# Events encoded in one go for nobody in particular: a request waits no longer than for these.
PIECE = 128
# Users whose deletion by others is looked for in one go.
USERS_AT_ONCE = 256
# Histories that cannot be read before it is the store that fails, and all of it is given up.
FAILURES = 3

logger = logging.getLogger("blossomrec.serving")


class Histories:
    """Reads on in the store where a history in memory ends. One thread uses it.

    Args:
        reader: a store that this thread alone uses.
    """

    def __init__(self, reader: EventStore, metrics: Metrics):
        self._reader, self._metrics = reader, metrics
        self._unit: str | None = None

    def read_on(
        self, version: ModelVersion, user: str, history: UserHistory | None
    ) -> tuple[UserHistory, bool]:
        """A user's history with more of its events, and whether it is complete.

        Args:
            history: what has been read before; None for what is kept, or nothing.

        Raises:
            Refusal: 404, the user has no events.
        """
        if history is None:
            history = version.cache.get(user) or UserHistory(inputs=version.model.kept_inputs)
            counter = self._metrics.misses if history.query is None else self._metrics.hits
            counter.inc()
        tail = self._reader.tail(user, history.number, history.read, READ_AT_ONCE)
        if tail is None:
            # Another process may have deleted the user.
            version.cache.drop(user)
            raise unknown_user(user)
        if tail.start < tail.length and not tail.items:
            # Otherwise it would be read on and on.
            message = f"the history of {shown(user)} is shorter than its length says"
            logger.error("the store of events is damaged: %s", message)
            raise unavailable("store_damaged", message, passes=False)
        if tail.number != history.number or tail.start != history.read:
            history = UserHistory(tail.number, history.inputs)
        if tail.start == history.read:
            events = self._events(version, user, history.inputs, tail)
            history.add(events[events.items >= 0], len(tail.items))
        return history, history.read == tail.length

    def _events(
        self, version: ModelVersion, user: str, inputs: Sequence[str], tail: Tail
    ) -> History:
        """Events of a tail, those of unknown items with the row -1, with what the model takes."""
        rows = version.catalogue.rows(tail.items)
        if len(inputs) == 1:
            return History(rows)
        times = self._seconds(tail.times) if "times" in inputs else None
        return History(
            rows, times, **version.known.columns(len(rows), user, tail.kinds, tail.contexts)
        )

    def _seconds(self, times: Sequence[Time]) -> np.ndarray:
        """Times of the store as a model sees them; -1 while their unit is not known."""
        self._unit = self._unit or self._reader.unit()
        if self._unit is None:
            return np.full(len(times), -1, np.int64)
        return seconds(np.asarray(times), UNITS[self._unit])

    def seen_since(
        self, version: ModelVersion, user: str, history: UserHistory, second: float
    ) -> np.ndarray:
        """Rows of the items that a user had after a second since 1970, int64, rising.

        Raises:
            Refusal: 422, the times of the store only tell an order.
        """
        self._unit = self._unit or self._reader.unit()
        if self._unit is None:
            message = "exclude_seen_days: the times of the stored events only tell an order"
            raise Refusal(422, "no_time", message, field="exclude_seen_days")
        found, end = [np.empty(0, np.int64)], history.read
        while end > 0:
            start = max(0, end - READ_AT_ONCE)
            tail = self._reader.tail(user, history.number, start, end - start)
            if tail is None or tail.number != history.number:
                break  # deleted meanwhile
            late = self._seconds(tail.times) > second
            found.append(version.catalogue.rows(tail.items)[late])
            # Events stand in order of time.
            if not late.all():
                break
            end = start
        rows = np.unique(np.concatenate(found))
        return rows[rows >= 0]

    def keep(self, version: ModelVersion, pairs: Iterable[tuple[str, UserHistory]]) -> None:
        """Keep histories for the next request; others leave to make room."""
        for user, history in pairs:
            version.cache.put(user, history)
        self._metrics.evictions.inc(version.cache.new_evictions())

    def encode_again(self, version: ModelVersion, users: list[str]) -> Iterator[None]:
        """Encode histories of users, the first ones first, as long as there is room for them.

        Stops after every bounded piece of work: the next one is done when it is asked for.
        """
        failed = 0
        try:
            for place, user in enumerate(users):
                self._metrics.warming.set(len(users) - place)
                if user in version.cache:
                    continue
                try:
                    history = yield from self._encoded(version, user)
                except Refusal:
                    continue  # deleted meanwhile
                except self._reader.failures as error:
                    # Whose history cannot be read keeps nobody else from theirs.
                    logger.error("a history is not encoded again: %s", error)
                    failed += 1
                    if failed == FAILURES:
                        raise
                    continue
                if not version.cache.put_behind(user, history):
                    return
        finally:
            self._metrics.warming.set(0)

    def _encoded(self, version: ModelVersion, user: str) -> Generator[None, None, UserHistory]:
        history = UserHistory(inputs=version.model.kept_inputs)
        while True:
            # Read again at the very end, too: the user may be deleted, or have new events.
            history, complete = self.read_on(version, user, history)
            if version.encoder.missing(history):
                self._metrics.encoded.inc(version.encoder.advance([history], PIECE))
            elif complete:
                return history
            yield

    def drop_deleted(self, version: ModelVersion) -> Iterator[None]:
        """Drop what is kept of users whom other processes have deleted, in bounded pieces."""
        kept = version.cache.users()
        for start in range(0, len(kept), USERS_AT_ONCE):
            users = kept[start : start + USERS_AT_ONCE]
            for user, number in zip(users, self._reader.numbers(users), strict=True):
                if user in version.cache and version.cache.number(user) != number:
                    version.cache.drop(user)
            yield
