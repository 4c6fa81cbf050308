"""What the verb ``export`` can be told of vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from blossomrec.config import option
from blossomrec.errors import ConfigError


@dataclass(frozen=True)
class VectorOptions:
    """What is written besides the vectors of the items, for ``--to vectors`` alone."""

    users: str | None = option(
        None,
        "also vectors of users: all of the log, or those in a file, a table with a column user_id "
        "or a single one, or an id in each line",
    )
    unknown: Literal["refuse", "skip"] = option(
        "refuse", "what to do with users of a file who are not in the log"
    )
    index: str | None = option(
        None,
        "also an index of the items for inner products, as faiss names it, such as Flat or "
        "IVF256,Flat (extra: ann)",
    )
    at: str | None = option(
        None,
        "the moment for which is recommended, in ISO 8601 or as a time since 1970; that of the "
        "log's last event without it",
    )
    kind: str | None = option(None, "kind of event that is wanted, such as buy; any without it")

    def check(self) -> None:
        """Raise ConfigError where something is said of users, and none are asked for."""
        for name in ("at", "kind"):
            if getattr(self, name) is not None and self.users is None:
                raise ConfigError(f"{name} is {getattr(self, name)!r}: it is for users alone")
