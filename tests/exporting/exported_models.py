"""Models that see all that can be exported, and their histories, packed and filled up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blossomrec.data.features import Categories, FeatureTable, Numbers, Titles, Vectors
from blossomrec.data.fields import ContextField, EventFields, Tables
from blossomrec.data.history import History
from blossomrec.models.features import FEW
from small_models import NUM_ITEMS, small_model

NOW, USERS, MAX_LEN = 1_700_000_000, 4, 200
# A block and its neighbours, the power law, one event, and the longest history.
LENGTHS = (1, 2, 15, 16, 17, 63, 111, 199)
KINDS = ("click", "cart", "buy")
CONTEXT = (
    ContextField("shop", "category", ("web", "app")),
    ContextField("price", "number", mean=10.0, deviation=4.0),
    ContextField("campaign", "category", tuple(f"campaign {n}" for n in range(FEW))),
)
ALL_INPUTS = {
    **dict.fromkeys(("time_gap", "request_time", "clock", "event_kinds", "request_kind"), "on"),
    **dict.fromkeys(("context", "user_table", "content"), "on"),
    "time_share": 0.5,
}


def categories(rows: int, names: int, seed: int) -> Categories:
    """One or two of so many names for each row."""
    rng = np.random.default_rng(seed)
    offsets = np.cumsum([0, *rng.integers(1, 3, rows)])
    values = rng.integers(0, names + 1, offsets[-1]).astype(np.int32)
    return Categories(Titles.of([f"name {n}" for n in range(names)]), values, offsets)


def all_tables() -> Tables:
    """Tables of items and users with few and many names, numbers and vectors, and event fields."""
    rng = np.random.default_rng(1)
    items = {
        "category": categories(NUM_ITEMS, 5, 1),
        "price": Numbers(rng.normal(size=NUM_ITEMS).astype(np.float32)),
        "image": Vectors(rng.normal(size=(NUM_ITEMS, 3)).astype(np.float32)),
    }
    users = {
        "age": Numbers(np.array([20, np.nan, 50, 60], np.float32)),
        "likes": categories(USERS, 3, 2),
        "town": categories(USERS, FEW + 1, 3),
    }
    fields = EventFields(KINDS, CONTEXT)
    return Tables(FeatureTable(items, NUM_ITEMS), FeatureTable(users, USERS), fields)


def exported_model(tables: Tables | None = None, **options: Any) -> Any:
    """As ``small_model``, with gates and embeddings that matter."""
    model = small_model(tables, **{"max_len": MAX_LEN, "layers": 1} | options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gate" in name or not parameter.any():
                parameter.normal_(std=0.3)
    return model


def history(length: int, seed: int) -> History:
    """With all inputs, of which some are not known."""
    rng = np.random.default_rng(seed)
    times = NOW + np.cumsum(rng.integers(0, 40_000, length))
    if seed % 3 == 1:
        times[-1] = -1
    columns = [rng.integers(0, 3, length), rng.normal(10, 4, length), rng.integers(0, 200, length)]
    context = np.stack(columns, 1).astype(np.float32)
    context[rng.random(context.shape) < 0.2] = np.nan
    asked = -1 if seed % 3 == 2 else NOW + 50_000_000
    return History(
        rng.integers(0, NUM_ITEMS, length),
        times,
        np.full(length, asked),
        rng.integers(0, len(KINDS) + 1, length),
        np.full(length, seed % (len(KINDS) + 1)),
        context,
        np.full(length, seed % (USERS + 1) - 1),
    )


def filled_up(histories: Sequence[History], names: Sequence[str]) -> dict[str, Tensor]:
    """Histories as an exported encoder takes them, in the order in which it does."""
    items, *others = names
    given = dict.fromkeys((items, "lengths", *others), torch.tensor([len(x) for x in histories]))
    for name in names:
        columns = [torch.from_numpy(getattr(each, name)) for each in histories]
        if name in ("asked", "asked_kinds", "users"):
            given[name] = torch.stack([column[-1] for column in columns])
        else:
            given[name] = torch.nn.utils.rnn.pad_sequence(columns, batch_first=True)
    return given
