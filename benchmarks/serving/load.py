"""Load on a server over plain sockets: as many requests as it takes, or so many a second."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Outcome:
    """What came of a load: seconds of each answer, how many were no success, seconds in all."""

    seconds: list[float] = field(default_factory=list)
    errors: int = 0
    duration: float = 0.0

    def add(self, part: Outcome) -> None:
        """Take in what came of a further load."""
        self.seconds += part.seconds
        self.errors += part.errors
        self.duration += part.duration

    def measures(self) -> dict[str, Any]:
        """Fields of a results line."""
        p50, p95, p99 = np.percentile(self.seconds, (50, 95, 99)) * 1e3
        return {
            "requests": len(self.seconds),
            "errors": self.errors,
            "throughput": round(len(self.seconds) / self.duration, 2),
            "p50_ms": round(float(p50), 3),
            "p95_ms": round(float(p95), 3),
            "p99_ms": round(float(p99), 3),
        }


class Connection:
    """One kept connection; a request costs the client a tenth of a millisecond."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """Status and content of the answer."""
        content = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n"
        )
        self._writer.write(head.encode() + content)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        return int(answer[9:12]), await self._reader.readexactly(length)

    def close(self) -> None:
        self._writer.close()


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Inside, Python looks for garbage in what is new alone: the load never stands still for it."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


# Makes one request over a connection and says whether it was answered well.
Request = Callable[[Connection], Awaitable[bool]]


def mixed(users: list[str], items: list[Any], seed: int) -> Request:
    """One event appended to a random user, or one request for it, with equal chances."""
    draw = random.Random(seed)

    async def request(connection: Connection) -> bool:
        user = draw.choice(users)
        if draw.random() < 0.5:
            body: dict[str, Any] = {"events": [{"item": draw.choice(items)}]}
            status, _ = await connection.ask("POST", f"/v1/users/{user}/events", body)
        else:
            body = {"user_id": user, "k": 10}
            status, _ = await connection.ask("POST", "/v1/recommend", body)
        return status == 200

    return request


async def as_fast_as_possible(
    port: int, request: Request, *, connections: int, seconds: float, limit: int | None = None
) -> Outcome:
    """Every connection sends its next request when the last is answered."""
    outcome, start = Outcome(), time.perf_counter()

    async def work() -> None:
        connection = await Connection.open(port)
        while time.perf_counter() - start < seconds and len(outcome.seconds) != limit:
            await _timed(outcome, connection, request, time.perf_counter())
        connection.close()

    await asyncio.gather(*(work() for _ in range(connections)))
    outcome.duration = time.perf_counter() - start
    return outcome


async def at_a_rate(
    port: int,
    request: Request,
    *,
    rate: float,
    seconds: float,
    connections: int = 64,
    over: asyncio.Event | None = None,
) -> Outcome:
    """Requests arrive at random moments, whether or not earlier ones are answered.

    It lasts so many seconds, or until ``over`` is set.

    The time of an answer counts from the moment at which its request was due, so that a server
    that stands still cannot hide it.
    """
    free: asyncio.Queue[Connection] = asyncio.Queue()
    for _ in range(connections):
        free.put_nowait(await Connection.open(port))
    outcome, draw, tasks = Outcome(), random.Random(1), []

    async def send(due: float) -> None:
        connection = await free.get()
        await _timed(outcome, connection, request, due)
        free.put_nowait(connection)

    start = due = time.perf_counter()
    while due < start + seconds and not (over and over.is_set()):
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(send(due)))
        due += draw.expovariate(rate)
    await asyncio.gather(*tasks)
    outcome.duration = time.perf_counter() - start
    while not free.empty():
        free.get_nowait().close()
    return outcome


async def _timed(outcome: Outcome, connection: Connection, request: Request, due: float) -> None:
    good = await request(connection)
    outcome.seconds.append(time.perf_counter() - due)
    outcome.errors += not good
