"""Clients that begin something and do not go on with it, and the end of a server."""

import asyncio
import contextlib
import json
import logging
import resource
import socket

import pytest
from places import metric
from serving_runs import WAIT

from blossomrec.errors import ConfigError
from blossomrec.serving.http import connections
from blossomrec.serving.http.connections import ConnectionLimits, connection_limit
from blossomrec.serving.http.server import Repeats, _Server, _settings
from blossomrec.serving.metrics import Metrics

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
HEADERS = b"x-content-type-options: nosniff\r\ncontent-security-policy: default-src 'none'"


class App:
    """Answers at once, whatever comes, or when it may.

    Attributes:
        asked, may_answer: set when a request is there, and to have it answered.
    """

    def __init__(self, size=2):
        self.body, self.asked, self.may_answer = b"x" * size, asyncio.Event(), asyncio.Event()
        self.may_answer.set()

    async def __call__(self, scope, receive, send):
        self.asked.set()
        await self.may_answer.wait()
        headers = [(b"content-length", str(len(self.body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


class Serving:
    """A server in this loop; ``async with`` it."""

    def __init__(self, app, *, limit=100, seconds=60.0, idle=60.0):
        self.limits = ConnectionLimits(limit, seconds, Metrics())
        settings = _settings(app, self.limits, 5)
        settings.timeout_keep_alive = idle
        self.server, self.opened = _Server(settings, None, self.limits), []

    async def __aenter__(self):
        listening = socket.create_server(("127.0.0.1", 0))
        self.port = listening.getsockname()[1]
        # What comes after the signals have been taken care of.
        self.served = asyncio.create_task(self.server._serve([listening]))
        while not self.server.started:
            await asyncio.sleep(0.01)
        return self

    async def __aexit__(self, *error):
        for writer in self.opened:
            writer.close()
        self.server.should_exit = True
        await asyncio.wait_for(self.served, WAIT)

    async def connect(self, sent=b""):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.opened.append(writer)
        writer.write(sent)
        return reader, writer

    async def nobody(self):
        """Wait until no connection is left."""
        while self.server.server_state.connections:
            await asyncio.sleep(0.01)

    def dropped(self, reason):
        text = self.limits.metrics.page().decode()
        return metric(text, f'blossomrec_connections_dropped_total{{reason="{reason}"}}')


def run(work):
    asyncio.run(asyncio.wait_for(work, WAIT))


async def rest(reader):
    """Status and error of an answer that ends the connection; None for none."""
    answer = await reader.read()
    if not answer:
        return None
    head, _, body = answer.partition(b"\r\n\r\n")
    assert HEADERS in head and b"\r\nconnection: close" in head
    return int(head.split()[1]), json.loads(body)["error"]


async def answer(reader):
    """The head of an answer, and its body."""
    head = await reader.readuntil(b"\r\n\r\n")
    size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    return head, await reader.readexactly(size)


def test_a_head_that_does_not_end_is_given_up():
    async def work():
        async with Serving(App(), seconds=0.3) as serving:
            silent, _ = await serving.connect()
            begun, _ = await serving.connect(b"GET / HTTP/1.1\r\n")
            dripping, writer = await serving.connect(b"GET / HTTP/1.1\r\nHost: ")
            kept, again = await serving.connect(GET)
            await answer(kept)
            again.write(b"GET /")

            async def drip():
                # Each byte comes in time, the head does not.
                while serving.server.server_state.connections:
                    writer.write(b"a")
                    await asyncio.sleep(0.02)

            task = asyncio.create_task(drip())
            assert await rest(silent) is None
            for reader in (begun, kept):
                status, error = await rest(reader)
                assert (status, error["code"]) == (408, "slow_head")
            await serving.nobody()
            await task
            # Whoever still sends may find the connection gone before the answer is read.
            with contextlib.suppress(ConnectionError):
                await dripping.read()
            assert serving.dropped("slow") == 4

    run(work())


def test_a_connection_that_goes_on_is_kept():
    async def work():
        async with Serving(App(), seconds=1.0) as serving:
            reader, writer = await serving.connect(GET[:9])
            writer.write(GET[9:])
            await answer(reader)
            # Longer than a head may take.
            await asyncio.sleep(1.5)
            writer.write(GET + GET)
            for _ in range(2):
                head, body = await answer(reader)
                assert b"200" in head and body == b"xx" and b"connection: close" not in head
            assert serving.dropped("slow") == 0

    run(work())


def test_a_body_that_nobody_reads_has_an_end():
    async def work():
        async with Serving(App(), seconds=0.3) as serving:
            reader, writer = await serving.connect(POST % 10**6)
            await answer(reader)
            while not reader.at_eof() and serving.server.server_state.connections:
                writer.write(b"a")
                await asyncio.sleep(0.02)
            assert serving.dropped("slow") == 1

    run(work())


def test_a_body_that_nobody_reads_may_be_followed_by_a_request():
    async def work():
        async with Serving(App()) as serving:
            reader, writer = await serving.connect(POST % 10)
            await answer(reader)
            writer.write(b"a" * 10 + GET)
            assert (await answer(reader))[1] == b"xx"

    run(work())


def test_an_idle_connection_is_closed_whatever_came_last():
    async def work():
        async with Serving(App(), idle=0.2) as serving:
            reader, writer = await serving.connect(POST % 10)
            await answer(reader)
            writer.write(b"a" * 10)
            assert await rest(reader) is None

    run(work())


@pytest.mark.parametrize(
    "sent", [GET, GET + GET + GET, GET.replace(b"Host", b"Connection: close\r\nHost")]
)
def test_an_answer_that_is_not_taken_is_given_up(sent):
    async def work():
        async with Serving(App(size=50_000_000), idle=0.2) as serving:
            with socket.create_connection(("127.0.0.1", serving.port)) as client:
                client.sendall(sent)
                while not serving.server.server_state.connections:
                    await asyncio.sleep(0.01)
                await serving.nobody()
                # Nobody is left at work for it.
                while serving.server.server_state.tasks:
                    await asyncio.sleep(0.01)

    run(work())


def test_more_connections_than_there_may_be():
    async def work():
        async with Serving(App(), limit=3) as serving:
            kept = [await serving.connect(GET) for _ in range(3)]
            for reader, _ in kept:
                await answer(reader)
            for _ in range(20):
                status, error = await rest((await serving.connect())[0])
                assert (status, error["code"]) == (503, "too_many_connections")
            assert serving.dropped("too_many") == 20
            kept[0][1].close()
            while len(serving.server.server_state.connections) == 3:
                await asyncio.sleep(0.01)
            reader, _ = await serving.connect(GET)
            assert (await answer(reader))[1] == b"xx"

    run(work())


@pytest.mark.parametrize(
    "sent", [b"HELP\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\0\r\n\r\n"]
)
def test_what_is_no_request(sent):
    async def work():
        async with Serving(App()) as serving:
            status, error = await rest((await serving.connect(sent))[0])
            assert (status, error["code"]) == (400, "invalid_http")

    run(work())


def test_a_body_that_is_none(caplog):
    """Between its parts stands nonsense, before the answer and after it."""

    async def work():
        app = App()
        chunked = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        async with Serving(app) as serving:
            app.may_answer.clear()
            reader, writer = await serving.connect(chunked)
            await app.asked.wait()
            writer.write(b"nonsense\r\n")
            assert (await rest(reader))[0] == 400
            app.may_answer.set()
            reader, writer = await serving.connect(chunked)
            await answer(reader)
            writer.write(b"nonsense\r\n")
            assert await rest(reader) is None

    run(work())
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR]


def test_no_exchange_is_broken_off_at_the_end(monkeypatch):
    monkeypatch.setattr(connections, "GRACE_SECONDS", 3.0)

    async def work():
        app = App()
        async with Serving(app) as serving:
            idle, busy = await serving.connect(GET), await serving.connect(GET)
            for reader, _ in (idle, busy):
                head, _ = await answer(reader)
                assert b"connection: close" not in head
            fresh, _ = await serving.connect()
            app.may_answer.clear()
            app.asked.clear()
            busy[1].write(GET)
            await app.asked.wait()
            serving.server.should_exit = True
            while not serving.limits.draining:
                await asyncio.sleep(0.01)
            # A request that was on its way when the server was told to end.
            idle[1].write(GET)
            app.may_answer.set()
            for reader, _ in (idle, busy):
                head, body = await answer(reader)
                assert b"200" in head and body == b"xx" and b"\r\nconnection: close" in head
                assert await reader.read() == b""
            assert await rest(fresh) is None
            with contextlib.suppress(ConnectionRefusedError):
                await serving.connect()
                raise AssertionError("it still listens")

    run(work())


def test_how_many_connections_there_may_be(monkeypatch):
    allowed, asked = [1_000, 2_000], []
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(allowed))
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: asked.append(wanted))
    assert connection_limit(10_000) == 2_000 - connections.RESERVED
    assert asked == [(2_000, 2_000)]
    assert connection_limit(100) == 100
    allowed[:] = 100, 100
    with pytest.raises(ConfigError, match=r"100 files open: at least 144 are needed \(ulimit -n\)"):
        connection_limit(1)
    allowed[:] = [resource.RLIM_INFINITY] * 2
    assert connection_limit(10_000) == 10_000


def test_what_is_logged_again_and_again_is_logged_once(caplog):
    now = [0.0]
    logger = logging.getLogger("blossomrec.test_repeats")
    repeats = Repeats(lambda: now[0])
    logger.addFilter(repeats)
    try:
        with caplog.at_level(logging.INFO, logger.name):
            for number in range(100):
                logger.warning("no more than %d", number)
                logger.error("another")
                logger.info("all of these")
            now[0] = 61.0
            logger.warning("no more than %d", 7)
    finally:
        logger.removeFilter(repeats)
    shown = [message for message in caplog.messages if message != "all of these"]
    last = "no more than 7 (99 more like it since the last one)"
    assert shown == ["no more than 0", "another", last]
    assert len(caplog.messages) == 103
