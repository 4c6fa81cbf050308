"""Stores of events, and which of them a URL or a path means."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from blossomrec.errors import ConfigError, MissingExtraError
from blossomrec.registry import Registry
from blossomrec.serving.stores.store import EventStore

# By the scheme of a URL, what opens the store that the URL names, once more with each call.
STORES: Registry[Callable[[str], EventStore]] = Registry(
    "store",
    "blossomrec.stores",
    dict.fromkeys(("redis", "rediss", "unix"), "blossomrec.serving.stores.redis_store:RedisStore"),
)


def store_opener(where: str) -> tuple[Callable[[], EventStore], str]:
    """What opens the store that ``where`` names, once more with each call, and how to call it.

    Args:
        where: path of an SQLite file, or a URL whose scheme is in ``STORES``, such as that of a
            Redis or Valkey server.

    Raises:
        ConfigError: the URL is of another kind.
        MissingExtraError: a package that the store needs is not installed.
    """
    scheme = re.match(r"([a-z][a-z0-9+.-]*)://", where)
    if scheme is None:
        from blossomrec.serving.stores.sqlite_store import SQLiteStore

        return lambda: SQLiteStore(Path(where)), where
    if scheme[1] not in STORES:
        kinds = ", ".join(f"{one}://" for one in STORES)
        raise ConfigError(f"store is {where!r}: give the path of a file, or a URL with {kinds}")
    try:
        store = STORES.get(scheme[1])
    except ModuleNotFoundError as error:
        if error.name != "redis":
            raise
        raise MissingExtraError("redis", "redis") from error
    return lambda: store(where), shown_url(where)


def shown_url(url: str) -> str:
    """A URL without its password."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"
