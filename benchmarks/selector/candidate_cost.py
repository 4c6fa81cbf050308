"""Time of a training step and of an encoding, by the candidate that selects."""

from __future__ import annotations

import statistics
import time

import torch

from benchmarks.results import provenance
from benchmarks.selector.selector_candidates import CANDIDATES, PUBLISHED, build_candidate
from blossomrec.config import ModelConfig
from blossomrec.data.batch import Batch


def cost_lines(names: list[str], rounds: int = 7) -> list[dict]:
    """Median time of a training step and of encoding; each round takes every candidate once."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    length, tokens = (4_096, 131_072) if device.type == "cuda" else (1_024, 8_192)
    items = torch.randint(0, 10_000, (tokens,), device=device)
    cu_seqlens = torch.arange(0, tokens + 1, length, dtype=torch.int32, device=device)
    batch = Batch(items, cu_seqlens, length)
    config = ModelConfig(max_len=length, **PUBLISHED)
    models = {name: build_candidate(name, config, 10_000).to(device) for name in names}

    def encode(name: str, training: bool) -> float:
        distils = training and CANDIDATES[name].distilled
        rows = torch.arange(tokens, device=device) if distils else None
        began = time.perf_counter()
        with (
            torch.set_grad_enabled(training),
            torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"),
        ):
            given = models[name].train(training).encode(batch, distil_rows=rows)
        if training:
            loss = given.hidden.float().square().mean()
            (loss if given.selector_loss is None else loss + given.selector_loss).backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - began)

    times: dict[tuple[str, bool], list[float]] = {}
    for number in range(rounds + 2):
        for name in names:
            for training in (True, False):
                taken = encode(name, training)
                if number >= 2:
                    times.setdefault((name, training), []).append(taken)
    return [
        {
            "task": "cost",
            "candidate": name,
            "seed": 0,
            "n": config.top_n,
            "block_size": config.block_size,
            "layers": config.layers,
            "length": length,
            "metrics": {
                "training_ms": round(statistics.median(times[name, True]), 2),
                "encoding_ms": round(statistics.median(times[name, False]), 2),
            },
            **provenance(device),
        }
        for name in names
    ]
