"""What inputs besides items cost: a training step on a GPU, or one more event on a CPU.

Every form is timed in turn, several times, so that what else the machine does meets them alike. On
a GPU a step is a CUDA graph of forward, backward and update; on a CPU it is the state of one user
taken on by an event, and asked for the next item, in seconds of its thread.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.results import append_result, provenance
from benchmarks.speed.event_cost import event_timer
from blossomrec.config import ModelConfig
from blossomrec.data.batch import Batch
from blossomrec.data.features import Categories, FeatureTable, Numbers, Titles, Vectors
from blossomrec.data.fields import ContextField, EventFields, Tables
from blossomrec.device import resolve_device
from blossomrec.losses.softmax import cross_entropy
from blossomrec.models.building import build_model
from blossomrec.models.event_inputs import Asked
from blossomrec.models.sequence import SequenceModel

EVENTS, LENGTH, ITEMS, GENRES, USER_GROUPS, VECTOR = 131_072, 1_024, 3_883, 18, 18, 64
KINDS = ("click", "cart", "buy")
SHOPS = tuple(map(str, range(20)))
GAP = {"time_gap": "on"}
MOMENT = GAP | {"request_time": "on"}
SEEN_KINDS = {"event_kinds": "on", "request_kind": "on"}
TABLES = {"content": "on", "context": "on", "user_table": "on"}
WEIGHTS = "weights"
FORMS: dict[str, dict[str, Any]] = {
    "ids": {},
    "weights": {WEIGHTS: True},
    "gap": GAP,
    "rotary by time": {"time_share": 0.25},
    "gap, moment": MOMENT,
    "kinds": SEEN_KINDS,
    "context": {"context": "on"},
    "users": {"user_table": "on"},
    "content": {"content": "on"},
    "gap, moment, kinds, context": MOMENT | SEEN_KINDS | {"context": "on"},
    "all": MOMENT | SEEN_KINDS | TABLES | {"time_share": 0.25, "clock": "on", WEIGHTS: True},
}
# A state that is taken on has no loss, and takes vectors of items that are made once.
ONLY_IN_TRAINING = ("weights", "content")
START, APART = 1_700_000_000, 5_000
ROUNDS, KEPT_EVENTS, STEPS = 25, 2_000, 60


def measure_inputs(*, device: str = "auto", rounds: int = ROUNDS, out: Path | None = None) -> None:
    """Time inputs besides items, each beside ids alone.

    Args:
        device: cuda for a training step, cpu for one more event; auto takes a GPU if there is one
        rounds: how often each is timed in turn
        out: JSONL file that gets a line for each form
    """
    device = resolve_device(device)
    forms = {n: f for n, f in FORMS.items() if device == "cuda" or n not in ONLY_IN_TRAINING}
    timers = {name: _timer(device, dict(form)) for name, form in forms.items()}
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(rounds):
        for name, timer in timers.items():
            times[name].append(timer())
    for name, found in times.items():
        ratio = statistics.median(a / b for a, b in zip(found, times["ids"], strict=True))
        line = {
            "measure": "training step" if device == "cuda" else "one more event",
            "inputs": name,
            "ms": round(statistics.median(found), 4),
            "ratio": round(ratio, 3),
        }
        print(line, flush=True)
        if out is not None:
            append_result(out, {**line, **provenance(device)})


def _timer(device: str, form: dict[str, Any]) -> Callable[[], float]:
    """What gives the milliseconds of one step."""
    weighted = form.pop(WEIGHTS, False)
    torch.manual_seed(0)
    model = build_model(
        ModelConfig(max_len=LENGTH, fusion="gated", kv_heads=2, **form), ITEMS, _tables()
    )
    return _training(model.cuda().train(), weighted) if device == "cuda" else _event(model.eval())


def _tables() -> Tables:
    rng, users = np.random.default_rng(0), EVENTS // LENGTH

    def groups(rows: int, count: int) -> Categories:
        names = Titles.of([str(number) for number in range(count)])
        values = rng.integers(1, count + 1, 2 * rows).astype(np.int32)
        return Categories(names, values, np.arange(0, 2 * rows + 1, 2))

    vectors = Vectors(rng.normal(size=(ITEMS, VECTOR)).astype(np.float32))
    ages = Numbers(rng.normal(size=users).astype(np.float32))
    context = (ContextField("shop", "category", SHOPS), ContextField("price", "number"))
    return Tables(
        FeatureTable({"genres": groups(ITEMS, GENRES), "vector": vectors}, ITEMS),
        FeatureTable({"groups": groups(users, USER_GROUPS), "age": ages}, users),
        EventFields(KINDS, context),
    )


def _drawn(count: int, device: str) -> Batch:
    """Histories of random events with all that can be known of them."""

    def draw(limit: int) -> torch.Tensor:
        return torch.randint(0, limit, (count,), device=device)

    length = min(count, LENGTH)
    times = START + torch.cumsum(draw(APART), 0)
    context = torch.stack((draw(len(SHOPS) + 1).float(), torch.randn(count, device=device)), 1)
    users = torch.arange(count // length, device=device).repeat_interleave(length)
    edges = torch.arange(0, count + 1, length, dtype=torch.int32, device=device)
    kinds = len(KINDS) + 1
    return Batch(
        draw(ITEMS),
        edges,
        length,
        targets=draw(ITEMS),
        times=times,
        asked=times + 100,
        kinds=draw(kinds),
        asked_kinds=draw(kinds),
        context=context,
        users=users,
    )


def _training(model: SequenceModel, weighted: bool) -> Callable[[], float]:
    """A step of training as a graph on a GPU."""
    batch, rows = _drawn(EVENTS, "cuda"), torch.arange(EVENTS, device="cuda")
    weights = torch.rand(EVENTS, device="cuda") if weighted else None
    optimizer = torch.optim.AdamW(model.parameters(), fused=True, capturable=True)
    assert batch.targets is not None
    targets = batch.targets

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            encoded = model.encode(batch, distil_rows=rows)
            catalogue = model.output_weight() if encoded.catalogue is None else encoded.catalogue
            loss = cross_entropy(encoded.hidden, catalogue, targets, weights)
            assert encoded.selector_loss is not None
            (loss + encoded.selector_loss).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            step()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def timed() -> float:
        graph.replay()
        start.record()
        for _ in range(10):
            graph.replay()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 10

    return timed


def _event(model: SequenceModel) -> Callable[[], float]:
    """One more event of a kept state, and what is asked, on a CPU."""
    history, one = _drawn(KEPT_EVENTS // LENGTH * LENGTH, "cpu"), _drawn(1, "cpu")
    told = None
    if model.request_inputs is not None:
        told = Asked(torch.tensor([60]), torch.tensor([START]), torch.tensor([3]))
    return event_timer(model, _seen(model, history), _seen(model, one), told, steps=STEPS)


def _seen(model: SequenceModel, batch: Batch) -> Batch:
    """One history of what the model sees."""
    given = {name: getattr(batch, name) for name in model.kept_inputs}
    edges = torch.tensor([0, len(batch.items)], dtype=torch.int32)
    return Batch(**given, cu_seqlens=edges, max_length=len(batch.items))
