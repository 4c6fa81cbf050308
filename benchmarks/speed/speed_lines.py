"""One measurement as one line, for people and for a JSONL file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.results import append_result, provenance
from benchmarks.speed.bench_options import Layout

Line = dict[str, Any]
DIGITS = {"forward_ms": 4, "forward_backward_ms": 4, "peak_mib": 1}


def result_line(
    bench: str,
    impl: str,
    layout: Layout,
    *,
    length: int,
    tokens: int,
    dtype: torch.dtype,
    device: str,
    compress: str = "none",
    forward_ms: float | None = None,
    forward_backward_ms: float | None = None,
    peak_mib: float | None = None,
    **others: Any,
) -> Line:
    """The fields that all benches share, then ``others``, then machine, versions and commit.

    Args:
        length: events of a history; 0 where histories differ.
        tokens: events of all histories together.
        compress: how block keys are made; "none" without.
        forward_ms, forward_backward_ms: time of a call; None where it is not measured.
        peak_mib: memory that forward and backward take besides what was there before.
    """
    measured = {
        "forward_ms": forward_ms,
        "forward_backward_ms": forward_backward_ms,
        "peak_mib": peak_mib,
    }
    return {
        "bench": bench,
        "impl": impl,
        "length": length,
        "tokens": tokens,
        **layout._asdict(),
        "dtype": str(dtype).removeprefix("torch."),
        "compress": compress,
        **{
            name: None if value is None else round(value, DIGITS[name])
            for name, value in measured.items()
        },
        **others,
        **provenance(device),
    }


def publish(line: Line, out: Path | None) -> None:
    """Print a line and append it to the file, if there is one."""
    if out is not None:
        append_result(out, line)
    print(describe(line), flush=True)


def describe(line: Line) -> str:
    """A line as text."""
    heads = f"{line['heads']}/{line['kv_heads']}/{line['head_dim']}"
    length = f"{line['length']:,}" if line["length"] else "ragged"
    name = f"{length:>7} {heads:<7} {line['impl']:<12} {line['compress']:<5}"
    parts = []
    if line.get("users", 1) > 1:
        parts.append(f"{line['users']} users")
    if "lessons" in line and line["compress"] != "none":
        parts.append("distilled" if line["lessons"] else "not distilled")
    if line.get("graph"):
        parts.append("graph")
    shown = {
        "forward_ms": "forward {:.3f} ms",
        "forward_backward_ms": "forward and backward {:.3f} ms",
        "peak_mib": "peak {:.1f} MiB",
        "epoch_seconds": "epoch {:.2f} s",
        "tokens_per_second": "{:,} events/s",
    }
    parts += [form.format(line[name]) for name, form in shown.items() if line.get(name) is not None]
    return f"{name} {', '.join(parts)}"
