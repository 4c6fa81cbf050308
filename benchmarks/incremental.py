"""Time of one more event for one user, over the length of the history that came before.

    python benchmarks/incremental.py --out results/speed.jsonl

One layer, projections included, three ways: Blossom attention over a kept state (``torch``),
Blossom attention over the whole history again (``recompute``), and dense attention over kept keys
and values (``dense-cache``). Parity with the whole history is checked first; where it fails nothing
is timed. Each measurement runs in a process of its own, so that one does not see the memory of
another. Times are medians over events in a row. ``peak_mib`` is what the user costs: the state that
is kept, with the room in which it grows, or the memory of running the whole history once.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attention import peak_mib
from blossomrec.attention import AttentionState, BlossomAttention
from blossomrec.evaluation.results import append_result, provenance
from blossomrec.models.full import FullAttention

HEADS, KV_HEADS, HEAD_DIM = 8, 2, 16
LENGTHS = (256, 4_096, 16_384, 65_536)
IMPLEMENTATIONS = (
    ("torch", "mean"),
    ("torch", "mlp"),
    ("recompute", "mean"),
    ("recompute", "mlp"),
    ("dense-cache", "none"),
)
TOLERANCE = 1e-5
# One more event is cheap and can be repeated often; the whole history is not.
REPEATS = {"torch": 320, "dense-cache": 320, "recompute": 5}
WARM_UP = {"torch": 32, "dense-cache": 32, "recompute": 1}


def layer(compress: str, device: str) -> nn.Module:
    """One attention layer with seeded weights; ``compress`` "none" is dense attention."""
    torch.manual_seed(0)
    sizes = {"hidden_size": HEADS * HEAD_DIM, "num_heads": HEADS, "num_kv_heads": KV_HEADS}
    made = (
        FullAttention(**sizes)
        if compress == "none"
        else BlossomAttention(compress=compress, **sizes)
    )
    return made.to(device).eval()


def kept_state(attention: nn.Module, length: int, device: str) -> AttentionState:
    """A state of ``length`` random keys and values, without the memory of computing them."""
    dense = isinstance(attention, FullAttention)
    empty = attention.start()
    generator = torch.Generator(device).manual_seed(1)

    def draw(rows: int) -> Tensor:
        return torch.randn(rows, KV_HEADS, HEAD_DIM, device=device, generator=generator)

    keys, values = draw(length), draw(length)
    blocks = draw(0 if dense else length // empty.block_size)
    tensors = {"keys": keys, "values": values, "block_keys": blocks}
    return AttentionState.from_dict(empty.to_dict() | tensors)


def one_event(
    impl: str, compress: str, length: int, device: str
) -> tuple[Callable[[], Any], list[AttentionState]]:
    """A function that attends from one more event after ``length``, and the state it keeps."""
    attention = layer(compress, device)
    x = torch.randn(1, HEADS * HEAD_DIM, device=device)
    if impl == "recompute":
        history = torch.randn(length + 1, HEADS * HEAD_DIM, device=device)
        cu_seqlens = torch.tensor([0, length + 1], dtype=torch.int32, device=device)
        return lambda: attention(history, cu_seqlens, max_length=length + 1), []
    states = [kept_state(attention, length, device)]

    def extend() -> None:
        # Other input every time: equal keys would make equal scores.
        _, (states[0],) = attention.extend_batch(x.normal_(), [1], states)

    return extend, states


@torch.inference_mode()
def measure(impl: str, compress: str, length: int, device: str) -> dict[str, Any]:
    """One line of results."""
    run, states = one_event(impl, compress, length, device)
    # First, while this process has allocated nothing else.
    memory = peak_mib(run, device)
    if states:
        memory = states[0].nbytes / 2**20
    times = []
    for repeat in range(WARM_UP[impl] + REPEATS[impl]):
        _synchronize(device)
        start = time.perf_counter()
        run()
        _synchronize(device)
        if repeat >= WARM_UP[impl]:
            times.append(time.perf_counter() - start)
    return {
        "bench": "incremental",
        "impl": impl,
        "length": length,
        "tokens": 1,
        "heads": HEADS,
        "kv_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "dtype": "float32",
        "compress": compress,
        "forward_ms": round(1e3 * statistics.median(times), 4),
        "forward_backward_ms": None,
        "peak_mib": round(memory, 1),
        **provenance(device),
    }


@torch.no_grad()
def parity(compress: str, device: str) -> float:
    """Relative error of the last events over a kept state against the whole history."""
    attention, length = layer(compress, device), 400
    x = torch.randn(length, HEADS * HEAD_DIM, device=device)
    cu_seqlens = torch.tensor([0, length], dtype=torch.int32, device=device)
    expected = attention(x, cu_seqlens, max_length=length).hidden[300:]
    state, parts = attention.start(), []
    for part in x.split([300, *[1] * 100]):
        output, (state,) = attention.extend_batch(part, [len(part)], [state])
        parts.append(output.hidden)
    return float((torch.cat(parts[1:]) - expected).norm() / expected.norm())


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    arguments.add_argument("--out", type=Path, help="JSON lines are appended here; none without")
    given = arguments.parse_args()
    for compress in ("mean", "mlp", "none"):
        error = parity(compress, given.device)
        if not error <= TOLERANCE:
            print(f"parity is broken ({compress}): relative error {error:.1e}; nothing is timed")
            return 1
    spawn = multiprocessing.get_context("spawn")
    for length in given.lengths:
        for impl, compress in IMPLEMENTATIONS:
            with spawn.Pool(1) as process:
                line = process.apply(measure, (impl, compress, length, given.device))
            if given.out:
                append_result(given.out, line)
            print(
                f"{length:>7} {impl:<11} {compress:<5} {line['forward_ms']:10.3f} ms, "
                f"peak {line['peak_mib']:8.1f} MiB",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
