"""Training over large catalogues on one GPU and on several of one machine.

    python -m benchmarks scale --out results/scale.jsonl

Histories are random and of one length; all else is that of a training: batches are divided on the
host while the last step runs, vectors travel, the loss is shared, the optimizer updates its rows.
A step is a CUDA graph, on one GPU and on several; the field ``graph`` tells whether it was. Each
case is a job of its own, started as torchrun starts ranks; its time is that of the slowest rank.
What several tell each other is timed alone, too. It needs neither polars nor cyclopts:

    from benchmarks.speed.scale import measure_scale
    measure_scale(gpus=[1, 2])
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.results import append_result, provenance
from benchmarks.speed.collectives import measure_collectives
from benchmarks.speed.instruments.memory import peak_of_process
from benchmarks.speed.instruments.ranks import answer, by_ranks
from benchmarks.speed.instruments.timing import synchronize
from benchmarks.speed.sampled_step import drawn, training_parts
from blossomrec.config import TrainingConfig
from blossomrec.data.batch import Batch
from blossomrec.data.batching.prefetch import prefetch
from blossomrec.data.windows import boundaries, gather_index
from blossomrec.device import resolve_device
from blossomrec.errors import ConfigError
from blossomrec.ranks import Ranks
from blossomrec.training.average import WeightAverage
from blossomrec.training.objective import Step
from blossomrec.training.ranks.update import ShardedUpdate
from blossomrec.training.setup import Parts
from blossomrec.training.shape import Shape, part_sizes
from blossomrec.training.sharded.division import Division, Part
from blossomrec.training.update import GraphUpdate, Update, build_update

LOSSES: dict[str, dict[str, Any]] = {
    "exact": {},
    "sampled": {
        "loss": "sampled_softmax",
        "negatives": 8_192,
        "uniform_share": 0.5,
        "table_optimizer": "lazy_adamw",
    },
}
# Different batches, taken in turn; steps before the clock starts, and while it runs.
BATCHES, WARM_UP, STEPS = 4, 6, 20


@dataclass(frozen=True)
class ScaleCase:
    """What is trained, and on how many ranks.

    Attributes:
        tokens_per_rank: events of a batch that each rank has.
        graph: whether steps may be CUDA graphs.
    """

    gpus: int
    items: int
    length: int
    tokens_per_rank: int
    loss: str
    hidden_size: int
    graph: bool = True


def cases(
    gpus: Iterable[int],
    items: Iterable[int],
    lengths: Iterable[int],
    tokens: int,
    losses: Iterable[str],
    hidden_size: int,
    graph: bool = True,
) -> Iterator[ScaleCase]:
    """As many events for each rank as one has alone, and as many for all together."""
    for each, loss, length, count in itertools.product(items, losses, lengths, gpus):
        for of_rank in dict.fromkeys((tokens, tokens // count)):
            yield ScaleCase(count, each, length, of_rank, loss, hidden_size, graph)


def measure_scale(
    *,
    gpus: list[int] | None = None,
    items: list[int] | None = None,
    lengths: list[int] | None = None,
    tokens: int = 65_536,
    losses: list[str] | None = None,
    hidden_size: int = 128,
    graph: bool = True,
    device: str = "auto",
    out: Path | None = None,
) -> None:
    """Events that one GPU and several train on in a second, and what a catalogue takes of each;
    and the time of what several tell each other.

    Args:
        gpus: how many train together, one after another; 1 and all there are without it
        items: in the catalogue; 1000000 without it
        lengths: of each history; 200 and 4096 without it
        tokens: events of a batch of one GPU alone
        losses: exact, sampled; both without it
        hidden_size: size of the vectors of items
        graph: replay steps as CUDA graphs on GPUs
        device: cuda or cpu, where ranks are processes; auto takes GPUs if there are any
        out: JSONL file that gets a line for each case, and for each collective and size

    Raises:
        ConfigError: a loss is unknown, or there are fewer GPUs.
        BlossomRecError: a case failed; the message tells what it printed last.
    """
    device = resolve_device(device)
    there = torch.cuda.device_count() if device == "cuda" else None
    counts = gpus or sorted({1, there or 2})
    for name in losses or LOSSES:
        if name not in LOSSES:
            raise ConfigError(f"no loss {name!r}: choose from {', '.join(LOSSES)}")
    if there is not None and max(counts) > there:
        raise ConfigError(f"gpus contains {max(counts)}, but there are {there}")
    sizes = (items or [1_000_000], lengths or [200, 4_096], tokens, losses or list(LOSSES))
    for case in cases(counts, *sizes, hidden_size, graph):
        asked = asdict(case)
        found = by_ranks("benchmarks.speed.scale", asked, case.gpus, device)
        line = {"bench": "scale", **asked, **found}
        print(json.dumps(line), flush=True)
        if out is not None:
            append_result(out, {**line, **provenance(device)})
    for count in counts:
        if count > 1:
            measure_collectives(count, device, out=out)


def time_steps(case: ScaleCase, device: str, ranks: Ranks) -> dict[str, Any]:
    """Time of a step, and memory of this rank; all ranks call this."""
    events = case.tokens_per_rank * case.gpus
    size = {"items": case.items, "events": events, "length": case.length}
    size["hidden_size"] = case.hidden_size
    training = TrainingConfig(**{"device": device, **LOSSES[case.loss]})
    parts, counts = training_parts(size, training, ranks, _shape(case) if case.graph else None)
    average = WeightAverage(parts.model, training.ema_decay, parts.table)
    batches = [drawn(counts, events, case.length, seed) for seed in range(BATCHES)]
    if parts.division is None:
        kind, steps = Update, _whole(batches, parts)
    else:
        parts.division.make_room(itertools.islice(_parts(parts.division, batches), BATCHES))
        kind, steps = ShardedUpdate, parts.division.steps(prefetch(_parts(parts.division, batches)))
    update = build_update(parts, training.clip_norm, kind)

    def take(count: int) -> None:
        for number, step in enumerate(itertools.islice(steps, count)):
            update(step, training.learning_rate)
            average.update(1_000 + number)

    take(WARM_UP)
    synchronize(device)
    ranks.agree(0)
    began = perf_counter()
    take(STEPS)
    synchronize(device)
    took = perf_counter() - began
    cuda = device == "cuda"
    peak = torch.cuda.max_memory_allocated() if cuda else peak_of_process() * 2**20
    nanoseconds, peak, of_table = ranks.agree(
        int(took * 1e9), int(peak), _table_bytes(parts, average)
    )
    seconds = nanoseconds / 1e9 / STEPS
    captured = isinstance(update, GraphUpdate) and update.captured
    # Ranks part as soon as this is told.
    update.close()
    return {
        "graph": captured,
        "events_per_second": round(events / seconds),
        "step_ms": round(1e3 * seconds, 3),
        "peak_mib": round(peak / 2**20, 1),
        "table_mib": round(of_table / 2**20, 1),
    }


def _shape(case: ScaleCase) -> Shape:
    """That of the parts that ranks have of a batch, without room to spare."""
    events = case.tokens_per_rank * case.gpus
    length = min(case.length, events)
    lengths = np.diff(np.append(np.arange(0, events, length), events))
    sizes = part_sizes([lengths], case.gpus)
    return Shape.around(*sizes, int(sizes[0].max()), length, lambda tokens, histories: tokens)


def _whole(batches: list[Batch], parts: Parts) -> Iterator[Step]:
    """Steps of one GPU alone, which has all batches whole, as of one shape."""
    steps = [Step(batch, None, len(batch.items), padded=True) for batch in batches]
    if parts.fabric.device.type != "cuda":
        return itertools.cycle(steps)
    pinned = itertools.cycle([step.map(Tensor.pin_memory) for step in steps])
    return pinned if parts.shape else (step.map(_on_device) for step in pinned)


def _on_device(tensor: Tensor) -> Tensor:
    return tensor.to("cuda", non_blocking=True)


def _parts(division: Division, batches: list[Batch]) -> Iterator[Part]:
    """This rank's part of one batch after another, again and again."""
    for number, batch in enumerate(itertools.cycle(batches)):
        lengths = batch.cu_seqlens.diff().numpy().astype(np.int64)
        yield division(lengths, functools.partial(_some, batch), (0, number))


def _some(batch: Batch, chosen: np.ndarray) -> Batch:
    """What a batch has of some histories."""
    edges = batch.cu_seqlens.numpy().astype(np.int64)
    lengths = np.diff(edges)[chosen]
    rows = torch.from_numpy(gather_index(edges[chosen], lengths))
    cu_seqlens = torch.from_numpy(boundaries(lengths).astype(np.int32))
    return batch.take(rows, cu_seqlens, int(lengths.max()))


def _table_bytes(parts: Parts, average: WeightAverage) -> int:
    """What this rank keeps of the item table: weights, gradient, optimizer state, average."""
    held = parts.model.item_embeddings.weight
    kept = [held, *average.means, *parts.optimizer.state.get(held, {}).values()]
    if parts.table is not None:
        kept += [*vars(parts.table).values(), *parts.table.rows_state.values()]
    rows = [one for one in kept if isinstance(one, Tensor) and one.ndim and len(one) == len(held)]
    whole = sum({one.data_ptr(): one.nbytes for one in rows}.values())
    return whole + (held.nbytes if parts.table is None else 0)


if __name__ == "__main__":
    answer(lambda asked, where, ranks: time_steps(ScaleCase(**asked), where, ranks))
