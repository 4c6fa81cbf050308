"""What a transaction in Redis collects, and how it is carried out at its end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from blossomrec.serving.clock import Time
from blossomrec.serving.store import Conflict, ItemId

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
        keyed: item and time of events with keys, by number of the user and key.
        off: items that will be off, as JSON; None where none are switched.
        unit: of the times, once it is known.
        commands: of Redis, in order.
    """

    read: dict[str, User] = field(default_factory=dict)
    users: dict[str, User] = field(default_factory=dict)
    keyed: dict[tuple[int, str], tuple[ItemId, Time]] = field(default_factory=dict)
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
