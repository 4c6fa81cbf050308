"""Whether training steps replayed as CUDA graphs compute what single operations do."""

from __future__ import annotations

import dataclasses
import math
import time

import torch

from benchmarks.selector.recall_options import RecallTraining
from benchmarks.selector.recall_step import RecallStep, optimizer_of, stage_batches
from benchmarks.selector.selector_candidates import CANDIDATES, PUBLISHED, build_candidate
from blossomrec.config import ModelConfig


def parity(names: list[str], length: int = 8_192, steps: int = 40) -> bool:
    """Whether graphs and single operations give the same losses; prints them and their times."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training = RecallTraining()
    batches = next(stage_batches(training, length, 0)).to(device)[:steps]
    same = True
    for name in names:
        losses, times = [], []
        for graph in (False, True):
            torch.manual_seed(0)
            config = ModelConfig(max_len=length, norm="pre", dropout=0.0, **PUBLISHED)
            model = build_candidate(name, config, training.items).to(device)
            weight = training.selector_weight if CANDIDATES[name].distilled else 0.0
            options = dataclasses.replace(training, selector_weight=weight)
            optimizer = optimizer_of(model, options, device)
            step = RecallStep(model, optimizer, options, length, graph=graph, device=device)
            losses.append([])
            for number, batch in enumerate(batches):
                if number == steps // 2:
                    began = time.perf_counter()
                step(batch)
                if number < steps // 2:
                    losses[-1].append(float(step.loss))
            float(step.loss)
            times.append(2e3 * (time.perf_counter() - began) / steps)
        worst = max(abs(a - b) / abs(a) for a, b in zip(*losses, strict=True))
        good = worst < 1e-3 and all(map(math.isfinite, losses[1]))
        same &= good
        print(
            f"{name}: losses {losses[0][0]:.4f} to {losses[0][-1]:.4f} and {losses[1][-1]:.4f}, "
            f"apart by at most {worst:.1e}; {times[0]:.2f} and {times[1]:.2f} ms a step"
            f"{'' if good else ': DIFFERENT'}",
            flush=True,
        )
    return same
