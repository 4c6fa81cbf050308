"""Time and peak memory of Blossom attention beside dense attention, over the length of histories.

    python benchmarks/attention.py --out results/speed.jsonl

One line a measurement. The whole operation is timed: compress, select, attend, gate. Parity with
the reference is checked first; where it fails nothing is timed. On a GPU the peers are dense
attention through cuDNN and through FlashAttention, with the same heads and with the fastest layout
of the same hidden size, two heads of 64. On a CPU each measurement runs in a process of its own, so
that one does not see the memory of another.
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
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from blossomrec.attention import blossom_attention
from blossomrec.attention.api import IMPLEMENTATIONS
from blossomrec.attention.compress import MeanCompression, MLPCompression
from blossomrec.evaluation.results import append_result, provenance

LENGTHS = {
    "cpu": (256, 1_024, 4_096, 16_384),
    "cuda": (256, 1_024, 4_096, 16_384, 65_536),
}
BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
# Query heads, key/value heads, size of a head.
PUBLISHED = (8, 2, 16)
CASES = {
    "cpu": [
        (PUBLISHED, "torch", "mean"),
        (PUBLISHED, "torch", "mlp"),
        (PUBLISHED, "dense", "none"),
    ],
    "cuda": [
        *(
            (layout, *case)
            for layout in (PUBLISHED, (4, 2, 64))
            for case in (
                ("triton", "mean"),
                ("triton", "mlp"),
                ("cudnn", "none"),
                ("flash", "none"),
            )
        ),
        ((2, 2, 64), "cudnn", "none"),
        ((2, 2, 64), "flash", "none"),
    ],
}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-3}
# Events of all histories together.
TOKENS = {"cpu": 16_384, "cuda": 131_072}
REPEATS = {"cpu": 5, "cuda": 30}


def inputs(
    layout: tuple[int, int, int], length: int, tokens: int, device: str, dtype: torch.dtype
) -> tuple[list[Tensor], Tensor]:
    """Random q, k, v and gates of ``tokens // length`` histories, and where those start."""
    query_heads, kv_heads, size = layout
    generator = torch.Generator(device).manual_seed(0)

    def draw(heads: int, size: int) -> Tensor:
        return torch.randn(tokens, heads, size, device=device, generator=generator).to(dtype)

    tensors = [draw(heads, size) for heads in (query_heads, kv_heads, kv_heads)]
    tensors.append(draw(query_heads, 2).sigmoid())
    cu_seqlens = torch.arange(0, tokens + 1, length, dtype=torch.int32, device=device)
    return [tensor.requires_grad_() for tensor in tensors], cu_seqlens


def operation(
    layout: tuple[int, int, int],
    impl: str,
    compress: str,
    length: int,
    device: str,
    dtype: torch.dtype,
):
    """A function without arguments that runs forward and returns the output, and its leaves."""
    (q, k, v, gates), cu_seqlens = inputs(layout, length, TOKENS[device], device, dtype)
    if impl in ("dense", *BACKENDS):
        # As the kernels like them best: [B, heads, L, d], side by side.
        rows = [
            x.detach().view(-1, length, *x.shape[1:]).transpose(1, 2).contiguous()
            for x in (q, k, v)
        ]
        rows = [x.requires_grad_() for x in rows]
        grouped = layout[0] != layout[1]

        def dense() -> Tensor:
            with sdpa_kernel(BACKENDS.get(impl, list(SDPBackend.__members__.values()))):
                return scaled_dot_product_attention(*rows, is_causal=True, enable_gqa=grouped)

        return dense, rows
    torch.manual_seed(0)
    if compress == "mlp":
        compression = MLPCompression(head_dim=layout[2], block_size=16, window=32)
    else:
        compression = MeanCompression(block_size=16)
    compression = compression.to(device, dtype).requires_grad_(False)

    def blossom() -> Tensor:
        keys = compression(k.detach(), cu_seqlens)
        return blossom_attention(q, k, v, keys, gates, cu_seqlens, impl=impl)[0]

    return blossom, [q, k, v, gates]


def milliseconds(run: Callable[[], Any], device: str) -> float:
    """Median time of a call, after some to warm up."""
    if device == "cuda":
        return _device_milliseconds(run)
    times = []
    for repeat in range(REPEATS[device] + 2):
        start = time.perf_counter()
        run()
        if repeat >= 2:
            times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def _device_milliseconds(run: Callable[[], Any]) -> float:
    """On the device's own clock, calls following each other without a wait."""
    for _ in range(10):
        run()
    marks = []
    for _ in range(REPEATS["cuda"]):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        marks.append((start, end))
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in marks)


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


def measure(
    layout: tuple[int, int, int],
    impl: str,
    compress: str,
    length: int,
    device: str,
    dtype: torch.dtype,
) -> dict:
    """One line of results."""
    forward, leaves = operation(layout, impl, compress, length, device, dtype)
    direction = torch.ones_like(leaves[0])

    def both() -> None:
        torch.autograd.grad(forward(), leaves, direction)

    if device == "cuda":
        both()  # what is compiled or planned once is not what a call takes
    # First, while this process has allocated nothing else.
    memory = peak_mib(both, device)
    return {
        "bench": "attention",
        "impl": impl,
        "length": length,
        "tokens": TOKENS[device],
        "heads": layout[0],
        "kv_heads": layout[1],
        "head_dim": layout[2],
        "dtype": str(dtype).removeprefix("torch."),
        "compress": compress,
        "forward_ms": round(milliseconds(forward, device), 3),
        "forward_backward_ms": round(milliseconds(both, device), 3),
        "peak_mib": round(memory, 1),
        **provenance(device),
    }


def parity(layout: tuple[int, int, int], impl: str, device: str, dtype: torch.dtype) -> float:
    """Relative error of the output against the reference with the same blocks, at length 256."""
    (q, k, v, gates), cu_seqlens = inputs(layout, 256, 1_024, device, dtype)
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
    arguments.add_argument("--lengths", type=int, nargs="+")
    arguments.add_argument("--out", type=Path, default=Path("results/speed.jsonl"))
    given = arguments.parse_args()
    default = "bfloat16" if given.device == "cuda" else "float32"
    dtype = getattr(torch, given.dtype or default)
    for layout, impl in {(layout, impl) for layout, impl, _ in CASES[given.device]}:
        if impl in IMPLEMENTATIONS:
            error = parity(layout, impl, given.device, dtype)
            if not error <= TOLERANCE[dtype]:
                print(f"parity of {impl} is broken: relative error {error:.1e}; nothing is timed")
                return 1
    spawn = multiprocessing.get_context("spawn")
    for length in given.lengths or LENGTHS[given.device]:
        for case in CASES[given.device]:
            options = (*case, length, given.device, dtype)
            if given.device == "cuda":
                line = measure(*options)
            else:
                with spawn.Pool(1) as process:
                    line = process.apply(measure, options)
            append_result(given.out, line)
            layout, impl, compress = case
            print(
                f"{length:>7} {layout} {impl:<6} {compress:<5} "
                f"forward {line['forward_ms']:8.2f} ms, "
                f"forward and backward {line['forward_backward_ms']:8.2f} ms, "
                f"peak {line['peak_mib']:8.1f} MiB"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
