"""The thread of the model: requests of many users, computed together."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import torch

from blossomrec.config import ServingConfig
from blossomrec.data.history import History
from blossomrec.serving.engine.jobs import Call, Job, Request, answer
from blossomrec.serving.engine.reading import Histories
from blossomrec.serving.engine.work import Background, Mailbox, fail, succeed
from blossomrec.serving.metrics import Metrics
from blossomrec.serving.refusals import Refusal, nothing_known, of_store
from blossomrec.serving.stores.store import EventStore, ItemId, Notices
from blossomrec.serving.version.histories import UserHistory
from blossomrec.serving.version.ranking import Best, Choice
from blossomrec.serving.version.version import ModelVersion
from blossomrec.serving.watch.lists import LastLists

# Work that may wait for a moment without requests; what comes last has not begun.
MOST_BACKGROUND = 3

logger = logging.getLogger("blossomrec.serving")


class Engine:
    """Answers requests with one model thread.

    Each round takes what has arrived, brings the histories concerned a bounded number of events
    nearer to the present, and answers those that are there. A long history so takes several rounds
    and does not hold up the others. What nobody waits for is done in pieces in between.

    Args:
        reader: a store that this thread alone uses, and closes.
        lists: the last list of each user; those of users who are deleted are dropped.
        threads: of PyTorch, for one operation; None leaves its own number.
    """

    def __init__(
        self,
        reader: EventStore,
        version: ModelVersion,
        config: ServingConfig,
        metrics: Metrics,
        *,
        lists: LastLists,
        threads: int | None = None,
    ):
        self._reader, self._version, self._metrics = reader, version, metrics
        self._config, self._threads = config, threads
        self._lists = lists
        self._histories = Histories(reader, metrics)
        self._notices, self._off = Notices(-1, -1), list[ItemId]()
        self._background = Background()
        self._coming: ModelVersion | None = None
        self._arrived: Mailbox[Job | Call] = Mailbox("model", config.queue)
        metrics.queue.labels("model").set_function(self._arrived.__len__)
        metrics.cache_bytes.set_function(lambda: self._version.cache.nbytes)
        metrics.cache_users.set_function(lambda: len(self._version.cache))
        self._waiting: list[Job] = []
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def recommend(self, version: ModelVersion, request: Request) -> Future[Best]:
        """The best items, as rows of the version's catalogue.

        Raises:
            Refusal: 503, too many wait. The future's: 404 unknown user, 422 nothing known of it.
        """
        job = Job(version, request)
        if request.history is not None:
            job.history, job.read = UserHistory(inputs=version.model.kept_inputs), True
            # When its events were is not known.
            job.history.add(request.history.asked_for(-1), len(request.history))
        self._arrived.put(job)
        return job.future

    def history(self, version: ModelVersion, user: str) -> Future[History]:
        """A user's events, with rows of the version's catalogue, int32.

        Raises:
            Refusal: as :meth:`recommend`.
        """
        nothing = Request(user, None, Choice(0))
        job = Job(version, nothing, events_only=True)
        self._arrived.put(job)
        return job.future

    def call(self, function: Callable[[], Any], *, always: bool = False) -> Future[Any]:
        """What ``function`` gives, run between two rounds; ``always`` even if too many wait."""
        call = Call(function)
        self._arrived.put(call, always=always)
        return call.future

    def prepare(self, version: ModelVersion) -> Future[None]:
        """Encode histories for a version to come: those of the users who were asked for last."""
        done: Future[None] = Future()

        def begin() -> None:
            users = self._version.cache.users()[: self._config.warm]
            self._coming = version
            self._background.clear()
            self._background.add(self._drop_deleted(self._version))
            self._background.add(self._histories.encode_again(version, users), done)

        self.call(begin, always=True)
        return done

    def use(self, version: ModelVersion) -> Future[None]:
        """From now on keep the histories of this version; others' are forgotten."""

        def change() -> None:
            self._version.cache.clear()
            self._version, self._coming = version, None
            version.ranking.switch_off(version.catalogue.known(self._off))
            # Of users who were deleted while it was prepared.
            self._background.add(self._drop_deleted(version))

        return self.call(change, always=True)

    def forget(self, user: str) -> Future[None]:
        """Remove what is in memory of a user who has been deleted from the store."""

        def remove() -> None:
            kept = {self._version, self._coming, *(job.version for job in self._waiting)}
            for version in filter(None, kept):
                version.cache.drop(user)
            for job in self._waiting:
                if job.request.user == user:
                    job.history, job.read = None, False

        return self.call(remove, always=True)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Answer what waits, then stop."""
        self._arrived.close()
        self._thread.join()

    def _run(self) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        wait = self._config.wait_ms / 1e3
        with torch.inference_mode():
            while True:
                idle = not self._waiting
                arrived = self._arrived.take(
                    self._config.batch,
                    wait=wait if idle else 0.0,
                    block=idle and not self._background,
                )
                if arrived or not idle:
                    self._round(arrived)
                elif self._arrived.closed:
                    break
                if self._background and (self._background.due or not (arrived or self._waiting)):
                    self._background.step()
        self._reader.close()

    def _notice(self) -> None:
        """See what other processes have switched, and whom they have deleted."""
        found, before = self._reader.notices(), self._notices
        if found.switches != before.switches:
            self._off = self._reader.off()
            self._version.ranking.switch_off(self._version.catalogue.known(self._off))
        if found.deletions != before.deletions:
            for job in self._waiting:
                # Whose user is gone is refused, and not kept.
                job.read &= job.request.user is None
            if len(self._background) < MOST_BACKGROUND:
                self._background.add(self._drop_deleted(self._version))
        self._notices = found

    def _drop_deleted(self, version: ModelVersion) -> Iterator[None]:
        try:
            yield from self._histories.drop_deleted(version)
            yield from self._lists.drop_deleted(self._reader.numbers)
        except Exception:
            # The next round looks for them again.
            self._notices = self._notices._replace(deletions=-1)
            raise

    def _round(self, arrived: Sequence[Job | Call]) -> None:
        start = time.perf_counter()
        self._waiting += [entry for entry in arrived if isinstance(entry, Job)]
        try:
            self._notice()
        except Exception as error:
            # Without it, items that are out of stock could be recommended.
            for job in self._waiting:
                fail(job.future, of_store(error, self._reader))
        for entry in arrived:
            if isinstance(entry, Call):
                _attempt([entry.future], lambda call=entry: succeed(call.future, call.function()))
        self._waiting = [job for job in self._waiting if not job.future.done()]
        if not self._waiting:
            return
        self._metrics.batch.observe(len(self._waiting))
        by_version = {job.version: None for job in self._waiting}
        for version in by_version:
            jobs = [job for job in self._waiting if job.version is version]
            _attempt([job.future for job in jobs], lambda r=version, j=jobs: self._advance(r, j))
        self._waiting = [job for job in self._waiting if not job.future.done()]
        self._metrics.batch_seconds.observe(time.perf_counter() - start)

    def _advance(self, version: ModelVersion, jobs: list[Job]) -> None:
        """Bring jobs of one version nearer to their answers, and give the answers that are there.

        Jobs are in order of arrival. A history that is on its way is not read on for those who ask
        for the same user meanwhile: they wait for it, so that it arrives.
        """
        self._read(version, jobs)
        read = [job for job in jobs if job.read and not job.future.done()]
        asked = [job.history for job in read if job.history and not job.events_only]
        histories = list({id(history): history for history in asked}.values())
        behind = [history for history in histories if version.encoder.missing(history)]
        if behind:
            self._metrics.encoded.inc(version.encoder.advance(behind))
        kept = {job.request.user: job.history for job in jobs}.items()
        self._histories.keep(version, [(user, one) for user, one in kept if user and one])
        answer(version, read)

    def _read(self, version: ModelVersion, jobs: list[Job]) -> None:
        """Read the next events of the users whose histories are not yet up to date."""
        on_the_way = {job.request.user for job in jobs if job.read}
        opened: dict[str, tuple[UserHistory, bool]] = {}
        for job in jobs:
            user = job.request.user
            if user is None or job.read or user in on_the_way or job.future.cancelled():
                continue
            if user not in opened:
                try:
                    opened[user] = self._histories.read_on(version, user, job.history)
                except Exception as error:
                    fail(job.future, of_store(error, self._reader))
                    continue
            job.history, job.read = opened[user]
            if job.read and not len(job.history):
                message = f"the model knows no item of the history of {user!r}"
                fail(job.future, nothing_known("user_id", message, user))
            elif job.read and job.request.seen_since is not None:
                self._see(version, user, job)

    def _see(self, version: ModelVersion, user: str, job: Job) -> None:
        """Read what is to be left out of a history of which not all is."""
        assert job.history is not None and job.request.seen_since is not None
        since = job.request.seen_since
        try:
            job.seen = self._histories.seen_since(version, user, job.history, since)
        except Exception as error:
            fail(job.future, of_store(error, self._reader))


def _attempt(futures: Sequence[Future[Any]], work: Callable[[], None]) -> None:
    """Do work; where it fails, its error goes to whoever waits for it."""
    try:
        work()
    except Exception as error:
        if not isinstance(error, Refusal):
            logger.exception("a computation failed")
        for future in itertools.filterfalse(Future.done, futures):
            fail(future, error)
