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
from blossomrec.models.event_inputs import FEW
from small_models import NUM_ITEMS, small_model

NOW, USERS, MAX_LEN, HOUR = 1_700_000_000, 4, 200, 3_600
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
# Layers and their attentions, as either backbone may have them.
LAYERS = (
    {"attention": "full"},
    {"attention": "window", "window": 6},
    {"layers": 2, "block_size": 16, "compress_window": 32, "top_n": 4, "window": 8},
    {"near_bias": "on"},
    {"near_bias": "on", "share": 0.7, "block_size": 16, "compress_window": 16},
    {"fusion": "gated"},
    {"fusion": "gated", "gate": "convex", "sinks": 3},
    {"paths": "long", "share": 0.4},
    {"paths": "short", "power_base": 3.0, "sinks": 2},
    {"compress": "mean", "kv_heads": 1, "rotary_share": 1.0},
    {"norm": "pre", "residual": "gated", "feed_forward": "swiglu", "top_n": 300},
    {"feed_forward": "none", "rotary_share": 0.0},
    {"block_size": 1, "compress_window": 2, "kv_heads": 4},
)


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


def all_inputs(backbone: str, left_out: str = "") -> dict[str, Any]:
    """Options of a backbone that sees all that there is but one, and what is of no use without."""
    options = {name: each for name, each in ALL_INPUTS.items() if name != left_out}
    if backbone == "bert4rec" and left_out == "request_time":
        options |= {"time_gap": "off", "clock": "off", "time_share": 0.0}
    if backbone == "bert4rec" and left_out == "event_kinds":
        options |= {"request_kind": "off"}
    return options


def all_forms() -> dict[str, dict[str, Any]]:
    """Options, by a name, that between them have all that can be exported."""
    forms = {}
    for backbone in ("sasrec", "bert4rec"):
        for options in LAYERS:
            name = " ".join(f"{option}={value}" for option, value in options.items())
            forms[f"{backbone} {name}"] = {"backbone": backbone} | options
        forms[f"{backbone} sees all"] = {"backbone": backbone} | all_inputs(backbone)
        for name in ALL_INPUTS:
            seen = {"backbone": backbone} | all_inputs(backbone, name)
            forms[f"{backbone} sees all but {name}"] = seen
    return forms


FORMS = all_forms()


def exported_model(**options: Any) -> Any:
    """As ``small_model``, with gates and embeddings that matter, and attention as defined."""
    tables = all_tables() if options.keys() & ALL_INPUTS.keys() else None
    defaults = {"max_len": MAX_LEN, "layers": 1, "attention_impl": "reference"}
    model = small_model(tables, **defaults | options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gate" in name or not parameter.any():
                parameter.normal_(std=0.3)
    return model


def histories_of(model: Any) -> list[History]:
    """At lengths around a block and the longest, others that are awkward, and of one event."""
    block, longest = model.config.block_size, model.max_len - (not model.causal)
    lengths = {1, 2, block - 1, block, block + 1, 6, 63, 111, longest - 1, longest}
    return [history(length, length) for length in sorted(lengths - {0})]


def history(length: int, seed: int) -> History:
    """With all inputs, of which some are not known."""
    rng = np.random.default_rng(seed)
    times = NOW + np.cumsum(rng.integers(0, 40_000, length))
    # Where the clock strikes, rounding shows.
    times[::5] -= times[::5] % HOUR
    times.sort()
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
