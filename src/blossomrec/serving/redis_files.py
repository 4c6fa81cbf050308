"""What a Redis server keeps on its disk: whether that lasts, and how it is rid of the deleted."""

from __future__ import annotations

import logging
import time
from typing import Any

import redis

from blossomrec.errors import DataError
from blossomrec.serving.refusals import unavailable

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
