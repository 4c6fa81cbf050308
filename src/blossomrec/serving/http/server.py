"""The process that serves: address, signals, log lines, start and end."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import ipaddress
import logging
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import uvicorn
from fastapi import FastAPI

from blossomrec.config import ServingConfig
from blossomrec.errors import BlossomRecError, ConfigError
from blossomrec.rules import Rules
from blossomrec.run import run_version
from blossomrec.serving.announced import announced, local_url
from blossomrec.serving.engine.service import Service
from blossomrec.serving.given import check_token
from blossomrec.serving.http.application import build_app
from blossomrec.serving.http.connections import (
    ACCEPTED_TOGETHER,
    CLOSE,
    Connection,
    ConnectionLimits,
    connection_limit,
)
from blossomrec.serving.stores import store_opener
from blossomrec.serving.version.catalogue import count_titles, read_titles

SECONDS = 60.0
MOST_KNOWN = 1_000


class Repeats(logging.Filter):
    """Lets a warning or an error through once a minute, and says how many like it were held back.

    It is for loggers whose entries others than this program can cause at will.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic):
        super().__init__()
        self._now = now
        # When an entry came through, and how many like it have not since then.
        self._known: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        now, text = self._now(), str(record.msg)
        last, held = self._known.get(text, (-SECONDS, 0))
        if now - last < SECONDS:
            self._known[text] = (last, held + 1)
            return False
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        self._known[text] = (now, 0)
        if held:
            record.msg = f"{text} ({held} more like it since the last one)"
        return True


TOKEN = "BLOSSOMREC_TOKEN"
SHORTEST_TOKEN = 16
# Connections that the system accepts before this process does.
BACKLOG = 2_048
MEMORY_SECONDS = 30

logger = logging.getLogger("blossomrec.serving")


def run_server(
    run: Path,
    store: str,
    config: ServingConfig,
    *,
    host: str,
    port: int,
    device: str,
    threads: int | None,
    drain: float,
    titles: Path | None = None,
    rules: Rules | None = None,
) -> None:
    """Serve until a signal ends it; SIGHUP loads the run folder again.

    Args:
        store: see :func:`blossomrec.serving.stores.store_opener`.
        drain: seconds that requests under way have at the end.
        titles: table of item titles, for the page; see :func:`read_titles`.
        rules: that hold for every request for recommendations.

    Raises:
        ConfigError: the address is not loopback and there is no token, or it cannot be had.
        RunError, DataError: the run, the store or the table of titles cannot be used.
    """
    if not 0 <= drain < math.inf:
        raise ConfigError(f"drain is {drain}: a finite number of at least 0 is needed")
    if threads is not None and threads < 1:
        raise ConfigError(f"threads is {threads}: it must be at least 1")
    _log()
    token, limit = read_token(host), connection_limit(config.connections)
    named = None if titles is None else read_titles(titles)
    open_store, name = store_opener(store)
    with bind(host, port) as listening, _spared_imports():
        threads = threads or _threads()
        service = Service(run, open_store, config, device=device, threads=threads, rules=rules)
        try:
            if titles is not None and named is not None:
                items = service.version.catalogue
                count = count_titles(named, items, titles)
                logger.info("%s has titles for %d of %d items", titles, count, len(items))
            limits = ConnectionLimits(limit, config.head_seconds, service.metrics)
            settings = _settings(build_app(service, token, named), limits, drain)
            address, bound = listening.getsockname()[:2]
            server = _Server(settings, service, limits, (run, local_url(address, bound)))
            shown = f"[{address}]" if ":" in address else address
            # Not before it can answer: a balancer passes over whoever takes no connection.
            with _served_on(host, port):
                listening.listen(BACKLOG)
            # At once, for whoever waits for it at the other end of a pipe.
            print(
                f"serving {run} at http://{shown}:{bound}/ (a page to try it; requests at /docs), "
                f"events in {name}",
                flush=True,
            )
            server.run(sockets=[listening])
        finally:
            service.close()


@contextlib.contextmanager
def _spared_imports() -> Iterator[None]:
    """Inside, have Python's collector of garbage pass over what the imports have made.

    It would look through hundreds of thousands of objects every time, and nobody is answered
    meanwhile. What a model is made of comes later, and goes with it.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _log() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for name in ("asyncio", "uvicorn.error", "blossomrec.serving.http.connections"):
        noisy = logging.getLogger(name)
        if not any(isinstance(one, Repeats) for one in noisy.filters):
            noisy.addFilter(Repeats())


def _settings(app: FastAPI, limits: ConnectionLimits, drain: float) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=cast(Any, partial(Connection, limits=limits)),
        ws="none",
        backlog=ACCEPTED_TOGETHER,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=max(1, round(drain)),
        # Longer than proxies keep theirs, so that it is they who close.
        timeout_keep_alive=75,
        callback_notify=_give_memory_back,
        timeout_notify=MEMORY_SECONDS,
    )


def read_token(host: str) -> str | None:
    """The token in the environment variable BLOSSOMREC_TOKEN.

    Raises:
        ConfigError: there is none and ``host`` is not loopback, it is short, or no client can send
            it.
    """
    token = os.environ.get(TOKEN)
    if token is not None and len(token) < SHORTEST_TOKEN:
        raise ConfigError(
            f"{TOKEN} has {len(token)} characters: at least {SHORTEST_TOKEN} are needed"
        )
    if token is not None:
        check_token(token, TOKEN)
    if token is None and not _is_loopback(host):
        raise ConfigError(
            f"host is {host!r}, which others can reach: set {TOKEN} to a secret that requests must "
            "bear, or serve on 127.0.0.1"
        )
    return token


def bind(host: str, port: int) -> socket.socket:
    """A socket of its own, which does not listen yet; port 0 takes any that is free."""
    if not 0 <= port < 2**16:
        raise ConfigError(f"port is {port}: it must be from 0 to {2**16 - 1}")
    with _served_on(host, port):
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    return listening


@contextlib.contextmanager
def _served_on(host: str, port: int) -> Iterator[None]:
    """Inside, an address that cannot be had is a ConfigError."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"host {host!r}, port {port} cannot be served on: {error}") from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _threads() -> int:
    """Half of the processor for the model; HTTP and the store have the other."""
    return max(1, (os.cpu_count() or 1) // 2)


async def _give_memory_back() -> None:
    """Have the C library return what has been freed: histories come and go in many sizes.

    Without, the gaps between them stay with the process; only glibc offers this.
    """
    with contextlib.suppress(OSError, AttributeError):
        await asyncio.to_thread(ctypes.CDLL(None).malloc_trim, 0)


class _Server(uvicorn.Server):
    """Ends in good order on SIGINT and SIGTERM, takes a new model on SIGHUP.

    Args:
        announced: run and URL, told to those who update the run; None for nobody.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        limits: ConnectionLimits,
        announced: tuple[Path, str] | None = None,
    ):
        super().__init__(config)
        self._announced = announced
        self._service, self._limits = service, limits
        self._reload: asyncio.Task[None] | None = None
        self._asked = False

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        if self._announced is None:
            yield
            return
        run, url = self._announced
        with announced(run, url):
            # Who has changed the run since it was read has not found this server.
            if run_version(run) != self._service.version.id:
                self._hang_up()
            yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # The number that uvicorn was given is also that of connections accepted together.
        for listening in sockets or ():
            listening.listen(BACKLOG)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._limits.draining = True
        state = self.server_state
        state.default_headers = [*state.default_headers, CLOSE]
        await super().shutdown(sockets)

    def _hang_up(self) -> None:
        # Asked while a model is being read, it may be read too early: it is then read once more.
        self._asked = True
        if self._reload is None or self._reload.done():
            self._reload = asyncio.get_running_loop().create_task(self._take_new_model())

    async def _take_new_model(self) -> None:
        while self._asked:
            self._asked = False
            try:
                await self._service.reload()
            except Exception as error:
                known = isinstance(error, (BlossomRecError, OSError))
                logger.error("the model stays as it is: %s", error, exc_info=not known)
