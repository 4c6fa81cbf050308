"""What a training step takes on more GPUs than were measured, from what one and two took.

Each rank has as many events as one has alone, and compares the rows of all with its share of the
items: its arithmetic stays level, and what grows is what ranks tell each other::

    step(N) = step(1) + fixed + bytes(N) / bandwidth

``fixed`` is what two ranks took beyond one and beyond their bytes, so that step(2) is as measured.
It has the latencies of the collectives and, where a step was no CUDA graph, its launches; that the
optimizer has fewer rows of the table to update on more ranks is left out. All GPUs are of one
machine, where each reaches every other as fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from benchmarks.speed.collectives import (
    ALL_GATHER,
    ALL_REDUCE,
    ALL_TO_ALL,
    COLLECTIVES,
    REDUCE_SCATTER,
    leaving,
)
from benchmarks.speed.sampled_step import OFF
from benchmarks.tables.measured_lines import Line
from blossomrec.config import ModelConfig
from blossomrec.models import build_model

GPUS = (4, 8)
# What a case is, whatever number of GPUs it is on.
CASE = ("items", "length", "loss", "hidden_size", "tokens_per_rank")


def sizes(gpus: int, events: int, hidden_size: int, encoder: int) -> dict[str, int]:
    """Bytes of the collectives of a step with the exact loss, as large as these are measured.

    Args:
        events: of each rank, T. Each is a row of the loss, and its item one that is fetched: at
            most, since a part meets some items more than once.
        encoder: parameters that every rank has.
    """
    rows = gpus * events
    # Of each row its vector in 16 bits, its target, the weight of its loss, and from every rank
    # the logarithm of its sum and the logit of the target.
    gathered = 2 * hidden_size + 8 + 4 + gpus * 2 * 4
    return {
        ALL_GATHER: rows * gathered,
        REDUCE_SCATTER: rows * hidden_size * 4,
        # Vectors, and their gradients back.
        ALL_TO_ALL: 2 * events * hidden_size * 4,
        ALL_REDUCE: encoder * 4,
    }


def told_seconds(
    gpus: int, events: int, hidden_size: int, encoder: int, bandwidth: dict[str, float]
) -> float:
    """Seconds in a step for the bytes that leave each rank.

    Args:
        bandwidth: bytes a second of each collective.
    """
    of_each = sizes(gpus, events, hidden_size, encoder)
    return sum(leaving(name, gpus) * of_each[name] / bandwidth[name] for name in of_each)


def step_seconds(one: float, two: float, told_by_two: float, told: float) -> float:
    """Seconds of a step.

    Args:
        one, two: measured seconds of a step of one rank and of two.
        told_by_two, told: those for the bytes of two ranks, and of these.
    """
    fixed = two - one - told_by_two
    return one + fixed + told


def bandwidths(lines: Sequence[Line], gpu: str) -> dict[str, float]:
    """Bytes a second of each collective between GPUs of a kind, of the largest that was measured;
    nothing unless all were."""
    found = {
        line["collective"]: 1e9 * line["gb_per_second"]
        for line in sorted(lines, key=lambda line: line["mib"])
        if line["bench"] == "collectives" and kind(line) == gpu
    }
    return found if set(found) == set(COLLECTIVES) else {}


def kind(line: Line) -> str:
    """The kind of GPU that a line is of."""
    return line["hardware"].partition(";")[0]


def computed(scale: Sequence[Line], collectives: Sequence[Line]) -> list[Line]:
    """Lines of 4 and 8 GPUs with the exact loss, of cases that one and two were measured at; none
    where no collectives were.

    They have no peak memory, and say that they are ``computed``.
    """
    measured = {(*(line[name] for name in CASE), line["gpus"]): line for line in scale}
    lines = []
    for (*case, gpus), two in measured.items():
        one, bandwidth = measured.get((*case, 1)), bandwidths(collectives, kind(two))
        if gpus != 2 or one is None or not bandwidth or two["loss"] != "exact":
            continue
        more = [count for count in GPUS if (*case, count) not in measured]
        lines += [_line(count, one, two, bandwidth) for count in more]
    return lines


def _line(gpus: int, one: Line, two: Line, bandwidth: dict[str, float]) -> Line:
    events, size = two["tokens_per_rank"], two["hidden_size"]
    encoder = encoder_parameters(size, two["length"])
    told_by_two, told = (
        told_seconds(count, events, size, encoder, bandwidth) for count in (2, gpus)
    )
    seconds = step_seconds(one["step_ms"] / 1e3, two["step_ms"] / 1e3, told_by_two, told)
    return {
        **{name: two[name] for name in (*CASE, "bench", "hardware")},
        "gpus": gpus,
        "computed": True,
        "events_per_second": round(gpus * events / seconds),
        "step_ms": round(1e3 * seconds, 3),
        "table_mib": round(one["table_mib"] / gpus, 1),
    }


@cache
def encoder_parameters(hidden_size: int, length: int) -> int:
    """How many parameters the measured model has besides the item table."""
    model = build_model(ModelConfig(max_len=length, hidden_size=hidden_size, **OFF), 2)
    table = model.item_embeddings.weight
    return sum(each.numel() for each in model.parameters() if each is not table)
