"""The trainings that docs/selector.md is made of, those that decide most first."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from blossomrec.experiments.recall_training import RecallTraining
from blossomrec.experiments.selector_jobs import LogJob, RecallJob

SEEDS = (0, 1, 2)
# Histories of the study of sizes: 128 blocks of 16 events.
SIZES_LENGTH = 2_048
# One thing changed at a time; the perceptron looks at two blocks, whatever their size.
SIZES: tuple[dict[str, Any], ...] = (
    {},
    {"top_n": 1},
    {"top_n": 2},
    {"top_n": 8},
    {"top_n": 16},
    {"block_size": 8, "compress_window": 16},
    {"block_size": 32, "compress_window": 64},
    {"block_size": 64, "compress_window": 128},
    {"block_size": 8, "top_n": 8, "compress_window": 16},
    {"block_size": 32, "top_n": 2, "compress_window": 64},
    {"compress_window": 16},
    {"layers": 1},
    {"layers": 3},
    {"kv_heads": 4},
    {"kv_heads": 8},
    {"sinks": 32},
)
CONTROL = (
    "mlp",
    "mean",
    "full",
    "short",
    "mlp-frozen",
    "mean-untaught",
    "mlp-detached",
    "mlp-gated",
    "mlp-branch",
)
# Enough where a candidate learns at all, and not too long where it does not.
FEW_STEPS: dict[str, Any] = {"first_steps": 1_000, "stage_steps": 400, "last_steps": 1_000}


def study(logs: Path, runs: Path) -> list[RecallJob | LogJob]:
    """All jobs, in the order in which they are to be begun.

    Args:
        logs: folder of the prepared logs ml-1m and assist2017.
        runs: gets the run folders.
    """
    return [
        *_recall(("mlp", "mean"), SEEDS, needs=240, last_steps=6_000),
        *_recall(("full",), (0,), needs=180, last_steps=6_000),
        *_on_log(logs / "ml-1m", runs, {"mlp": 150, "mean": 150, "full": 80}),
        *_on_log(logs / "assist2017", runs, {"mlp": 90, "mean": 90, "full": 50}),
        *_recall(("mlp-gated", "mlp-branch"), (0,), needs=120, **FEW_STEPS),
        *_recall(CONTROL, (0,), needs=60, control=True, **FEW_STEPS),
        *_sizes("mlp", 0),
        *_sizes("mean", 0),
        *_sizes("mlp", 1),
        *_sizes("mean", 1),
    ]


def _recall(
    candidates: Iterable[str], seeds: Iterable[int], *, needs: float, **training: Any
) -> list[RecallJob]:
    return [
        RecallJob(name, {}, RecallTraining(seed=seed, **training), needs)
        for seed in seeds
        for name in candidates
    ]


def _sizes(candidate: str, seed: int) -> list[RecallJob]:
    training = RecallTraining(length=SIZES_LENGTH, seed=seed, **FEW_STEPS)
    jobs = [
        RecallJob(candidate, model, training, needs=60)
        for model in SIZES
        # Mean pooling looks at the block alone.
        if candidate != "mean" or list(model) != ["compress_window"]
    ]
    if candidate == "mlp":
        jobs.append(RecallJob("mlp-no-own", {}, training, needs=60))
    return jobs


def _on_log(log: Path, runs: Path, needs: dict[str, float]) -> list[LogJob]:
    """``needs``: of each candidate."""
    return [
        LogJob(name, log.name, log.parent, runs, seed, needs=least)
        for seed in SEEDS
        for name, least in needs.items()
    ]
