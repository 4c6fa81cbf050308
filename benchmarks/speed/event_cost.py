"""One more event of one user on a processor, over the history that came before.

Two layers of the published size, up to the vector that the next item is scored by: dense and
Blossom attention over kept keys and values, LinRec and Mamba4Rec over the sums that they keep. All
are timed in turn, several times, so that what else the machine does meets them alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import append_result, provenance
from blossomrec.config import ModelConfig
from blossomrec.data.batch import Batch, pack
from blossomrec.models.building import build_model
from blossomrec.models.event_inputs import Asked
from blossomrec.models.sequence import SequenceModel

ITEMS = 3_416
MODELS: dict[str, dict[str, Any]] = {
    "SASRec": {"attention": "full"},
    "BlossomRec": {},
    "SASRec (linrec)": {"attention": "linrec"},
    "Mamba4Rec": {"backbone": "mamba4rec"},
}
LENGTHS, ROUNDS, STEPS = (1_024, 4_096, 16_384), 15, 40


def measure_events(
    *, lengths: list[int] | None = None, rounds: int = ROUNDS, out: Path | None = None
) -> None:
    """Time one more event of one user, on one thread of a processor.

    Args:
        lengths: events before it
        rounds: how often each model is timed in turn
        out: JSONL file that gets a line for each length and model
    """
    for length in lengths or LENGTHS:
        timers = {name: _timer(options, length) for name, options in MODELS.items()}
        times = [{name: one() for name, one in timers.items()} for _ in range(rounds)]
        for name in MODELS:
            ratios = [found[name] / found["BlossomRec"] for found in times]
            line = {
                "measure": "one more event",
                "model": name,
                "length": length,
                "ms": round(statistics.median(found[name] for found in times), 4),
                "ratio": round(statistics.median(ratios), 3),
            }
            print(line, flush=True)
            if out is not None:
                append_result(out, line | provenance())


def _timer(options: dict[str, Any], length: int) -> Callable[[], float]:
    """What gives the milliseconds of one more event of a model after so many."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(max_len=2 * length, **options), ITEMS).eval()
    history, one = (pack([torch.randint(0, ITEMS, (n,)).tolist()]) for n in (length, 1))
    return event_timer(model, history, one, steps=STEPS)


def event_timer(
    model: SequenceModel, history: Batch, one: Batch, told: Asked | None = None, *, steps: int
) -> Callable[[], float]:
    """A function that gives the milliseconds of one more event of a kept state, on one thread.

    Args:
        history: what came before, of one user.
        one: the event that comes, again and again.
        told: what is asked for after it.
        steps: events of a call.
    """
    torch.set_num_threads(1)
    with torch.inference_mode():
        _, state = model.extend(history, model.start())

    def timed() -> float:
        nonlocal state
        seconds = []
        with torch.inference_mode():
            for _ in range(steps):
                begun = time.thread_time()
                _, state = model.extend(one, state)
                model.ask(state.query, told)
                seconds.append(time.thread_time() - begun)
        # What is slower met something else that the machine did.
        return sorted(seconds)[steps // 10] * 1e3

    return timed
