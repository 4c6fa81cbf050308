"""The trainings that docs/selector.md is made of, those that decide most first."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.selector.recall_options import RecallTraining
from benchmarks.selector.selector_jobs import LogJob, RecallJob

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


# Ways to train at the last length: options of the training, of the model, and the candidates that
# each is tried with.
DRIFT: tuple[tuple[dict[str, Any], dict[str, Any], tuple[str, ...]], ...] = (
    ({}, {}, ("mean", "mlp", "mean-dense", "mlp-dense")),
    ({"last_steps": 6_000}, {}, ("mean", "mlp", "mean-dense", "mlp-dense")),
    ({"early_top_n": 16, "early_steps": 1_500}, {}, ("mean", "mlp")),
    ({"tokens_per_batch": 65_536, "last_steps": 1_500}, {}, ("mean", "mlp")),
    ({"last_steps": 1_500}, {}, ("mean", "mlp")),
    ({"learning_rate": 1e-3}, {}, ("mean", "mlp")),
    ({}, {"attention_impl": "triton"}, ("mlp",)),
    ({"early_top_n": 16, "early_steps": 300}, {}, ("mean", "mlp")),
    ({"selector_weight": 0.3}, {}, ("mean", "mlp")),
    ({}, {"rotary_share": 0.25}, ("mean", "mlp")),
    ({"selector_weight": 3.0}, {}, ("mean",)),
    ({"selector_falls": True}, {}, ("mean",)),
    ({"tokens_per_batch": 32_768}, {}, ("mean",)),
    ({"beta2": 0.98}, {}, ("mean",)),
    ({"weight_decay": 0.3}, {}, ("mean",)),
)


def drift(seed: int = 0) -> list[RecallJob]:
    """What decides whether a model goes on to find more at the last length, or less."""
    return [
        RecallJob(
            name,
            model,
            RecallTraining(seed=seed, **{"stage_steps": 600, **training}),
            needs=60,
            task="recall-drift",
        )
        for training, model, names in DRIFT
        for name in names
    ]


def study_recall() -> list[RecallJob]:
    """Trainings on associative recall, in the order in which they are to be begun."""
    return [
        *_recall(("mlp", "mean"), SEEDS, needs=60),
        *_recall(("full", "short", "mlp-frozen"), (0,), needs=40),
        *_recall(CONTROL, (0,), needs=30, control=True, **FEW_STEPS),
        *_recall(("mlp-gated", "mlp-branch"), (0,), needs=60, seconds=100, **FEW_STEPS),
        *_sizes("mlp", 0),
        *_sizes("mean", 0),
        *_sizes("mlp", 1),
        *_sizes("mean", 1),
    ]


def study_logs(logs: Path, runs: Path) -> list[LogJob]:
    """Trainings on real histories.

    Args:
        logs: folder of the prepared logs ml-1m and assist2017.
        runs: gets the run folders.
    """
    return [
        *_on_log(logs / "ml-1m", runs, {"mlp": 150, "mean": 150, "full": 80}),
        *_on_log(logs / "assist2017", runs, {"mlp": 90, "mean": 90, "full": 50}),
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
    return [
        RecallJob(candidate, model, training, needs=20)
        for model in SIZES
        # Mean pooling looks at the block alone.
        if candidate != "mean" or list(model) != ["compress_window"]
    ]


def _on_log(log: Path, runs: Path, needs: dict[str, float]) -> list[LogJob]:
    """``needs``: of each candidate."""
    return [
        LogJob(name, log.name, log.parent, runs, seed, needs=least)
        for seed in SEEDS
        for name, least in needs.items()
    ]
