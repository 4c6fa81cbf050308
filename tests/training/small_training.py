"""A small training that every test of this room can begin, break off and compare."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from blossomrec.config import ModelConfig, RunConfig, TrainingConfig
from blossomrec.data.split import make_split
from blossomrec.models import build_model
from blossomrec.training import TrainingResult, train

SMALL_MODEL = ModelConfig(
    time_gap="off",
    request_time="off",
    content="off",
    event_kinds="off",
    request_kind="off",
    context="off",
    user_table="off",
    repeats="off",
    max_len=20,
    hidden_size=16,
    layers=1,
    heads=2,
    kv_heads=1,
    inner_size=16,
    dropout=0.2,
    block_size=4,
    compress_window=8,
    top_n=1,
    window=2,
)
SMALL_TRAINING = TrainingConfig(
    epochs=3,
    tokens_per_batch=160,
    learning_rate=5e-3,
    warmup_steps=5,
    ema_decay=0.0,
    device="cpu",
    negatives=16,
)

# Of a line of the log, what the clock and the memory decide.
MEASURED = ("events_per_second", "seconds", "total_seconds", "peak_mib")


class CrashError(Exception):
    """The end of a process, as far as the loop is concerned."""


def crash():
    raise CrashError


def small_config(**options: Any) -> RunConfig:
    """The small configuration with options of model or training changed."""
    names = {entry.name for entry in dataclasses.fields(ModelConfig)}
    model = {name: value for name, value in options.items() if name in names}
    training = {name: value for name, value in options.items() if name not in names}
    return RunConfig(
        dataclasses.replace(SMALL_MODEL, **model), dataclasses.replace(SMALL_TRAINING, **training)
    )


def small_train(log: Any, config: RunConfig, run: Path, **options: Any) -> TrainingResult:
    """Build the model from the seed and train it."""
    torch.manual_seed(config.training.seed)
    model = build_model(config.model, log.num_items, log.tables)
    options = {"progress": False, **options}
    return train(model, log, make_split(log, config.evaluation), config, run, **options)


def logged(run: Path) -> list[dict[str, Any]]:
    """The log of a run without what time and memory decide."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in lines]


def outcome(run: Path) -> tuple[bytes, bytes, list[dict[str, Any]]]:
    """All that two runs with the same outcome share: best weights, final state, log."""
    last = max((run / "checkpoints").glob("step-*"))
    return (
        (run / "model.safetensors").read_bytes(),
        (last / "tensors.safetensors").read_bytes(),
        logged(run),
    )
