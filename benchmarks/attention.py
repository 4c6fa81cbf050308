"""Time and peak memory of Blossom attention beside dense attention, over the length of histories.

    python benchmarks/attention.py --out results/speed.jsonl

One line a measurement. The whole operation is timed: compress, select, attend, gate. Parity with
the reference is checked first; where it fails nothing is timed. Each measurement runs in a process
of its own, so that one does not see the memory of another.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from blossomrec.attention import blossom_attention
from blossomrec.attention.compress import MeanCompression, MLPCompression
from blossomrec.evaluation.results import append_result, provenance

HEADS, KV_HEADS, HEAD_DIM = 8, 2, 16
LENGTHS = (256, 1_024, 4_096, 16_384)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-3}
# Events of all histories together.
TOKENS = {"cpu": 16_384, "cuda": 131_072}
REPEATS = {"cpu": 5, "cuda": 20}


def inputs(
    length: int, tokens: int, device: str, dtype: torch.dtype
) -> tuple[list[Tensor], Tensor]:
    """Random q, k, v and gates of ``tokens // length`` histories, and where those start."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(heads: int, size: int) -> Tensor:
        return torch.randn(tokens, heads, size, device=device, generator=generator).to(dtype)

    tensors = [draw(heads, HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    tensors.append(draw(HEADS, 2).sigmoid())
    cu_seqlens = torch.arange(0, tokens + 1, length, dtype=torch.int32, device=device)
    return [tensor.requires_grad_() for tensor in tensors], cu_seqlens


def operation(impl: str, compress: str, length: int, tokens: int, device: str, dtype: torch.dtype):
    """A function without arguments that runs forward and returns the output, and its leaves."""
    (q, k, v, gates), cu_seqlens = inputs(length, tokens, device, dtype)
    if impl == "dense":
        rows = [x.view(-1, length, *x.shape[1:]).transpose(1, 2) for x in (q, k, v)]

        def dense() -> Tensor:
            return scaled_dot_product_attention(*rows, is_causal=True, enable_gqa=True)

        return dense, [q, k, v]
    torch.manual_seed(0)
    if compress == "mlp":
        compression = MLPCompression(head_dim=HEAD_DIM, block_size=16, window=32)
    else:
        compression = MeanCompression(block_size=16)
    compression = compression.to(device, dtype).requires_grad_(False)

    def blossom() -> Tensor:
        keys = compression(k.detach(), cu_seqlens)
        return blossom_attention(q, k, v, keys, gates, cu_seqlens, impl=impl)[0]

    return blossom, [q, k, v, gates]


def milliseconds(run: Callable[[], Any], device: str) -> float:
    """Median time of a call, after two to warm up."""
    times = []
    for repeat in range(REPEATS[device] + 2):
        _synchronize(device)
        start = time.perf_counter()
        run()
        _synchronize(device)
        if repeat >= 2:
            times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def peak_mib(run: Callable[[], Any], device: str) -> float:
    """Memory that a call takes besides what was there before it."""
    if device == "cuda":
        _synchronize(device)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        _synchronize(device)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10


def measure(impl: str, compress: str, length: int, device: str, dtype: torch.dtype) -> dict:
    """One line of results."""
    forward, leaves = operation(impl, compress, length, TOKENS[device], device, dtype)

    def both() -> None:
        out = forward()
        torch.autograd.grad(out, leaves, torch.ones_like(out))

    # First, while this process has allocated nothing else.
    memory = peak_mib(both, device)
    return {
        "bench": "attention",
        "impl": impl,
        "length": length,
        "tokens": TOKENS[device],
        "heads": HEADS,
        "kv_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "dtype": str(dtype).removeprefix("torch."),
        "compress": compress,
        "forward_ms": round(milliseconds(forward, device), 3),
        "forward_backward_ms": round(milliseconds(both, device), 3),
        "peak_mib": round(memory, 1),
        **provenance(device),
    }


def parity(impl: str, device: str, dtype: torch.dtype) -> float:
    """Relative error of the output against the reference with the same blocks, at length 256."""
    (q, k, v, gates), cu_seqlens = inputs(256, 1_024, device, dtype)
    keys = MeanCompression(block_size=16)(k.detach(), cu_seqlens)
    out, selected = blossom_attention(q, k, v, keys, gates, cu_seqlens, impl=impl)
    exact = [x.detach().double() for x in (q, k, v, keys, gates)]
    expected, _ = blossom_attention(*exact, cu_seqlens, selected=selected, impl="reference")
    return float((out.detach().double() - expected).norm() / expected.norm())


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--dtype", default=None, choices=("float32", "bfloat16"))
    arguments.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    arguments.add_argument("--out", type=Path, default=Path("results/speed.jsonl"))
    given = arguments.parse_args()
    default = "bfloat16" if given.device == "cuda" else "float32"
    dtype = getattr(torch, given.dtype or default)
    error = parity("torch", given.device, dtype)
    if not error <= TOLERANCE[dtype]:
        print(f"parity is broken: relative error {error:.1e}; nothing is timed")
        return 1
    spawn = multiprocessing.get_context("spawn")
    for length in given.lengths:
        for impl, compress in (("torch", "mean"), ("torch", "mlp"), ("dense", "none")):
            with spawn.Pool(1) as process:
                line = process.apply(measure, (impl, compress, length, given.device, dtype))
            append_result(given.out, line)
            print(
                f"{length:>7} {impl:<6} {compress:<5} forward {line['forward_ms']:8.2f} ms, "
                f"forward and backward {line['forward_backward_ms']:8.2f} ms, "
                f"peak {line['peak_mib']:8.1f} MiB"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
