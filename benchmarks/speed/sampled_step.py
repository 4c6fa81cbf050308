"""One step of training with a catalogue of a million items: time, and memory at most.

Random histories of one length; all else is that of a training: model, loss, gradients, clipping,
optimizer and moving average. On a GPU the step is a CUDA graph and memory is what torch had
allocated, weights and moments included; on a processor it is a call and what the process held.
Each form is a process of its own.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from benchmarks.results import append_result, provenance
from benchmarks.speed.instruments.memory import alone, peak_of_process
from benchmarks.speed.instruments.timing import seconds
from blossomrec.config import ModelConfig, RunConfig, TrainingConfig, check
from blossomrec.data.batch import Batch
from blossomrec.device import resolve_device
from blossomrec.errors import ConfigError
from blossomrec.losses import build_loss
from blossomrec.models.building import build_model
from blossomrec.models.sequence import SequenceModel
from blossomrec.ranks import ALONE, Ranks
from blossomrec.training.average import WeightAverage
from blossomrec.training.objective import Objective, Step
from blossomrec.training.setup import Parts, build_optimizer, open_fabric
from blossomrec.training.shape import Shape
from blossomrec.training.sharded.build import ShardedObjective, divide
from blossomrec.training.sparse import build_table
from blossomrec.training.state import seeded
from blossomrec.training.update import GraphUpdate, Update

SAMPLED = {"loss": "sampled_softmax", "uniform_share": 0.5}
FORMS: dict[str, dict[str, Any]] = {
    "exact": {},
    "sampled": SAMPLED,
    "sampled, lazy_adamw": SAMPLED | {"table_optimizer": "lazy_adamw"},
    "sampled, rowwise_adagrad": SAMPLED | {"table_optimizer": "rowwise_adagrad"},
}
OFF: dict[str, Any] = dict.fromkeys(
    ("time_gap", "request_time", "content", "event_kinds", "repeats"), "off"
)
# Steps before one is timed: the graph is captured in the last of them.
WARM_UP = 4


def measure_sampled_step(
    *,
    items: int = 1_000_000,
    events: int = 131_072,
    length: int = 1_024,
    hidden_size: int = 128,
    negatives: list[int] | None = None,
    forms: list[str] | None = None,
    ema_decay: float = 0.998,
    rounds: int = 5,
    device: str = "auto",
    out: Path | None = None,
) -> None:
    """Time and peak memory of a training step over a large catalogue.

    Args:
        items: in the catalogue
        events: of a batch
        length: of each history
        hidden_size: size of the vectors of items
        negatives: sampled items, each measured; 1024 and 8192 without it
        forms: exact; sampled; sampled, lazy_adamw; sampled, rowwise_adagrad; all without it
        ema_decay: of the moving average; 0 for none
        rounds: how often a step is timed
        device: cuda or cpu; auto takes a GPU if there is one
        out: JSONL file that gets a line for each form
    """
    device = resolve_device(device)
    for name in forms or FORMS:
        if name not in FORMS:
            raise ConfigError(f"no form {name!r}: choose from {'; '.join(FORMS)}")
        for count in (negatives or [1_024, 8_192]) if FORMS[name] else [1]:
            training = {"negatives": count, "ema_decay": ema_decay, **FORMS[name]}
            check(TrainingConfig(**training))
            size = {"items": items, "events": events, "length": length, "hidden_size": hidden_size}
            found = alone(measured, size, training, rounds, device)
            line = {"bench": "sampled step", "form": name, **size, **found}
            line["negatives"] = count if FORMS[name] else None
            print(line, flush=True)
            if out is not None:
                append_result(out, {**line, **provenance(device)})


def measured(
    size: dict[str, int], training: dict[str, Any], rounds: int, device: str
) -> dict[str, Any]:
    """Milliseconds of a step, and MiB at most."""
    training = {"device": device, **training}
    step, _ = training_step(size, TrainingConfig(**training))
    for _ in range(WARM_UP):
        step()
    times = [seconds(step, device) for _ in range(rounds)]
    cuda = device == "cuda"
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else peak_of_process()
    return {
        "ms": round(1e3 * statistics.median(times), 3),
        "peak_mib": round(peak, 1),
        "rounds": rounds,
    }


def training_step(
    size: dict[str, int], training: TrainingConfig
) -> tuple[Callable[[], None], SequenceModel]:
    """A step on the same batch, over and over, as a training takes it, and the model."""
    parts, counts = training_parts(size, training)
    batch = drawn(counts, size["events"], size["length"]).to(parts.fabric.device)
    update = GraphUpdate(Update(parts, training.clip_norm))
    average = WeightAverage(parts.model, training.ema_decay, parts.table)
    # Of the shape of a graph, as all batches of one.
    given = Step(batch, None, size["events"], padded=True)

    def step() -> None:
        update(given, training.learning_rate)
        average.update(1_000)

    return step, parts.model


def training_parts(
    size: dict[str, int],
    training: TrainingConfig,
    ranks: Ranks = ALONE,
    shape: Shape | None = None,
) -> tuple[Parts, np.ndarray]:
    """What a training is made of but for its batches and rates, and how often items occur, [I].

    Args:
        ranks: who train together.
        shape: of a rank's parts of the batches, for a graph; None for none.
    """
    items, length = size["items"], min(size["length"], size["events"])
    model_config = ModelConfig(max_len=length, hidden_size=size["hidden_size"], **OFF)
    config = RunConfig(model=model_config, training=training)
    fabric = open_fabric(training, ranks)
    with seeded(0):
        model = build_model(config.model, items, ranks=ranks).to(fabric.device).train()
    # As frequencies of items are: many events for few of them.
    counts = np.random.default_rng(0).permutation(size["events"] * 50 // np.arange(1, items + 1))
    loss = build_loss(training, counts, items, may_fuse=model.may_fuse)
    table = build_table(model, loss, training)
    optimizer = build_optimizer(model, training, table)
    options = {"selector_weight": config.model.selector_weight, "table": table}
    division = None
    if ranks.alone:
        objective = Objective(model, loss, **options)
    else:
        objective = ShardedObjective(model, loss, ranks=ranks, **options)
        division = divide(model, loss, config, ranks, shape)
    wrapped, stepper = fabric.setup(objective, optimizer)
    # Neither batches nor their rates take part in a step.
    nothing = cast(Any, None)
    given = (fabric, model, optimizer, loss, wrapped, stepper, nothing, nothing, shape, table)
    return Parts(*given, ranks=ranks, division=division), counts


def drawn(counts: np.ndarray, events: int, length: int, seed: int = 0) -> Batch:
    """Histories of items by their frequency, each event's target the next one's item."""
    cumulative, length = torch.from_numpy(counts.cumsum()), min(length, events)
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(events + 1, dtype=torch.float64, generator=generator)
    draws = (draws * int(cumulative[-1])).long()
    items = torch.searchsorted(cumulative, draws, right=True).clamp(max=len(counts) - 1)
    edges = torch.arange(0, events + length, length).clamp(max=events).unique()
    return Batch(items[:-1], edges.to(torch.int32), length, targets=items[1:])
