"""What the Redis store is made of: its transaction, and what the server keeps on its disk."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import redis

from blossomrec.data.units import Time
from blossomrec.errors import DataError
from blossomrec.serving.refusals import unavailable
from blossomrec.serving.stores.store import Conflict, Event

PAUSE = 0.01
LONGEST_REWRITE = 600.0

logger = logging.getLogger("blossomrec.serving")


def check_durable(server: Any, name: str) -> None:
    """Refuse a server that could lose what it has acknowledged, and warn of what it may lose.

    Raises:
        DataError: it has no append-only file, or may throw keys away when its memory is full.
    """
    if not server.info("persistence")["aof_enabled"]:
        raise DataError(
            f"{name} keeps no append-only file, so that events would be lost when it ends: start "
            "it with --appendonly yes --appendfsync always"
        )
    memory = server.info("memory")
    if memory.get("maxmemory") and memory["maxmemory_policy"].startswith("allkeys"):
        raise DataError(
            f"{name} throws keys away when its memory is full (maxmemory-policy "
            f"{memory['maxmemory_policy']}): events need noeviction"
        )
    wanted = {"appendfsync": "always", "no-appendfsync-on-rewrite": "no"}
    for option, value in wanted.items():
        found = _setting(server, option)
        if found is None:
            logger.warning("%s does not tell its %s: it should be %s", name, option, value)
        elif found != value:
            logger.warning(
                "%s has %s %s: what was acknowledged in the last second or more may be lost when "
                "its machine fails; only %s keeps everything",
                name,
                option,
                found,
                value,
            )


def rewrite_files(server: Any) -> None:
    """Have the server write its files anew, without what was deleted, and wait for that.

    Raises:
        Refusal: 503, they could not be written, or not in time.
    """
    _written(server, server.bgrewriteaof, "aof_rewrite", "aof_last_bgrewrite_status")
    # Without snapshots there is one file alone. A server that does not tell may have them.
    if _setting(server, "save") != "":
        _written(server, server.bgsave, "rdb_bgsave", "rdb_last_bgsave_status")


def _written(server: Any, begin: Any, name: str, status: str) -> None:
    end = time.monotonic() + LONGEST_REWRITE
    # Only one that began after the deletion is without the deleted.
    while not _begun(begin):
        _pause(end)
    while True:
        found = server.info("persistence")
        if not found[f"{name}_in_progress"] and not found.get("aof_rewrite_scheduled"):
            break
        _pause(end)
    if found[status] != "ok":
        raise _traces(f"the server could not write them anew ({status} is {found[status]})")


def _begun(begin: Any) -> bool:
    try:
        begin()
    except redis.ResponseError as error:
        if "progress" not in str(error) and "active" not in str(error):
            raise _traces(f"the server refused to write them anew: {error}") from error
        return False
    return True


def _pause(end: float) -> None:
    if time.monotonic() > end:
        raise _traces(f"writing them anew took longer than {LONGEST_REWRITE:g} s")
    time.sleep(PAUSE)


def _traces(why: str) -> Exception:
    message = (
        "the events are deleted, but their traces are still in the store's files; delete again"
    )
    return unavailable("not_erased", message, details=why)


def _setting(server: Any, option: str) -> str | None:
    try:
        return server.config_get(option).get(option)
    except redis.ResponseError:
        return None


PREFIX = "blossomrec:"
# Arguments of one command inside a script, which Lua puts on its stack.
TOGETHER = 1_000

# Carries out commands if the users are still those that were read: all or none of it, and nothing
# of others comes in between.
COMMIT = """
local work = cjson.decode(ARGV[1])
for _, read in ipairs(work.read) do
  local found = redis.call('HMGET', read[1], 'number', 'length')
  if (found[1] or '0') ~= read[2] or (found[2] or '0') ~= read[3] then return 0 end
end
for _, command in ipairs(work.commands) do redis.call(unpack(command)) end
return 1
"""


class User(NamedTuple):
    """What is known of a user; number 0 for one without events."""

    number: int
    length: int
    last: Time | None


NOBODY = User(0, 0, None)


@dataclass
class Staged:
    """What a transaction has read and what it is to do at its end.

    Attributes:
        read: users as they were found in the server.
        users: users as they will be.
        keyed: events with keys, by number of the user and key.
        off: items that will be off, as JSON; None where none are switched.
        unit: of the times, once it is known.
        commands: of Redis, in order.
    """

    read: dict[str, User] = field(default_factory=dict)
    users: dict[str, User] = field(default_factory=dict)
    keyed: dict[tuple[int, str], Event] = field(default_factory=dict)
    off: frozenset[str] | None = None
    unit: str | None = None
    commands: list[list[str]] = field(default_factory=list)

    def copy(self) -> Staged:
        return replace(
            self, users=dict(self.users), keyed=dict(self.keyed), commands=list(self.commands)
        )

    def commit(self, server: Any) -> None:
        """Carry it out.

        Raises:
            Conflict: one of the users is not as it was read any more.
        """
        if not self.commands:
            return
        pairs: list[str] = []
        for user, state in self.users.items():
            if state.number:
                pairs += [repr(state.last), user]
        recent = [["ZADD", key_of("recent"), *part] for part in parts(pairs)]
        read = [
            [key_of("user", user), str(state.number), str(state.length)]
            for user, state in self.read.items()
        ]
        work = {"read": read, "commands": self.commands + recent}
        if not server.eval(COMMIT, 0, json.dumps(work)):
            raise Conflict


def order_by_time(server: Any) -> None:
    """Order the users of a database of format 1 by the time of their last event."""
    users = [user for user, _ in server.zscan_iter(key_of("recent"), count=TOGETHER)]
    for start in range(0, len(users), TOGETHER):
        some = users[start : start + TOGETHER]
        with server.pipeline(transaction=False) as pipeline:
            for user in some:
                pipeline.hget(key_of("user", user), "last")
            times = pipeline.execute()
        known = {user: json.loads(last) for user, last in zip(some, times, strict=True) if last}
        if known:
            server.zadd(key_of("recent"), known, xx=True)
    server.delete(key_of("changes"))


def key_of(*parts: str | int) -> str:
    """A key of the store."""
    return PREFIX + ":".join(map(str, parts))


def parts(arguments: list[str]) -> Iterator[list[str]]:
    """Arguments in parts that a command takes; an even number each."""
    for start in range(0, len(arguments), TOGETHER):
        yield arguments[start : start + TOGETHER]
