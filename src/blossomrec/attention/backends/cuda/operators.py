"""The kernels as operators that PyTorch knows: autograd and ``torch.compile`` see them whole."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from blossomrec.attention.backends.cuda import compiler, launch
from blossomrec.attention.backends.cuda.launch import (
    BLOCK_SIZE,
    SHORT_LISTS,
    STARTS_OF_A_WARP,
    Attention,
    attention_kernels,
    selection_kernels,
    tiles_held,
)
from blossomrec.attention.backends.gpu.geometry import tile_table
from blossomrec.attention.backends.operator import empty_gradients, operator, register_gradient


def _empty_select_blocks(q, block_keys, cu_seqlens, numbers):
    return q.new_empty(len(q), block_keys.shape[1], numbers[1], dtype=torch.int32)


@operator(_empty_select_blocks)
def select_blocks(q: Tensor, block_keys: Tensor, cu_seqlens: Tensor, numbers: list[int]) -> Tensor:
    """The most important blocks of each event, int32 [T, G, top_n], see the reference."""
    _, top_n, _, _, causal, _ = numbers
    total, groups, q = len(q), block_keys.shape[1], _rows(q)
    exact = block_keys.dtype == torch.bfloat16
    parts = 1 if exact else 3
    kernels = selection_kernels(q, groups, top_n, bool(causal), parts)
    keys = _rows(block_keys.contiguous())
    if not exact:
        whole = keys.float()
        keys = q.new_empty(3, *whole.shape, dtype=torch.bfloat16)
        kernels.split_keys(-(-whole.numel() // 32), whole, keys, whole.numel())
    table = _table(cu_seqlens, total)
    selected = q.new_empty(total, groups, top_n, dtype=torch.int32)
    kernels.select_blocks(
        len(table) // tiles_held(q, groups, top_n, parts) * groups,
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
    kernels = attention_kernels(q, groups, numbers, tiles < SHORT_LISTS)
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
    total, heads, size = q.shape
    groups, scale, gates = k.shape[1], _scale(size), _aligned(gates)
    q, k, v, grad = *map(_rows, (q, k, v)), _rows(grad.contiguous())
    table = _table(cu_seqlens, total)
    tiles = len(table) * groups
    kernels = attention_kernels(q, groups, numbers, tiles < SHORT_LISTS)
    is_wide = size in launch.WIDE
    # Kernels of wide heads take keys and values as they are.
    packed = k if is_wide else _packed(kernels, k, v, table, transposed=False)
    grad_q, grad_k, grad_v = (x.new_empty(x.shape) for x in (q, k, v))
    grad_gates, shifts = torch.empty_like(gates), torch.empty_like(lse)
    # What R heads get from each choice, and a number beside it.
    of_choices = selected.shape if is_wide else (0, *selected.shape[1:])
    parts = q.new_empty(*of_choices, heads // groups, size)
    slopes = parts.new_empty(parts.shape[:-1], dtype=torch.float32)
    # Without what chosen blocks give, which is added last.
    of_near = torch.empty_like(lse) if is_wide else grad_gates
    lists = torch.empty_like(selected, dtype=_list_type(tiles))
    kernels.backward_queries(
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
        grad,
        grad_q,
        of_near,
        shifts,
        lists,
        len(table),
        total,
        scale,
        *_strides(q, k, v),
    )
    order, ordered, starts = _inverse(kernels, lists, tiles)
    entries = len(order)
    chunks = -(-entries // launch.CHUNK[size])
    sums = q.new_empty(chunks, 2, BLOCK_SIZE, size, dtype=torch.float32)
    blocks = (k, v, gates, table) if is_wide else (gates, packed, table)
    rows = (q, *blocks, lse, shifts, grad)
    to = (sums, parts, slopes) if is_wide else (sums,)
    sizes = (scale, *(_strides(q, k, v) if is_wide else _strides(q)))
    kernels.list_sums(chunks, *rows, order, starts, ordered, *to, entries, tiles, *sizes)
    kernels.backward_keys(tiles, *rows, grad_k, grad_v, order, starts, *to, total, *sizes)
    if is_wide:
        warps = -(-grad_q.numel() // (8 * compiler.WARP))
        kernels.add_choices(
            warps, selected, parts, slopes, of_near, grad_q, grad_gates, total * heads
        )
    return grad_q, grad_k, grad_v, grad_gates


register_gradient("cuda_attend", attend_backward, kept=2)


def _list_type(lists: int) -> torch.dtype:
    return torch.int16 if lists < SHORT_LISTS else torch.int32


def _inverse(kernels: Attention, lists: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inverse lists, given which list each choice is in, see keys.cuh.

    Returns:
        places in the flattened selection, list after list, int64; the list of each; where each list
        begins, int32 [count + 1].
    """
    # Sorted as they are told apart by place, each list is in the order of its events.
    ordered, order = lists.flatten().sort(stable=True)
    starts, entries = lists.new_empty(count + 1, dtype=torch.int32), len(order)
    kernels.list_starts(entries // STARTS_OF_A_WARP + 1, ordered, starts, entries, count)
    return order, ordered, starts


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
