"""Histories of users: read from the store, kept in a release's cache."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator

from blossomrec.serving.history import UserHistory
from blossomrec.serving.metrics import Metrics
from blossomrec.serving.refusals import Refusal, shown, unavailable, unknown_user
from blossomrec.serving.release import Release
from blossomrec.serving.store import EventStore

# Events of one user that are read before others have their turn.
READ_AT_ONCE = 4_096
# Events encoded in one go for nobody in particular: a question waits no longer than for these.
PIECE = 256
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

    def read_on(
        self, release: Release, user: str, history: UserHistory | None
    ) -> tuple[UserHistory, bool]:
        """A user's history with more of its events, and whether it is complete.

        Args:
            history: what has been read before; None for what is kept, or nothing.

        Raises:
            Refusal: 404, the user has no events.
        """
        if history is None:
            history = release.cache.get(user) or UserHistory()
            counter = self._metrics.misses if history.query is None else self._metrics.hits
            counter.inc()
        tail = self._reader.tail(user, history.number, history.read, READ_AT_ONCE)
        if tail is None:
            # Another process may have deleted the user.
            release.cache.drop(user)
            raise unknown_user(user)
        if tail.start < tail.length and not tail.items:
            # Otherwise it would be read on and on.
            message = f"the history of {shown(user)} is shorter than its length says"
            logger.error("the store of events is damaged: %s", message)
            raise unavailable("store_damaged", message, passes=False)
        if tail.number != history.number or tail.start != history.read:
            history = UserHistory(tail.number)
        if tail.start == history.read:
            history.add(release.catalogue.known(tail.items), len(tail.items))
        return history, history.read == tail.length

    def keep(self, release: Release, pairs: Iterable[tuple[str, UserHistory]]) -> None:
        """Keep histories for the next question; others leave to make room."""
        for user, history in pairs:
            release.cache.put(user, history)
        self._metrics.evictions.inc(release.cache.new_evictions())

    def encode_again(self, release: Release, users: list[str]) -> Iterator[None]:
        """Encode histories of users, the first ones first, as long as there is room for them.

        Stops after every bounded piece of work: the next one is done when it is asked for.
        """
        failed = 0
        try:
            for place, user in enumerate(users):
                self._metrics.warming.set(len(users) - place)
                if user in release.cache:
                    continue
                try:
                    history = yield from self._encoded(release, user)
                except Refusal:
                    continue  # deleted meanwhile
                except self._reader.failures as error:
                    # Whose history cannot be read keeps nobody else from theirs.
                    logger.error("a history is not encoded again: %s", error)
                    failed += 1
                    if failed == FAILURES:
                        raise
                    continue
                if not release.cache.put_behind(user, history):
                    return
        finally:
            self._metrics.warming.set(0)

    def _encoded(self, release: Release, user: str) -> Generator[None, None, UserHistory]:
        history = UserHistory()
        while True:
            # Read again at the very end, too: the user may be deleted, or have new events.
            history, complete = self.read_on(release, user, history)
            if release.encoder.missing(history):
                self._metrics.encoded.inc(release.encoder.advance([history], PIECE))
            elif complete:
                return history
            yield

    def drop_deleted(self, release: Release) -> Iterator[None]:
        """Drop what is kept of users whom other processes have deleted, in bounded pieces."""
        kept = release.cache.users()
        for start in range(0, len(kept), USERS_AT_ONCE):
            users = kept[start : start + USERS_AT_ONCE]
            for user, number in zip(users, self._reader.numbers(users), strict=True):
                if user in release.cache and release.cache.number(user) != number:
                    release.cache.drop(user)
            yield
