"""Events of two periods, a run that was trained on the first, and a model that begins as it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from small_training import small_config

from blossomrec.config import EvaluationConfig, RunConfig
from blossomrec.data.log import EventLog
from blossomrec.data.split import make_split
from blossomrec.models import build_model
from blossomrec.models.sequence import SequenceModel
from blossomrec.run.description import read_run_config
from blossomrec.run.tables import open_vocabulary
from blossomrec.run.weights import load_model
from blossomrec.training.checkpoint import Checkpoints
from blossomrec.training.setup import build_optimizer, training_counts
from blossomrec.training.state import load_optimizer_state
from blossomrec.training.warm_start.weights import Taken, take_over

ITEMS, NEW_ITEMS, USERS, NEW_USERS = 60, 9, 45, 6
PREPARED = {"kind": "kind", "context": ("shop", "price")}
SEES_ALL = dict.fromkeys(
    ("content", "event_kinds", "request_kind", "context", "user_table", "time_gap"), "on"
) | {"request_time": "on", "clock": "on", "repeats": "on"}
SIMULATED: dict[str, Any] = {
    "hidden_size": 32,
    "max_len": 40,
    "tokens_per_batch": 512,
    "epochs": 6,
    "dropout": 0.1,
}


@dataclass(frozen=True)
class Periods:
    """Tables of the first period, and of both together."""

    first: pl.DataFrame
    both: pl.DataFrame
    items: pl.DataFrame
    users: pl.DataFrame

    def prepare(self, folder: Path, *, whole: bool, tables: bool) -> EventLog:
        events = self.both if whole else self.first
        if not tables:
            return EventLog.prepare(events.select("user_id", "item_id", "timestamp"), folder)
        items = self.items.filter(pl.col("item_id").is_in(events["item_id"].unique().implode()))
        return EventLog.prepare(events, folder, items=items, users=self.users, **PREPARED)


def two_periods(seed: int = 3) -> Periods:
    """Walks around a ring of items, on which the second period has new ones between the others.

    There are users, kinds, shops and genres in the second period alone, too, and prices have
    another mean there.
    """
    rng = np.random.default_rng(seed)
    ring = rng.permutation(ITEMS)
    wider = np.insert(ring, np.arange(5, 5 + 6 * NEW_ITEMS, 6), ITEMS + np.arange(NEW_ITEMS))
    rows = []
    for user in range(USERS + NEW_USERS):
        for period, circle in enumerate((ring, wider)):
            if not period and user >= USERS:
                continue
            start, count = rng.integers(len(circle)), int(rng.integers(4, 22))
            for n in range(count):
                names = ["view", "buy"] if not period else ["gift", "view", "buy"]
                shops = ["web", "app"] if not period else ["kiosk", "app", "web"]
                rows.append(
                    {
                        "user_id": f"u{(user * 7) % 53}",
                        "item_id": int(circle[(start + n) % len(circle)]) * 3 + 100,
                        # Some neighbours share a second.
                        "timestamp": 1_700_000_000 + period * 10**6 + user + 60 * (n // 2),
                        "kind": names[rng.integers(len(names))],
                        "shop": shops[rng.integers(len(shops))],
                        "price": float(rng.normal(5 * period, 1 + period)),
                    }
                )
    both = pl.DataFrame(rows).sort("timestamp", maintain_order=True)
    number = np.arange(ITEMS + NEW_ITEMS)
    items = pl.DataFrame(
        {
            "item_id": number * 3 + 100,
            "genre": [f"g{n % 4}" if n < ITEMS + 4 else "new" for n in number],
            "weight": [float(n) for n in number],
            "vector": rng.normal(size=(len(number), 3)).astype(np.float32).tolist(),
        }
    )
    users = both["user_id"].unique(maintain_order=True)
    towns = [f"t{int(one[1:]) % 3}" for one in users]
    table = pl.DataFrame({"user_id": users, "town": towns})
    first = both.filter(pl.col("timestamp") < 1_700_000_000 + 10**6)
    return Periods(first, both, items, table)


@dataclass(frozen=True)
class Begun:
    """A model that begins as a run."""

    model: SequenceModel
    old: SequenceModel
    optimizer: torch.optim.Optimizer
    items: np.ndarray
    taken: Taken


def begin(log: EventLog, run: Path, **options: Any) -> Begun:
    """A model of ``log`` that begins as the run, in evaluation mode."""
    info = read_run_config(run)
    config = RunConfig(info.config.model, info.config.training, info.config.evaluation)
    if options:
        config = small_config(**vars(info.config.model) | options)
    torch.manual_seed(7)
    model = build_model(config.model, log.num_items, log.tables)
    model.keep_scales(info.fields)
    optimizer = build_optimizer(model, config.training)
    train_end = make_split(log, EvaluationConfig()).train_end
    model.mark_trained(training_counts(log, train_end) > 0)
    items = open_vocabulary(run, info).rows_of(log.item_vocabulary)
    taken = take_over(model, run, items, log, train_end, Checkpoints(run / "checkpoints"))
    load_optimizer_state(model, optimizer, taken.moments)
    return Begun(model.eval(), load_model(run), optimizer, items, taken)
