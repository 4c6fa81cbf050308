"""Options of a model so small that tests of the whole path can train it."""

from __future__ import annotations

from typing import Any

MODEL: dict[str, Any] = {
    "max_len": 20,
    "hidden_size": 16,
    "layers": 1,
    "heads": 2,
    "kv_heads": 1,
    "inner_size": 16,
    "block_size": 4,
    "top_n": 1,
    "window": 2,
    "compress_window": 8,
    # Of ids alone; what a model sees besides has tests of its own.
    "time_gap": "off",
    "request_time": "off",
    "content": "off",
    "event_kinds": "off",
    "request_kind": "off",
    "context": "off",
    "user_table": "off",
    "repeats": "off",
}
TRAINING: dict[str, Any] = {
    "epochs": 1,
    "tokens_per_batch": 256,
    "learning_rate": 5e-3,
    "warmup_steps": 5,
    "device": "cpu",
}
SMALL = {**MODEL, **TRAINING}


def small_flags(**others: Any) -> list[str]:
    """The options as flags of the command line; ``others`` are of the training."""
    flags = []
    for section, options in (("model", MODEL), ("training", TRAINING | others)):
        for name, value in options.items():
            flags += [f"--{section}.{name.replace('_', '-')}", str(value)]
    return flags
