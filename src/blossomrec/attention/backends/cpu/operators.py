"""The C++ functions as operators that PyTorch knows: autograd and ``torch.compile``."""

from __future__ import annotations

import torch
from torch import Tensor

from blossomrec.attention.backends.cpu.library import Problem, Rotation, library
from blossomrec.attention.backends.operator import (
    empty_gradients,
    operator,
    register_gradient,
    register_opposite,
)

# By query heads of a group, up to so many: longest histories of which all scores are computed, as
# products of matrices, forward and backward. Heads that share a block's keys look them up together,
# which saves more the more they are.
SHORT_LENGTHS = {1: (512, 512), 2: (256, 384), 4: (128, 224), 8: (64, 192)}


def _empty_select_blocks(q, block_keys, cu_seqlens, numbers):
    return q.new_empty(len(q), block_keys.shape[1], numbers[1], dtype=torch.int32)


@operator(_empty_select_blocks)
def select_blocks(q: Tensor, block_keys: Tensor, cu_seqlens: Tensor, numbers: list[int]) -> Tensor:
    """The most important blocks of each event, int32 [T, G, top_n], see the reference."""
    block_size, top_n, _, _, causal, _ = numbers
    groups = block_keys.shape[1]
    selected = q.new_empty(len(q), groups, top_n, dtype=torch.int32)
    tensors = {
        "q": q.contiguous(),
        "block_keys": block_keys.contiguous(),
        "cu_seqlens": cu_seqlens,
        "selected": selected,
    }
    sizes = _sizes(q, cu_seqlens, groups) | {"top_n": top_n, "causal": causal}
    _run("blossom_select", q, groups, block_size, tensors, sizes)
    return selected


def _empty_block_shares(q, k, cu_seqlens, samples, blocks, block_size, causal):
    return q.new_empty(*samples.shape, k.shape[1], blocks)


@operator(_empty_block_shares)
def block_shares(
    q: Tensor,
    k: Tensor,
    cu_seqlens: Tensor,
    samples: Tensor,
    blocks: int,
    block_size: int,
    causal: bool,
) -> Tensor:
    """Share of attention that blocks get from some events, see the selector, [X, C, G, J].

    samples: integers [X, C], packed rows; blocks: J, at least those of the longest history.
    """
    groups = k.shape[1]
    shares = q.new_empty(*samples.shape, groups, blocks)
    tensors = {
        "q": q.contiguous(),
        "k": k.to(q.dtype).contiguous(),
        "cu_seqlens": cu_seqlens,
        "samples": samples.long().contiguous(),
        "shares": shares,
    }
    sizes = _sizes(q, cu_seqlens, groups)
    sizes |= {"count": samples.numel(), "blocks": blocks, "causal": causal}
    _run("blossom_samples", q, groups, block_size, tensors, sizes)
    return shares


def _empty_rotate(x, angles, back, per_group, block_size):
    return x.new_empty(x.shape)


@operator(_empty_rotate)
def rotate(x: Tensor, angles: Tensor, back: bool, per_group: int, block_size: int) -> Tensor:
    """Rotary embedding of x [T, n, d] by angles [T, 2, pairs], see ``rotate_by``.

    back: by the opposite angles. The last two tell which library is asked.
    """
    x, angles = x.contiguous(), angles.contiguous()
    rotated = x.new_empty(x.shape)
    call = Rotation(
        x.data_ptr(),
        angles.data_ptr(),
        rotated.data_ptr(),
        len(x),
        x.shape[1],
        angles.shape[2],
        back,
        torch.get_num_threads(),
    )
    library(x.shape[2], per_group, block_size).run("blossom_rotate", call)
    return rotated


# The gradient of a rotation is the one back.
register_opposite("cpu_rotate", rotate)


def _empty_attend(q, k, v, gates, selected, cu_seqlens, numbers):
    return q.new_empty(q.shape), q.new_empty(2, *q.shape[:2])


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
    """Both paths fused: out [T, H, d], and the lse [2, T, H], see ``source/problem.h``."""
    out, lse = q.new_empty(q.shape), q.new_empty(2, *q.shape[:2])
    given = [q, k, v, gates, selected, cu_seqlens]
    short = short_lengths(q.shape[1] // k.shape[1])[0]
    _run_paths("blossom_forward", given, {"out": out, "lse": lse}, numbers, short)
    return out, lse


@operator(empty_gradients)
def attend_backward(
    grad: Tensor, given: list[Tensor], kept: list[Tensor], numbers: list[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and gates.

    given: the tensors that ``attend`` was given; kept: its lse.
    """
    grad_q, grad_k, grad_v, grad_gates = (x.new_empty(x.shape) for x in given[:4])
    tensors = {"grad": grad.contiguous(), "lse": kept[0]}
    tensors |= {"grad_q": grad_q, "grad_k": grad_k, "grad_v": grad_v, "grad_gates": grad_gates}
    # Of two softmaxes the gradients of the gates are the means.
    tensors["means"] = torch.empty_like(grad_gates) if numbers[-1] else grad_gates
    short = short_lengths(given[0].shape[1] // given[1].shape[1])[1]
    _run_paths("blossom_backward", given, tensors, numbers, short)
    return grad_q, grad_k, grad_v, grad_gates


register_gradient("cpu_attend", attend_backward, kept=1)


def short_lengths(per_group: int) -> tuple[int, int]:
    """Of ``SHORT_LENGTHS``; none where more query heads share a key/value head."""
    return next((both for most, both in SHORT_LENGTHS.items() if per_group <= most), (0, 0))


def _run_paths(
    name: str, given: list[Tensor], others: dict[str, Tensor], numbers: list[int], short: int
) -> None:
    """Call a function of both paths, given what :func:`attend` was."""
    *rows, cu_seqlens = given
    names = ("q", "k", "v", "gates", "selected")
    tensors = {name: x.contiguous() for name, x in zip(names, rows, strict=True)}
    tensors |= {"cu_seqlens": cu_seqlens, **others}
    block_size, top_n, window, sinks, causal, is_union = numbers
    q, groups = given[0], given[1].shape[1]
    sizes = _sizes(q, cu_seqlens, groups)
    sizes |= {"top_n": top_n, "window": window, "sinks": sinks}
    sizes |= {"causal": causal, "is_union": is_union, "short_length": short}
    _run(name, q, groups, block_size, tensors, sizes)


def _run(
    name: str,
    q: Tensor,
    groups: int,
    block_size: int,
    tensors: dict[str, Tensor],
    sizes: dict[str, int],
) -> None:
    pointers = {field: tensor.data_ptr() for field, tensor in tensors.items()}
    problem = Problem(**pointers, **sizes, threads=torch.get_num_threads())
    library(q.shape[2], q.shape[1] // groups, block_size).run(name, problem)


def _sizes(q: Tensor, cu_seqlens: Tensor, groups: int) -> dict[str, int]:
    return {"rows": len(q), "histories": len(cu_seqlens) - 1, "groups": groups}
