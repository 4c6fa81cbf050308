"""Events in a Redis or Valkey server, for several machines."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from blossomrec.data.units import Time
from blossomrec.errors import ConfigError, DataError
from blossomrec.serving.stores import shown_url
from blossomrec.serving.stores.clock import Clock
from blossomrec.serving.stores.redis_parts import (
    NOBODY,
    TOGETHER,
    Staged,
    User,
    check_durable,
    key_of,
    order_by_time,
    parts,
    rewrite_files,
)
from blossomrec.serving.stores.store import (
    Appended,
    Counts,
    Event,
    ItemId,
    Member,
    Notices,
    Profile,
    Tail,
    cursor_of,
    new_events,
    read_cursor,
)

FORMAT = 2
SECONDS = 5.0
NUMBER_BITS = 62


class RedisStore:
    """An :class:`EventStore` in the database that a URL names, ``redis://HOST:PORT/DATABASE``.

    A transaction collects its changes and has them carried out by one script at its end, if none
    of its users has been changed by others meanwhile. It is on disk when the script is answered,
    where the server runs with ``appendonly yes`` and ``appendfsync always``.

    Keys, all with a prefix: ``user:ID`` (number, length, time of the last event), ``events:NUMBER``
    (a list), ``keys:NUMBER`` (events by the senders' keys), ``recent`` (users by the time of their
    last event), ``off`` (items), ``notices``, ``unit`` (of the times), ``looks`` (whether it can be
    written to), ``format``. A database of format 1 is brought to format 2.

    Raises:
        ConfigError: the URL is none.
        DataError: the server cannot be reached, keeps no append-only file, may throw events away,
            or holds another format.
    """

    failures: tuple[type[Exception], ...] = (redis.RedisError,)

    def __init__(self, url: str):
        try:
            # A command whose answer was lost may have been carried out: it is not sent again.
            self._redis: Any = redis.Redis.from_url(
                url,
                # As redis-cli takes it: what stands in a command line, others can read.
                password=os.environ.get("REDISCLI_AUTH"),
                decode_responses=True,
                socket_timeout=SECONDS,
                socket_connect_timeout=SECONDS,
                retry=Retry(NoBackoff(), 0),
            )
        except ValueError as error:
            raise ConfigError(f"store is {shown_url(url)}: {error}") from error
        self._staged: Staged | None = None
        self._unit: str | None = None
        try:
            check_durable(self._redis, shown_url(url))
            self._redis.set(key_of("format"), FORMAT, nx=True)
            found = self._redis.get(key_of("format"))
            if found == "1":
                order_by_time(self._redis)
                self._redis.set(key_of("format"), FORMAT)
                found = str(FORMAT)
        except redis.RedisError as error:
            message = f"{shown_url(url)} cannot be used as a store of events: {error}"
            raise DataError(message) from error
        if found != str(FORMAT):
            raise DataError(
                f"{shown_url(url)} has format {found}: this version reads format {FORMAT}"
            )

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        self._staged = Staged()
        try:
            yield
            self._staged.commit(self._redis)
        finally:
            self._staged = None

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        before = self._open().copy()
        try:
            yield
        except BaseException:
            # What was read stays: it has decided what came before.
            self._staged = before
            raise

    def _open(self) -> Staged:
        assert self._staged is not None, "changes stand inside a transaction"
        return self._staged

    def append(
        self, user: str, events: Sequence[Event], now: Time, ahead: float | None = None
    ) -> Appended:
        staged = self._open()
        state = self._state(user)
        keys = [event.key for event in events if event.key is not None]
        stored = self._keyed(state.number, keys)
        staged.unit = staged.unit or self.unit()
        clock = Clock(now, staged.unit, ahead)
        new = new_events(events, state.last, stored.get, clock)
        length = state.length + len(new)
        if new:
            # At random, so that a number is not met again where the server was emptied meanwhile.
            number = state.number or 1 + secrets.randbits(NUMBER_BITS)
            last = cast(Time, new[-1].timestamp)
            staged.users[user] = User(number, length, last)
            self._stage(user, number, length, last, new)
            if clock.unit != staged.unit:
                staged.unit = clock.unit
                staged.commands.append(["SETNX", key_of("unit"), cast(str, clock.unit)])
        return Appended(len(new), len(events) - len(new), length)

    def _state(self, user: str) -> User:
        """A user as the transaction will leave it: as it found it, but for its own changes."""
        staged = self._open()
        if user not in staged.users and user not in staged.read:
            staged.read[user] = self._found(user)
        return staged.users[user] if user in staged.users else staged.read[user]

    def _found(self, user: str) -> User:
        return _user(self._redis.hmget(key_of("user", user), "number", "length", "last"))

    def _keyed(self, number: int, keys: list[str]) -> dict[str, Event]:
        """The events that are stored, or are to be, under some keys."""
        if not keys or not number:
            return {}
        staged = self._open().keyed
        found = zip(keys, self._redis.hmget(key_of("keys", number), keys), strict=True)
        stored = {key: _keyed(json.loads(text)) for key, text in found if text is not None}
        return stored | {key: staged[number, key] for key in keys if (number, key) in staged}

    def _stage(self, user: str, number: int, length: int, last: Time, new: list[Event]) -> None:
        staged = self._open()
        texts = [json.dumps(event.trimmed()) for event in new]
        staged.commands += [["RPUSH", key_of("events", number), *part] for part in parts(texts)]
        named = []
        for event in new:
            if event.key is not None:
                staged.keyed[number, event.key] = event
                item, timestamp, _, *more = event.trimmed()
                named += [event.key, json.dumps([item, timestamp, *more])]
        staged.commands += [["HSET", key_of("keys", number), *part] for part in parts(named)]
        state = ["number", str(number), "length", str(length), "last", json.dumps(last)]
        staged.commands.append(["HSET", key_of("user", user), *state])

    def tail(self, user: str, number: int, start: int, limit: int) -> Tail | None:
        def wanted(found: User) -> range:
            first = start if found.number == number and start <= found.length else 0
            return range(first, min(first + limit, found.length))

        found, span, events = self._span(user, wanted)
        return Tail.of(found.number, span.start, found.length, events) if found.number else None

    def profile(self, user: str, last: int) -> Profile | None:
        found, _, events = self._span(
            user, lambda found: range(max(0, found.length - last), found.length)
        )
        return Profile(found.length, [Event(*event) for event in events]) if found.number else None

    def _span(
        self, user: str, wanted: Callable[[User], range]
    ) -> tuple[User, range, list[list[Any]]]:
        """A user, and those of the events that are wanted of what was found."""
        while True:
            found = self._found(user)
            span = wanted(found)
            texts: list[str] = []
            if span:
                key = key_of("events", found.number)
                texts = self._redis.lrange(key, span.start, span.stop - 1)
            # Between the two looks another server may have deleted the user. One whose number is
            # the same has lost events.
            if len(texts) == len(span) or self._found(user).number == found.number:
                return found, span, list(map(json.loads, texts))

    def delete(self, user: str) -> int:
        staged, state = self._open(), self._state(user)
        if not state.number:
            return 0
        staged.users[user] = NOBODY
        gone = [key_of("user", user), key_of("events", state.number), key_of("keys", state.number)]
        staged.commands.append(["DEL", *gone])
        staged.commands.append(["ZREM", key_of("recent"), user])
        staged.commands.append(["HINCRBY", key_of("notices"), "deletions", "1"])
        return state.length

    def erase(self) -> None:
        rewrite_files(self._redis)

    def members(self, limit: int, before: str | None = None) -> list[Member]:
        start = 0 if before is None else self._place_behind(*read_cursor(before))
        users = self._redis.zrevrange(key_of("recent"), start, start + limit - 1)
        with self._redis.pipeline(transaction=False) as pipeline:
            for user in users:
                pipeline.hmget(key_of("user", user), "number", "length", "last")
            states = map(_user, pipeline.execute())
        found = zip(users, states, strict=True)
        # Who is deleted meanwhile is not listed.
        return [
            Member(user, state.length, state.last, cursor_of(state.last, user))
            for user, state in found
            if state.last is not None
        ]

    def _place_behind(self, last: Time, user: str) -> int:
        """How many users come before those behind a cursor."""
        place = self._redis.zrevrank(key_of("recent"), user)
        if place is not None and self._redis.zscore(key_of("recent"), user) == float(last):
            return place + 1
        # The user has had another event since, or is deleted: the place is among equal times.
        later = self._redis.zcount(key_of("recent"), f"({last!r}", "+inf")
        equal = self._redis.zrevrangebyscore(key_of("recent"), repr(last), repr(last))
        # Equal times are in falling order of the ids' bytes.
        return later + sum(other.encode() > user.encode() for other in equal)

    def numbers(self, users: Sequence[str]) -> list[int]:
        with self._redis.pipeline(transaction=False) as pipeline:
            for user in users:
                pipeline.hget(key_of("user", user), "number")
            found = [int(number or 0) for number in pipeline.execute()]
        if self._staged is not None:
            # Who is not there must not be there at the end either: an import appends to nobody
            # who has got events meanwhile.
            for user, number in zip(users, found, strict=True):
                if not number:
                    self._staged.read.setdefault(user, NOBODY)
        return found

    def switch(self, off: Sequence[ItemId], on: Sequence[ItemId]) -> list[ItemId]:
        staged = self._open()
        added, removed = (list(map(json.dumps, items)) for items in (off, on))
        staged.commands += [["SADD", key_of("off"), *part] for part in parts(added)]
        staged.commands += [["SREM", key_of("off"), *part] for part in parts(removed)]
        staged.commands.append(["HINCRBY", key_of("notices"), "switches", "1"])
        before = self._redis.smembers(key_of("off")) if staged.off is None else staged.off
        # Others may switch at the same time: what is off in the end, `off` tells.
        staged.off = frozenset({*before, *added} - {*removed})
        return _in_order(staged.off)

    def off(self) -> list[ItemId]:
        return _in_order(self._redis.smembers(key_of("off")))

    def notices(self) -> Notices:
        found = self._redis.hmget(key_of("notices"), Notices._fields)
        return Notices(*(int(count or 0) for count in found))

    def unit(self) -> str | None:
        # It stays what it is once it is known.
        self._unit = self._unit or self._redis.get(key_of("unit"))
        return self._unit

    def counts(self) -> Counts:
        users = events = 0
        before = None
        while found := self.members(TOGETHER, before):
            users, events = users + len(found), events + sum(one.length for one in found)
            before = found[-1].cursor
        return Counts(users, events)

    def check(self) -> None:
        self._redis.incr(key_of("looks"))

    def passes(self, error: Exception) -> bool:
        # Such as MISCONF, the disk is full, or OOM, the memory is.
        return not isinstance(error, redis.ResponseError)

    def close(self) -> None:
        self._redis.close()


def _user(found: list[Any]) -> User:
    number, length, last = found
    return User(int(number), int(length), json.loads(last)) if number else NOBODY


def _keyed(parts: list[Any]) -> Event:
    """An event without its key, of what stands under that."""
    item, timestamp, *more = parts
    return Event(item, timestamp, None, *more)


def _in_order(texts: Any) -> list[ItemId]:
    items = map(json.loads, texts)
    return sorted(items, key=lambda item: (isinstance(item, str), item))
