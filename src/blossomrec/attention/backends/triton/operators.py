# A kernel takes numbers where it declares constexpr.
# pyright: reportArgumentType=false
"""The kernels as operators that PyTorch knows: autograd and ``torch.compile`` see them whole."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from blossomrec.attention.backends.gpu.geometry import tile_table
from blossomrec.attention.backends.gpu.kernel_pattern import Pattern
from blossomrec.attention.backends.gpu.products import next_power_of_2
from blossomrec.attention.backends.operator import empty_gradients, operator, register_gradient
from blossomrec.attention.backends.triton.inverse_lists import InverseLists
from blossomrec.attention.backends.triton.kernels.backward_keys import backward_keys_kernel
from blossomrec.attention.backends.triton.kernels.backward_queries import backward_queries_kernel
from blossomrec.attention.backends.triton.kernels.forward import forward_kernel
from blossomrec.attention.backends.triton.kernels.partial_sums import (
    SPAN,
    list_sums_kernel,
    sink_sums_kernel,
)
from blossomrec.attention.backends.triton.kernels.selection import selection_kernel
from blossomrec.attention.backends.triton.launch import PRECISION, launch_for


def _empty_select_blocks(q, block_keys, cu_seqlens, numbers):
    return q.new_empty(len(q), block_keys.shape[1], numbers[1], dtype=torch.int32)


@operator(_empty_select_blocks)
def select_blocks(q: Tensor, block_keys: Tensor, cu_seqlens: Tensor, numbers: list[int]) -> Tensor:
    """The most important blocks of each event, int32 [T, G, top_n], see the reference."""
    block_size, top_n, _, _, causal, _ = numbers
    total, heads, size = q.shape
    groups = block_keys.shape[1]
    launch = launch_for(size, heads // groups, q.dtype)
    queries, blocks = launch.tile
    table = tile_table(cu_seqlens, total, queries, block_size)
    selected = q.new_empty(total, groups, top_n, dtype=torch.int32)
    selection_kernel[(len(table) * groups,)](
        q,
        block_keys,
        table,
        selected,
        *q.stride()[:2],
        *block_keys.stride()[:2],
        G=groups,
        R=heads // groups,
        D=size,
        S=block_size,
        N=top_n,
        PLACES=next_power_of_2(top_n),
        QUERIES=queries,
        BLOCKS=blocks,
        CAUSAL=bool(causal),
        PRECISION=PRECISION,
        **launch.selection.options(),
    )
    return selected


def _empty_attend(q, k, v, gates, selected, cu_seqlens, numbers):
    return q.new_empty(q.shape), q.new_empty(2, *q.shape[:2], dtype=torch.float32)


@operator(_empty_attend)
def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    selected: Tensor,
    cu_seqlens: Tensor,
    numbers: list[int],
) -> tuple[Tensor, Tensor]:
    """Both paths fused: out [T, H, d], and the lse [2, T, H], see ``forward_kernel``."""
    total, heads, size = q.shape
    sizes = _sizes(q, k, numbers)
    launch = launch_for(size, sizes["R"], q.dtype)
    pattern = _pattern(numbers, total)
    table = tile_table(cu_seqlens, total, pattern.block_size, pattern.block_size)
    out = q.new_empty(q.shape)
    lse = q.new_empty(2, total, heads, dtype=torch.float32)
    forward_kernel[(len(table) * sizes["G"],)](
        q,
        k,
        v,
        gates,
        selected,
        table,
        out,
        lse,
        total,
        _scale(size),
        *_strides(q, k, v),
        **sizes,
        **pattern.query_constants(launch.keys),
        PRECISION=PRECISION,
        **launch.forward.options(),
    )
    return out, lse


@operator(empty_gradients)
def attend_backward(
    grad: Tensor, given: list[Tensor], kept: list[Tensor], numbers: list[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and gates.

    given: the tensors that ``attend`` was given; kept: its results.
    """
    q, k, v, gates, selected, cu_seqlens = given
    out, lse = kept
    total, _, size = q.shape
    sizes = _sizes(q, k, numbers)
    groups, strides, scale = sizes["G"], _strides(q, k, v), _scale(size)
    launch = launch_for(size, sizes["R"], q.dtype)
    pattern = _pattern(numbers, total)
    table = tile_table(cu_seqlens, total, pattern.block_size, pattern.block_size)
    grad = grad.contiguous()
    grad_q, grad_k, grad_v = (x.new_empty(x.shape) for x in (q, k, v))
    grad_gates, shifts = torch.empty_like(gates), torch.empty_like(lse)
    lists = torch.empty_like(selected)
    no_list = len(table) * groups
    backward_queries_kernel[(no_list,)](
        q,
        k,
        v,
        gates,
        selected,
        table,
        out,
        lse,
        grad,
        grad_q,
        grad_gates,
        shifts,
        lists,
        total,
        no_list,
        scale,
        *strides,
        **sizes,
        **pattern.query_constants(launch.keys),
        PRECISION=PRECISION,
        **launch.backward_queries.options(),
    )
    inverse = InverseLists.of(lists, no_list, launch.chunk)
    options = {"PRECISION": PRECISION, **launch.backward_keys.options()}
    rows = (q, k, v, gates, table, lse, shifts, grad)
    list_sums = q.new_empty(len(inverse.owners), 2, pattern.block_size, size, dtype=torch.float32)
    if len(inverse.owners):
        list_sums_kernel[(len(inverse.owners),)](
            *rows,
            inverse.order,
            inverse.starts,
            inverse.chunk_starts,
            inverse.owners,
            list_sums,
            no_list,
            scale,
            *strides,
            **sizes,
            CHUNK=launch.chunk,
            S=pattern.block_size,
            WINDOW=pattern.window,
            SINKS=pattern.sinks,
            CAUSAL=pattern.causal,
            **options,
        )
    spans = (len(table) // SPAN.value + len(cu_seqlens)) * pattern.sink_blocks * groups
    sink_sums = q.new_empty(spans, 2, pattern.block_size, size, dtype=torch.float32)
    if pattern.sink_blocks:
        sink_sums_kernel[(no_list, pattern.sink_blocks)](
            *rows,
            sink_sums,
            total,
            scale,
            *strides,
            G=groups,
            R=sizes["R"],
            D=size,
            UNION=sizes["UNION"],
            S=pattern.block_size,
            WINDOW=pattern.window,
            SINKS=pattern.sinks,
            SINK_BLOCKS=pattern.sink_blocks,
            CAUSAL=pattern.causal,
            **options,
        )
    backward_keys_kernel[(no_list,)](
        *rows,
        grad_k,
        grad_v,
        inverse.order,
        inverse.starts,
        inverse.chunk_starts,
        list_sums,
        sink_sums,
        total,
        scale,
        *strides,
        **sizes,
        CHUNK=launch.chunk,
        **pattern.key_constants(),
        **options,
    )
    return grad_q, grad_k, grad_v, grad_gates


register_gradient("triton_attend", attend_backward, kept=2)


def _pattern(numbers: list[int], total: int) -> Pattern:
    block_size, _, window, sinks, causal, _ = numbers
    return Pattern.of(block_size, window, sinks, bool(causal), total)


def _sizes(q: Tensor, k: Tensor, numbers: list[int]) -> dict[str, int]:
    heads, groups = q.shape[1], k.shape[1]
    _, top_n, _, _, _, is_union = numbers
    sizes = {"G": groups, "R": heads // groups, "D": q.shape[2]}
    return {**sizes, "N": top_n, "UNION": bool(is_union)}


def _strides(*rows: Tensor) -> list[int]:
    return [stride for x in rows for stride in x.stride()[:2]]


def _scale(size: int) -> float:
    """Scores are exponents of two: the change of base is one factor with 1/sqrt(d)."""
    return math.log2(math.e) / math.sqrt(size)
