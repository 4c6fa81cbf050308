"""Events of ten days with users and items that come later, and options of small trainings."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from blossomrec.config import RunConfig, with_options
from small_options import SMALL

DAY, FIRST, DAYS = 86_400, 1_700_006_400, 10
USERS, ITEMS = 40, 60
# Of the ten days, those that are rolled in most tests.
PERIODS: dict[str, Any] = {"period": "1d", "periods": 3}


def days_of_events(seed: int = 5) -> pl.DataFrame:
    """Walks around a ring of items that grows: each day a few more items and users are met.

    No user meets an item twice. Some events of a user share a second. Nothing happens in the night.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(USERS):
        joined, ring = int(rng.integers(0, DAYS)) if user >= 15 else 0, rng.integers(0, ITEMS)
        met = set[int]()
        for day in range(joined, DAYS):
            known = 30 + 3 * day
            for n in range(int(rng.integers(0, 4))):
                item = int((ring + len(met)) % known)
                if item in met:
                    continue
                met.add(item)
                second = FIRST + day * DAY + 3_600 + 60 * (n // 2) + user
                rows.append((f"u{user:02}", 500 - item, second))
    # The last event of all is that of the last second of the last day, whoever has it.
    rows.append(("u00", 500 - ITEMS - 5, FIRST + DAYS * DAY - 1))
    columns = ["user_id", "item_id", "timestamp"]
    return pl.DataFrame(rows, schema=columns, orient="row").sort("timestamp", maintain_order=True)


def rich_days() -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """The same with kinds, context and weights, and tables of items and users."""
    rng = np.random.default_rng(1)
    events = days_of_events()
    late = (events["timestamp"] - FIRST).to_numpy() // DAY >= 8
    count = len(events)
    events = events.with_columns(
        kind=pl.Series(np.where(late & (rng.random(count) < 0.5), "gift", "view")),
        shop=pl.Series(np.where(late & (rng.random(count) < 0.5), "kiosk", "web")),
        price=pl.Series(rng.normal(size=count) + 5 * late),
        weight=pl.Series(rng.random(count)),
    )
    ids = events["item_id"].unique(maintain_order=True)
    genres = [f"g{one % 4}" if one > 440 else "late" for one in ids]
    items = pl.DataFrame({"item_id": ids, "genre": genres, "length": [float(one) for one in ids]})
    users = events["user_id"].unique(maintain_order=True)
    table = pl.DataFrame({"user_id": users, "town": [f"t{int(one[1:]) % 3}" for one in users]})
    return events, items, table


def small(**options: Any) -> RunConfig:
    """The configuration of a small training of dense attention."""
    return with_options(RunConfig(), {**SMALL, "attention": "full", "epochs": 2, **options})
