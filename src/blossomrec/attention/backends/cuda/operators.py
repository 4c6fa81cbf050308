"""The kernels as operators that PyTorch knows: autograd and ``torch.compile`` see them whole."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from blossomrec.attention.backends.cuda import compiler, launch
from blossomrec.attention.backends.cuda.launch import (
    BLOCK_SIZE,
    Attention,
    attention_kernels,
    selection_kernels,
)
from blossomrec.attention.backends.gpu.geometry import tile_table
from blossomrec.attention.backends.operator import empty_gradients, operator, register_gradient


def _empty_select_blocks(q, block_keys, cu_seqlens, numbers):
    return q.new_empty(len(q), block_keys.shape[1], numbers[1], dtype=torch.int32)


@operator(_empty_select_blocks)
def select_blocks(q: Tensor, block_keys: Tensor, cu_seqlens: Tensor, numbers: list[int]) -> Tensor:
    """The most important blocks of each event, int32 [T, G, top_n], see the reference."""
    _, top_n, _, _, causal, *_ = numbers
    total, groups, q = len(q), block_keys.shape[1], _rows(q)
    exact = block_keys.dtype == torch.bfloat16
    kernels = selection_kernels(q, groups, top_n, bool(causal), 1 if exact else 3)
    keys = _rows(block_keys.contiguous())
    if not exact:
        whole = keys.float()
        keys = q.new_empty(3, *whole.shape, dtype=torch.bfloat16)
        kernels.split_keys(-(-whole.numel() // 32), whole, keys, whole.numel())
    table = _table(cu_seqlens, total)
    selected = q.new_empty(total, groups, top_n, dtype=torch.int32)
    kernels.select_blocks(
        len(table) * groups,
        q,
        keys,
        table,
        selected,
        len(table),
        len(block_keys),
        *q.stride()[:2],
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
    """Both paths and the gate: out [T, H, d], and the lse [2, T, H] of the softmaxes.

    Of a union the first is that of its softmax, the second the same less the bias: what weights of
    either path are found by, from scores without the bias.
    """
    total, heads, size = q.shape
    groups, gates = k.shape[1], _aligned(gates)
    q, k, v = map(_rows, (q, k, v))
    table = _table(cu_seqlens, total)
    tiles = len(table) * groups
    kernels = attention_kernels(q, groups, numbers)
    packed = _packed(kernels, k, v, table, transposed=True)
    out, lse = q.new_empty(q.shape), q.new_empty(2, total, heads, dtype=torch.float32)
    kernels.forward(
        tiles,
        q,
        k,
        v,
        gates,
        packed,
        selected,
        table,
        out,
        lse,
        total,
        _scale(size),
        *_strides(q, k, v),
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
    q, k, v = map(_rows, (q, k, v))
    gates, out, grad = map(_aligned, (gates, out, grad))
    kernels = attention_kernels(q, k.shape[1], numbers)
    table = _table(cu_seqlens, len(q))
    all_given = Given(kernels, q, k, v, gates, selected, table, out, lse, grad)
    gradients = _wide_gradients if q.shape[2] in launch.WIDE else _gradients
    return gradients(all_given)


class Given(NamedTuple):
    """What gradients are computed from: rows as the kernels read them."""

    kernels: Attention
    q: Tensor
    k: Tensor
    v: Tensor
    gates: Tensor
    selected: Tensor
    table: Tensor
    out: Tensor
    lse: Tensor
    grad: Tensor

    @property
    def warps(self) -> int:
        """One for each tile and group."""
        return len(self.table) * self.k.shape[1]

    def empty(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of q, k, v and gates."""
        grad_q, grad_k, grad_v = (x.new_empty(x.shape) for x in (self.q, self.k, self.v))
        return grad_q, grad_k, grad_v, torch.empty_like(self.gates)


def _gradients(given: Given) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kernels, q, k, v, gates, selected, table, out, lse, grad = given
    total, _, size = q.shape
    scale, strides = _scale(size), _strides(q, k, v)
    grad_q, grad_k, grad_v, grad_gates = given.empty()
    packed, shifts = _packed(kernels, k, v, table, transposed=False), torch.empty_like(lse)
    rows = (q, k, v, gates, packed, selected, table, out, lse, grad)
    to = (grad_q, grad_gates, shifts)
    kernels.backward_queries(given.warps, *rows, *to, total, scale, *strides)
    order, bounds, owners = _inverse(kernels, selected, table, launch.CHUNK[size])
    chunks = len(owners)
    sums = q.new_empty(chunks, 2, BLOCK_SIZE, size, dtype=torch.float32)
    rows, sizes = (q, gates, packed, table, lse, shifts, grad), (scale, *_strides(q))
    kernels.list_sums(chunks, *rows, order, bounds, owners, sums, chunks, *sizes)
    kernels.backward_keys(given.warps, *rows, grad_k, grad_v, order, bounds, sums, total, *sizes)
    return grad_q, grad_k, grad_v, grad_gates


def _wide_gradients(given: Given) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kernels, q, k, v, gates, selected, table, out, lse, grad = given
    total, heads, size = q.shape
    sizes = (_scale(size), *_strides(q, k, v))
    grad_q, grad_k, grad_v, grad_gates = given.empty()
    # Gradients of gates, and of queries, without what chosen blocks give, which is added last.
    of_near, records = torch.empty_like(lse), lse.new_empty(*lse.shape, 4)
    rows, to = (q, k, v, gates, table, out, lse, grad), (grad_q, of_near, records)
    kernels.backward_queries(given.warps, *rows, *to, total, *sizes)
    order, bounds, owners = _inverse(kernels, selected, table, launch.CHUNK[size])
    chunks = len(owners)
    sums = q.new_empty(chunks, 2, BLOCK_SIZE, size, dtype=torch.float32)
    # What R heads get from each choice, and a number beside it.
    parts = q.new_empty(*selected.shape, heads // k.shape[1], size)
    slopes = lse.new_empty(parts.shape[:-1])
    rows, to = (q, k, v, table, records, grad), (sums, parts, slopes)
    kernels.list_sums(chunks, *rows, order, bounds, owners, *to, chunks, *sizes)
    kernels.backward_keys(given.warps, *rows, grad_k, grad_v, order, bounds, *to, total, *sizes)
    warps = -(-grad_q.numel() // (8 * compiler.WARP))
    to = (grad_q, grad_gates)
    kernels.add_choices(warps, selected, parts, slopes, of_near, *to, total * heads)
    return grad_q, grad_k, grad_v, grad_gates


register_gradient("cuda_attend", attend_backward, kept=2)


def _inverse(
    kernels: Attention, selected: Tensor, table: Tensor, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Inverse lists, see keys.cuh.

    Returns:
        places in the flattened selection, list after list, int32; where each list begins and ends,
        int32 [tiles * G, 2]; the list of each chunk, int32.
    """
    tiles, groups, entries = len(table), selected.shape[1], selected.numel()
    most = max(1, min(launch.MAX_SEGMENTS, launch.MAX_COUNTS // max(1, tiles * groups)))
    size = launch.SEGMENT * -(-tiles // (launch.SEGMENT * most))
    segments = -(-tiles // size) if tiles else 0
    ranks, order = torch.empty_like(selected), selected.new_empty(entries)
    counts = selected.new_empty(segments, tiles, groups)
    bounds = selected.new_empty(tiles * groups, 2)
    owners, used = selected.new_empty(-(-entries // chunk)), selected.new_empty(1)
    warps = segments * groups * -(-tiles // launch.COUNTERS)
    sizes, shape = (tiles, size), (segments, warps, len(owners))
    kernels.count_choices(warps, selected, table, ranks, counts, owners, used, *sizes, *shape)
    lists = -(-len(bounds) // compiler.WARP)
    kernels.find_lists(lists, table, counts, bounds, owners, used, *sizes)
    kernels.order_choices(len(bounds), selected, table, ranks, counts, bounds, order, *sizes)
    return order, bounds, owners


def _packed(kernels: Attention, k: Tensor, v: Tensor, table: Tensor, *, transposed: bool) -> Tensor:
    """Keys and values block by block as tensor cores take them, [tiles, G, 2, S, d]."""
    groups, size = k.shape[1:]
    packed = k.new_empty(len(table), groups, 2, BLOCK_SIZE, size)
    kernels.pack_blocks(len(table) * groups, k, v, table, packed, *_strides(k, v), int(transposed))
    return packed


def _table(cu_seqlens: Tensor, total: int) -> Tensor:
    """Blocks of the histories; of the fields kernels read all but the number of the history."""
    return tile_table(cu_seqlens, total, BLOCK_SIZE, BLOCK_SIZE, launch.TILES)


def _rows(x: Tensor) -> Tensor:
    """Rows of heads as the kernels read them: at any stride, eight numbers at a time."""
    aligned = x.stride(-1) == 1 and not any(stride % 8 for stride in x.stride()[:2])
    return x if aligned and x.data_ptr() % 16 == 0 else _copy(x)


def _aligned(x: Tensor) -> Tensor:
    """A contiguous tensor that begins where eight numbers may be read at a time."""
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else _copy(x)


def _copy(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def _strides(*rows: Tensor) -> list[int]:
    return [stride for x in rows for stride in x.stride()[:2]]


def _scale(size: int) -> float:
    """Scores are exponents of two: the change of base is one factor with 1/sqrt(d)."""
    return math.log2(math.e) / math.sqrt(size)
