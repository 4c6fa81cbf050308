"""What the verb ``recommend`` can be told."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from cyclopts import Parameter

from blossomrec.config import option
from blossomrec.engines import Engine
from blossomrec.errors import ConfigError

if TYPE_CHECKING:
    from blossomrec.rules import Rules

Value = TypeVar("Value")
# One flag, several values behind it.
Several = Annotated[list[Value], Parameter(consume_multiple=True)]
COMMAS = "with commas between them; an id that has a comma in double quotes"


@dataclass(frozen=True)
class RecommendOptions:
    """From what ``recommend`` chooses; what is None is as the run has it."""

    items: str | None = option(None, f"item ids to choose from, {COMMAS}")
    filter_viewed: bool | None = option(
        None,
        "leave out what is in the history; --no-filter-viewed does not; without either as the run "
        "is evaluated: where the log has no repeats",
    )
    max_len: int | None = option(
        None, "events of a history that the model sees, the last ones; as in training without it"
    )
    at: str | None = option(
        None,
        "the moment for which is recommended, in ISO 8601 or as a time since 1970; that of the "
        "log's last event without it",
    )
    kind: str | None = option(None, "kind of event that is wanted, such as buy; any without it")


@dataclass(frozen=True)
class BulkOptions:
    """For whom ``recommend`` writes files, and where to."""

    all: bool = option(False, "for every user of the log, into --out")
    users: Path | None = option(
        None,
        "for the users in a file, into --out: a table with a column user_id or a single one, or an "
        "id in each line",
    )
    out: Path | None = option(
        None, "Parquet file; with --shards or --rows-per-file a folder; a stopped job goes on there"
    )
    shards: int | None = option(None, "write so many files, of as many users each")
    rows_per_file: int | None = option(None, "write files of at most so many rows")
    engine: Engine = option(
        "local",
        "who computes: this process, or the workers of Ray, on one machine or many (extra: ray)",
    )

    def check(self) -> None:
        """Raise ConfigError unless there is a place for what is written, and nothing else."""
        in_bulk = self.all or self.users is not None
        if in_bulk != (self.out is not None):
            raise ConfigError("--all and --users need --out, and nothing else takes it")
        if not in_bulk and (self.shards is not None or self.rows_per_file is not None):
            raise ConfigError("--shards and --rows-per-file are for --all and --users")
        if not in_bulk and self.engine != "local":
            raise ConfigError(f"--engine is {self.engine}: it is for --all and --users")


@dataclass(frozen=True)
class RuleOptions:
    """What may be chosen by what is known of the items; the defaults change nothing."""

    filter: str | None = option(
        None,
        "expression over the table of items, of those that may be recommended, such as "
        '\'category in ("a", "b") and price < 20 and not sold_out\'',
    )
    boost: Several[str] | None = option(
        None, "'EXPRESSION: AMOUNT', added to the scores of items, such as 'new: 0.5'"
    )
    max_per: Several[str] | None = option(
        None, "COLUMN=LIMIT: at most so many items of a category, such as brand=2"
    )
    diversity: float = option(
        0.0, "from 0 to under 1: how much an item loses by being like those before it"
    )
    exclude_seen_days: float | None = option(
        None, "leave out what is in the last so many days of the history, and nothing older"
    )
    fallback: Literal["none", "recent-popularity"] = option(
        "none", "what users get of whose history the model knows no item"
    )
    reranker: str | None = option(
        None, "registered re-ranker that gives the best items a new order"
    )
    rerank_depth: int = option(100, "how many of the best items the re-ranker gets")
    item_table: Path | None = option(
        None,
        "table of items that the expressions are about, by item_id; that of the log, or else of "
        "the run, without it",
    )

    def rules(self) -> Rules | None:
        """What they say; None where nothing is given."""
        from blossomrec.rules import Rules

        if self == RuleOptions():
            return None
        return Rules(
            filter=self.filter,
            boost=[_boost(text) for text in self.boost or ()],
            max_per=dict(_limit(text) for text in self.max_per or ()),
            diversity=self.diversity,
            exclude_seen_days=self.exclude_seen_days,
            fallback=self.fallback,
            reranker=self.reranker,
            rerank_depth=self.rerank_depth,
            items=self.item_table,
        )


def _boost(text: str) -> tuple[str, float]:
    """The parts of ``EXPRESSION: AMOUNT``."""
    expression, colon, amount = text.rpartition(":")
    with contextlib.suppress(ValueError):
        if colon:
            return expression, float(amount)
    raise ConfigError(f"boost is {text!r}: 'EXPRESSION: AMOUNT' is needed, such as 'new: 0.5'")


def _limit(text: str) -> tuple[str, int]:
    """Column and limit of ``COLUMN=LIMIT``."""
    column, _, limit = text.rpartition("=")
    if not column or not limit.isdecimal():
        raise ConfigError(f"max-per is {text!r}: COLUMN=LIMIT is needed, such as brand=2")
    return column, int(limit)
