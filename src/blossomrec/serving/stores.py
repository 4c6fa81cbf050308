"""Which store a name means."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from blossomrec.errors import ConfigError, MissingExtraError
from blossomrec.serving.store import EventStore

SERVERS = ("redis", "rediss", "unix")


def store_opener(where: str) -> tuple[Callable[[], EventStore], str]:
    """What opens the store that ``where`` names, once more with each call, and how to call it.

    Args:
        where: path of an SQLite file, or the URL of a Redis or Valkey server.

    Raises:
        ConfigError: the URL is of another kind.
        MissingExtraError: a package that the store needs is not installed.
    """
    scheme = re.match(r"([a-z][a-z0-9+.-]*)://", where)
    if scheme is None:
        from blossomrec.serving.sqlite_store import SQLiteStore

        return lambda: SQLiteStore(Path(where)), where
    if scheme[1] not in SERVERS:
        kinds = ", ".join(f"{one}://" for one in SERVERS)
        raise ConfigError(f"store is {where!r}: give the path of a file, or a URL with {kinds}")
    try:
        from blossomrec.serving.redis_store import RedisStore, shown_url
    except ModuleNotFoundError as error:
        if error.name != "redis":
            raise
        raise MissingExtraError("redis", "redis") from error
    return lambda: RedisStore(where), shown_url(where)
