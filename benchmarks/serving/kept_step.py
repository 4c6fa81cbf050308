"""One new event of each of many users on a GPU, as the thread of the model brings it in.

``step_ms`` is what lies between histories that have one new event each and the queries of all of
them on the GPU, the work of the host included; ``recompute_ms`` the same for an encoder that keeps
nothing. Weights are random, histories too. Nothing is printed unless the queries after all these
steps are those of the whole histories in double precision.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.results import append_result, provenance
from blossomrec.config import ModelConfig
from blossomrec.data.batch import pack
from blossomrec.data.history import History
from blossomrec.errors import ConfigError
from blossomrec.models.building import build_model
from blossomrec.models.sequence import SequenceModel
from blossomrec.serving.version.encoder import Encoder, WholeEncoder, build_encoder
from blossomrec.serving.version.histories import HistoryCache, UserHistory

ITEMS = 100_000
WARM_UP, STEPS, RECOMPUTED = 10, 30, 5
# Events in one go where everything is computed again.
TOGETHER = 1 << 19
# Histories that are compared, how many of them may select another block where two are about
# equally important, and the error of the others.
COMPARED, MAY_DIFFER, TOLERANCE = 32, 2, 1e-3


class Users:
    """Users with histories of random items.

    Args:
        count: of users.
        length: events of each.
    """

    def __init__(self, count: int, length: int):
        self._rng = np.random.default_rng(0)
        self.histories = [UserHistory(number + 1) for number in range(count)]
        self.add(length)

    def add(self, count: int) -> None:
        """More events of everybody."""
        for history in self.histories:
            history.add(History(self._rng.integers(0, ITEMS, count)), count)

    def copies(self) -> list[UserHistory]:
        """The same events, of which nothing is encoded."""
        copies = [UserHistory(history.number) for history in self.histories]
        for one, history in zip(copies, self.histories, strict=True):
            one.add(history.events, len(history))
        return copies


def advance(encoder: Encoder, histories: list[UserHistory], limit: int = TOGETHER) -> Tensor:
    """Queries [B, D] of histories, as soon as they are encoded to their ends."""
    while behind := [history for history in histories if encoder.missing(history)]:
        encoder.advance(behind, limit)
    return torch.cat([history.query for history in histories if history.query is not None])


def median_ms(prepare: Callable[[], object], work: Callable[[], object], times: int) -> float:
    """Of the work until the GPU is done; what is prepared before it is not counted."""
    seconds = []
    for _ in range(times):
        prepare()
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds) * 1e3


def check(model: SequenceModel, histories: list[UserHistory], queries: Tensor) -> None:
    """ConfigError unless the queries are those of the whole histories."""
    exact, errors = copy.deepcopy(model).double(), []
    for history, query in zip(histories[:COMPARED], queries, strict=False):
        expected = exact.queries(pack([history.events]).to(query.device))[0]
        errors.append(float((query - expected).norm() / expected.norm()))
    wrong = [error for error in errors if not error < TOLERANCE]
    print(f"  largest error {max(errors):.1e}, median {statistics.median(errors):.1e}", flush=True)
    if len(wrong) > MAY_DIFFER:
        raise ConfigError(
            f"{len(wrong)} of {len(errors)} queries differ from those of whole histories: "
            "nothing is timed"
        )


def measure(users: int, length: int, cache_mib: int) -> dict[str, float]:
    """Times in ms for one length of the histories."""
    torch.manual_seed(0)
    limit = length + WARM_UP + STEPS
    model = (
        build_model(ModelConfig(max_len=limit, fusion="gated", kv_heads=2), ITEMS).to("cuda").eval()
    )
    everybody, cache = Users(users, length), HistoryCache(cache_mib << 20)
    encoder = build_encoder(model, limit, 1, cache)
    advance(encoder, everybody.histories)

    def step() -> Tensor:
        return advance(encoder, everybody.histories)

    median_ms(lambda: everybody.add(1), step, WARM_UP)
    step_ms = median_ms(lambda: everybody.add(1), step, STEPS)
    check(model, everybody.histories, step())
    whole, given = WholeEncoder(model, limit, 1), list[UserHistory]()

    def forget() -> None:
        given[:] = everybody.copies()

    recompute_ms = median_ms(forget, lambda: advance(whole, given), RECOMPUTED)
    return {"step_ms": round(step_ms, 3), "recompute_ms": round(recompute_ms, 3)}


def measure_step(
    *,
    users: int = 256,
    lengths: list[int] | None = None,
    cache_mib: int = 4_096,
    out: Path | None = None,
) -> None:
    """Time one new event of each of many users on a GPU, beside encoding all histories again.

    Args:
        users: who get an event at the same time
        lengths: events of the histories before, such as 2000 16000, which are the default
        cache_mib: memory for kept histories
        out: JSONL file that gets a line for each length
    """
    for length in lengths or [2_000, 16_000]:
        with torch.inference_mode():
            measures = measure(users, length, cache_mib)
        line = {"scenario": "step", "users": users, "history": length, **measures}
        print(line, flush=True)
        if out is not None:
            append_result(out, {**line, **provenance("cuda")})
