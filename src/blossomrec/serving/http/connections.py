"""Connections to clients: how many there may be, how long they may take, and how they end."""

from __future__ import annotations

import asyncio
import logging
import resource
from dataclasses import dataclass
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from blossomrec.errors import ConfigError
from blossomrec.serving.metrics import Metrics
from blossomrec.serving.refusals import Refusal, unavailable

CLOSE = (b"connection", b"close")
# Connections that asyncio accepts in one round of its loop; it takes four rounds to refuse one.
ACCEPTED_TOGETHER = 16
# Descriptors for those, and for everything that is no connection.
RESERVED = 4 * ACCEPTED_TOGETHER + 64
FEWEST = 16
# While the server ends, a connection without a request is kept for one that is on its way.
GRACE_SECONDS = 0.5

logger = logging.getLogger("blossomrec.serving.http.connections")


@dataclass
class ConnectionLimits:
    """What all connections of a server have in common.

    Attributes:
        limit: connections that may be open at a time.
        seconds: in which a client has to send the head of a request, and what is left of a body
            that was refused.
        draining: the server ends.
    """

    limit: int
    seconds: float
    metrics: Metrics
    draining: bool = False


class Connection(H11Protocol):
    """uvicorn's, with an end to what a client begins and does not go on with.

    uvicorn waits for ever for the rest of a head, for the rest of a body that is answered already,
    and for a client that does not take its answer. How long a body may take that is read is for
    :class:`blossomrec.serving.http.middleware.RequestMiddleware` to say.
    """

    def __init__(self, *, limits: ConnectionLimits, **options: Any):
        super().__init__(**options)
        self._limits = limits
        # Until what the client owes must have come, and until it must have taken what it was sent.
        self._arrival: asyncio.TimerHandle | None = None
        self._departure: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self._limits.metrics.connections.set(len(self.connections))
        if len(self.connections) > self._limits.limit:
            self._limits.metrics.dropped.labels("too_many").inc()
            logger.warning("more than %d connections: others are refused", self._limits.limit)
            self._refuse(unavailable("too_many_connections", "too many connections are open"))
            return
        if self._limits.draining:
            self.shutdown()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._limits.metrics.connections.set(len(self.connections))
        self._unset_keepalive_if_required()
        self._arrival, self._departure = _stopped(self._arrival), _stopped(self._departure)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_departure()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._departure = _stopped(self._departure)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        self._refuse(Refusal(400, "invalid_http", "this is no HTTP request"))

    def shutdown(self) -> None:
        """End in good order: nothing that a client has sent, or is just sending, is lost."""
        if self._idle:
            self.loop.call_later(GRACE_SECONDS, self._close_idle)
            return
        self.cycle.keep_alive = False
        self.cycle.default_headers = [*self.cycle.default_headers, CLOSE]

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _close_idle(self) -> None:
        if self._idle and not self.transport.is_closing():
            self.transport.close()

    def _watch(self) -> None:
        """Begin or end the waiting for the client."""
        if self.transport.is_closing():
            self._arrival = _stopped(self._arrival)
            self._watch_departure()
        elif not self._owed():
            self._arrival = _stopped(self._arrival)
            if self._idle and self.timeout_keep_alive_task is None:
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )
        elif self._arrival is None:
            self._arrival = self.loop.call_later(self._limits.seconds, self._late)

    def _owed(self) -> bool:
        """Whether the client has to send something: a head, or a body that nobody reads."""
        if self.cycle is None:
            return True
        if not self.cycle.response_complete:
            return False
        return self.conn.their_state is h11.SEND_BODY or bool(self.conn.trailing_data[0])

    def _late(self) -> None:
        self._limits.metrics.dropped.labels("slow").inc()
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            message = f"the head of the request did not arrive within {self._limits.seconds:g} s"
            self._refuse(Refusal(408, "slow_head", message))
        else:
            self.transport.close()
            self._watch()

    def _watch_departure(self) -> None:
        if self._departure is None and self.transport.get_write_buffer_size():
            self._departure = self.loop.call_later(self.timeout_keep_alive, self.transport.abort)

    def _refuse(self, refusal: Refusal) -> None:
        """Answer without a request to answer, and close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body, headers = refusal.sent()
            head = h11.Response(status_code=refusal.status, headers=[*headers, CLOSE])
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        if not self._idle:
            # Whoever is at work on an answer finds nobody to send it to.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()
        self._watch()


def _stopped(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def connection_limit(wanted: int) -> int:
    """How many connections this process may have of those that are wanted.

    It is allowed as many open files as the system lets it have, and some are kept for others than
    connections: a server without a descriptor left could neither accept nor read a model.

    Raises:
        ConfigError: there are too few.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (ValueError, OSError) as error:
            logger.info("the limit of %d open files stays: %s", soft, error)
    if soft == resource.RLIM_INFINITY:
        return wanted
    if soft < RESERVED + FEWEST:
        raise ConfigError(
            f"this process may have {soft} files open: at least {RESERVED + FEWEST} are needed "
            "(ulimit -n)"
        )
    if wanted > soft - RESERVED:
        logger.info("at most %d connections, as %d files may be open", soft - RESERVED, soft)
    return min(wanted, soft - RESERVED)
