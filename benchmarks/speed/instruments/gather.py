# Options of a launch, and what a kernel counts with, are not in Python's types.
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false
"""The rate at which a GPU gathers blocks of keys and values: the limit of sparse attention."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from benchmarks.speed.bench_options import Layout
from benchmarks.speed.instruments.timing import milliseconds
from blossomrec.attention.packing import positions

WARPS = (1, 2, 4)


@triton.jit
def gather_kernel(blocks, chosen, sums, N: tl.constexpr, SIZE: tl.constexpr):
    """sums [P]: all numbers of the ``N`` chosen blocks, rows of ``SIZE``, of each program."""
    program = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, SIZE)
    total = tl.zeros([SIZE], tl.float32)
    for number in tl.static_range(N):
        block = tl.load(chosen + program * N + number).to(tl.int64)
        total += tl.load(blocks + block * SIZE + place).to(tl.float32)
    tl.store(sums + program, tl.sum(total, 0))


def gather_sums(blocks: Tensor, chosen: Tensor, warps: int = 1) -> Tensor:
    """blocks [J, size] (size a power of two), chosen int32 [P, n] -> float32 [P]."""
    sums = torch.empty(len(chosen), device=blocks.device)
    gather_kernel[(len(chosen),)](
        blocks, chosen, sums, N=chosen.shape[1], SIZE=blocks.shape[1], num_warps=warps
    )
    return sums


def random_choice(
    cu_seqlens: Tensor, total: int, kv_heads: int, block_size: int, top_n: int
) -> Tensor:
    """For every event and key/value head ``top_n`` random blocks of its past, int32 [T * G, n].

    Rows of a table in which the heads of a block stand one after another.
    """
    place = positions(cu_seqlens, total)
    first = (torch.arange(total, device=place.device) - place) // block_size
    back = torch.rand(total, kv_heads, top_n, device=place.device)
    block = first[:, None, None] + (back * (place // block_size)[:, None, None]).long()
    head = torch.arange(kv_heads, device=place.device)[:, None]
    return (block * kv_heads + head).to(torch.int32).flatten(0, 1)


def gather_rate(
    cu_seqlens: Tensor,
    total: int,
    layout: Layout,
    dtype: torch.dtype,
    *,
    block_size: int,
    top_n: int,
) -> float:
    """Bytes a second with which every event fetches random blocks of its own history.

    A block of a head is one run of keys and values, and nothing is computed but a sum; the fastest
    of some numbers of warps counts. Where the keys and values of the histories under way fit, they
    come from the second-level cache.
    """
    size = block_size * 2 * layout.head_dim
    rows = (total // block_size + 1) * layout.kv_heads
    blocks = torch.zeros(rows, size, dtype=dtype, device=cu_seqlens.device)
    chosen = random_choice(cu_seqlens, total, layout.kv_heads, block_size, top_n)
    fastest = min(
        milliseconds(functools.partial(gather_sums, blocks, chosen, warps), "cuda")
        for warps in WARPS
    )
    return chosen.numel() * size * blocks.element_size() / fastest * 1e3
