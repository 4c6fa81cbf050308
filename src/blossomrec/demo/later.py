"""What comes later: new events, some of new items, an update, and what it changes for a user."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from rich.console import Console
from rich.table import Table

from blossomrec.data.log import EventLog
from blossomrec.recommender import BlossomRec
from blossomrec.report.sections import Later
from blossomrec.terminal import show
from blossomrec.updating import DailyOptions, update
from blossomrec.updating.runs import Runs

# Of the events, the last ones in time; of the items, one in so many that is new by then.
SHARE, ITEMS_PER_NEW = 0.05, 100
# The items that are met most are in fashion, with anybody: nothing tells whom they suit.
FASHIONABLE = 40
MINUTES = 0.25
K, SHOWN_ITEMS = 10, 6


@dataclass(frozen=True)
class Kept:
    """Events of before, and those that are kept back, in which some items are met first."""

    before: pl.DataFrame
    events: pl.DataFrame
    new_items: list[int]


def keep_back(events: pl.DataFrame) -> Kept:
    """Keep the last events back; some items that are met often among them are new by then."""
    ordered = events.sort("timestamp", maintain_order=True)
    last = ordered.tail(max(1, round(SHARE * len(ordered))))
    count = max(1, events["item_id"].n_unique() // ITEMS_PER_NEW)
    most = last["item_id"].value_counts().sort("count", "item_id", descending=True)
    new = most["item_id"].slice(min(FASHIONABLE, len(most) // 2), count).to_list()
    before = ordered.head(len(ordered) - len(last)).filter(~pl.col("item_id").is_in(new))
    return Kept(before, last, new)


def update_demo(folder: Path, kept: Kept, run: str, console: Console) -> Later:
    """Update log and run of a demo with the events that were kept back; what that has changed.

    The log is a copy, so that the runs before go on to be measured on what they were trained on.

    Args:
        folder: of the demo, with ``log/`` and the run.
        run: name of the run that is in use before.
    """
    place, runs = folder / "later", Runs(folder)
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder / "log", place / "log")
    kept.events.write_parquet(place / "events.parquet")
    if runs.current() is None:
        runs.use(run)

    def tell(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    users = kept.events["user_id"].n_unique()
    tell(
        f"{len(kept.events):,} new events of {users:,} users, new items ({len(kept.new_items)}): "
        + ", ".join(map(str, kept.new_items[:SHOWN_ITEMS]))
        + (", ..." if len(kept.new_items) > SHOWN_ITEMS else "")
    )
    options = DailyOptions(events=[place / "events.parquet"], minutes=MINUTES)
    update(place / "log", folder, None, options, tell=tell, progress=False)
    later = _compared(folder, kept, run, runs.current() or run)
    tell(later.note)
    show(console, _for_terminal(later))
    return later


def _compared(folder: Path, kept: Kept, run: str, now: str) -> Later:
    """What the run before and the one in use recommend to users with new events."""
    log = EventLog.open(folder / "later" / "log")
    users = kept.events["user_id"].unique().sort().to_list()
    with warnings.catch_warnings():
        # The run before does not know the new items.
        warnings.simplefilter("ignore", UserWarning)
        before, after = (
            BlossomRec.from_pretrained(folder / name, log).recommend(users, k=K)
            for name in (run, now)
        )
    of_new = after.filter(pl.col("item_id").is_in(kept.new_items))["user_id"]
    met = of_new.n_unique()
    # The user to whom it has brought most.
    user = users[0] if not met else of_new.value_counts().sort("count", "user_id")["user_id"][-1]
    rows = kept.events.filter(pl.col("user_id") == user).sort("timestamp", maintain_order=True)

    def named(items: list[int]) -> list[str]:
        return [f"{item} (new)" if item in kept.new_items else str(item) for item in items]

    of_user = (
        named(frame.filter(pl.col("user_id") == user)["item_id"].to_list())
        for frame in (before, after)
    )
    last = ", ".join(named(rows["item_id"].to_list()[-SHOWN_ITEMS:]))
    note = (
        f"Of {len(users):,} users with new events {met:,} are recommended a new item, before none "
        f"was. User {user}, last items: {last}"
    )
    ranked = list(zip(map(str, range(1, K + 1)), *of_user, strict=False))
    return Later(note, f"Recommended to user {user}", ("", "before", "after"), ranked)


def _for_terminal(later: Later) -> Table:
    table = Table(*later.head, title=later.caption, title_justify="left")
    for row in later.rows:
        table.add_row(*row)
    return table
